"""
The engine, over a scripted broker and without any time passing.
"""

# pyright: reportPrivateUsage=false
# a test of a part may look inside it

import asyncio
import contextlib
import functools
import json
import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from brokerkit.adapter import Order
from brokerkit.context import current
from brokerkit.copies import tally_name
from brokerkit.delivery import Delivery
from brokerkit.engine import Engine
from brokerkit.errors import Closed, ConnectionLost, SettleError, Stale, TooLarge, Unavailable
from brokerkit.hooks import HookEvent, Settled, Started
from brokerkit.intake import Intake
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Ack, DeadLetter, Retry, Settle, Settlement
from brokerkit.testing.clock import VirtualLoop, run_virtual
from tests.core.fakes import (
    CHANNEL,
    GROUP,
    INLET,
    Bug,
    CountingSubscription,
    FakeAdapter,
    Rig,
    acks,
    event_message,
    marked,
    name_of,
    turns,
    until,
    virtual,
)

SEEN: ContextVar[str | None] = ContextVar("seen", default=None)


def fail_first(times: int, after: float = 1.0, *, counts: bool = True) -> Callable[[Delivery], Any]:
    """Return a handler that asks for so many retries of each event before it acks."""
    tries: dict[str, int] = {}

    async def handler(delivery: Delivery) -> Settlement:
        name = name_of(delivery)
        tries[name] = tries.get(name, 0) + 1
        return Retry(after, counts=counts) if tries[name] <= times else ACK

    return handler


def sleeper(seconds: float) -> Callable[[Delivery], Any]:
    """Return a handler that takes so long."""

    async def handler(delivery: Delivery) -> Settlement:
        await asyncio.sleep(seconds)
        return ACK

    return handler


async def stubborn(delivery: Delivery) -> Settlement:
    """Ignore every cancellation for an hour."""
    end = asyncio.get_running_loop().time() + 3600
    while (left := end - asyncio.get_running_loop().time()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(left)
    return ACK


def numbered(count: int, key: str | None = None, start: int = 0) -> list[Message]:
    return [event_message(f"e{number}", key) for number in range(start, start + count)]


class TestFlow:
    @virtual
    async def test_every_message_is_handled_once_and_acked(self) -> None:
        async with Rig() as rig:
            rig.adapter.put(*numbered(100))
            await rig.quiet()
            assert sorted(rig.begun) == sorted(f"e{number}" for number in range(100))
            assert [settlement for _, settlement in rig.adapter.settled] == [ACK] * 100
            assert rig.engine.counts.out == 0

    @virtual
    async def test_concurrency_bounds_how_many_handlers_run_at_once(self) -> None:
        async with Rig(sleeper(1), concurrency=3, prefetch=20) as rig:
            rig.adapter.put(*numbered(20))
            await rig.quiet()
            assert rig.most_running == 3

    @virtual
    async def test_keys_run_side_by_side_and_one_key_in_order(self) -> None:
        async with Rig(sleeper(1), prefetch=64) as rig:
            rig.adapter.put(*(event_message(f"{key}{n}", key) for n in range(5) for key in "abc"))
            await rig.quiet()
            assert rig.most_running == 3
            for key in "abc":
                assert [name for name in rig.ended if name[0] == key] == [f"{key}{n}" for n in range(5)]

    @virtual
    async def test_handlers_end_out_of_order_and_each_settles_its_own(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            await asyncio.sleep(10 - int(name_of(delivery)[1:]))
            return ACK

        async with Rig(handler) as rig:
            rig.adapter.put(*numbered(10))
            await rig.quiet()
            assert rig.ended == [f"e{number}" for number in reversed(range(10))]
            assert [name_of(delivery) for delivery, _ in rig.adapter.settled] == rig.ended

    @virtual
    async def test_the_budget_is_never_exceeded_by_ready_messages(self) -> None:
        async with Rig(sleeper(5), concurrency=2, prefetch=8, hold_limit=10) as rig:
            rig.adapter.put(*numbered(100))
            await rig.quiet()
            assert rig.adapter.most_out == 8

    @virtual
    async def test_the_budget_of_held_messages_is_hold_limit_on_top_of_prefetch(self) -> None:
        async with Rig(sleeper(5), prefetch=8, hold_limit=10, order="key") as rig:
            rig.adapter.put(*numbered(100, "hot"))
            await until(lambda: len(rig.ended) == 3)
            assert rig.adapter.most_out == 18
            await rig.quiet()
            assert rig.adapter.most_out == 18
            assert rig.ended == [f"e{number}" for number in range(100)]

    @virtual
    async def test_subscribing_names_the_whole_budget_and_the_groups_inlet(self) -> None:
        async with Rig(prefetch=8, hold_limit=10, order="key", start="latest") as rig:
            assert rig.adapter.subscription.prefetch == 18
            assert rig.adapter.subscription.order == "key"
            rig.adapter.put(*numbered(1))
            await rig.quiet()
            (delivery, _) = rig.adapter.settled[0]
            assert (delivery.channel, delivery.group, delivery.order) == (CHANNEL, GROUP, "key")
            assert delivery.control is rig.engine.intake

    @virtual
    async def test_an_idle_worker_is_not_kept_waiting_while_long_handlers_run(self) -> None:
        async with Rig(sleeper(3600), concurrency=16, prefetch=16) as rig:
            rig.adapter.put(*numbered(13))
            await until(lambda: len(rig.running) == 13)
            rig.adapter.put(*numbered(3, start=13))
            await until(lambda: len(rig.running) == 16, within=10)

    @virtual
    async def test_settlements_go_to_the_broker_in_batches(self) -> None:
        async with Rig(concurrency=4, prefetch=200) as rig:
            rig.adapter.put(*numbered(200))
            await rig.quiet()
            assert max(rig.adapter.batches) > 20

    def test_handlers_that_use_the_processor_yield_to_the_loop_every_few_milliseconds(self) -> None:
        with VirtualLoop() as loop:
            ran = 0

            async def busy(delivery: Delivery) -> Settlement:
                nonlocal ran
                ran += 1
                loop._now += 0.001
                return ACK

            async def main() -> None:
                longest = 0
                async with Rig(busy, concurrency=1, prefetch=400) as rig:
                    rig.adapter.put(*numbered(300))
                    before = ran
                    while ran < 300:
                        await asyncio.sleep(0)
                        longest = max(longest, ran - before)
                        before = ran
                assert longest <= 6

            loop.run(main())

    @virtual
    async def test_any_callable_that_returns_an_awaitable_is_a_handler(self) -> None:
        def handler(delivery: Delivery) -> Any:
            return asyncio.ensure_future(acks(delivery))

        async with Rig() as rig:  # the rig's own wrapper is a coroutine function
            rig.engine._handler = Engine(rig.adapter, CHANNEL, GROUP, handler, rig.engine.settings)._handler
            rig.adapter.put(*numbered(3))
            await rig.quiet()
            assert len(rig.adapter.settled) == 3

    @virtual
    async def test_a_settlement_can_be_raised(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            if name_of(delivery) == "e1":
                await asyncio.sleep(1)
            raise Settle(DeadLetter("no") if name_of(delivery) == "e0" else ACK)

        async with Rig(handler) as rig:
            rig.adapter.put(*numbered(2))
            await rig.quiet()
            assert [name_of(message) for message in rig.adapter.dead] == ["e0"]
            assert not rig.alarms

    @virtual
    async def test_the_current_delivery_is_known_inside_a_handler_and_its_tasks(self) -> None:
        seen: list[bool] = []

        async def handler(delivery: Delivery) -> Settlement:
            seen.append(current() is delivery)
            await asyncio.sleep(1)
            seen.append(current() is delivery)

            async def inside() -> bool:
                return current() is delivery

            seen.append(await asyncio.create_task(inside()))
            return ACK

        async with Rig(handler, concurrency=2) as rig:
            rig.adapter.put(*numbered(6))
            await rig.quiet()
            assert seen == [True] * 18


class TestContextVariables:
    @virtual
    async def test_what_a_handler_sets_is_unset_in_the_next_message(self) -> None:
        found: list[str | None] = []

        async def handler(delivery: Delivery) -> Settlement:
            found.append(SEEN.get())
            SEEN.set(name_of(delivery))
            return ACK

        async with Rig(handler, concurrency=1) as rig:
            rig.adapter.put(*numbered(5))
            await rig.quiet()
            assert found == [None] * 5

    @virtual
    async def test_what_a_suspending_handler_sets_stays_its_own_over_its_awaits(self) -> None:
        found: list[tuple[str | None, str | None]] = []

        async def handler(delivery: Delivery) -> Settlement:
            before = SEEN.get()
            SEEN.set(name_of(delivery))
            await asyncio.sleep(1)
            found.append((before, SEEN.get()))
            return ACK

        async with Rig(handler, concurrency=2) as rig:
            rig.adapter.put(*numbered(6))
            await rig.quiet()
            assert sorted(found, key=str) == [(None, f"e{number}") for number in range(6)]


class TestRetry:
    @virtual
    async def test_without_order_a_counted_retry_is_a_copy_with_one_attempt_more(self) -> None:
        attempts: list[int] = []

        async def handler(delivery: Delivery) -> Settlement:
            attempts.append(delivery.attempt)
            return ACK if delivery.attempt == 3 else Retry(5)

        async with Rig(handler) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: attempts == [1, 2, 3])
            await rig.quiet()
            assert [(to, after) for to, _, after in rig.adapter.sent] == [(INLET, 5.0)] * 2
            assert [entry[0] for entry in rig.adapter.trace] == ["copy", "ack", "copy", "ack", "ack"]

    @virtual
    async def test_without_order_an_uncounted_return_is_settled_as_one_and_costs_no_attempt(self) -> None:
        async with Rig(fail_first(2, 5.0, counts=False)) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.begun) == 3)
            await rig.quiet()
            assert not rig.adapter.sent
            assert [type(settlement) for _, settlement in rig.adapter.settled] == [Retry, Retry, Ack]
            assert [delivery.attempt for delivery, _ in rig.adapter.settled] == [1, 1, 1]

    @virtual
    async def test_a_return_longer_than_the_adapter_takes_is_a_copy_with_the_same_attempt(self) -> None:
        async with Rig(fail_first(1, 6.0, counts=False), adapter=FakeAdapter(max_return=5.0)) as rig:
            rig.adapter.put(event_message("e"))
            await until(lambda: len(rig.begun) == 2)
            await rig.quiet()
            ((to, copy, after),) = rig.adapter.sent
            assert (to, after) == (INLET, 6.0)
            assert (copy.header("bk-attempt"), copy.header("bk-hop")) == ("1", "1")
            assert rig.begun == ["e", "e"]
            assert rig.outcomes == [("e", "return"), ("e", "ack")]

    @virtual
    async def test_two_long_returns_in_a_row_are_two_copies_with_different_ids(self) -> None:
        async with Rig(fail_first(2, 6.0, counts=False), adapter=FakeAdapter(max_return=5.0)) as rig:
            rig.adapter.put(event_message("e"))
            await until(lambda: len(rig.begun) == 3)
            await rig.quiet()
            assert len({copy.copy_id for _, copy, _ in rig.adapter.sent}) == 2
            assert rig.begun == ["e"] * 3

    @virtual
    async def test_a_long_return_that_does_not_fit_into_a_copy_is_one_at_the_boundary(self) -> None:
        def refuse(to: Address, message: Message) -> TooLarge:
            return TooLarge("full")

        adapter = FakeAdapter(max_return=5.0, on_send=refuse)
        async with Rig(fail_first(1, 6.0, counts=False), adapter=adapter) as rig:
            rig.adapter.put(event_message("e"))
            await until(lambda: len(rig.begun) == 2)
            await rig.quiet()
            assert not adapter.dead
            assert [
                settlement.after for _, settlement in adapter.settled if isinstance(settlement, Retry)
            ] == [6.0]
            assert rig.begun == ["e", "e"]

    @virtual
    async def test_in_order_a_retry_holds_its_key_and_only_its_key(self) -> None:
        async with Rig(fail_first(1, 10.0), order="key") as rig:
            rig.adapter.put(event_message("a0", "a"), event_message("b0", "b"), event_message("a1", "a"))
            await until(lambda: len(rig.begun) == 2)
            await asyncio.sleep(5)
            assert rig.begun == ["a0", "b0"]
            await rig.quiet()
            assert [name for name in rig.ended if name[0] == "a"] == ["a0", "a0", "a1", "a1"]
            assert not rig.adapter.sent
            assert [outcome for _, outcome in rig.outcomes].count("held") == 3

    @virtual
    async def test_in_order_a_counted_retry_raises_the_attempt_and_leaves_a_mark(self) -> None:
        attempts: list[int] = []

        async def handler(delivery: Delivery) -> Settlement:
            attempts.append(delivery.attempt)
            return ACK if delivery.attempt == 2 else Retry(10)

        async with Rig(handler, order="key") as rig:
            rig.adapter.put(event_message("a", "a"))
            await until(lambda: attempts == [1])
            await turns()
            (stored,) = rig.adapter.subscription.out.values()
            mark = json.loads(stored.mark or b"{}")
            assert (mark["attempt"], mark["due"] / 1000 - rig.clock.time()) == (2, pytest.approx(10, abs=0.1))
            await rig.quiet()
            assert attempts == [1, 2]

    @virtual
    async def test_in_order_an_uncounted_return_is_held_without_an_attempt_and_without_a_mark(self) -> None:
        async with Rig(fail_first(2, 3.0, counts=False), order="key") as rig:
            rig.adapter.put(event_message("a", "a"), event_message("b", "a"))
            await rig.quiet()
            assert rig.begun == ["a", "a", "a", "b", "b", "b"]
            assert {delivery.attempt for delivery, _ in rig.adapter.settled} == {1}
            assert not [entry for entry in rig.adapter.trace if entry[0] == "mark"]

    @virtual
    async def test_a_retry_above_max_hold_is_cut_to_it_and_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Rig(fail_first(1, 1000.0), order="key", max_hold=60) as rig:
            rig.adapter.put(event_message("a", "a"))
            start = asyncio.get_running_loop().time()
            await rig.quiet()
            assert 60 <= asyncio.get_running_loop().time() - start < 61
            assert "orders/billing: a retry after 1000 s is cut to max_hold, 60 s" in caplog.text

    @virtual
    async def test_a_held_message_makes_room_for_others(self) -> None:
        async with Rig(fail_first(1, 1000.0), order="key", prefetch=1, concurrency=1) as rig:
            rig.adapter.put(event_message("a", "a"), event_message("b", "b"))
            await until(lambda: rig.begun == ["a", "b"], within=10)

    @virtual
    async def test_the_due_time_in_a_mark_is_kept_by_the_next_owner(self) -> None:
        async with Rig(order="key") as rig:
            due = int((rig.clock.time() + 20) * 1000)
            rig.adapter.put(event_message("a", "a"), mark=marked(attempt=4, due=due))
            rig.adapter.put(event_message("b", "a"))
            await asyncio.sleep(19)
            assert rig.begun == []
            await rig.quiet()
            assert rig.begun == ["a", "b"]
            assert asyncio.get_running_loop().time() == pytest.approx(20, abs=0.2)
            assert rig.adapter.settled[0][0].attempt == 4

    @virtual
    async def test_a_due_time_in_the_past_is_now_and_one_beyond_max_hold_is_cut(self) -> None:
        async with Rig(order="key", max_hold=30) as rig:
            past = int((rig.clock.time() - 20) * 1000)
            rig.adapter.put(event_message("a", "a"), mark=marked(due=past))
            rig.adapter.put(event_message("b", "b"), mark=marked(due=past + 10_000_000))
            await until(lambda: rig.begun == ["a"], within=1)
            await until(lambda: rig.begun == ["a", "b"], within=31)

    @virtual
    async def test_a_retry_that_was_held_is_dropped_when_its_delivery_is_lost(self) -> None:
        async with Rig(fail_first(1, 10.0), order="key") as rig:
            rig.adapter.put(event_message("a", "a"))
            await until(lambda: len(rig.ended) == 1)
            subscription = rig.adapter.subscription
            (lost,) = subscription.out
            rig.adapter.queue.clear()
            await subscription.lose([lost])
            rig.adapter.queue.clear()
            await asyncio.sleep(60)
            assert rig.begun == ["a"]
            assert rig.engine.counts.out == 0


