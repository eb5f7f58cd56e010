"""
The engine, over a scripted broker and without any time passing.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from brokerkit.context import current
from brokerkit.delivery import Delivery
from brokerkit.engine import Intake
from brokerkit.errors import Closed, ConnectionLost, Stale, TooLarge, Unavailable
from brokerkit.hooks import Alarm, HookEvent, Settled, Started
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Ack, DeadLetter, Retry, Settle, Settlement
from brokerkit.testing.clock import VirtualLoop, run_virtual
from tests.core.fakes import (
    CHANNEL,
    DEAD,
    GROUP,
    INLET,
    FakeAdapter,
    MarkingSubscription,
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

        rig = Rig()
        engine_rig = Rig(handler)
        async with engine_rig as rig:
            rig.engine._handler = type(rig.engine)(  # the rig's own wrapper is a coroutine function
                rig.adapter, CHANNEL, GROUP, handler, rig.engine.settings
            )._handler
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
            assert asyncio.get_running_loop().time() == pytest.approx(20, abs=0.1)
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
            assert [entry[:2] for entry in adapter.trace][1:] == [("dead", "a0"), ("ack", "a0"), ("ack", "a1")]

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
    async def test_a_detail_that_is_no_text_costs_neither_the_worker_nor_the_message(self) -> None:
        async def handler(delivery: Delivery) -> Settlement:
            detail: Any = ValueError("odd")
            return DeadLetter("bad", detail)

        async with Rig(handler, concurrency=1) as rig:
            rig.adapter.put(*numbered(3, "a"))
            await rig.quiet()
            assert len(rig.adapter.dead) == 3
            assert "worker_ended" not in rig.codes

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
                raise ValueError("a pattern is broken")
            return ACK

        async with Rig(handler) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: "pattern_failed" in rig.codes)
            fail = False
            await until(lambda: len(rig.begun) == 2)
            await rig.quiet()
            assert rig.adapter.settled[0][1] == Retry(1.0, "pattern_failed", counts=False)
            assert rig.adapter.settled[1][0].attempt == 1
            assert "ValueError: a pattern is broken" in rig.alarms[0].text

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
    async def test_a_handler_that_cancels_its_own_task_and_awaits_is_a_failure_of_its_own_message(self) -> None:
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
    async def test_a_handler_that_cancels_its_own_task_and_returns_harms_nobody(self, suspending: bool) -> None:
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

            def refuse() -> None:
                nonlocal failures
                failures -= 1
                if failures >= 0:
                    raise ConnectionLost("still down")

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
            rig.adapter.subscription.fail(ValueError("a bug in a client"))
            await until(lambda: len(rig.adapter.subscriptions) == 2)
            rig.adapter.put(*numbered(1))
            await rig.quiet()
            assert rig.codes == ["intake_failed"]
            assert "taking messages of orders/billing failed" in caplog.text

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
    async def test_settlements_go_to_the_subscription_their_delivery_came_from(self) -> None:
        async with Rig(sleeper(20)) as rig:
            rig.adapter.put(*numbered(1))
            await until(lambda: len(rig.running) == 1)
            rig.adapter.subscription.fail(ConnectionLost("down"))
            await until(lambda: len(rig.adapter.subscriptions) == 2)
            await rig.quiet()
            assert [entry[0] for entry in rig.adapter.trace] == ["stale", "ack"]

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
        intake = Intake()
        intake.listen(lambda: opened.append(len(intake.reasons)))
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
        adapter.on_settle = lambda delivery, settlement: Unavailable("x") if name_of(delivery) == "e1" else None
        async with Rig(adapter=adapter) as rig:
            adapter.put(*numbered(5))
            await until(lambda: len(adapter.settled) == 4, within=1)
            assert rig.engine.counts.out == 1

    @virtual
    async def test_a_key_goes_on_while_its_ack_is_tried_again(self) -> None:
        adapter = FakeAdapter()
        adapter.on_settle = lambda delivery, settlement: Unavailable("x") if name_of(delivery) == "e0" else None
        async with Rig(adapter=adapter, order="key") as rig:
            adapter.put(*numbered(3, "a"))
            await until(lambda: len(adapter.settled) == 2)
            assert rig.begun == ["e0", "e1", "e2"]


class TestHooks:
    @virtual
    async def test_a_hook_that_raises_changes_nothing(self) -> None:
        def broken(event: HookEvent) -> None:
            raise ValueError("a bug in a hook")

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
