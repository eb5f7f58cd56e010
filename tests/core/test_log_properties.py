"""
Engines that share a log, while partitions move between them: nothing is lost, nothing committed past a gap, and with a
drain longer than the handlers nothing is handled twice.
"""

# pyright: reportPrivateUsage=false
# a test of a part may look inside it

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brokerkit.adapter import Capabilities, OnLost, Order, Start
from brokerkit.delivery import Delivery
from brokerkit.engine import Engine, Settings
from brokerkit.errors import SendError, SettleError, Stale
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Ack, Retry, Settlement
from brokerkit.testing.clock import VirtualClock, run_virtual
from tests.core.fakes import CHANNEL, GROUP, event_message, name_of

PARTITIONS = 3
BUDGET = 60.0


class Log:
    """Partitions with a commit each, and members that share them; a rebalance is eager: all let go, then all take."""

    def __init__(self) -> None:
        self.partitions: list[list[Message]] = [[] for _ in range(PARTITIONS)]
        self.commits = [0] * PARTITIONS
        self.members: list[LogSubscription] = []
        self.capabilities = Capabilities(
            order_key=True,
            durable=True,
            processes=True,
            counts_arrivals=False,
            marks=False,
            log=True,
            lease=None,
            max_delay=60.0,
            max_message=1 << 20,
        )

    def put(self, number: int, key: str) -> None:
        self.partitions[ord(key) % PARTITIONS].append(event_message(f"{number}", key))
        for member in self.members:
            member.wake()

    async def rebalance(self, members: Sequence["LogSubscription"]) -> None:
        await asyncio.gather(*(member.revoke(BUDGET) for member in self.members))
        self.members = list(members)
        for number in range(PARTITIONS):
            if self.members:
                self.members[number % len(self.members)].take(number)

    async def connect(self) -> None:
        return

    async def close(self) -> None:
        return

    async def send(
        self,
        to: Address,
        messages: Sequence[Message],
        *,
        after: float | Sequence[float] = 0,
        must_route: bool = False,
    ) -> Sequence[SendError | None]:
        message = "nothing is copied here"
        raise AssertionError(message)

    async def subscribe(
        self, at: Address, *, order: Order, start: Start, prefetch: int, on_lost: OnLost
    ) -> "LogSubscription":
        joined = LogSubscription(self, on_lost)
        await self.rebalance([*self.members, joined])
        return joined


class LogSubscription:
    """One member: reads on from the commit, commits the prefix."""

    def __init__(self, log: Log, on_lost: OnLost) -> None:
        self.log = log
        self.on_lost = on_lost
        self.next: dict[int, int] = {}
        self.out: dict[Delivery, tuple[int, int]] = {}
        self.done: dict[int, set[int]] = {}
        self.closed = False
        self.draining = False
        self.waiter: asyncio.Future[None] | None = None

    def take(self, partition: int) -> None:
        self.next[partition] = self.log.commits[partition]
        self.done[partition] = set()
        self.draining = False
        self.wake()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self.closed:
            taken: list[Delivery] = []
            for partition, offset in list(self.next.items()):
                stored = self.log.partitions[partition][offset : offset + limit - len(taken)]
                for place, message in enumerate(stored, offset):
                    delivery = Delivery(message, Address(CHANNEL), position=(f"p{partition}", place))
                    self.out[delivery] = (partition, place)
                    taken.append(delivery)
                self.next[partition] = offset + len(stored)
            if taken and not self.draining:
                return taken
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        return []

    async def settle(self, settled: Sequence[tuple[Delivery, Ack | Retry]]) -> Sequence[SettleError | None]:
        return [self._settle_one(delivery) for delivery, _ in settled]

    def _settle_one(self, delivery: Delivery) -> SettleError | None:
        place = self.out.pop(delivery, None)
        if place is None:
            return Stale("not ours")
        partition, offset = place
        done = self.done[partition]
        done.add(offset)
        while self.log.commits[partition] in done:
            done.discard(self.log.commits[partition])
            self.log.commits[partition] += 1
        return None

    async def revoke(self, seconds: float) -> None:
        self.draining = True
        self.next.clear()
        out = list(self.out)
        if out:
            await self.on_lost(out, seconds)
        self.out.clear()
        self.done.clear()

    async def close(self) -> None:
        self.closed = True
        self.wake()
        if self in self.log.members:
            await self.log.rebalance([member for member in self.log.members if member is not self])