class TestHolding:
    """Where the broker keeps no marks, but can be asked."""

    @pytest.mark.parametrize("settlement", [Retry(), DeadLetter()])
    @virtual
    async def test_what_is_no_longer_ours_is_not_copied(self, settlement: Settlement) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            return settlement

        adapter = FakeAdapter(marks=False, holds=True, on_hold=lambda _: Stale("another's"))
        async with Rig(handler, adapter=adapter) as rig:
            adapter.put(event_message("e"))
            await rig.quiet()
            assert not adapter.sent
            assert rig.outcomes == [("e", "stale")]

    @virtual
    async def test_what_is_still_ours_is_copied_after_the_broker_was_asked(self) -> None:
        adapter = FakeAdapter(marks=False, holds=True)
        async with Rig(fail_first(1), adapter=adapter) as rig:
            adapter.put(event_message("e"))
            await until(lambda: len(rig.begun) == 2)
            assert [what for what, _ in adapter.trace[:3]] == ["hold", "copy", "ack"]

    @virtual
    async def test_while_the_broker_cannot_be_asked_nothing_is_copied(self) -> None:
        errors: list[SettleError | None] = [Unavailable("away"), Unavailable("away"), None]
        adapter = FakeAdapter(marks=False, holds=True, on_hold=lambda _: errors.pop(0))
        async with Rig(fail_first(1), adapter=adapter) as rig:
            adapter.put(event_message("e"))
            await until(lambda: len(rig.begun) == 2)
            assert [what for what, _ in adapter.trace[:5]] == ["unavailable"] * 2 + ["hold", "copy", "ack"]


class TestTallies:
    """Where the broker keeps no marks, but counts for the group."""

    @virtual
    async def test_a_suspect_is_counted_before_it_begins_and_taken_back_when_it_survives(self) -> None:
        standing: list[int] = []
        adapter = FakeAdapter(marks=False, counts=True)

        async def handler(delivery: Delivery) -> Settlement:
            standing.extend(adapter.tallies.values())
            return ACK

        async with Rig(handler, adapter=adapter) as rig:
            adapter.put(event_message("s"), arrivals=2)
            await rig.quiet()
            assert standing == [1]
            assert list(adapter.tallies.values()) == [0]

    @virtual
    async def test_who_was_begun_three_times_and_never_ended_is_dead_lettered_without_running(self) -> None:
        # who is dead takes nothing back
        adapter = FakeAdapter(
            marks=False, counts=True, on_tally=lambda change: Unavailable("dead") if change < 0 else None
        )
        for death in range(3):
            rig = Rig(sleeper(1000), adapter=adapter)
            await rig.engine.start()
            if not death:
                adapter.put(event_message("s"), arrivals=2)
            await until(functools.partial(self.runs, rig))
            self.die(rig)
        async with Rig(adapter=adapter) as rig:
            await rig.quiet()
            assert not rig.begun
            (dead,) = adapter.dead
            assert json.loads(str(dead.header("bk-story")))[-1]["dead"] == "crash_loop"

    def runs(self, rig: Rig) -> bool:
        return bool(rig.running)

    def die(self, rig: Rig) -> None:
        """End the engine as a kill does: nothing more is said to the broker."""
        subscription = rig.adapter.subscription
        subscription.closed = True
        for stored in subscription.out.values():
            rig.adapter.put_back(stored, polite=False)
        subscription.out.clear()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    @virtual
    async def test_innocents_beside_it_are_handled_and_keep_no_count(self) -> None:
        adapter = FakeAdapter(marks=False, counts=True)
        async with Rig(adapter=adapter) as rig:
            adapter.put(*numbered(10), arrivals=2)
            await rig.quiet()
            assert sorted(rig.begun) == sorted(f"e{n}" for n in range(10))
            assert set(adapter.tallies.values()) == {0}
            assert rig.most_running == 1
            assert not adapter.dead

    @virtual
    async def test_the_least_counted_run_first_and_those_with_counts_wait_first(self) -> None:
        adapter = FakeAdapter(marks=False, counts=True)
        async with Rig(adapter=adapter) as rig:
            adapter.put(*numbered(3), arrivals=2)
            names: dict[str, int] = {}
            for number, count in ((0, 2), (1, 1)):
                delivery = Delivery(event_message(f"e{number}"), Address(CHANNEL))
                delivery.channel, delivery.group, delivery.run = CHANNEL, GROUP, 0
                names[tally_name(delivery)] = count
            adapter.tallies.update(names)
            await rig.quiet()
            assert rig.begun == ["e2", "e1", "e0"]

    @virtual
    async def test_a_start_that_cannot_be_counted_is_no_start(self) -> None:
        errors: list[SettleError | None] = [None, Unavailable("away")]
        adapter = FakeAdapter(
            marks=False,
            counts=True,
            on_tally=lambda _: errors.pop(0) if errors else None,
            max_return=math.inf,
        )
        async with Rig(adapter=adapter) as rig:
            adapter.put(event_message("s"), arrivals=2)
            await until(lambda: bool(adapter.settled))
            assert not rig.begun
            assert isinstance(adapter.settled[0][1], Retry)
            await until(lambda: bool(rig.begun))
            await rig.quiet()
            assert set(adapter.tallies.values()) == {0}

    @virtual
    async def test_starts_whose_answers_are_lost_never_make_a_dead_letter_of_what_never_ran(self) -> None:
        adapter = FakeAdapter(marks=False, counts=True)
        lost = 0

        def answer(change: int) -> SettleError | None:
            nonlocal lost
            if change <= 0 or lost == 5:
                return None
            lost += 1  # it is counted, and nobody hears of it
            for name in adapter.tallies or {self.name_of_s(): 0}:
                adapter.tallies[name] = adapter.tallies.get(name, 0) + 1
            return Unavailable("no answer")

        adapter.on_tally = answer
        async with Rig(adapter=adapter) as rig:
            adapter.put(event_message("s"), arrivals=2)
            await until(lambda: bool(rig.ended), within=10_000)
            await rig.quiet()
            assert lost == 5
            assert not adapter.dead

    def name_of_s(self) -> str:
        delivery = Delivery(event_message("s"), Address(CHANNEL))
        delivery.channel, delivery.group, delivery.run = CHANNEL, GROUP, 0
        return tally_name(delivery)

    @virtual
    async def test_a_loss_while_a_finished_suspect_is_being_forgotten_blocks_no_key(self) -> None:
        adapter = FakeAdapter(marks=False, counts=True)
        async with Rig(adapter=adapter) as rig:
            adapter.tallies[self.name_of_s()] = 1
            forgetting = asyncio.Event()
            subscription = adapter.subscription
            assert isinstance(subscription, CountingSubscription)
            tally = subscription.tally

            async def slow(changes: Sequence[tuple[str, int]]) -> Sequence[int | SettleError]:
                if changes[0][1] == -1 and adapter.tallies[self.name_of_s()] == 1:
                    forgetting.set()
                    await asyncio.sleep(60)
                return await tally(changes)

            subscription.tally = slow  # type: ignore[method-assign]
            adapter.put(event_message("s", "k"), arrivals=2)
            await forgetting.wait()
            await subscription.lose(list(subscription.out))
            adapter.queue.clear()
            adapter.put(event_message("next", "k"))
            await until(lambda: "next" in rig.ended, within=30)

    @virtual
    async def test_a_broker_that_does_not_answer_stops_the_suspects_of_no_other_group(self) -> None:
        alone = asyncio.Lock()
        silent, other = FakeAdapter(marks=False, counts=True), FakeAdapter(marks=False, counts=True)
        async with Rig(adapter=silent, alone=alone) as first, Rig(adapter=other, alone=alone) as second:
            subscription = silent.subscription
            assert isinstance(subscription, CountingSubscription)
            tally = subscription.tally

            async def slow(changes: Sequence[tuple[str, int]]) -> Sequence[int | SettleError]:
                if changes[0][1] < 0:
                    await asyncio.sleep(60)
                return await tally(changes)

            subscription.tally = slow  # type: ignore[method-assign]
            silent.put(event_message("s"), arrivals=2)
            await until(lambda: bool(first.ended))
            other.put(event_message("t"), arrivals=2)
            await until(lambda: bool(second.ended), within=1)

    @virtual
    async def test_a_drain_takes_the_count_back_once(self) -> None:
        adapter = FakeAdapter(marks=False, counts=True)
        rig = Rig(sleeper(5), adapter=adapter)
        await rig.engine.start()
        adapter.put(event_message("s"), arrivals=2)
        await until(lambda: bool(rig.running))
        assert set(adapter.tallies.values()) == {1}
        await rig.stopped(10)
        assert [change for what, change in adapter.trace if what == "tally"] == [0, 1, -1]

    @virtual
    async def test_what_is_no_longer_ours_is_neither_counted_nor_begun(self) -> None:
        adapter = FakeAdapter(marks=False, counts=True, on_hold=lambda _: Stale("another's"))
        async with Rig(adapter=adapter) as rig:
            adapter.put(event_message("s"), arrivals=2)
            await until(lambda: ("stale", "s") in adapter.trace)
            await turns()
            assert not rig.begun
            assert not any(adapter.tallies.values())
            adapter.queue.clear()


