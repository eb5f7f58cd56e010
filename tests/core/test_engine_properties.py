"""
The engine under any mixture of failures, losses, reconnects and drains: what has to hold always.
"""

# pyright: reportPrivateUsage=false
# a test of a part may look inside it

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st

from brokerkit.adapter import Order
from brokerkit.delivery import Delivery
from brokerkit.errors import ConnectionLost, SendError, SettleError, Stale, TooLarge, Unavailable
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Ack, DeadLetter, Retry, Settlement
from brokerkit.testing.clock import run_virtual
from tests.core.fakes import FakeAdapter, FakeSubscription, Rig, event_message, name_of

Ending = Literal["ack", "retry", "return", "dead", "raise"]
Kind = Literal[
    "put",
    "wait",
    "lose",
    "disconnect",
    "unavailable",
    "stale",
    "no copies",
    "too large",
    "no marks",
    "hold",
    "release",
    "slow settling",
]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a message's handlings do: the last ending is for all that follow."""

    key: str | None
    endings: tuple[Ending, ...]
    seconds: float
    stubborn: bool
    suspect: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens."""

    kind: Kind
    plans: tuple[Plan, ...] = ()
    number: int = 0
    seconds: float = 0.0


plans = st.builds(
    Plan,
    key=st.sampled_from(["a", "a", "b", "c", None]),
    endings=st.lists(
        st.sampled_from(["ack", "ack", "ack", "retry", "return", "dead", "raise"]), max_size=3
    ).map(lambda endings: (*endings, "ack")),
    seconds=st.sampled_from([0.0, 0.0, 0.3, 2.0]),
    stubborn=st.sampled_from([False, False, False, True]),
    suspect=st.sampled_from([False, False, False, False, True]),
)
puts = st.builds(Step, kind=st.just("put"), plans=st.lists(plans, min_size=1, max_size=6).map(tuple))
happenings = st.builds(
    Step,
    kind=st.sampled_from(
        [
            "wait",
            "lose",
            "disconnect",
            "unavailable",
            "stale",
            "no copies",
            "too large",
            "no marks",
            "hold",
            "release",
            "slow settling",
        ]
    ),
    number=st.integers(1, 4),
    seconds=st.sampled_from([0.0, 0.2, 1.0, 3.0]),
)
stories = st.lists(st.one_of(puts, puts, happenings, happenings), min_size=1, max_size=12)


@dataclass(slots=True)
class World:
    """Runs a story and watches."""

    order: Order
    adapter: FakeAdapter = field(default_factory=FakeAdapter)
    plans: dict[str, Plan] = field(default_factory=dict[str, Plan])
    runs: dict[str, int] = field(default_factory=dict[str, int])
    begun: set[Delivery] = field(default_factory=set[Delivery])
    active: list[Delivery] = field(default_factory=list[Delivery])
    results: dict[Delivery, Settlement] = field(default_factory=dict[Delivery, Settlement])
    cancelled: set[Delivery] = field(default_factory=set[Delivery])
    final: list[str] = field(default_factory=list[str])
    lost: set[str] = field(default_factory=set[str])
    ended: set[Delivery] = field(default_factory=set[Delivery])
    refusals: list[SettleError] = field(default_factory=list[SettleError])
    copy_errors: list[SendError] = field(default_factory=list[SendError])
    mark_errors: int = 0
    draining: bool = False
    violations: list[str] = field(default_factory=list[str])
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def watch(self) -> None:
        self.adapter.on_settle = self.on_settle
        self.adapter.on_send = self.on_send
        self.adapter.on_mark = self.on_mark

    async def handle(self, delivery: Delivery) -> Settlement:
        name = name_of(delivery)
        plan = self.plans[name]
        self.must(not self.draining, "started after the drain began")
        self.must(delivery not in self.active, "one delivery in two handlers")
        same_key = [each for each in self.active if self.plans[name_of(each)].key == plan.key]
        self.must(plan.key is None or not same_key, "two of one key at once")
        self.must(delivery not in self.ended, "a settled delivery was handled again")
        self.must(delivery.stopped is None, "started although it was lost")
        self.must(self.order == "key" or delivery not in self.begun, "one delivery handled twice")
        if delivery.suspect:
            self.must(not self.active, "a suspect did not run alone")
        else:
            self.must(not any(each.suspect for each in self.active), "started beside a suspect")
        self.begun.add(delivery)
        self.active.append(delivery)
        try:
            await self.take_time(plan)
            self.runs[name] = run = self.runs.get(name, 0) + 1
            return self.end(delivery, plan.endings[min(run, len(plan.endings)) - 1])
        except asyncio.CancelledError:
            self.cancelled.add(delivery)
            raise
        finally:
            self.active.remove(delivery)

    def must(self, holds: bool, claim: str) -> None:
        """Note what should never be; raising here would only look like a failing handler."""
        if not holds:
            self.violations.append(claim)

    async def take_time(self, plan: Plan) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + plan.seconds
        while (left := end - loop.time()) > 0:
            if plan.stubborn:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(left)
            else:
                await asyncio.sleep(left)

    def end(self, delivery: Delivery, ending: Ending) -> Settlement:
        if ending == "raise":
            self.results[delivery] = Retry(1, "pattern_failed", counts=False)
            raise ValueError
        results: dict[Ending, Settlement] = {
            "ack": ACK,
            "retry": Retry(0.7),
            "return": Retry(0.4, counts=False),
            "dead": DeadLetter("no"),
        }
        result = results[ending]
        self.results[delivery] = result
        if isinstance(result, Ack) and delivery.stopped is None:
            self.final.append(name_of(delivery))
        return result

    def on_settle(self, delivery: Delivery, settlement: Ack | Retry) -> SettleError | None:
        self.must(delivery not in self.ended, "settled twice")
        self.must(delivery not in self.active, "settled while its handler runs")
        self.must(delivery not in self.cancelled, "a cancelled handling was settled")
        result = self.results.get(delivery)
        if isinstance(settlement, Retry):
            self.must(not settlement.counts, "a counted retry reached the broker")
            self.must(result is None or result == settlement, "returned for another reason")
        elif not isinstance(result, Ack):
            hop = str(delivery.hop + 1)
            copies = [copy for _, copy, _ in self.adapter.sent if name_of(copy) == name_of(delivery)]
            confirmed = [copy for copy in copies if copy.header("bk-hop") == hop]
            self.must(bool(confirmed), "acked before its copy was confirmed")
        error = self.refusals.pop() if self.refusals else None
        if isinstance(error, Stale):
            self.lost.add(name_of(delivery))
        if error is None or isinstance(error, Stale):
            self.ended.add(delivery)
        return error

    def on_send(self, to: Address, message: Message) -> SendError | None:
        return self.copy_errors.pop() if self.copy_errors else None

    def on_mark(self, delivery: Delivery, mark: bytes | None) -> SettleError | None:
        if self.mark_errors:
            self.mark_errors -= 1
            return Unavailable("no")
        return None

    async def play(self, rig: Rig, steps: Sequence[Step]) -> None:
        for step in steps:
            await self.happen(rig, step)

    async def happen(self, rig: Rig, step: Step) -> None:
        adapter, subscription = self.adapter, self.adapter.subscription
        if step.kind == "put":
            for plan in step.plans:
                name = f"m{len(self.plans)}"
                self.plans[name] = plan
                adapter.put(event_message(name, plan.key), arrivals=2 if plan.suspect else 0)
        elif step.kind == "wait":
            await asyncio.sleep(step.seconds)
        elif step.kind == "lose":
            out = list(subscription.out)
            if self.order == "key":  # a key is lost as a whole, as slots and partitions are
                keys = {each.message.key for each in out[: step.number]}
                out = [each for each in out if each.message.key in keys]
            self.lose(subscription, out[: len(out) if self.order == "key" else step.number], step.seconds)
        elif step.kind == "disconnect":
            self.lost |= {name_of(each) for each in subscription.out}
            self.spawn(subscription.disconnect())
        elif step.kind == "unavailable":
            self.refusals += [Unavailable("no")] * step.number
        elif step.kind == "stale":
            self.refusals.append(Stale("gone"))
        elif step.kind == "no copies":
            self.copy_errors += [ConnectionLost("no")] * step.number
        elif step.kind == "too large":
            self.copy_errors.append(TooLarge("no"))
        elif step.kind == "no marks":
            self.mark_errors += step.number
        elif step.kind == "slow settling":
            adapter.settling.clear()
            asyncio.get_running_loop().call_later(step.seconds, adapter.settling.set)
        elif step.kind == "hold":
            rig.engine.intake.hold(f"reason {step.number}")
        else:
            rig.engine.intake.release(f"reason {step.number}")
        await asyncio.sleep(0.01 if step.number % 2 else 0)

    def lose(self, subscription: FakeSubscription, deliveries: Sequence[Delivery], seconds: float) -> None:
        if deliveries:
            self.lost |= {name_of(each) for each in deliveries}
            self.spawn(subscription.lose(deliveries, seconds))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.add(asyncio.create_task(work))

    def check(self, rig: Rig, budget: int) -> None:
        assert not self.violations
        assert self.adapter.most_out <= budget
        assert "worker_ended" not in rig.codes
        assert "reader_ended" not in rig.codes
        for task in self.tasks:
            assert not task.done() or task.exception() is None
        dead = {name_of(message) for message in self.adapter.dead}
        kept = [name for name in self.final if name not in dead and name not in self.lost]
        if self.order == "key":
            for key in "abc":
                own = [name for name in kept if self.plans[name].key == key]
                assert own == sorted(own, key=lambda name: int(name[1:])), "a key was handled out of order"

    def all_done(self) -> bool:
        """Say whether every event was acked after its handler said so, or is dead-lettered."""
        return set(self.plans) == {*self.final, *(name_of(message) for message in self.adapter.dead)}

    def check_nothing_missing(self) -> None:
        """Every event was acked by its handler, or is dead-lettered, or is at the broker."""
        here = {name_of(stored.message) for stored in self.adapter.queue}
        done = {name_of(each) for each, settlement in self.adapter.settled if isinstance(settlement, Ack)}
        dead = {name_of(message) for message in self.adapter.dead}
        assert set(self.plans) <= here | done | dead


def quietly(main: Coroutine[Any, Any, None]) -> None:
    """Run without writing a log of all the trouble, which would take most of the time."""
    logging.disable(logging.CRITICAL)
    try:
        run_virtual(main, patience=2)
    finally:
        logging.disable(logging.NOTSET)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(story=stories, order=st.sampled_from(["none", "key"]), hold_limit=st.sampled_from([0, 3, 100]))
def test_once_the_trouble_is_over_every_message_ends_and_the_budget_is_free_again(
    story: list[Step], order: Order, hold_limit: int
) -> None:
    async def main() -> None:
        world = World(order)
        world.watch()
        async with Rig(
            world.handle, adapter=world.adapter, order=order, concurrency=3, prefetch=6, hold_limit=hold_limit
        ) as rig:
            await world.play(rig, story)
            for number in range(1, 5):
                rig.engine.intake.release(f"reason {number}")
            for _ in range(200):
                await asyncio.sleep(10)
                if world.all_done() and not (rig.engine.counts.out or world.adapter.queue):
                    break
            await asyncio.sleep(100)
            assert rig.engine.counts.out == 0
            assert not world.adapter.queue
            assert not rig.engine._running
            assert not rig.engine._held
            assert len(rig.engine._lanes) == 0
            assert rig.engine.ready
            assert not rig.engine.settler._ends
            assert not rig.engine.settler._tries
            world.check(rig, 6 + hold_limit)
            assert world.all_done()
            await rig.stopped(1)
            target(float(len(world.ended)))

    quietly(main())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    story=stories,
    order=st.sampled_from(["none", "key"]),
    grace=st.sampled_from([0.0, 0.5, 5.0]),
    after=st.sampled_from([0.0, 0.01, 0.31, 1.5]),
    hurry=st.booleans(),
)
def test_a_drain_at_any_moment_starts_nothing_and_leaves_all_that_is_unsettled_to_the_broker(
    story: list[Step], order: Order, grace: float, after: float, hurry: bool
) -> None:
    async def main() -> None:
        world = World(order)
        world.watch()
        rig = Rig(world.handle, adapter=world.adapter, order=order, concurrency=3, prefetch=6, hold_limit=10)
        await rig.engine.start()
        await world.play(rig, story)
        await asyncio.sleep(after)
        world.draining = True
        loop = asyncio.get_running_loop()
        start = loop.time()
        if hurry:
            loop.call_later(0.2, rig.engine.hurry)
        await rig.stopped(grace)
        assert loop.time() - start <= grace + 4
        subscription = world.adapter.subscription
        if rig.engine._subscription is not None:
            assert subscription.closed
        await subscription.close()
        settled = len(world.adapter.settled)
        await asyncio.sleep(100)
        assert len(world.adapter.settled) == settled, "something was settled after the drain"
        assert not world.active
        world.check(rig, 16)
        world.check_nothing_missing()
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("brokerkit")]

    quietly(main())
