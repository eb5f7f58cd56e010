"""
A scripted broker of one group, for tests of the engine and the settler: deterministic, and wrong on demand.
"""

import asyncio
import functools
import json
import math
from bisect import insort
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Self

from brokerkit.adapter import Capabilities, OnLost, Order, Start
from brokerkit.delivery import Delivery
from brokerkit.engine import Engine, Settings
from brokerkit.envelope import lay
from brokerkit.errors import ConnectionLost, SendError, SettleError, Stale
from brokerkit.event import Event
from brokerkit.hooks import Alarm, HookEvent, Settled
from brokerkit.message import Address, Header, Message
from brokerkit.settlement import ACK, Ack, Retry, Settlement
from brokerkit.testing.clock import VirtualClock, run_virtual

P = ParamSpec("P")

CHANNEL = "orders"
GROUP = "billing"
INLET = Address(CHANNEL, GROUP, "inlet")
DEAD = Address(CHANNEL, GROUP, "dead")


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on a loop whose time costs none."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_virtual(test(*args, **kwargs))

    return run


def event_message(
    name: str, key: str | None = None, headers: tuple[Header, ...] = (), data: bytes = b"{}"
) -> Message:
    """Return a message whose event has this id."""
    event = Event(id=name, source="test", type="thing", data=data, datacontenttype="application/json")
    return lay(event, "structured", key=None if key is None else key.encode(), headers=headers)


def name_of(thing: Delivery | Message) -> str:
    """Return the event's id."""
    if isinstance(thing, Delivery):
        return thing.event.id
    return str(json.loads(thing.body)["id"])


class Bug(RuntimeError):
    """A mistake in somebody's code."""

    def __init__(self) -> None:
        super().__init__("a bug")