class TestRecall:
    """Where the broker keeps no marks."""

    def more_than(self, attempts: Sequence[int], count: int) -> bool:
        return len(attempts) > count

    @virtual
    async def test_in_order_the_count_of_tries_outlives_a_reconnect(self) -> None:
        attempts: list[int] = []

        async def handler(delivery: Delivery) -> Settlement:
            attempts.append(delivery.attempt)
            return Retry(10.0) if delivery.attempt < 4 else ACK

        async with Rig(handler, adapter=FakeAdapter(marks=False), order="key") as rig:
            rig.adapter.put(event_message("e", "k"))
            for tries in range(3):
                await until(functools.partial(self.more_than, attempts, tries))
                await turns()
                await rig.adapter.subscription.disconnect()
            await rig.quiet()
            assert attempts == [1, 2, 3, 4]

    @virtual
    async def test_what_is_done_is_forgotten_so_that_the_same_event_begins_again(self) -> None:
        attempts: list[int] = []

        async def handler(delivery: Delivery) -> Settlement:
            attempts.append(delivery.attempt)
            return Retry(1.0) if delivery.attempt < 2 else ACK

        async with Rig(handler, adapter=FakeAdapter(marks=False), order="key") as rig:
            for _ in range(2):
                rig.adapter.put(event_message("e", "k"))
                await rig.quiet()
            assert attempts == [1, 2, 1, 2]

    @virtual
    async def test_a_redriven_event_begins_at_attempt_one(self) -> None:
        attempts: list[int] = []

        async def handler(delivery: Delivery) -> Settlement:
            attempts.append(delivery.attempt)
            return Retry(1.0) if delivery.attempt < 2 else DeadLetter()

        async with Rig(handler, adapter=FakeAdapter(marks=False), order="key") as rig:
            rig.adapter.put(event_message("e", "k"))
            await rig.quiet()
            rig.adapter.put(event_message("e", "k", headers=(("bk-run", "1"),)), address=INLET)
            await rig.quiet()
            assert attempts == [1, 2, 1, 2]


