"""A server that does what a test says, for moments that a real one shows once in a thousand runs."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from brokerkit.adapters.nats.api import Api
from brokerkit.adapters.nats.competing import CompetingSubscription
from brokerkit.adapters.nats.failure import NoAnswer
from brokerkit.adapters.nats.keyed import KeyedSubscription
from brokerkit.adapters.nats.link import Incoming, Link, Listener
from brokerkit.adapters.nats.member import Site
from brokerkit.adapters.nats.returns import Returns
from brokerkit.adapters.nats.source import Source
from brokerkit.adapters.nats.tallies import Tallies
from brokerkit.delivery import Delivery
from brokerkit.message import Address

NOTHING: dict[str, Any] = {
    "num_ack_pending": 0,
    "ack_floor": {"stream_seq": 0},
    "delivered": {"stream_seq": 0, "consumer_seq": 0},
}


class StubLink:
    """
    A connection whose other end is the test.

    written: all that was written, in order. answer: what a call returns or raises, after it was written.
    """

    where = "nats://stub"

    def __init__(self) -> None:
        self.up = True
        self.on_back: set[Callable[[], None]] = set()
        self.written: list[tuple[str, bytes]] = []
        self.refused_listens = 0
        self.answer: Callable[[str, bytes], Awaitable[bytes]] = self.says_ok
        self._inboxes = 0

    async def says_ok(self, _subject: str, _data: bytes) -> bytes:
        return b"{}"

    def new_inbox(self) -> str:
        self._inboxes += 1
        return f"_INBOX.{self._inboxes}"

    async def listen(self, subject: str, on_message: Callable[[Incoming], None]) -> Listener:
        if self.refused_listens:
            self.refused_listens -= 1
            text = "the client is closed"
            raise NoAnswer(text)
        return Listener(subject, on_message)

    async def drain(self, listener: Listener, timeout: float = 0) -> None:
        pass

    async def publish(self, subject: str, data: bytes = b"", *, reply: str = "") -> None:
        if not self.up:
            text = "there is no connection"
            raise NoAnswer(text, written=False)
        self.written.append((subject, data))

    async def call(
        self, subject: str, data: bytes = b"", *, timeout: float, before: Sequence[tuple[str, bytes]] = ()
    ) -> Incoming:
        for each in (*before, (subject, data)):
            await self.publish(*each)
        return Incoming("", "", await self.answer(subject, data), {})

    def data_for(self, start: str) -> list[bytes]:
        """Return what was written to subjects that begin so."""
        return [data for subject, data in self.written if subject.startswith(start)]

    def asked(self, stream: str, name: str) -> int:
        """Return how many messages were asked for in all."""
        requests = self.data_for(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}")
        return sum(json.loads(each)["batch"] for each in requests)


class StubApi:
    """What the server knows of consumers: `info` says it, by name."""

    def __init__(self) -> None:
        self.info: Callable[[str], Awaitable[dict[str, Any]]] = self.knows_nothing
        self.unpinned: list[str] = []

    async def knows_nothing(self, _name: str) -> dict[str, Any]:
        return NOTHING

    async def consumer(self, _stream: str, name: str, *, timeout: float = 5.0) -> dict[str, Any]:
        try:
            async with asyncio.timeout(timeout):
                return await self.info(name)
        except TimeoutError as error:
            text = "no answer"
            raise NoAnswer(text) from error

    async def stream(self, _name: str) -> dict[str, Any]:
        return {}

    async def unpin(self, _stream: str, name: str, _group: str) -> None:
        self.unpinned.append(name)


def pinned(pin: str, **more: Any) -> dict[str, Any]:
    """Return what the server knows of a consumer that is pinned."""
    return {**NOTHING, **more, "priority_groups": [{"group": "own", "pinned_client_id": pin}]}


class World:
    """A link, an API, and what was lost."""

    def __init__(self, *, place: str = "inlet", lease: float = 3.0) -> None:
        self.link = StubLink()
        self.api = StubApi()
        self.lost: list[Delivery] = []
        link, api = cast("Link", self.link), cast("Api", self.api)
        at = Address("c", "g", cast("Any", place))
        self.site = Site(
            link=link,
            api=api,
            at=at,
            lease=lease,
            on_lost=self._on_lost,
            returns=Returns(),
            tallies=Tallies(link, api, Address("c", "g", "inlet"), 1),
            forget=lambda _: None,
        )

    async def _on_lost(self, deliveries: Sequence[Delivery], _: float) -> None:
        self.lost.extend(deliveries)

    async def competing(self) -> CompetingSubscription:
        member = CompetingSubscription(self.site, 100)
        if self.site.at.place == "dead":
            await member.start([], ("c--dead", "g"))
        else:
            await member.start([("c", "g")], ("c--inlet", "g"))
        return member

    async def keyed(self, *, partitions: int = 1, pin_timeout: float = 3.0) -> KeyedSubscription:
        member = KeyedSubscription(self.site, pin_timeout=pin_timeout, pins=True)
        await member.start([("c", f"g--p{index}") for index in range(partitions)], ("c--inlet", "g"))
        return member


def comes(
    source: Source,
    seq: int,
    *,
    pin: str | None = None,
    key: str | None = None,
    deliveries: int = 1,
    stored: int = 1000,
) -> None:
    """Have a message arrive, as the link passes it on."""
    headers = {name: value for name, value in (("Nats-Pin-Id", pin), ("bk-key", key)) if value is not None}
    reply = f"$JS.ACK.{source.stream}.{source.name}.{deliveries}.{seq}.{seq}.{stored}.0"
    source._hear(Incoming(f"{source.stream}.p0", reply, b"%d" % seq, headers))


def stand_still(seconds: float) -> None:
    """Let time pass in which this (virtual) loop does not turn."""
    loop: Any = asyncio.get_running_loop()
    loop._now += seconds