async def until(condition: Callable[[], bool], within: float = 3600.0) -> None:
    """Let virtual time pass until a condition holds."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not condition():
        passed = loop.time() - start
        assert passed < within, "it never came true"
        await asyncio.sleep(0.01 if passed < 1 else 0.1)


async def turns(count: int = 10) -> None:
    """Let the loop turn some times, without any time passing."""
    for _ in range(count):
        await asyncio.sleep(0)


@dataclass(slots=True, eq=False)
class Stored:
    """One copy at the broker."""

    message: Message
    address: Address
    seq: int
    arrivals: int = 0
    returns: int = 0
    mark: bytes | None = None
    partition: str = "0"

    def __lt__(self, other: "Stored") -> bool:
        return self.seq < other.seq


class FakeSubscription:
    """One membership; keeps no marks."""

    def __init__(self, adapter: "FakeAdapter", order: Order, prefetch: int, on_lost: OnLost) -> None:
        self.adapter = adapter
        self.order = order
        self.prefetch = prefetch
        self.on_lost = on_lost
        self.out: dict[Delivery, Stored] = {}
        self.closed = False
        self.closes = 0
        self.limits: list[int] = []
        self.errors: list[BaseException] = []
        self.empty = False
        self.waiter: asyncio.Future[None] | None = None

    async def receive(self, limit: int) -> Sequence[Delivery]:
        self.limits.append(limit)
        while True:
            if self.errors:
                raise self.errors.pop(0)
            if self.closed or self.empty:
                return []
            if self.adapter.queue:
                return [self._hand_out(self.adapter.queue.pop(0)) for _ in range(self._most(limit))]
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter

    def _most(self, limit: int) -> int:
        return min(limit, len(self.adapter.queue), self.adapter.batch)

    def _hand_out(self, stored: Stored) -> Delivery:
        stored.arrivals += 1
        delivery = Delivery(
            stored.message,
            stored.address,
            stored.seq,
            arrivals=stored.arrivals,
            returns=stored.returns,
            position=(stored.partition, stored.seq),
            mark=stored.mark,
        )
        self.out[delivery] = stored
        ours = sum(each.stopped is None for each in self.out)
        self.adapter.most_out = max(self.adapter.most_out, ours)
        return delivery

    async def settle(self, settled: Sequence[tuple[Delivery, Ack | Retry]]) -> Sequence[SettleError | None]:
        self.adapter.batches.append(len(settled))
        await self.adapter.settling.wait()
        return [self._settle_one(delivery, settlement) for delivery, settlement in settled]

    def _settle_one(self, delivery: Delivery, settlement: Ack | Retry) -> SettleError | None:
        adapter = self.adapter
        if delivery not in self.out:
            adapter.trace.append(("stale", name_of(delivery)))
            return Stale("not ours")
        error = adapter.on_settle(delivery, settlement)
        if error is not None:
            if isinstance(error, Stale):
                adapter.put_back(self.out.pop(delivery), polite=False)
            adapter.trace.append((error.code, name_of(delivery)))
            return error
        stored = self.out.pop(delivery)
        adapter.settled.append((delivery, settlement))
        adapter.trace.append(("ack" if isinstance(settlement, Ack) else "return", name_of(delivery)))
        if isinstance(settlement, Retry):
            adapter.put_back(stored, polite=True, after=settlement.after)
        return None

    async def close(self) -> None:
        self.closes += 1
        self.closed = True
        for stored in self.out.values():
            self.adapter.put_back(stored, polite=True)
        self.adapter.left += list(self.out)
        self.out.clear()
        self.wake()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Let the next `receive` raise this."""
        self.errors.append(error)
        self.wake()

    async def lose(self, deliveries: Sequence[Delivery], seconds: float = 0) -> None:
        """Take deliveries away, now or after so many seconds; they come back to the queue."""
        if seconds == 0:
            self._fence(deliveries)
        await self.on_lost(deliveries, seconds)
        self._fence(deliveries)

    def _fence(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if delivery in self.out:
                self.adapter.put_back(self.out.pop(delivery), polite=False)

    async def disconnect(self) -> None:
        """Break the connection as the boundary wants it told."""
        lost = list(self.out)
        if lost:
            await self.lose(lost)
        self.fail(ConnectionLost("cut"))


class MarkingSubscription(FakeSubscription):
    """One membership that keeps marks."""

    async def mark(self, marks: Sequence[tuple[Delivery, bytes | None]]) -> Sequence[SettleError | None]:
        await self.adapter.marking.wait()
        return [self._mark_one(delivery, mark) for delivery, mark in marks]

    def _mark_one(self, delivery: Delivery, mark: bytes | None) -> SettleError | None:
        error = self.adapter.on_mark(delivery, mark)
        if error is not None:
            return error
        if delivery not in self.out:
            return Stale("not ours")
        if self.out[delivery].mark == mark:  # the settler asks by it whether the delivery is still ours
            return None
        self.out[delivery].mark = mark
        alone = None if mark is None else json.loads(mark)["alone"]
        self.adapter.trace.append(("mark", name_of(delivery), alone))
        return None


class HoldingSubscription(FakeSubscription):
    """One membership that keeps no marks, but knows what it holds."""

    async def hold(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        return [self._hold_one(delivery) for delivery in deliveries]

    def _hold_one(self, delivery: Delivery) -> SettleError | None:
        error = Stale("not ours") if delivery not in self.out else self.adapter.on_hold(delivery)
        self.adapter.trace.append(("hold" if error is None else error.code, name_of(delivery)))
        return error


class CountingSubscription(HoldingSubscription):
    """One membership that keeps no marks, but counts."""

    async def tally(self, changes: Sequence[tuple[str, int]]) -> Sequence[int | SettleError]:
        return [self._change(name, change) for name, change in changes]

    def _change(self, name: str, change: int) -> int | SettleError:
        adapter = self.adapter
        error = adapter.on_tally(change)
        adapter.trace.append(("tally" if error is None else error.code, change))
        if error is not None:
            return error
        adapter.tallies[name] = max(0, adapter.tallies.get(name, 0) + change)
        return adapter.tallies[name]


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


def _fine(*_: object) -> None:
    return None


@dataclass(slots=True, eq=False)
class FakeAdapter:
    """
    The broker of one group.

    queue: what can be handed out, by sequence. trace: what happened at the broker, in order. settled: what was
    accepted. `on_send`, `on_settle`, `on_mark`, `on_subscribe` return an error or raise one; the gates `settling`,
    `marking`, `sending` freeze a call while they are not set.
    """

    marks: bool = True
    log: bool = False
    holds: bool = False
    counts: bool = False
    max_return: float = math.inf
    batch: int = 1000
    max_delay: float = 43200.0
    queue: list[Stored] = field(default_factory=list[Stored])
    trace: list[tuple[object, ...]] = field(default_factory=list[tuple[object, ...]])
    settled: list[tuple[Delivery, Ack | Retry]] = field(default_factory=list[tuple[Delivery, Ack | Retry]])
    dead: list[Message] = field(default_factory=list[Message])
    sent: list[tuple[Address, Message, float]] = field(default_factory=list[tuple[Address, Message, float]])
    tried: list[tuple[Address, Message, float]] = field(default_factory=list[tuple[Address, Message, float]])
    left: list[Delivery] = field(default_factory=list[Delivery])
    batches: list[int] = field(default_factory=list[int])
    subscriptions: list[FakeSubscription] = field(default_factory=list[FakeSubscription])
    most_out: int = 0
    seq: int = 0
    on_send: Callable[[Address, Message], SendError | None] = _fine
    on_settle: Callable[[Delivery, Ack | Retry], SettleError | None] = _fine
    on_mark: Callable[[Delivery, bytes | None], SettleError | None] = _fine
    on_tally: Callable[[int], SettleError | None] = _fine
    tallies: dict[str, int] = field(default_factory=dict[str, int])
    on_hold: Callable[[Delivery], SettleError | None] = _fine
    on_subscribe: Callable[[], None] = _fine
    settling: asyncio.Event = field(default_factory=_open_gate)
    marking: asyncio.Event = field(default_factory=_open_gate)
    sending: asyncio.Event = field(default_factory=_open_gate)
    capabilities: Capabilities = field(init=False)

    def __post_init__(self) -> None:
        self.capabilities = Capabilities(
            order_key=True,
            durable=False,
            processes=True,
            counts_arrivals=True,
            marks=self.marks,
            log=self.log,
            lease=None,
            max_delay=self.max_delay,
            max_message=1 << 20,
            max_return=self.max_return,
        )

    @property
    def subscription(self) -> FakeSubscription:
        return self.subscriptions[-1]

    async def connect(self) -> None:
        return

    async def close(self) -> None:
        for subscription in self.subscriptions:
            await subscription.close()

    async def subscribe(
        self, at: Address, *, order: Order, start: Start, prefetch: int, on_lost: OnLost
    ) -> FakeSubscription:
        self.on_subscribe()
        subscription = self._kind()(self, order, prefetch, on_lost)
        self.subscriptions.append(subscription)
        return subscription

    def _kind(self) -> type[FakeSubscription]:
        if self.marks:
            return MarkingSubscription
        if self.counts:
            return CountingSubscription
        return HoldingSubscription if self.holds else FakeSubscription

    async def send(
        self,
        to: Address,
        messages: Sequence[Message],
        *,
        after: float | Sequence[float] = 0,
        must_route: bool = False,
    ) -> Sequence[SendError | None]:
        await self.sending.wait()
        delays = [float(after)] * len(messages) if isinstance(after, int | float) else after
        return [self._send_one(to, *pair) for pair in zip(messages, delays, strict=True)]

    def _send_one(self, to: Address, message: Message, after: float) -> SendError | None:
        self.tried.append((to, message, after))
        error = self.on_send(to, message)
        if error is not None:
            return error
        self.sent.append((to, message, after))
        self.trace.append(("copy" if to.place == "inlet" else to.place, name_of(message)))
        if to.place == "dead":
            self.dead.append(message)
        else:
            self.put(message, address=to, after=after)
        return None

    def put(
        self,
        *messages: Message,
        address: Address | None = None,
        after: float = 0,
        arrivals: int = 0,
        returns: int = 0,
        mark: bytes | None = None,
        partition: str = "0",
    ) -> None:
        """Store messages; the address is the channel unless given."""
        for message in messages:
            self.seq += 1
            to = address or Address(CHANNEL)
            stored = Stored(message, to, self.seq, arrivals, returns, mark, partition)
            self._later(stored, after)

    def put_back(self, stored: Stored, *, polite: bool, after: float = 0) -> None:
        """Give a copy back to the group."""
        stored.returns += polite
        self._later(stored, after)

    def _later(self, stored: Stored, after: float) -> None:
        if after > 0:
            asyncio.get_running_loop().call_later(after, self._add, stored)
        else:
            self._add(stored)

    def _add(self, stored: Stored) -> None:
        insort(self.queue, stored)
        for subscription in self.subscriptions:
            if not subscription.closed:
                subscription.wake()


Handling = Callable[[Delivery], Awaitable[Settlement]]


async def acks(delivery: Delivery) -> Settlement:
    """Ack at once."""
    return ACK


class Rig:
    """An engine over a fake adapter, and what it did."""

    def __init__(
        self,
        handler: Handling = acks,
        *,
        adapter: FakeAdapter | None = None,
        alone: asyncio.Lock | None = None,
        hooks: Sequence[Callable[[HookEvent], None]] = (),
        **settings: Any,
    ) -> None:
        self.adapter = adapter or FakeAdapter()
        self.clock = VirtualClock()
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.running: list[Delivery] = []
        self.most_running = 0
        self.alarms: list[Alarm] = []
        self.outcomes: list[tuple[str, str]] = []
        self._handler = handler
        self.engine = Engine(
            self.adapter,
            CHANNEL,
            GROUP,
            self._handle,
            Settings(**settings),
            hooks=[self._hear, *hooks],
            clock=self.clock,
            alone=alone,
        )

    async def _handle(self, delivery: Delivery) -> Settlement:
        name = name_of(delivery)
        self.begun.append(name)
        self.running.append(delivery)
        self.most_running = max(self.most_running, len(self.running))
        try:
            return await self._handler(delivery)
        finally:
            self.running.remove(delivery)
            self.ended.append(name)

    def _hear(self, event: HookEvent) -> None:
        if isinstance(event, Alarm):
            self.alarms.append(event)
        elif isinstance(event, Settled):
            self.outcomes.append((name_of(event.delivery), event.outcome))

    @property
    def codes(self) -> list[str]:
        return [alarm.code for alarm in self.alarms]

    async def __aenter__(self) -> Self:
        await self.engine.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.engine.counts.out >= 0 and not self.adapter.subscription.closed:
            await self.engine.stop(0)

    async def quiet(self) -> None:
        """Wait until everything that was taken has ended, and nothing waits at the broker."""
        await until(lambda: not self.adapter.queue and not self.engine.counts.out)

    async def stopped(self, grace: float | None = None, within: float = 100.0) -> None:
        """Stop the engine, and fail if that does not end."""
        async with asyncio.timeout(within):
            await self.engine.stop(grace)


def marked(attempt: int = 1, alone: int = 0, due: int = 0, **other: object) -> bytes:
    """Return the mark that an earlier owner left."""
    fields = {"v": 1, "attempt": attempt, "alone": alone, "first": 0, "due": due, "story": "[]", **other}
    return json.dumps(fields).encode()


__all__ = [
    "CHANNEL",
    "DEAD",
    "GROUP",
    "INLET",
    "Bug",
    "FakeAdapter",
    "FakeSubscription",
    "MarkingSubscription",
    "Rig",
    "acks",
    "event_message",
    "marked",
    "name_of",
    "turns",
    "until",
    "virtual",
]