class TestLossOfAPartition:
    """On a log: what lies below the highest started offset is finished, what lies above it is dropped."""

    @virtual
    async def test_what_lies_below_the_highest_started_offset_is_finished_and_the_rest_never_starts(
        self,
    ) -> None:
        async with Rig(
            sleeper(1), adapter=FakeAdapter(log=True), order="key", concurrency=2, prefetch=16
        ) as rig:
            # a0 and b3 start; a1 and a2 wait behind a0, below b3; b4 and b5 lie above
            for number, key in enumerate("aaabbb"):
                rig.adapter.put(event_message(f"{key}{number}", key))
            await until(lambda: len(rig.running) == 2)
            await self.lose_all(rig, 10)
            assert sorted(rig.begun) == ["a0", "a1", "a2", "b3"]
            assert sorted(name_of(delivery) for delivery, _ in rig.adapter.settled) == [
                "a0",
                "a1",
                "a2",
                "b3",
            ]

    @virtual
    async def test_the_handlers_that_never_suspend_count_as_started_too(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            if name_of(delivery).startswith("a"):
                await asyncio.sleep(1)
            return ACK

        async with Rig(
            handler, adapter=FakeAdapter(log=True), order="key", concurrency=4, prefetch=16
        ) as rig:
            for number, key in enumerate("aabbb"):
                rig.adapter.put(event_message(f"{key}{number}", key))
            await until(lambda: len(rig.ended) == 3)
            await self.lose_all(rig, 10)
            assert sorted(rig.begun) == ["a0", "a1", "b2", "b3", "b4"]

    @virtual
    async def test_partitions_are_judged_apart(self) -> None:
        async with Rig(
            sleeper(1), adapter=FakeAdapter(log=True), order="key", concurrency=2, prefetch=16
        ) as rig:
            rig.adapter.put(event_message("p0", "a"), event_message("p1", "a"), partition="p")
            rig.adapter.put(event_message("q2", "b"), event_message("q3", "b"), partition="q")
            await until(lambda: len(rig.running) == 2)
            await self.lose_all(rig, 10)
            assert sorted(rig.begun) == ["p0", "q2"]

    @virtual
    async def test_a_retry_that_is_due_after_the_seconds_is_dropped_at_once_with_what_waits_behind_it(
        self,
    ) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            await asyncio.sleep(1)
            return Retry(60.0) if name_of(delivery) == "a0" else ACK

        async with Rig(
            handler, adapter=FakeAdapter(log=True), order="key", concurrency=4, prefetch=16
        ) as rig:
            for number, key in enumerate("aab"):
                rig.adapter.put(event_message(f"{key}{number}", key))
            await until(lambda: rig.ended == ["a0", "b2"])
            await turns()
            start = asyncio.get_running_loop().time()
            await self.lose_all(rig, 10)
            assert asyncio.get_running_loop().time() - start < 1
            await asyncio.sleep(100)
            assert rig.begun == ["a0", "b2"]

    @virtual
    async def test_a_retry_that_is_due_within_the_seconds_is_finished(self) -> None:
        async with Rig(
            fail_first(1, 3.0), adapter=FakeAdapter(log=True), order="key", concurrency=4, prefetch=16
        ) as rig:
            rig.adapter.put(event_message("a0", "a"))
            await until(lambda: rig.ended == ["a0"])
            await turns()
            await self.lose_all(rig, 10)
            assert rig.begun == ["a0", "a0"]
            assert len(rig.adapter.settled) == 1

    @virtual
    async def test_without_seconds_nothing_more_starts(self) -> None:
        async with Rig(
            sleeper(1), adapter=FakeAdapter(log=True), order="key", concurrency=2, prefetch=16
        ) as rig:
            for number, key in enumerate("aab"):
                rig.adapter.put(event_message(f"{key}{number}", key))
            await until(lambda: len(rig.running) == 2)
            await self.lose_all(rig, 0)
            await asyncio.sleep(10)
            assert sorted(rig.begun) == ["a0", "b2"]
            assert not rig.adapter.settled

    async def lose_all(self, rig: Rig, seconds: float) -> None:
        """Tell the engine, and hand out nothing more."""
        await rig.engine._on_lost(list(rig.adapter.subscription.out), seconds)
        rig.adapter.queue.clear()


class TestDeadLetters:
    @virtual
    async def test_the_original_is_acked_only_after_its_copy_is_confirmed(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            return DeadLetter("bad", "very")

        async with Rig(handler) as rig:
            rig.adapter.put(*numbered(1))
            await rig.quiet()
            assert [entry[0] for entry in rig.adapter.trace] == ["dead", "ack"]
            assert rig.outcomes == [("e0", "dead")]
            story = json.loads(str(rig.adapter.dead[0].header("bk-story")))
            assert story[-1] == {
                "dead": "bad",
                "n": 1,
                "at": story[-1]["at"],
                "detail": "very",
            }

    @virtual
    async def test_one_that_cannot_be_sent_keeps_its_place_and_others_go_on(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            return DeadLetter("bad") if name_of(delivery) == "e0" else ACK

        adapter = FakeAdapter()
        adapter.on_send = lambda to, message: ConnectionLost("down")
        async with Rig(handler, adapter=adapter) as rig:
            adapter.put(*numbered(50))
            await until(lambda: len(adapter.settled) == 49)
            await asyncio.sleep(300)
            assert len(adapter.subscription.out) == 1
            assert rig.engine.counts.out == 1
            assert not rig.engine.ready
            assert rig.codes == ["copy_failed"]
            adapter.on_send = lambda to, message: None
            await rig.quiet()
            assert rig.engine.ready
            assert [name_of(message) for message in adapter.dead] == ["e0"]
            assert rig.begun.count("e0") == 1

    @virtual
    async def test_in_order_its_key_waits_until_the_copy_is_confirmed(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            return DeadLetter("bad") if name_of(delivery) == "a0" else ACK

        adapter = FakeAdapter()
        adapter.on_send = lambda to, message: ConnectionLost("down")
        async with Rig(handler, adapter=adapter, order="key") as rig:
            adapter.put(event_message("a0", "a"), event_message("a1", "a"), event_message("b0", "b"))
            await until(lambda: len(rig.ended) == 2)
            await asyncio.sleep(100)
            assert rig.begun == ["a0", "b0"]
            adapter.on_send = lambda to, message: None
            await rig.quiet()
            assert rig.begun == ["a0", "b0", "a1"]
            assert [entry[:2] for entry in adapter.trace][1:] == [
                ("dead", "a0"),
                ("ack", "a0"),
                ("ack", "a1"),
            ]

    @virtual
    async def test_intake_stops_when_copies_that_cannot_be_sent_fill_the_budget(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            return DeadLetter("bad")

        adapter = FakeAdapter()
        adapter.on_send = lambda to, message: ConnectionLost("down")
        async with Rig(handler, adapter=adapter, prefetch=8, hold_limit=0) as rig:
            adapter.put(*numbered(20))
            await asyncio.sleep(300)
            assert len(rig.begun) == 8
            adapter.on_send = lambda to, message: None
            await rig.quiet()
            assert len(adapter.dead) == 20

    @virtual
    async def test_the_story_of_one_that_is_too_large_shrinks_and_then_intake_holds(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            delivery.story.extend({"message": "x" * 900, "trace": "y" * 900} for _ in range(20))
            return DeadLetter("bad")

        adapter = FakeAdapter()
        limit = 0

        def on_send(to: Address, message: Message) -> TooLarge | None:
            return TooLarge("no") if message.size > limit else None

        adapter.on_send = on_send
        async with Rig(handler, adapter=adapter) as rig:
            adapter.put(*numbered(1))
            await until(lambda: bool(rig.engine.intake.reasons))
            sizes = [message.size for _, message, _ in adapter.tried]
            assert sizes == sorted(sizes, reverse=True)
            assert len(str(adapter.tried[3][1].header("bk-story"))) <= 512
            assert rig.engine.intake.reasons == {"dead_letter"}
            limit = 100_000
            await until(lambda: len(adapter.dead) == 1)
            await rig.quiet()
            assert rig.engine.ready

    @virtual
    async def test_a_detail_that_is_no_text_is_a_mistake_of_the_handler_and_costs_nobody_else(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            detail: Any = ValueError("odd")
            return DeadLetter("bad", detail) if name_of(delivery) == "e0" and not delivery.returns else ACK

        async with Rig(handler, concurrency=1) as rig:
            rig.adapter.put(*numbered(3, "a"))
            await until(lambda: len(rig.begun) == 4)
            await rig.quiet()
            assert rig.codes == ["pattern_failed"]
            assert not rig.adapter.dead

    @virtual
    async def test_one_that_cannot_be_written_holds_up_no_other(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            if name_of(delivery) == "e0":
                delivery.story.append({"odd": object()})
            return DeadLetter("bad")

        async with Rig(handler) as rig:
            rig.adapter.put(*numbered(10))
            await until(lambda: len(rig.adapter.dead) >= 9, within=0.02)
            assert len(rig.adapter.dead) >= 9


class TestEndingsThatAreNoSettlement:
    @virtual
    async def test_an_exception_that_no_pattern_takes_returns_the_message_uncounted(self) -> None:
        fail = True

        async def handler(delivery: Delivery) -> Settlement:
            if fail:
                raise Bug
            return ACK

        async with Rig(handler) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: "pattern_failed" in rig.codes)
            fail = False
            await until(lambda: len(rig.begun) == 2)
            await rig.quiet()
            assert rig.adapter.settled[0][1] == Retry(1.0, "pattern_failed", counts=False)
            assert rig.adapter.settled[1][0].attempt == 1
            assert "Bug: a bug" in rig.alarms[0].text

    @virtual
    async def test_a_result_that_is_no_settlement_returns_the_message_uncounted(self) -> None:
        results: list[Any] = ["nonsense", ACK]

        async def handler(delivery: Delivery) -> Settlement:
            result: Settlement = results.pop(0)
            return result

        async with Rig(handler) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.adapter.settled) == 2)
            assert rig.codes == ["pattern_failed"]
            assert "'nonsense', which is no settlement" in rig.alarms[0].text

    @virtual
    async def test_none_from_a_chain_is_no_settlement_and_loses_nothing(self) -> None:
        results: list[Any] = [None, ACK]

        async def handler(delivery: Delivery) -> Settlement:
            result: Settlement = results.pop(0)
            return result

        async with Rig(handler) as rig:
            rig.adapter.put(*numbered(1, "a"))
            rig.adapter.put(*numbered(1, "a", start=1))
            results.append(ACK)
            await until(lambda: not results)
            await rig.quiet()

    @pytest.mark.parametrize("error", [SystemExit, GeneratorExit, asyncio.CancelledError])
    @pytest.mark.parametrize("suspending", [False, True])
    @virtual
    async def test_what_ends_programs_ends_no_worker(
        self, error: type[BaseException], suspending: bool
    ) -> None:
        tries = 0

        async def handler(delivery: Delivery) -> Settlement:
            nonlocal tries
            tries += 1
            if suspending:
                await asyncio.sleep(1)
            if tries == 1:
                raise error
            return ACK

        async with Rig(handler, concurrency=1) as rig:
            rig.adapter.put(*numbered(2))
            await until(lambda: len(rig.adapter.settled) == 3)
            assert rig.codes == ["pattern_failed"]


class TestCancellation:
    @virtual
    async def test_a_handler_that_cancels_its_own_task_and_awaits_is_a_failure_of_its_own_message(
        self,
    ) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            task = asyncio.current_task()
            assert task is not None
            if name_of(delivery) == "e0" and delivery.returns == 0:
                task.cancel()
            await asyncio.sleep(1)
            return ACK

        async with Rig(handler, concurrency=1) as rig:
            rig.adapter.put(*numbered(4))
            await until(lambda: len(rig.adapter.settled) == 5)
            assert [type(settlement) for _, settlement in rig.adapter.settled].count(Ack) == 4
            assert rig.codes == ["pattern_failed"]

    @pytest.mark.parametrize("suspending", [False, True])
    @virtual
    async def test_a_handler_that_cancels_its_own_task_and_returns_harms_nobody(
        self, suspending: bool
    ) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            if suspending:
                await asyncio.sleep(1)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return ACK

        async with Rig(handler, concurrency=1) as rig:
            rig.adapter.put(*numbered(5))
            await rig.quiet()
            assert rig.begun == [f"e{number}" for number in range(5)]
            assert not rig.alarms

    @virtual
    async def test_a_cancel_that_fires_after_its_handler_has_returned_ends_no_worker(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            return ACK

        async with Rig(handler, concurrency=2) as rig:
            for number in range(10):
                rig.adapter.put(event_message(f"e{number}"))
                await rig.quiet()
            assert len(rig.adapter.settled) == 10
            assert len(rig.engine._workers) == 2

    def test_a_cancel_that_fires_while_its_worker_yields_ends_no_worker(self) -> None:
        with VirtualLoop() as loop:

            async def handler(delivery: Delivery) -> Settlement:
                task = asyncio.current_task()
                assert task is not None
                loop._now += 0.01
                loop.call_soon(task.cancel)
                return ACK

            async def main() -> None:
                async with Rig(handler, concurrency=2) as rig:
                    for number in range(10):
                        rig.adapter.put(event_message(f"e{number}"))
                        await rig.quiet()
                    assert len(rig.adapter.settled) == 10
                    assert len(rig.engine._workers) == 2

            loop.run(main())

    def test_the_end_of_the_loop_ends_an_engine_that_nobody_has_stopped_and_settles_nothing(self) -> None:
        adapters: list[FakeAdapter] = []

        async def main() -> None:
            rig = Rig(sleeper(100), concurrency=2)
            adapters.append(rig.adapter)
            await rig.engine.start()
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.running) == 1)

        run_virtual(main(), patience=1)
        assert not adapters[0].settled

    @virtual
    async def test_receive_can_be_cancelled_at_any_moment(self) -> None:
        async with Rig() as rig:
            await turns()
            await rig.stopped(1)
            rig.adapter.put(*numbered(1))
            assert rig.begun == []


class TestLoss:
    @virtual
    async def test_what_had_not_started_never_starts(self) -> None:
        async with Rig(sleeper(10), concurrency=1) as rig:
            rig.adapter.put(*numbered(5))
            await until(lambda: len(rig.running) == 1)
            subscription = rig.adapter.subscription
            lost = [delivery for delivery in subscription.out if delivery not in rig.running]
            rig.adapter.queue.clear()
            await subscription.lose(lost)
            rig.adapter.queue.clear()
            await asyncio.sleep(60)
            assert rig.begun == ["e0"]
            assert rig.engine.counts.out == 0

    @virtual
    async def test_what_waits_in_a_lane_is_dropped_and_its_key_goes_on_with_the_next_arrival(self) -> None:
        async with Rig(sleeper(10), order="key") as rig:
            rig.adapter.put(*numbered(3, "a"))
            await until(lambda: len(rig.running) == 1)
            subscription = rig.adapter.subscription
            await subscription.lose([each for each in subscription.out if each not in rig.running])
            await rig.quiet()
            assert rig.begun == ["e0", "e1", "e2"]
            assert [delivery.arrivals for delivery, _ in rig.adapter.settled] == [1, 2, 2]

    @virtual
    async def test_with_no_seconds_what_runs_is_cancelled_and_not_settled(self) -> None:
        async with Rig(sleeper(10)) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.running) == 1)
            (lost,) = rig.adapter.subscription.out
            await rig.adapter.subscription.lose([lost])
            rig.adapter.queue.clear()
            await until(lambda: not rig.engine.counts.out)
            assert lost.stopped == "lost"
            assert not rig.adapter.settled
            assert not [entry for entry in rig.adapter.trace if entry[0] == "stale"]

    @virtual
    async def test_with_seconds_what_runs_finishes_and_settles_before_the_call_returns(self) -> None:
        async with Rig(sleeper(3)) as rig:
            rig.adapter.put(*numbered(4))
            await until(lambda: len(rig.running) == 4)
            start = asyncio.get_running_loop().time()
            await rig.engine._on_lost(list(rig.adapter.subscription.out), 10)
            assert len(rig.adapter.settled) == 4
            assert asyncio.get_running_loop().time() - start < 3.5

    @virtual
    async def test_what_outlasts_the_seconds_is_cancelled(self) -> None:
        async with Rig(sleeper(30)) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.running) == 1)
            (lost,) = rig.adapter.subscription.out
            await rig.adapter.subscription.lose([lost], 10)
            rig.adapter.queue.clear()
            await until(lambda: not rig.running, within=1)
            assert lost.stopped == "lost"
            assert not rig.adapter.settled

    @virtual
    async def test_a_steady_flow_of_others_does_not_make_a_loss_last_its_whole_time(self) -> None:
        async with Rig(sleeper(0.5), concurrency=4, prefetch=16) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.running) == 1)
            (lost,) = rig.adapter.subscription.out

            settle = rig.adapter.subscription.settle

            async def slowly(settled: Sequence[tuple[Delivery, Ack | Retry]]) -> Any:
                await asyncio.sleep(0.3)
                return await settle(settled)

            rig.adapter.subscription.settle = slowly  # type: ignore[method-assign]

            async def flow() -> None:
                for number in range(1, 10_000):
                    rig.adapter.put(event_message(f"f{number}"))
                    await asyncio.sleep(0.1)

            flowing = asyncio.create_task(flow())
            await asyncio.sleep(0.2)
            start = asyncio.get_running_loop().time()
            await rig.engine._on_lost([lost], 20)
            assert asyncio.get_running_loop().time() - start < 3
            flowing.cancel()
            await asyncio.gather(flowing, return_exceptions=True)

    @virtual
    async def test_a_retry_asked_for_while_its_delivery_is_being_lost_is_not_run_here(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            await asyncio.sleep(1)
            return Retry(60)

        async with Rig(handler, order="key") as rig:
            rig.adapter.put(event_message("a", "a"))
            await until(lambda: len(rig.running) == 1)
            subscription = rig.adapter.subscription
            (lost,) = subscription.out
            await subscription.lose([lost], 10)
            rig.adapter.queue.clear()
            await asyncio.sleep(200)
            assert rig.begun == ["a"]
            assert rig.engine.counts.out == 0

    @virtual
    async def test_the_end_of_the_seconds_cancels_the_lost_handling_and_no_other(self) -> None:
        cancelled: list[str] = []

        async def handler(delivery: Delivery) -> Settlement:
            try:
                if name_of(delivery) == "a" and delivery.attempt == 1:
                    await asyncio.sleep(0.5)
                    return Retry(1)
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(name_of(delivery))
                raise
            return ACK

        async with Rig(handler, order="key", concurrency=2) as rig:
            rig.adapter.put(event_message("a", "a"))
            await until(lambda: len(rig.running) == 1)
            subscription = rig.adapter.subscription
            (lost,) = subscription.out
            losing = asyncio.create_task(subscription.lose([lost], 10))
            await until(lambda: not rig.running)
            rig.adapter.put(event_message("b", "b"))
            await losing
            await asyncio.sleep(1)
            assert "b" not in cancelled

    @virtual
    async def test_a_stuck_dead_letter_of_a_lost_delivery_is_never_sent(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            return DeadLetter("bad") if delivery.arrivals == 1 else ACK

        adapter = FakeAdapter()
        adapter.on_send = lambda to, message: ConnectionLost("down")
        async with Rig(handler, adapter=adapter, order="key") as rig:
            adapter.put(event_message("a", "a"), event_message("b", "a"))
            await until(lambda: rig.engine.settler.blocked == 1)
            await adapter.subscription.lose(list(adapter.subscription.out))
            await until(lambda: len(adapter.settled) >= 1, within=120)
            adapter.on_send = lambda to, message: None
            await rig.quiet()
            await asyncio.sleep(120)
            assert not [message for message in adapter.dead if name_of(message) == "a"]
            assert rig.engine.ready
            assert rig.engine.counts.out == 0

    @virtual
    async def test_a_copy_that_waits_for_its_turn_is_still_sent_within_the_seconds(self) -> None:
        adapter = FakeAdapter()

        async def handler(delivery: Delivery) -> Settlement:
            await asyncio.sleep(int(name_of(delivery)[1:]))
            return Retry(60)

        async with Rig(handler, adapter=adapter) as rig:
            adapter.sending.clear()
            adapter.put(*numbered(2, start=1))
            await until(lambda: len(rig.ended) == 2)
            asyncio.get_running_loop().call_later(1, adapter.sending.set)
            await rig.adapter.subscription.lose(list(rig.adapter.subscription.out), 10)
            assert len(adapter.sent) == 2
            assert len(adapter.settled) == 2

    @virtual
    async def test_room_that_a_loss_makes_is_used_at_once(self) -> None:
        async with Rig(sleeper(3600), order="key", prefetch=4, hold_limit=4, concurrency=4) as rig:
            rig.adapter.put(*numbered(8, "hot"))
            rig.adapter.put(event_message("cool", "cool"))
            await until(lambda: len(rig.adapter.subscription.out) == 8)
            subscription = rig.adapter.subscription
            waiting = [each for each in subscription.out if each not in rig.running]
            await rig.engine._on_lost(waiting, 0)
            await until(lambda: "cool" in rig.begun, within=10)


class TestReconnect:
    @virtual
    async def test_a_lost_connection_is_followed_by_a_new_subscription_with_back_off(self) -> None:
        async with Rig() as rig:
            failures = 4
            down = ConnectionLost("still down")

            def refuse() -> None:
                nonlocal failures
                failures -= 1
                if failures >= 0:
                    raise down

            rig.adapter.on_subscribe = refuse
            rig.adapter.subscription.fail(ConnectionLost("down"))
            await turns()
            assert not rig.engine.ready
            start = asyncio.get_running_loop().time()
            await until(lambda: rig.engine.ready)
            assert 0.5 < asyncio.get_running_loop().time() - start < 10
            assert rig.codes == ["connection_lost"] * 5
            assert rig.adapter.subscriptions[0].closed
            rig.adapter.put(*numbered(3))
            await rig.quiet()
            assert len(rig.adapter.settled) == 3

    @virtual
    async def test_one_key_stays_one_at_a_time_while_the_old_handler_still_runs(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            end = asyncio.get_running_loop().time() + 30
            while (left := end - asyncio.get_running_loop().time()) > 0:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(left)
            return ACK

        async with Rig(handler, order="key") as rig:
            rig.adapter.put(*numbered(2, "a"))
            await until(lambda: len(rig.running) == 1)
            await rig.adapter.subscription.disconnect()
            await rig.quiet()
            assert rig.most_running == 1
            assert rig.begun == ["e0", "e0", "e1"]

    @virtual
    async def test_what_was_not_started_on_the_old_connection_is_started_on_the_new_one_only(self) -> None:
        async with Rig(sleeper(1), concurrency=1, prefetch=8) as rig:
            rig.adapter.put(*numbered(6))
            await until(lambda: len(rig.running) == 1)
            rig.adapter.subscription.fail(ConnectionLost("down, and no word of a loss"))
            await rig.quiet()
            assert sorted(rig.begun[1:]) in ([f"e{n}" for n in range(6)], [f"e{n}" for n in range(1, 6)])

    @virtual
    async def test_reasons_to_hold_survive_it(self) -> None:
        async with Rig() as rig:
            await turns()
            rig.engine.intake.hold("breaker")
            rig.engine.intake.hold("rate")
            await rig.adapter.subscription.disconnect()
            await until(lambda: len(rig.adapter.subscriptions) == 2)
            rig.adapter.put(*numbered(3))
            await asyncio.sleep(60)
            assert rig.begun == []
            assert not rig.engine.ready
            rig.engine.intake.release("breaker")
            await asyncio.sleep(60)
            assert rig.begun == []
            rig.engine.intake.release("rate")
            await rig.quiet()
            assert len(rig.begun) == 3

    @virtual
    async def test_an_error_of_any_kind_while_receiving_does_not_end_the_reader(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Rig() as rig:
            rig.adapter.subscription.fail(Bug())
            await until(lambda: len(rig.adapter.subscriptions) == 2)
            rig.adapter.put(*numbered(1))
            await rig.quiet()
            assert rig.codes == ["intake_failed"]
            assert "orders/billing: Bug: a bug; subscribing again" in caplog.text

    @virtual
    async def test_a_cancelled_error_of_a_client_does_not_end_the_reader(self) -> None:
        async with Rig() as rig:
            rig.adapter.subscription.fail(asyncio.CancelledError())
            await asyncio.sleep(60)
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.adapter.settled) == 1, within=60)

    @virtual
    async def test_an_error_while_closing_the_old_subscription_does_not_end_the_reader(self) -> None:
        for error in (OSError("socket"), Closed("closed")):
            async with Rig() as rig:
                old = rig.adapter.subscription

                async def close(error: Exception = error) -> None:
                    raise error

                old.close = close  # type: ignore[method-assign]
                old.fail(ConnectionLost("down"))
                await until(lambda rig=rig: len(rig.adapter.subscriptions) == 2, within=60)  # type: ignore[misc]
                rig.adapter.put(*numbered(1))
                await rig.quiet()
                old.closed = True

    @virtual
    async def test_a_subscription_that_somebody_else_closes_is_replaced_without_a_hot_loop(self) -> None:
        async with Rig(sleeper(1), concurrency=1) as rig:
            rig.adapter.put(*numbered(4))
            await until(lambda: len(rig.running) == 1)

            def empty() -> None:
                assert len(rig.adapter.subscriptions) < 100, "a hot loop"

            rig.adapter.on_subscribe = empty
            await rig.adapter.subscription.close()
            await rig.quiet()
            assert sorted(rig.begun[1:]) in ([f"e{n}" for n in range(4)], [f"e{n}" for n in range(1, 4)])
            assert len(rig.adapter.subscriptions) == 2

    @virtual
    async def test_a_subscription_that_is_always_empty_leaves_the_loop_alive(self) -> None:
        async with Rig() as rig:
            made = 0

            def count() -> None:
                nonlocal made
                made += 1
                if made > 50:
                    rig.engine._stopping = True

            rig.adapter.on_subscribe = count
            for _ in range(5):
                rig.adapter.subscription.empty = True
                rig.adapter.subscription.wake()
                await asyncio.sleep(0.2)
            rig.engine._stopping = False
            assert made <= 10

    @virtual
    async def test_a_failed_call_gives_nothing_back_that_still_runs_here(self) -> None:
        async with Rig(sleeper(20)) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.running) == 1)
            rig.adapter.subscription.fail(ConnectionLost("the file is locked"))
            await asyncio.sleep(10)
            assert len(rig.adapter.subscriptions) == 1
            await until(lambda: len(rig.adapter.subscriptions) == 2)
            assert [entry[0] for entry in rig.adapter.trace] == ["ack"]
            await rig.quiet()
            assert len(rig.begun) == 1

    @virtual
    async def test_what_outlasts_the_grace_of_a_lost_connection_is_cancelled_and_not_settled_by_its_old_owner(
        self,
    ) -> None:
        async with Rig(sleeper(100)) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.running) == 1)
            rig.adapter.subscription.fail(ConnectionLost("down"))
            await until(lambda: len(rig.adapter.subscriptions) == 2, within=40)
            assert not rig.adapter.trace
            await until(lambda: len(rig.begun) == 2)

    @virtual
    @pytest.mark.parametrize("order", ["none", "key"])
    async def test_a_retry_of_a_subscription_that_is_let_go_is_not_run_again_by_its_old_owner(
        self, order: Order
    ) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            await asyncio.sleep(5)
            return ACK if delivery.attempt > 1 else Retry(after=1)

        async with Rig(handler, order=order) as rig:
            rig.adapter.put(*numbered(1, "a"))
            await until(lambda: len(rig.running) == 1)
            rig.adapter.subscription.fail(ConnectionLost("down"))
            await until(lambda: len(rig.adapter.settled) == (2 if order == "none" else 1), within=40)
            await rig.quiet()
            assert len(rig.begun) == 2

    @virtual
    async def test_a_message_that_cannot_even_be_read_costs_no_other_and_no_budget(self) -> None:
        async with Rig(prefetch=8) as rig:
            rig.adapter.put(event_message("odd", headers=(("bk-attempt", "²"),)), address=INLET)
            rig.adapter.put(*numbered(20))
            await until(lambda: len(rig.begun) >= 20, within=60)
            await rig.quiet()