@dataclass(slots=True)
class Group:
    """Engines over one log, and who handled what."""

    order: Order
    fails: bool
    log: Log = field(default_factory=Log)
    engines: list[Engine] = field(default_factory=list[Engine])
    handled: Counter[str] = field(default_factory=Counter[str])
    ended: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    active: Counter[bytes | None] = field(default_factory=Counter[bytes | None])
    count: int = 0

    async def handle(self, delivery: Delivery) -> Settlement:
        name, key = name_of(delivery), delivery.message.key
        self.active[key] += 1
        assert self.order == "none" or self.active[key] == 1, "two of one key at once"
        try:
            await asyncio.sleep((int(name) * 7 % 10) / 10)
            if self.fails and self.order == "key" and int(name) % 5 == 0 and delivery.attempt == 1:
                return Retry(0.5)
            self.handled[name] += 1
            self.ended.append((str(key), name))
            return ACK
        finally:
            self.active[key] -= 1

    async def join(self) -> None:
        settings = Settings(order=self.order, concurrency=4, prefetch=12, grace=BUDGET)
        engine = Engine(self.log, CHANNEL, GROUP, self.handle, settings, clock=VirtualClock())
        await engine.start()
        self.engines.append(engine)

    async def leave(self, number: int) -> None:
        if len(self.engines) > 1:
            await self.engines.pop(number % len(self.engines)).stop()

    def put(self, keys: str) -> None:
        for key in keys:
            self.log.put(self.count, key)
            self.count += 1

    async def quiet(self) -> None:
        async with asyncio.timeout(3600):
            while self.log.commits != [len(each) for each in self.log.partitions]:  # noqa: ASYNC110 - virtual seconds
                await asyncio.sleep(1)
        for engine in self.engines:
            await engine.stop()


steps = st.lists(
    st.one_of(
        st.text("abcdefgh", min_size=1, max_size=20).map(lambda keys: ("put", keys)),
        st.sampled_from([("join", 0), ("leave", 0), ("leave", 1)]),
        st.sampled_from([0.0, 0.1, 0.4, 1.3]).map(lambda seconds: ("wait", seconds)),
    ),
    min_size=4,
    max_size=20,
)


async def play(order: Order, story: Sequence[tuple[str, Any]], *, fails: bool) -> Group:
    group = Group(order, fails)
    await group.join()
    for kind, what in story:
        if kind == "put":
            group.put(what)
        elif kind == "join":
            await group.join()
        elif kind == "leave":
            await group.leave(what)
        else:
            await asyncio.sleep(what)
    await group.quiet()
    return group


@given(steps, st.sampled_from(["none", "key"]))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_partitions_that_move_lose_nothing_and_with_time_to_drain_nothing_is_handled_twice(
    story: list[tuple[str, Any]], order: Order
) -> None:
    group = run_virtual(play(order, story, fails=False))
    assert group.handled == Counter({str(number): 1 for number in range(group.count)})


@given(steps)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_with_order_by_key_retries_and_moving_partitions_leave_each_key_in_order(
    story: list[tuple[str, Any]],
) -> None:
    group = run_virtual(play("key", story, fails=True))
    assert group.handled.keys() == {str(number) for number in range(group.count)}
    for key in {key for key, _ in group.ended}:
        firsts = list(dict.fromkeys(int(name) for each, name in group.ended if each == key))
        assert firsts == sorted(firsts)
