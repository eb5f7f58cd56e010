"""Stand-ins for one connection: they do nothing until a test says so, which is how interleavings are made."""

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from brokerkit.adapter import Order
from brokerkit.adapters.rabbitmq.subscription import RabbitSubscription
from brokerkit.delivery import Delivery
from brokerkit.errors import ConnectionLost
from brokerkit.message import Address

AT = Address("c", "g", "inlet")


class StubChannel:
    """Writes down what is done with it; `open_gate` and `close_gate` hold a consume and a close up."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: BaseException | None = None
        self.open_gate = asyncio.Event()
        self.close_gate = asyncio.Event()
        self.open_gate.set()
        self.close_gate.set()
        self.refuses = False
        self.arrive: Callable[[Any], None] = lambda _: None
        self.cancel: Callable[[], None] = lambda: None

    @property
    def alive(self) -> bool:
        return not self.closed.done()

    async def consume(
        self, queue: str, on_message: Callable[[Any], None], on_cancel: Callable[[], None], **_: Any
    ) -> None:
        await self.open_gate.wait()
        if self.refuses:
            raise ConnectionLost(queue)
        self.log.append(f"consume {queue}")
        self.arrive, self.cancel = on_message, on_cancel

    async def declare_own_queue(self) -> str:
        return "own"

    async def declare_queue(self, name: str, *_: object, **__: object) -> int:
        if self.refuses:
            raise ConnectionLost(name)
        return 1

    async def delete_queue(self, name: str) -> None:
        self.log.append(f"delete {name}")

    async def bind_queue(self, *names: str) -> None:
        self.log.append(f"bind {names}")

    def say(self, body: bytes, exchange: str) -> None:
        self.log.append(f"say {body!r} {exchange}")

    def ack(self, acks: Sequence[tuple[int, bool]]) -> bool:
        self.log.append(f"ack {[tag for tag, _ in acks]}")
        return True

    async def close(self) -> None:
        await self.close_gate.wait()
        if not self.closed.done():
            self.closed.set_result(None)
        self.log.append("close")


class StubClient:
    """A connection whose channels are stubs; `prepare` is called with each, and `gate` holds it up before it is given out."""

    def __init__(self, prepare: Callable[[StubChannel], None] = lambda _: None) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: BaseException | None = None
        self.alive = True
        self.channels: list[StubChannel] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._prepare = prepare

    async def channel(self, **_: Any) -> StubChannel:
        await self.gate.wait()
        channel = StubChannel()
        self._prepare(channel)
        self.channels.append(channel)
        return channel


class StubLink:
    """A link that gives the same connection each time."""

    def __init__(self, client: StubClient) -> None:
        self._client = client

    async def client(self) -> StubClient:
        return self._client


class StubPulse:
    """Doubtful or not, and what the broker says then; spinning on it fails instead of hanging."""

    def __init__(self, *, doubtful: bool = False, sure: bool = True) -> None:
        self.doubtful = doubtful
        self.answer = sure
        self.asked = 0

    async def sure(self) -> bool:
        self.asked += 1
        assert self.asked < 100, "asked again and again, without a turn for anybody else"
        return self.answer


def subscription(
    client: StubClient, *, order: Order = "none", forwarder: Any = None
) -> tuple[RabbitSubscription, list[Delivery]]:
    """Make one whose signs travel by the same connection; also what it loses."""
    lost: list[Delivery] = []

    async def on_lost(deliveries: Sequence[Delivery], _: float) -> None:
        lost.extend(deliveries)

    link: Any = StubLink(client)
    return RabbitSubscription(AT, order, on_lost, forwarder, link, prefetch=10), lost


def message(tag: int, *, exchange: str = "c", key: str = "c", **headers: Any) -> Any:
    """Make what the client hands over."""
    return SimpleNamespace(
        delivery=SimpleNamespace(delivery_tag=tag, exchange=exchange, routing_key=key, redelivered=False),
        header=SimpleNamespace(properties=SimpleNamespace(content_type=None, headers=headers)),
        body=str(tag).encode(),
    )


def waiting_copy(tag: int) -> Any:
    """Make a copy that has to be sent on to a rung."""
    return message(tag, exchange="c--g--return", key="in", **{"bk-wait": "5000"})


async def turns(count: int = 20) -> None:
    """Give everybody some turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)