class TestIntake:
    def test_reasons_are_a_set_and_only_the_last_release_opens(self) -> None:
        opened: list[int] = []
        intake = Intake(lambda: opened.append(len(intake.reasons)))
        intake.hold("a")
        intake.hold("a")
        intake.hold("b")
        intake.release("a")
        assert (intake.reasons, opened) == ({"b"}, [])
        intake.release("b")
        assert (intake.reasons, opened) == (set(), [0])

    @virtual
    async def test_a_handler_can_hold_it_through_its_delivery(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            delivery.control.hold("full")
            return ACK

        async with Rig(handler, prefetch=1) as rig:
            rig.adapter.put(*numbered(5))
            await asyncio.sleep(10)
            assert len(rig.begun) <= 2
            assert not rig.engine.ready
            seen = len(rig.begun)
            rig.engine.intake.release("full")
            await until(lambda: len(rig.begun) > seen)


class TestSettlements:
    @virtual
    async def test_one_that_is_unavailable_is_tried_again_and_the_handler_never(self) -> None:
        adapter = FakeAdapter()
        adapter.on_settle = lambda delivery, settlement: Unavailable("down")
        async with Rig(adapter=adapter) as rig:
            adapter.put(*numbered(3))
            await asyncio.sleep(600)
            assert rig.begun == ["e0", "e1", "e2"]
            assert rig.engine.counts.out == 3
            adapter.on_settle = lambda delivery, settlement: None
            await rig.quiet()
            assert rig.begun == ["e0", "e1", "e2"]

    @virtual
    async def test_one_that_turns_stale_is_dropped_and_counted_out(self) -> None:
        adapter = FakeAdapter()
        tries: list[str] = []

        def on_settle(delivery: Delivery, settlement: Ack | Retry) -> Unavailable | Stale | None:
            tries.append(name_of(delivery))
            if delivery.arrivals == 2:
                return None
            return Stale("gone") if len(tries) == 5 else Unavailable("down")

        adapter.on_settle = on_settle
        async with Rig(adapter=adapter) as rig:
            adapter.put(*numbered(1))
            await until(lambda: ("e0", "stale") in rig.outcomes)
            await rig.quiet()
            assert rig.outcomes == [("e0", "stale"), ("e0", "ack")]

    @virtual
    async def test_a_failure_harms_only_its_own_delivery(self) -> None:
        adapter = FakeAdapter()
        adapter.on_settle = lambda delivery, settlement: (
            Unavailable("x") if name_of(delivery) == "e1" else None
        )
        async with Rig(adapter=adapter) as rig:
            adapter.put(*numbered(5))
            await until(lambda: len(adapter.settled) == 4, within=1)
            assert rig.engine.counts.out == 1

    @virtual
    async def test_a_key_goes_on_while_its_ack_is_tried_again(self) -> None:
        adapter = FakeAdapter()
        adapter.on_settle = lambda delivery, settlement: (
            Unavailable("x") if name_of(delivery) == "e0" else None
        )
        async with Rig(adapter=adapter, order="key") as rig:
            adapter.put(*numbered(3, "a"))
            await until(lambda: len(adapter.settled) == 2)
            assert rig.begun == ["e0", "e1", "e2"]


class TestHooks:
    @virtual
    async def test_a_hook_that_raises_changes_nothing(self) -> None:
        def broken(event: HookEvent) -> None:
            raise Bug

        def seen(event: HookEvent) -> None:
            events.append(event)

        events: list[HookEvent] = []
        async with Rig(fail_first(1), hooks=[broken, seen]) as rig:
            rig.adapter.put(*numbered(3))
            await until(lambda: len(rig.begun) == 6)
            await rig.quiet()
            assert sum(isinstance(event, Started) for event in events) == 6
            assert sum(isinstance(event, Settled) for event in events) == 6

    @virtual
    async def test_without_hooks_the_same_happens(self) -> None:
        rig = Rig(fail_first(1))
        rig.engine._hooks = []
        rig.engine.settler._hooks = []
        async with rig:
            rig.adapter.put(*numbered(3))
            await until(lambda: len(rig.begun) == 6)
            await rig.quiet()
            assert len(rig.adapter.settled) == 6


class TestDrain:
    @virtual
    async def test_what_runs_finishes_and_settles_and_what_had_not_started_goes_back(self) -> None:
        async with Rig(sleeper(5), concurrency=2, prefetch=8) as rig:
            rig.adapter.put(*numbered(6))
            await until(lambda: len(rig.running) == 2)
            await rig.stopped(30)
            assert rig.begun == ["e0", "e1"]
            assert len(rig.adapter.settled) == 2
            assert len(rig.adapter.left) == 4
            assert rig.engine.counts.abandoned == 0
            assert not rig.engine.ready

    @virtual
    async def test_nothing_starts_once_it_has_begun(self) -> None:
        async with Rig(sleeper(0.01), concurrency=4, prefetch=64) as rig:
            rig.adapter.put(*numbered(60))
            await until(lambda: len(rig.begun) >= 8)
            stopping = asyncio.create_task(rig.stopped(30))
            await asyncio.sleep(0)
            begun = len(rig.begun)
            await stopping
            assert len(rig.begun) == begun
            assert len(rig.adapter.settled) == begun
            assert len(rig.adapter.left) == 60 - begun

    @virtual
    async def test_a_worker_that_is_about_to_take_the_next_message_takes_none(self) -> None:
        gate = asyncio.Event()

        async def handler(delivery: Delivery) -> Settlement:
            await gate.wait()
            return ACK

        async with Rig(handler, concurrency=2, prefetch=8) as rig:
            rig.adapter.put(*numbered(6))
            await until(lambda: len(rig.running) == 2)
            gate.set()
            await rig.stopped(30)
            assert rig.begun == ["e0", "e1"]

    @virtual
    async def test_what_a_receive_under_way_brings_is_not_started(self) -> None:
        async with Rig() as rig:
            await turns()
            rig.adapter.put(*numbered(3))
            await rig.stopped(1)
            assert rig.begun == []
            assert len(rig.adapter.queue) == 3

    @virtual
    async def test_a_reader_that_is_slow_to_let_go_starts_nothing_either(self) -> None:
        async with Rig() as rig:
            subscription = rig.adapter.subscription
            receive = subscription.receive

            async def slow(limit: int) -> Sequence[Delivery]:
                try:
                    return await receive(limit)
                except asyncio.CancelledError:
                    rig.adapter.put(*numbered(3))
                    return await receive(limit)

            await turns()
            subscription.fail(ConnectionLost("once, so that the slow one is called"))
            rig.adapter.on_subscribe = lambda: None
            await until(lambda: len(rig.adapter.subscriptions) == 2)
            newer = rig.adapter.subscription
            receive = newer.receive
            newer.receive = slow  # type: ignore[method-assign]
            rig.adapter.put(event_message("first"))
            await rig.quiet()
            await turns()
            await rig.stopped(1)
            assert rig.begun == ["first"]

    @virtual
    async def test_what_outlasts_the_grace_is_cancelled_and_stays_unsettled(self) -> None:
        async with Rig(sleeper(100)) as rig:
            rig.adapter.put(*numbered(2))
            await until(lambda: len(rig.running) == 2)
            start = asyncio.get_running_loop().time()
            await rig.stopped(10)
            assert 10 <= asyncio.get_running_loop().time() - start < 12
            assert [delivery.stopped for delivery in rig.adapter.left] == ["drain", "drain"]
            assert not rig.adapter.settled
            assert rig.engine.counts.abandoned == 0

    @virtual
    async def test_a_handler_that_acks_after_it_was_cancelled_is_not_believed(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(100)
            return ACK

        async with Rig(handler) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.running) == 1)
            await rig.stopped(1)
            assert not rig.adapter.settled
            assert len(rig.adapter.left) == 1

    @virtual
    async def test_a_handler_that_ignores_cancellation_is_abandoned_unsettled_and_counted(self) -> None:
        async with Rig(stubborn, concurrency=2) as rig:
            rig.adapter.put(*numbered(2))
            await until(lambda: len(rig.running) == 2)
            start = asyncio.get_running_loop().time()
            await rig.stopped(10)
            assert asyncio.get_running_loop().time() - start < 13
            assert rig.engine.counts.abandoned == 2
            assert [outcome for _, outcome in rig.outcomes] == ["abandoned", "abandoned"]
            assert len(rig.adapter.left) == 2
            await asyncio.sleep(4000)
            assert len(rig.ended) == 2
            assert not rig.adapter.settled
            await turns()
            assert not rig.engine._workers

    @virtual
    async def test_a_handler_that_never_returns_holds_up_only_its_own_worker(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            if name_of(delivery) == "e0":
                await stubborn(delivery)
            return ACK

        async with Rig(handler, concurrency=2) as rig:
            rig.adapter.put(*numbered(50))
            await until(lambda: len(rig.adapter.settled) == 49)
            await rig.stopped(1)
            assert rig.engine.counts.abandoned == 1

    @pytest.mark.parametrize("seconds", [0.999, 1.0, 1.001])
    @virtual
    async def test_a_handler_that_ends_as_the_patience_ends_hangs_nothing(self, seconds: float) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                await asyncio.sleep(seconds)
                raise
            return ACK

        async with Rig(handler, concurrency=3) as rig:
            rig.adapter.put(*numbered(3))
            await until(lambda: len(rig.running) == 3)
            await rig.stopped(1)
            assert not rig.adapter.settled
            await asyncio.sleep(1)
            assert not rig.engine._workers

    @virtual
    async def test_hurry_cuts_the_grace(self) -> None:
        async with Rig(sleeper(100)) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.running) == 1)
            start = asyncio.get_running_loop().time()
            stopping = asyncio.create_task(rig.stopped(90))
            await asyncio.sleep(5)
            rig.engine.hurry()
            await stopping
            assert asyncio.get_running_loop().time() - start < 8
            assert not rig.adapter.settled

    @virtual
    async def test_hurry_cuts_the_flushing_too(self) -> None:
        adapter = FakeAdapter()
        adapter.on_settle = lambda delivery, settlement: Unavailable("down")
        async with Rig(adapter=adapter) as rig:
            adapter.put(*numbered(1))
            await until(lambda: len(rig.ended) == 1)
            start = asyncio.get_running_loop().time()
            stopping = asyncio.create_task(rig.stopped(90))
            await asyncio.sleep(5)
            rig.engine.hurry()
            await stopping
            assert asyncio.get_running_loop().time() - start < 10

    @virtual
    async def test_settlements_that_cannot_be_flushed_are_left_to_the_broker_and_said(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        adapter = FakeAdapter()
        adapter.on_settle = lambda delivery, settlement: Unavailable("down")
        async with Rig(adapter=adapter) as rig:
            adapter.put(*numbered(2))
            await until(lambda: len(rig.ended) == 2)
            start = asyncio.get_running_loop().time()
            await rig.stopped(10)
            assert 10 <= asyncio.get_running_loop().time() - start < 12
            assert len(adapter.left) == 2
            assert "some settlements of orders/billing could not be flushed in time" in caplog.text

    @virtual
    async def test_settlements_have_a_moment_even_without_any_grace(self) -> None:
        adapter = FakeAdapter()
        adapter.settling.clear()
        async with Rig(adapter=adapter) as rig:
            adapter.put(*numbered(2))
            await until(lambda: len(rig.ended) == 2)
            asyncio.get_running_loop().call_later(0.5, adapter.settling.set)
            await rig.stopped(0)
            assert len(adapter.settled) == 2

    @virtual
    async def test_copies_are_flushed_before_it_leaves(self) -> None:
        adapter = FakeAdapter()
        adapter.sending.clear()
        async with Rig(fail_first(9), adapter=adapter) as rig:
            adapter.put(*numbered(2))
            await until(lambda: len(rig.ended) == 2)
            asyncio.get_running_loop().call_later(5, adapter.sending.set)
            await rig.stopped(30)
            assert [entry[0] for entry in adapter.trace] == ["copy", "copy", "ack", "ack"]

    @virtual
    async def test_a_retry_asked_for_meanwhile_is_not_held_and_its_attempt_is_marked(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            await asyncio.sleep(5)
            return Retry(1)

        adapter = FakeAdapter()
        async with Rig(handler, adapter=adapter, order="key") as rig:
            adapter.put(event_message("a", "a"))
            await until(lambda: len(rig.running) == 1)
            adapter.marking.clear()
            asyncio.get_running_loop().call_later(6, adapter.marking.set)
            await rig.stopped(30)
            assert rig.begun == ["a"]
            (stored,) = adapter.queue
            assert json.loads(stored.mark or b"{}").get("attempt") == 2

    @virtual
    async def test_a_held_retry_goes_back_unsettled(self) -> None:
        async with Rig(fail_first(1, 50.0), order="key") as rig:
            rig.adapter.put(*numbered(3, "a"))
            await until(lambda: len(rig.ended) == 1)
            await rig.stopped(30)
            await asyncio.sleep(100)
            assert rig.begun == ["e0"]
            assert [name_of(stored.message) for stored in rig.adapter.queue] == ["e0", "e1", "e2"]

    @virtual
    async def test_the_next_message_of_a_key_is_not_started_when_the_first_ends(self) -> None:
        async with Rig(sleeper(5), order="key") as rig:
            rig.adapter.put(*numbered(3, "a"))
            await until(lambda: len(rig.running) == 1)
            await rig.stopped(30)
            assert rig.begun == ["e0"]
            assert len(rig.adapter.left) == 2

    @virtual
    async def test_it_works_while_the_connection_is_down(self) -> None:
        down = ConnectionLost("down")

        def refuse() -> None:
            raise down

        async with Rig() as rig:
            rig.adapter.on_subscribe = refuse
            rig.adapter.subscription.fail(ConnectionLost("down"))
            await asyncio.sleep(5)
            await rig.stopped(1)

    @virtual
    async def test_what_is_lost_meanwhile_is_cancelled(self) -> None:
        async with Rig(sleeper(50)) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.running) == 1)
            stopping = asyncio.create_task(rig.stopped(90))
            await asyncio.sleep(1)
            await rig.adapter.subscription.lose(list(rig.adapter.subscription.out))
            await stopping
            assert asyncio.get_running_loop().time() < 10
            assert not rig.adapter.settled

    @virtual
    async def test_starting_fails_with_what_subscribing_raises_and_leaves_no_task(self) -> None:
        down = ConnectionLost("down")

        def refuse() -> None:
            raise down

        rig = Rig()
        rig.adapter.on_subscribe = refuse
        with pytest.raises(ConnectionLost):
            await rig.engine.start()
        assert len(asyncio.all_tasks()) == 1


def suspicious(name: str, key: str | None = None) -> Message:
    return event_message(name, key)


class TestSuspects:
    @virtual
    async def test_one_runs_alone_with_a_mark_before_it_starts(self) -> None:
        beside: list[int] = []

        async def handler(delivery: Delivery) -> Settlement:
            if name_of(delivery) == "s":
                beside.append(len(rig.running))
                assert ("mark", "s", 1) in rig.adapter.trace
                await asyncio.sleep(5)
                beside.append(len(rig.running))
            await asyncio.sleep(1)
            return ACK

        rig = Rig(handler)
        async with rig:
            rig.adapter.put(*numbered(5))
            await until(lambda: len(rig.running) == 5)
            rig.adapter.put(event_message("s"), arrivals=2)
            rig.adapter.put(*numbered(5, start=5))
            await rig.quiet()
            assert beside == [1, 1]
            assert len(rig.adapter.settled) == 11

    @virtual
    async def test_arrivals_that_polite_returns_explain_make_no_suspect(self) -> None:
        async with Rig() as rig:
            rig.adapter.put(event_message("polite"), arrivals=10, returns=9)
            rig.adapter.put(event_message("once dropped"), arrivals=1)
            await rig.quiet()
            assert not [entry for entry in rig.adapter.trace if entry[0] == "mark"]

    @pytest.mark.parametrize(
        "ending",
        [ACK, Retry(5), DeadLetter("no"), Retry(5, counts=False), "raise", "none"],
        ids=["ack", "retry", "dead letter", "return", "raised", "no settlement"],
    )
    @pytest.mark.parametrize("order", ["none", "key"])
    @pytest.mark.parametrize("suspending", [False, True])
    @virtual
    async def test_every_ending_that_the_process_survives_takes_the_mark_back(
        self, ending: Any, order: str, suspending: bool
    ) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            if suspending:
                await asyncio.sleep(1)
            if ending == "raise":
                raise ValueError
            result: Settlement = None if ending == "none" else ending  # type: ignore[assignment]
            return result

        async with Rig(handler, order=order) as rig:
            rig.adapter.put(event_message("s", "s"), arrivals=2)
            await until(lambda: len(rig.ended) == 1)
            await turns()
            marks = [entry[2] for entry in rig.adapter.trace if entry[0] == "mark"]
            assert marks[:2] == [1, 0]
            kinds = [entry[0] for entry in rig.adapter.trace]
            settled = [kinds.index(kind) for kind in ("ack", "return", "copy", "dead") if kind in kinds]
            assert all(at > 1 for at in settled)
            copies = [message for _, message, _ in rig.adapter.sent]
            assert all(copy.header("bk-alone") is None for copy in copies)

    @pytest.mark.parametrize("ending", ["cancel", "drain", "lost", "drain in time"])
    @virtual
    async def test_being_stopped_takes_the_mark_back(self, ending: str) -> None:
        async with Rig(sleeper(20)) as rig:
            rig.adapter.put(event_message("s"), arrivals=2)
            await until(lambda: len(rig.running) == 1)
            (delivery,) = rig.adapter.subscription.out
            stored = rig.adapter.subscription.out[delivery]
            if ending == "cancel":
                rig.engine._running[id(delivery)][1].cancel()
            elif ending == "lost":
                await rig.engine._on_lost([delivery], 3)
            else:
                await rig.stopped(90 if ending == "drain in time" else 3)
            await until(lambda: not rig.running)
            await turns()
            assert json.loads(stored.mark or b"{}")["alone"] == 0
            assert len(rig.adapter.settled) == (1 if ending in ("cancel", "drain in time") else 0)

    @virtual
    async def test_a_drain_waits_for_a_mark_that_is_slow_to_be_taken_back(self) -> None:
        adapter = FakeAdapter()
        async with Rig(sleeper(5), adapter=adapter) as rig:
            adapter.put(event_message("s"), arrivals=2)
            await until(lambda: len(rig.running) == 1)
            adapter.marking.clear()
            asyncio.get_running_loop().call_later(10, adapter.marking.set)
            await rig.stopped(30)
            assert [entry[0] for entry in adapter.trace] == ["mark", "mark", "ack"]

    @virtual
    async def test_a_drain_while_the_first_mark_is_being_written_starts_nothing_and_leaves_no_mark(
        self,
    ) -> None:
        for late in (0.0, 0.5):
            adapter = FakeAdapter()
            async with Rig(sleeper(5), adapter=adapter) as rig:
                await turns()
                adapter.marking.clear()
                adapter.put(event_message("s"), arrivals=2)
                await turns()
                asyncio.get_running_loop().call_later(late, adapter.marking.set)
                await rig.stopped(30)
                assert rig.begun == []
                (stored,) = adapter.queue
                assert stored.mark is None or json.loads(stored.mark)["alone"] == 0

    @virtual
    async def test_one_that_is_lost_while_its_mark_is_being_written_is_not_started(self) -> None:
        adapter = FakeAdapter()
        adapter.on_mark = lambda delivery, mark: Unavailable("who knows")
        async with Rig(sleeper(5), adapter=adapter) as rig:
            adapter.marking.clear()
            adapter.put(event_message("s"), arrivals=2)
            await turns()
            subscription = adapter.subscription
            await subscription.lose(list(subscription.out))
            adapter.queue.clear()
            adapter.marking.set()
            await asyncio.sleep(60)
            assert rig.begun == []
            assert rig.engine.counts.out == 0

    @virtual
    async def test_one_that_turns_out_to_be_stale_is_not_started(self) -> None:
        adapter = FakeAdapter()
        adapter.on_mark = lambda delivery, mark: Stale("gone")
        async with Rig(adapter=adapter) as rig:
            adapter.put(event_message("s", "s"), arrivals=2)
            adapter.put(event_message("t", "s"))
            await until(lambda: rig.begun == ["t"], within=10)
            assert rig.engine.counts.out == 0

    @pytest.mark.parametrize("error", [Unavailable("down"), Closed("down"), OSError("down")])
    @virtual
    async def test_without_its_mark_none_starts_and_the_others_go_on(self, error: Exception) -> None:
        adapter = FakeAdapter()

        def on_mark(delivery: Delivery, mark: bytes | None) -> Unavailable | None:
            if isinstance(error, Unavailable):
                return error
            raise error

        adapter.on_mark = on_mark
        async with Rig(adapter=adapter) as rig:
            adapter.put(event_message("s", "s"), event_message("t"), arrivals=2)
            adapter.put(*numbered(3))
            adapter.put(event_message("after", "s"))
            await until(lambda: len(rig.begun) == 4, within=30)
            await asyncio.sleep(60)
            assert sorted(rig.begun) == ["after", "e0", "e1", "e2"]
            for number in range(3, 10):
                adapter.put(event_message(f"e{number}"))
                await until(lambda number=number: f"e{number}" in rig.begun, within=1)  # type: ignore[misc]
                await asyncio.sleep(0.7)
            adapter.on_mark = lambda delivery, mark: None
            await until(lambda: {"s", "t"} <= set(rig.ended), within=120)
            await rig.quiet()
            assert len(rig.begun) == 13
            assert {delivery.attempt for delivery, _ in adapter.settled} == {1}

    @virtual
    async def test_taking_a_mark_back_is_tried_until_it_succeeds(self) -> None:
        adapter = FakeAdapter()
        tries = 0

        def on_mark(delivery: Delivery, mark: bytes | None) -> Unavailable | None:
            nonlocal tries
            tries += 1
            return Unavailable("down") if tries in (2, 3) else None

        adapter.on_mark = on_mark
        async with Rig(fail_first(1, 5.0, counts=False), adapter=adapter):
            adapter.put(event_message("s"), arrivals=2)
            await until(lambda: len(adapter.settled) == 1)
            assert adapter.trace[:3] == [("mark", "s", 1), ("mark", "s", 0), ("return", "s")]

    @pytest.mark.parametrize("marks", [True, False])
    @virtual
    async def test_suspects_run_one_after_the_other_and_lose_no_innocent(self, marks: bool) -> None:
        async with Rig(sleeper(1), adapter=FakeAdapter(marks=marks)) as rig:
            rig.adapter.put(*(event_message(f"s{n}") for n in range(5)), arrivals=3)
            rig.adapter.put(*numbered(20))
            await rig.quiet()
            assert len(rig.adapter.settled) == 25
            assert not rig.adapter.dead
            for number in range(5):
                assert rig.begun.count(f"s{number}") == 1

    @virtual
    async def test_two_standing_marks_run_and_the_third_is_a_dead_letter_without_running(self) -> None:
        async with Rig() as rig:
            rig.adapter.put(event_message("two"), arrivals=4, mark=marked(alone=2))
            rig.adapter.put(event_message("three"), arrivals=5, mark=marked(alone=3))
            await rig.quiet()
            assert rig.begun == ["two"]
            assert [name_of(message) for message in rig.adapter.dead] == ["three"]
            story = json.loads(str(rig.adapter.dead[0].header("bk-story")))
            assert story[-1]["dead"] == "crash_loop"
            assert "3 times while it ran alone" in story[-1]["detail"]

    @virtual
    async def test_an_owner_that_dies_leaves_a_mark_and_dies_three_times_at_most(self) -> None:
        """A process that dies is an engine whose tasks vanish: nothing is settled, nothing taken back."""
        adapter = FakeAdapter()
        deaths = 0
        innocents = [f"e{number}" for number in range(10)]

        async def handler(delivery: Delivery) -> Settlement:
            if name_of(delivery) == "poison":
                die.set()
                await asyncio.sleep(3600)
            await asyncio.sleep(1)
            return ACK

        adapter.put(event_message("poison"), *(event_message(name) for name in innocents))
        for _ in range(10):
            die = asyncio.Event()
            others = asyncio.all_tasks()
            rig = Rig(handler, adapter=adapter)
            await rig.engine.start()
            process = asyncio.all_tasks() - others
            engine, dying = rig.engine, die

            def over(engine: Engine = engine, dying: asyncio.Event = dying) -> bool:
                return dying.is_set() or not (adapter.queue or engine.counts.out)

            await until(over)
            if not die.is_set():
                await rig.stopped(1)
                break
            deaths += 1
            subscription = adapter.subscription
            subscription._fence(list(subscription.out))
            subscription.closed = True
            process |= asyncio.all_tasks() - others
            for task in process:
                task.cancel()
            await asyncio.wait(process, timeout=10)
        assert [name_of(message) for message in adapter.dead] == ["poison"]
        assert deaths <= 5
        assert sorted({name_of(each) for each, _ in adapter.settled} - {"poison"}) == sorted(innocents)

    @virtual
    async def test_one_lock_keeps_the_suspects_of_two_engines_apart(self) -> None:
        alone = asyncio.Lock()
        running: list[str] = []
        most = 0

        async def handler(delivery: Delivery) -> Settlement:
            nonlocal most
            running.append(name_of(delivery))
            most = max(most, len(running))
            await asyncio.sleep(2)
            running.remove(name_of(delivery))
            return ACK

        async with Rig(handler, alone=alone) as one, Rig(handler, alone=alone) as other:
            one.adapter.put(*(event_message(f"s{n}") for n in range(3)), arrivals=2)
            other.adapter.put(*(event_message(f"t{n}") for n in range(3)), arrivals=2)
            await one.quiet()
            await other.quiet()
            assert most == 1

    @virtual
    async def test_stopping_one_engine_leaves_the_lock_to_the_other(self) -> None:
        alone = asyncio.Lock()
        async with Rig(sleeper(50), alone=alone) as one, Rig(alone=alone) as other:
            one.adapter.put(event_message("s"), arrivals=2)
            await until(lambda: len(one.running) == 1)
            other.adapter.put(event_message("t"), arrivals=2)
            await asyncio.sleep(1)
            assert other.begun == []
            await one.stopped(1)
            await until(lambda: other.begun == ["t"], within=10)

    @virtual
    async def test_one_that_ignores_cancellation_does_not_hang_the_drain(self) -> None:
        async with Rig(stubborn) as rig:
            rig.adapter.put(event_message("s"), arrivals=2)
            await until(lambda: len(rig.running) == 1)
            await rig.stopped(1, within=10)
            assert rig.engine.counts.abandoned == 1
            assert len(rig.adapter.left) == 1
            # the process lives, so the crash mark must not: three deploys would make an innocent a crash_loop
            assert [alone for kind, _, alone in rig.adapter.trace if kind == "mark"] == [1, 0]

    @virtual
    async def test_hurrying_while_one_waits_for_its_turn_hangs_nothing(self) -> None:
        async with Rig(sleeper(50)) as rig:
            rig.adapter.put(*numbered(2))
            await until(lambda: len(rig.running) == 2)
            rig.adapter.put(event_message("s"), arrivals=2)
            await asyncio.sleep(1)
            assert rig.begun == ["e0", "e1"]
            rig.engine.hurry()
            await turns(20)
            await rig.stopped(5, within=20)
            assert rig.begun == ["e0", "e1"]

    @virtual
    async def test_a_late_cancel_from_its_handler_strands_no_other_suspect(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            return ACK

        async with Rig(handler) as rig:
            rig.adapter.put(*(event_message(f"s{n}") for n in range(5)), arrivals=2)
            await until(lambda: len(set(rig.begun)) == 5, within=60)
            await rig.quiet()

    @virtual
    async def test_what_became_ready_behind_a_closed_gate_is_woken_when_it_opens(self) -> None:
        async with Rig(sleeper(1), concurrency=4) as rig:
            rig.adapter.put(event_message("s"), arrivals=2)
            await until(lambda: rig.running != [])
            rig.adapter.put(*numbered(8))
            await until(lambda: len(rig.running) == 4, within=1.1)
            await rig.quiet()

    @virtual
    async def test_one_that_waits_in_a_lane_is_a_suspect_when_its_turn_comes(self) -> None:
        async with Rig(sleeper(1), order="key") as rig:
            rig.adapter.put(event_message("a", "a"))
            rig.adapter.put(event_message("s", "a"), arrivals=2)
            rig.adapter.put(event_message("b", "a"))
            await rig.quiet()
            assert rig.begun == ["a", "s", "b"]
            assert ("mark", "s", 1) in rig.adapter.trace

    @virtual
    async def test_a_lost_one_that_waits_for_its_turn_is_forgotten(self) -> None:
        async with Rig(sleeper(10)) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.running) == 1)
            rig.adapter.put(event_message("s"), arrivals=2)
            await asyncio.sleep(1)
            subscription = rig.adapter.subscription
            await subscription.lose([each for each in subscription.out if name_of(each) == "s"])
            rig.adapter.queue.clear()
            await rig.quiet()
            assert rig.begun == ["e0"]


class TestVersionsAndLoops:
    @virtual
    async def test_a_copy_of_a_newer_version_is_returned_uncounted_with_an_alarm_and_never_acked(
        self,
    ) -> None:
        async with Rig() as rig:
            rig.adapter.put(event_message("new", headers=(("bk-v", "2"),)), address=INLET)
            rig.adapter.put(*numbered(2))
            await until(lambda: len(rig.adapter.settled) == 3)
            assert sorted(rig.begun) == ["e0", "e1"]
            ((delivery, settlement),) = [each for each in rig.adapter.settled if name_of(each[0]) == "new"]
            assert isinstance(settlement, Retry)
            assert (settlement.after, settlement.counts) == (30.0, False)
            assert rig.codes == ["too_new"]
            assert rig.alarms[0].delivery is delivery
            assert "upgrade this consumer" in rig.alarms[0].text

    @virtual
    async def test_a_mark_of_a_newer_version_is_returned_too(self) -> None:
        async with Rig(order="key") as rig:
            rig.adapter.put(event_message("new", "a"), mark=marked(v=2))
            await until(lambda: rig.codes == ["too_new"])
            await asyncio.sleep(100)
            assert rig.begun == []
            assert not [each for each in rig.adapter.settled if isinstance(each[1], Ack)]

    @virtual
    async def test_a_thousand_of_a_newer_version_behind_one_key_harm_nobody(self) -> None:
        async with Rig(sleeper(1), prefetch=4, concurrency=2) as rig:
            rig.adapter.put(event_message("first", "hot"))
            new = [event_message(f"new{n}", "hot", headers=(("bk-v", "2"),)) for n in range(900)]
            rig.adapter.put(*new, address=INLET)
            rig.adapter.put(event_message("last", "hot"))
            await until(lambda: "last" in rig.ended, within=60)
            assert set(rig.codes) == {"too_new"}
            assert rig.begun == ["first", "last"]

    @virtual
    async def test_an_event_that_has_been_retried_too_often_is_dead_lettered_without_running(self) -> None:
        async with Rig(hop_limit=5) as rig:
            for hop in (4, 5):
                headers = (("bk-hop", str(hop)), ("bk-attempt", str(hop)))
                rig.adapter.put(event_message(f"hop{hop}", headers=headers), address=INLET)
            await rig.quiet()
            assert rig.begun == ["hop4"]
            (dead,) = rig.adapter.dead
            assert json.loads(str(dead.header("bk-story")))[-1]["dead"] == "hop_limit"

    @virtual
    async def test_copies_that_cost_no_attempt_never_lead_to_a_dead_letter(self) -> None:
        async with Rig(hop_limit=5) as rig:
            rig.adapter.put(
                event_message("often", headers=(("bk-hop", "70"), ("bk-attempt", "2"))), address=INLET
            )
            await rig.quiet()
            assert rig.begun == ["often"]
            assert not rig.adapter.dead

    @virtual
    async def test_headers_on_a_message_from_the_channel_are_not_believed(self) -> None:
        headers = (("bk-v", "9"), ("bk-hop", "100000"), ("bk-attempt", "7"), ("bk-alone", "9"))
        async with Rig() as rig:
            rig.adapter.put(event_message("forged", headers=headers))
            await rig.quiet()
            assert rig.begun == ["forged"]
            assert rig.adapter.settled[0][0].attempt == 1


class TestWorkers:
    @virtual
    async def test_one_that_something_unforeseen_ends_is_replaced_and_its_message_is_not_stuck(self) -> None:
        async with Rig(concurrency=1, order="key") as rig:
            settle = rig.engine.settler.settle
            broken = True

            def fails_once(delivery: Delivery, settlement: Ack | Retry) -> None:
                nonlocal broken
                if broken:
                    broken = False
                    raise Bug
                settle(delivery, settlement)

            rig.engine.settler.settle = fails_once  # type: ignore[method-assign]
            rig.adapter.put(*numbered(3))
            await until(lambda: len(rig.begun) == 3)
            assert len(rig.engine._workers) == 1

    @pytest.mark.parametrize("order", ["none", "key"])
    @pytest.mark.parametrize("arrivals", [0, 2])
    @virtual
    async def test_a_bug_while_concluding_costs_no_budget_and_blocks_no_key(
        self, order: str, arrivals: int
    ) -> None:
        async with Rig(concurrency=1, order=order) as rig:
            settle = rig.engine.settler.settle
            broken = True

            def fails_once(delivery: Delivery, settlement: Ack | Retry) -> None:
                nonlocal broken
                if broken:
                    broken = False
                    raise Bug
                settle(delivery, settlement)

            rig.engine.settler.settle = fails_once  # type: ignore[method-assign]
            rig.adapter.put(*numbered(3, "a"), arrivals=arrivals)
            await until(lambda: "e2" in rig.ended, within=120)
            await rig.quiet()

    @virtual
    async def test_a_cancelled_error_of_a_client_does_not_end_the_settling(self) -> None:
        adapter = FakeAdapter()
        odd = 2

        def on_settle(delivery: Delivery, settlement: Ack | Retry) -> None:
            nonlocal odd
            odd -= 1
            if odd >= 0:
                raise asyncio.CancelledError

        adapter.on_settle = on_settle
        async with Rig(adapter=adapter) as rig:
            adapter.put(*numbered(3))
            await until(lambda: len(adapter.settled) == 3, within=60)
            await rig.quiet()
            assert len(rig.begun) == 3

    @virtual
    async def test_a_cancelled_error_of_a_client_does_not_end_the_copying(self) -> None:
        adapter = FakeAdapter()
        odd = 2

        def on_send(to: Address, message: Message) -> None:
            nonlocal odd
            odd -= 1
            if odd >= 0:
                raise asyncio.CancelledError

        adapter.on_send = on_send
        async with Rig(fail_first(1), adapter=adapter) as rig:
            adapter.put(*numbered(3))
            await until(lambda: len(rig.begun) == 6, within=60)
            await rig.quiet()

    @virtual
    async def test_a_reader_that_something_unforeseen_ends_is_replaced(self) -> None:
        async with Rig() as rig:
            real = rig.engine._reconnect

            async def broken(error: Exception, failures: int) -> None:
                rig.engine._reconnect = real  # type: ignore[method-assign]
                raise Bug

            rig.engine._reconnect = broken  # type: ignore[method-assign]
            await turns()
            rig.adapter.subscription.fail(ConnectionLost("down"))
            await until(lambda: "reader_ended" in rig.codes)
            rig.adapter.put(*numbered(2))
            await rig.quiet()
            assert len(rig.adapter.settled) == 2

    @virtual
    async def test_a_worker_that_something_unforeseen_ends_is_replaced(self) -> None:
        async with Rig(concurrency=1) as rig:
            await turns()
            real = rig.engine._rest

            async def broken(rest: Any, task: asyncio.Task[Any]) -> None:
                rig.engine._rest = real  # type: ignore[method-assign]
                raise Bug

            rig.engine._rest = broken  # type: ignore[method-assign]
            rig.adapter.put(*numbered(1))
            await until(lambda: "worker_ended" in rig.codes)
            rig.adapter.put(*numbered(2, start=1))
            await rig.quiet()
            assert len(rig.adapter.settled) == 3
            assert len(rig.engine._workers) == 1

    @virtual
    async def test_one_of_a_key_that_cannot_be_made_ready_forgets_none_behind_it(self) -> None:
        async with Rig(sleeper(1), order="key") as rig:
            rig.adapter.put(*numbered(3, "a"))
            await until(lambda: len(rig.running) == 1)
            real = rig.engine._make_ready

            def broken(delivery: Delivery) -> None:
                rig.engine._make_ready = real  # type: ignore[method-assign]
                raise Bug

            rig.engine._make_ready = broken  # type: ignore[method-assign]
            await rig.quiet()
            assert rig.begun == ["e0", "e1", "e2"]
            assert rig.codes == ["engine_failed"]

    @virtual
    async def test_who_listens_hears_of_every_ending(self) -> None:
        ends: list[int] = []
        adapter = FakeAdapter()
        settings = Rig(prefetch=4).engine.settings
        engine = Engine(adapter, CHANNEL, GROUP, acks, settings, on_end=ends.append)
        await engine.start()
        adapter.put(*numbered(20))
        await until(lambda: sum(ends) == 20)
        await engine.stop(1)

    def test_a_keyboard_interrupt_ends_the_program_and_settles_nothing(self) -> None:
        adapters: list[FakeAdapter] = []

        async def handler(delivery: Delivery) -> Settlement:
            await asyncio.sleep(1)
            raise KeyboardInterrupt

        async def main() -> None:
            rig = Rig(handler)
            adapters.append(rig.adapter)
            await rig.engine.start()
            rig.adapter.put(*numbered(1))
            await asyncio.sleep(10)

        with pytest.raises(KeyboardInterrupt):
            run_virtual(main(), patience=1)
        assert not adapters[0].settled


class TestGate:
    @virtual
    async def test_a_handler_that_never_ends_does_not_shut_its_group_for_a_suspect(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            if delivery.event.id == "wedged":
                await asyncio.Event().wait()
            return ACK

        async with Rig(handler, concurrency=4) as rig:
            rig.adapter.put(event_message("wedged"))
            await until(lambda: len(rig.running) == 1)
            rig.adapter.put(event_message("suspect"), arrivals=9)
            rig.adapter.put(*numbered(3))
            await until(lambda: len(rig.adapter.settled) == 3)
            assert "isolation_waits" in [alarm.code for alarm in rig.alarms]
            assert asyncio.get_running_loop().time() <= 61

    @virtual
    async def test_a_suspect_is_pardoned_when_the_drain_begins_for_who_is_killed_then_is_killed_from_outside(
        self,
    ) -> None:
        async with Rig(sleeper(50)) as rig:
            rig.adapter.put(event_message("s"), arrivals=2)
            await until(lambda: len(rig.running) == 1)
            stopping = asyncio.create_task(rig.engine.stop(40))
            await asyncio.sleep(1)
            assert [alone for kind, _, alone in rig.adapter.trace if kind == "mark"] == [1, 0]
            await stopping
