"""
The settler alone, over a scripted broker.
"""

# pyright: reportPrivateUsage=false
# a test of a part may look inside it

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Self

import pytest

from brokerkit.copies import read_delivery
from brokerkit.delivery import Delivery
from brokerkit.errors import ConnectionLost, SendError, SettleError, Stale, Throttled, TooLarge, Unavailable
from brokerkit.hooks import Alarm, HookEvent, Settled
from brokerkit.intake import Intake
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Ack, DeadLetter, Retry
from brokerkit.settler import Settler
from brokerkit.testing.clock import VirtualClock
from tests.core.fakes import (
    CHANNEL,
    DEAD,
    GROUP,
    INLET,
    Bug,
    FakeAdapter,
    FakeSubscription,
    event_message,
    name_of,
    turns,
    until,
    virtual,
)


class Bench:
    """A settler, deliveries for it, and what it said."""

    def __init__(self, *, adapter: FakeAdapter | None = None, hooks: bool = True, start: bool = True) -> None:
        self.adapter = adapter or FakeAdapter()
        self.ends: list[int] = []
        self.released: list[str] = []
        self.events: list[HookEvent] = []
        self.opened = 0
        self.intake = Intake(self._open)
        self.clock = VirtualClock()
        self.settler = Settler(
            self.adapter,
            INLET,
            DEAD,
            on_end=self.ends.append,
            on_released=self._release,
            hooks=[self.events.append] if hooks else [],
            clock=self.clock,
        )
        self._start = start
        self.subscription: FakeSubscription

    def _open(self) -> None:
        self.opened += 1

    def _release(self, delivery: Delivery) -> None:
        self.released.append(name_of(delivery))
        self.adapter.trace.append(("released", name_of(delivery)))

    async def __aenter__(self) -> Self:
        self.subscription = await self.subscribe()
        if self._start:
            self.settler.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.settler.close()

    async def subscribe(self) -> FakeSubscription:
        async def on_lost(deliveries: Sequence[Delivery], seconds: float) -> None:
            return

        return await self.adapter.subscribe(
            INLET, order="none", start="earliest", prefetch=1, on_lost=on_lost
        )

    def take(self, name: str, subscription: FakeSubscription | None = None, **headers: str) -> Delivery:
        subscription = subscription or self.subscription
        pairs = tuple((f"bk-{key}", value) for key, value in headers.items())
        self.adapter.put(event_message(name, headers=pairs), address=INLET if headers else None)
        delivery = subscription._hand_out(self.adapter.queue.pop())
        delivery.subscription = subscription
        delivery.channel, delivery.group, delivery.order = CHANNEL, GROUP, "none"
        delivery.control = self.intake
        read_delivery(delivery, self.clock.time())
        return delivery

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        return [(name_of(each.delivery), each.outcome) for each in self.events if isinstance(each, Settled)]

    @property
    def alarms(self) -> list[Alarm]:
        return [each for each in self.events if isinstance(each, Alarm)]


class _Raised:
    """An error that is raised, where others are returned."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def failing(errors: list[Any]) -> Callable[..., Any]:
    """Return an answer to each call: None, an error, or one that is raised."""

    def answer(*_: object) -> Any:
        error = errors.pop(0) if errors else None
        if isinstance(error, _Raised):
            raise error.error
        return error

    return answer


class TestSettling:
    @pytest.mark.parametrize("hooks", [True, False])
    @virtual
    async def test_an_ack_and_a_return_reach_the_broker_and_are_counted(self, hooks: bool) -> None:
        async with Bench(hooks=hooks) as bench:
            one, other = bench.take("one"), bench.take("other")
            bench.settler.settle(one, ACK)
            bench.settler.settle(other, Retry(5, counts=False))
            assert await bench.settler.flush()
            assert bench.adapter.settled == [(one, ACK), (other, Retry(5, counts=False))]
            assert sum(bench.ends) == 2
            if hooks:
                assert bench.outcomes == [("one", "ack"), ("other", "return")]
                settled = bench.events[0]
                assert isinstance(settled, Settled)
                assert settled.settlement is ACK

    @virtual
    async def test_what_comes_together_goes_together_in_order(self) -> None:
        async with Bench() as bench:
            for number in range(50):
                bench.settler.settle(bench.take(f"{number}"), ACK)
            assert await bench.settler.flush()
            assert bench.adapter.batches == [50]
            assert [name_of(each) for each, _ in bench.adapter.settled] == [
                str(number) for number in range(50)
            ]

    @virtual
    async def test_what_comes_while_a_batch_is_on_its_way_is_the_next_one(self) -> None:
        async with Bench() as bench:
            bench.adapter.settling.clear()
            bench.settler.settle(bench.take("a"), ACK)
            await turns()
            bench.settler.settle(bench.take("b"), ACK)
            bench.settler.settle(bench.take("c"), ACK)
            await turns()
            assert bench.adapter.batches == [1]
            bench.adapter.settling.set()
            assert await bench.settler.flush()
            assert bench.adapter.batches == [1, 2]

    @virtual
    async def test_each_goes_to_the_subscription_it_came_from(self) -> None:
        async with Bench() as bench:
            newer = await bench.subscribe()
            deliveries = [bench.take("a"), bench.take("b", newer), bench.take("c")]
            for delivery in deliveries:
                bench.settler.settle(delivery, ACK)
            assert await bench.settler.flush()
            assert bench.adapter.batches == [2, 1]
            assert [name_of(each) for each, _ in bench.adapter.settled] == ["a", "c", "b"]

    @virtual
    async def test_one_that_is_unavailable_is_tried_again_until_it_is_accepted(self) -> None:
        async with Bench() as bench:
            bench.adapter.on_settle = failing([Unavailable("no")] * 7)
            bench.settler.settle(bench.take("a"), ACK)
            assert await bench.settler.flush()
            assert bench.adapter.batches == [1] * 8
            assert bench.ends == [1]
            assert bench.outcomes == [("a", "ack")]
            assert not bench.settler._tries

    @virtual
    async def test_the_back_off_grows_to_half_a_minute_and_no_further(self) -> None:
        async with Bench() as bench:
            times: list[float] = []
            loop = asyncio.get_running_loop()

            def on_settle(delivery: Delivery, settlement: Ack | Retry) -> SettleError:
                times.append(loop.time())
                return Unavailable("no")

            bench.adapter.on_settle = on_settle
            bench.settler.settle(bench.take("a"), ACK)
            await asyncio.sleep(1000)
            waits = [later - earlier for earlier, later in pairwise(times)]
            for at, wait in enumerate(waits):
                ceiling = min(30.0, 0.05 * 2 ** (at + 1))
                assert ceiling / 4 - 1e-9 <= wait <= ceiling + 1e-9
            assert len(waits) > 30
            assert max(waits) > 16

    @virtual
    async def test_one_that_fails_harms_only_itself_and_none_is_settled_twice(self) -> None:
        async with Bench() as bench:
            bench.adapter.on_settle = failing([None, Unavailable("no"), Stale("gone"), None])
            for name in "abcd":
                bench.settler.settle(bench.take(name), ACK)
            assert await bench.settler.flush()
            assert [name_of(each) for each, _ in bench.adapter.settled] == ["a", "d", "b"]
            assert sorted(bench.outcomes) == [("a", "ack"), ("b", "ack"), ("c", "stale"), ("d", "ack")]
            assert bench.ends == [1] * 4
            assert not bench.settler._tries

    @virtual
    async def test_one_that_is_stale_is_dropped_without_an_alarm(self) -> None:
        async with Bench() as bench:
            bench.adapter.on_settle = failing([Unavailable("no"), Stale("gone")])
            bench.settler.settle(bench.take("a"), ACK)
            assert await bench.settler.flush()
            (settled,) = bench.events
            assert isinstance(settled, Settled)
            assert (settled.outcome, settled.settlement) == ("stale", None)
            assert bench.ends == [1]
            assert not bench.settler._tries
            assert not bench.settler._ends

    @virtual
    async def test_without_hooks_a_stale_one_after_a_try_leaves_nothing_behind(self) -> None:
        async with Bench(hooks=False) as bench:
            bench.adapter.on_settle = failing([Unavailable("no"), Stale("gone")])
            bench.settler.settle(bench.take("a"), ACK)
            bench.settler.settle(bench.take("b"), ACK)
            assert await bench.settler.flush()
            assert sum(bench.ends) == 2
            assert not bench.settler._tries

    @virtual
    async def test_a_refusal_of_another_kind_is_dropped_with_an_alarm(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Bench() as bench:
            bench.adapter.on_settle = failing([SettleError("odd")])
            delivery = bench.take("a")
            bench.settler.settle(delivery, ACK)
            assert await bench.settler.flush()
            assert bench.alarms == [Alarm("settle_failed", "a settlement was refused: odd", delivery)]
            assert bench.outcomes == [("a", "stale")]
            assert "a settlement was refused: odd" in caplog.messages

    @pytest.mark.parametrize(
        ("error", "logged"),
        [(ConnectionLost("down"), False), (OSError("socket"), True), (asyncio.CancelledError(), True)],
    )
    @virtual
    async def test_an_adapter_that_raises_instead_of_answering_is_asked_again(
        self, error: BaseException, logged: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Bench() as bench:
            bench.adapter.on_settle = failing([_Raised(error)])
            bench.settler.settle(bench.take("a"), ACK)
            bench.settler.settle(bench.take("b"), ACK)
            assert await bench.settler.flush()
            assert len(bench.adapter.settled) == 2
            assert ("settling raised instead of returning outcomes" in caplog.messages) is logged

    @virtual
    async def test_an_adapter_that_miscounts_its_outcomes_is_asked_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Bench() as bench:
            answers: list[list[Any]] = [[], [None], [None] * 3, [None, None]]

            async def settle(settled: Sequence[tuple[Delivery, Ack | Retry]]) -> Any:
                while len(settled) == 2 and answers:
                    return answers.pop(0)
                return [None] * len(settled)

            bench.subscription.settle = settle  # type: ignore[method-assign]
            bench.settler.settle(bench.take("a"), ACK)
            bench.settler.settle(bench.take("b"), ACK)
            assert await bench.settler.flush()
            assert sum(bench.ends) == 2
            assert "settling 2 deliveries returned 0 outcomes" in caplog.messages

    @virtual
    async def test_the_same_ends_are_counted_with_and_without_hooks_when_some_fail(self) -> None:
        for hooks in (True, False):
            async with Bench(hooks=hooks) as bench:
                bench.adapter.on_settle = failing([None, Unavailable("no"), None])
                for name in "abc":
                    bench.settler.settle(bench.take(name), ACK)
                assert await bench.settler.flush()
                assert sum(bench.ends) == 3
                bench.settler.copy(bench.take("d"), Retry(0))
                bench.settler.settle(bench.take("e"), ACK)
                assert await bench.settler.flush()
                assert sum(bench.ends) == 5
                assert not bench.settler._ends


class TestMarks:
    @virtual
    async def test_one_is_written_beside_its_delivery(self) -> None:
        async with Bench() as bench:
            delivery = bench.take("a")
            bench.settler.mark(delivery, b'{"alone":0}')
            assert await bench.settler.flush()
            assert bench.subscription.out[delivery].mark == b'{"alone":0}'
            assert not bench.ends

    @virtual
    async def test_they_are_written_before_the_settlements_that_came_with_them(self) -> None:
        async with Bench() as bench:
            one, other = bench.take("a"), bench.take("b")
            bench.settler.settle(one, ACK)
            bench.settler.mark(other, b'{"alone":0}')
            assert await bench.settler.flush()
            assert [entry[0] for entry in bench.adapter.trace] == ["mark", "ack"]

    @virtual
    async def test_a_broker_that_keeps_none_is_not_asked(self) -> None:
        async with Bench(adapter=FakeAdapter(marks=False)) as bench:
            bench.settler.mark(bench.take("a"), b"{}")
            bench.settler.settle(bench.take("b"), ACK)
            assert await bench.settler.flush()
            assert len(bench.adapter.settled) == 1

    @pytest.mark.parametrize("error", [ConnectionLost("down"), OSError("socket"), asyncio.CancelledError()])
    @virtual
    async def test_one_that_cannot_be_written_is_given_up_and_settling_goes_on(
        self, error: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Bench() as bench:
            bench.adapter.on_mark = failing([_Raised(error)])
            bench.settler.mark(bench.take("a"), b'{"alone":0}')
            bench.settler.settle(bench.take("b"), ACK)
            assert await bench.settler.flush()
            assert len(bench.adapter.settled) == 1
            assert f"1 marks could not be written: {error!r}" in caplog.messages


class TestCopies:
    @virtual
    async def test_a_retry_goes_to_the_inlet_and_a_dead_letter_to_the_dead_place(self) -> None:
        async with Bench() as bench:
            bench.settler.copy(bench.take("retried"), Retry(5))
            bench.settler.copy(bench.take("dead"), DeadLetter("no", "why"))
            assert await bench.settler.flush()
            assert [(to, name_of(message), after) for to, message, after in bench.adapter.sent] == [
                (INLET, "retried", 5.0),
                (DEAD, "dead", 0.0),
            ]
            assert bench.outcomes == [("retried", "retry"), ("dead", "dead")]
            assert bench.released == ["retried", "dead"]
            settlements = [each.settlement for each in bench.events if isinstance(each, Settled)]
            assert settlements == [Retry(5), DeadLetter("no", "why")]
            assert sum(bench.ends) == 2
            attempts = [message.header("bk-attempt") for _, message, _ in bench.adapter.sent]
            assert attempts == ["2", "1"]

    @virtual
    async def test_the_ack_comes_after_the_confirmation_and_the_release_before_the_ack(self) -> None:
        async with Bench() as bench:
            bench.adapter.sending.clear()
            bench.settler.copy(bench.take("a"), DeadLetter("no"))
            await asyncio.sleep(100)
            assert not bench.adapter.trace
            assert not bench.ends
            bench.adapter.sending.set()
            assert await bench.settler.flush()
            assert [entry[0] for entry in bench.adapter.trace] == ["dead", "released", "ack"]

    @virtual
    async def test_a_delay_is_cut_to_what_the_broker_can_keep(self) -> None:
        async with Bench(adapter=FakeAdapter(max_delay=60)) as bench:
            bench.settler.copy(bench.take("a"), Retry(61))
            bench.settler.copy(bench.take("b"), Retry(59))
            assert await bench.settler.flush()
            assert [after for _, _, after in bench.adapter.sent] == [60, 59]

    @virtual
    async def test_one_that_cannot_be_sent_is_tried_again_while_its_neighbours_end(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Bench() as bench:
            down = True
            bench.adapter.on_send = lambda to, message: (
                ConnectionLost("down") if down and name_of(message) == "b" else None
            )
            for name in "abc":
                bench.settler.copy(bench.take(name), DeadLetter("no"))
            await asyncio.sleep(100)
            assert sorted(bench.released) == ["a", "c"]
            assert bench.settler.blocked == 1
            (alarm,) = bench.alarms
            assert alarm.code == "copy_failed"
            assert alarm.delivery is not None
            assert name_of(alarm.delivery) == "b"
            assert alarm.text in caplog.messages
            assert alarm.text == (
                f"a copy of {alarm.delivery!r} cannot be sent (down); it keeps its place and is tried again"
            )
            assert not await bench.settler.flush(timeout=10)
            down = False
            assert await bench.settler.flush()
            assert bench.settler.blocked == 0
            assert sum(bench.ends) == 3

    @virtual
    async def test_the_back_off_of_a_copy_grows(self) -> None:
        async with Bench() as bench:
            times: list[float] = []
            loop = asyncio.get_running_loop()

            def on_send(to: Address, message: Message) -> SendError:
                times.append(loop.time())
                return Throttled("slowly")

            bench.adapter.on_send = on_send
            bench.settler.copy(bench.take("a"), Retry(1))
            await asyncio.sleep(300)
            waits = [later - earlier for earlier, later in pairwise(times)]
            for at, wait in enumerate(waits):
                ceiling = min(30.0, 0.05 * 2 ** (at + 1))
                assert ceiling / 4 - 1e-9 <= wait <= ceiling + 1e-9

    @pytest.mark.parametrize(
        ("error", "logged"),
        [(ConnectionLost("down"), False), (OSError("socket"), True), (asyncio.CancelledError(), True)],
    )
    @virtual
    async def test_an_adapter_that_raises_instead_of_answering_is_asked_again(
        self, error: BaseException, logged: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Bench() as bench:
            bench.adapter.on_send = failing([_Raised(error)])
            bench.settler.copy(bench.take("a"), Retry(1))
            bench.settler.copy(bench.take("b"), Retry(1))
            assert await bench.settler.flush()
            assert sorted(bench.released) == ["a", "b"]
            assert all((repr(error) if logged else str(error)) in alarm.text for alarm in bench.alarms)
            assert ("sending raised instead of returning outcomes" in caplog.messages) is logged

    @virtual
    async def test_an_adapter_that_miscounts_its_outcomes_is_asked_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Bench() as bench:
            answers: list[list[Any]] = [[], [None, None]]
            send = bench.adapter.send

            async def miscount(to: Address, messages: Sequence[Message], **how: Any) -> Any:
                return answers.pop(0) if answers else await send(to, messages, **how)

            object.__setattr__(bench.settler, "_adapter", _Sender(bench.adapter, miscount))
            bench.settler.copy(bench.take("a"), Retry(1))
            assert await bench.settler.flush()
            assert bench.released == ["a"]
            assert "sending 1 copies returned 0 outcomes" in caplog.messages
            assert "sending 1 copies returned 2 outcomes" in caplog.messages
            assert "(the adapter returned a wrong number of outcomes)" in bench.alarms[0].text

    @virtual
    async def test_one_that_cannot_be_made_keeps_its_place_and_its_neighbours_go(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Bench() as bench:
            odd = bench.take("odd")
            del odd.run  # so that its copy cannot be made
            bench.settler.copy(odd, DeadLetter("no"))
            bench.settler.copy(bench.take("fine"), DeadLetter("no"))
            await turns()
            assert "fine" in bench.released
            await asyncio.sleep(10)
            assert bench.settler.blocked == 1
            assert f"a copy of {odd!r} could not be made" in caplog.messages
            assert "AttributeError" in bench.alarms[0].text
            odd.run = 0
            assert await bench.settler.flush()
            assert bench.released == ["fine", "odd"]

    @virtual
    async def test_more_than_one_request_can_carry_go_in_parts(self) -> None:
        async with Bench(hooks=False) as bench:
            sizes: list[int] = []
            send = bench.adapter.send

            async def count(to: Address, messages: Sequence[Message], **how: Any) -> Any:
                sizes.append(len(messages))
                return await send(to, messages, **how)

            object.__setattr__(bench.settler, "_adapter", _Sender(bench.adapter, count))
            for number in range(1001):
                bench.settler.copy(bench.take(f"{number}"), Retry(1))
            assert await bench.settler.flush()
            assert sizes == [500, 500, 1]
            assert len(bench.released) == 1001
            assert sum(bench.ends) == 1001

    @pytest.mark.parametrize("settlement", [Retry(1), DeadLetter("no")])
    @virtual
    async def test_the_copy_of_a_lost_delivery_is_its_next_owners_to_make(self, settlement: Any) -> None:
        async with Bench() as bench:
            bench.adapter.on_send = lambda to, message: ConnectionLost("down")
            delivery = bench.take("a")
            bench.settler.copy(delivery, settlement)
            await asyncio.sleep(10)
            tried = len(bench.adapter.tried)
            delivery.stopped = "lost"
            bench.adapter.on_send = lambda to, message: None
            assert await bench.settler.flush()
            assert len(bench.adapter.tried) == tried
            assert bench.settler.blocked == 0
            assert bench.ends == [1]
            assert bench.released == ["a"]
            assert bench.outcomes == [("a", "stale")]
            assert not bench.adapter.settled

    @virtual
    async def test_a_lost_one_takes_no_other_of_its_batch_along(self) -> None:
        async with Bench() as bench:
            lost = bench.take("lost")
            lost.stopped = "lost"
            bench.settler.copy(lost, Retry(1))
            bench.settler.copy(bench.take("ours"), Retry(1))
            assert await bench.settler.flush()
            assert bench.released == ["lost", "ours"]
            assert [name_of(message) for _, message, _ in bench.adapter.sent] == ["ours"]

    @virtual
    async def test_one_whose_original_turns_stale_ends_once(self) -> None:
        async with Bench() as bench:
            bench.adapter.on_settle = failing([Unavailable("no"), Stale("gone")])
            bench.settler.copy(bench.take("a"), Retry(1))
            assert await bench.settler.flush()
            assert bench.outcomes == [("a", "stale")]
            assert bench.ends == [1]
            assert bench.released == ["a"]
            assert not bench.settler._ends

    @virtual
    async def test_the_story_of_a_dead_letter_closes_with_the_verdict(self) -> None:
        async with Bench() as bench:
            delivery = bench.take("a", v="1", attempt="3", story='[{"n":1}]')
            bench.settler.copy(delivery, DeadLetter("bad", "d\x00" + "e" * 2000))
            bench.settler.copy(bench.take("b"), DeadLetter("plain"))
            assert await bench.settler.flush()
            first, second = (json.loads(str(message.header("bk-story"))) for message in bench.adapter.dead)
            now = int(bench.clock.time() * 1000)
            assert first == [
                {"n": 1},
                {"dead": "bad", "n": 3, "at": now, "detail": ("d\\x00" + "e" * 2000)[:1024]},
            ]
            assert second == [{"dead": "plain", "n": 1, "at": now}]


class _Sender:
    """An adapter whose `send` is another."""

    def __init__(self, adapter: FakeAdapter, send: Callable[..., Any]) -> None:
        self.capabilities = adapter.capabilities
        self.send = send


class TestTooLarge:
    @virtual
    async def test_a_retry_that_cannot_fit_becomes_a_dead_letter(self) -> None:
        async with Bench() as bench:
            bench.adapter.on_send = lambda to, message: TooLarge("no") if to == INLET else None
            bench.settler.copy(bench.take("a"), Retry(1))
            assert await bench.settler.flush()
            (dead,) = bench.adapter.dead
            assert json.loads(str(dead.header("bk-story")))[-1] == {
                "dead": "too_large",
                "n": 1,
                "at": int(bench.clock.time() * 1000),
                "detail": "the copy for its retry is above the broker's size limit",
            }
            assert bench.outcomes == [("a", "dead")]
            assert not bench.alarms

    @virtual
    async def test_the_story_is_cut_step_by_step_at_once(self) -> None:
        async with Bench() as bench:
            delivery = bench.take("a")
            delivery.story.extend({"message": "m" * 100, "trace": "t" * 3000} for _ in range(40))
            rooms: list[int] = []

            def on_send(to: Address, message: Message) -> SendError | None:
                rooms.append(len(str(message.header("bk-story"))))
                return TooLarge("no") if len(rooms) < 4 else None

            bench.adapter.on_send = on_send
            bench.settler.copy(delivery, DeadLetter("no"))
            start = asyncio.get_running_loop().time()
            assert await bench.settler.flush()
            assert asyncio.get_running_loop().time() == start
            assert len(rooms) == 4
            for size, room in zip(rooms, (8192, 4096, 2048, 512), strict=True):
                assert size <= room
            assert rooms[0] > 4096
            assert not bench.intake.reasons
            assert not bench.alarms
            assert bench.settler.blocked == 0

    @virtual
    async def test_one_that_fits_in_no_way_holds_intake_until_it_does(self) -> None:
        async with Bench() as bench:
            bench.adapter.on_send = lambda to, message: TooLarge("no")
            bench.settler.copy(bench.take("a"), DeadLetter("no"))
            bench.settler.copy(bench.take("b"), DeadLetter("no"))
            await asyncio.sleep(60)
            assert bench.intake.reasons == {"dead_letter"}
            assert bench.settler.blocked == 2
            assert [alarm.code for alarm in bench.alarms] == ["copy_failed", "copy_failed"]
            bench.adapter.on_send = lambda to, message: TooLarge("no") if name_of(message) == "a" else None
            await until(lambda: bench.released == ["b"])
            assert bench.intake.reasons == {"dead_letter"}
            assert bench.opened == 0
            bench.adapter.on_send = lambda to, message: None
            assert await bench.settler.flush()
            assert not bench.intake.reasons
            assert bench.opened == 1
            assert not bench.settler._holding

    @virtual
    async def test_a_lost_one_holds_intake_no_longer(self) -> None:
        async with Bench() as bench:
            bench.adapter.on_send = lambda to, message: TooLarge("no")
            delivery = bench.take("a")
            bench.settler.copy(delivery, DeadLetter("no"))
            await until(lambda: bool(bench.intake.reasons))
            delivery.stopped = "lost"
            assert await bench.settler.flush()
            assert not bench.intake.reasons


class TestFlush:
    @virtual
    async def test_with_nothing_open_it_returns_at_once(self) -> None:
        async with Bench(start=False) as bench:
            assert await bench.settler.flush()
            assert await bench.settler.flush(timeout=0)

    @virtual
    async def test_it_waits_for_each_kind_of_work_wherever_it_stands(self) -> None:
        async with Bench() as bench:
            adapter = bench.adapter
            gates = (adapter.settling, adapter.marking, adapter.sending)
            works: tuple[Callable[[Delivery], None], ...] = (
                lambda delivery: bench.settler.settle(delivery, ACK),
                lambda delivery: bench.settler.mark(delivery, b'{"alone":0}'),
                lambda delivery: bench.settler.copy(delivery, Retry(1)),
                lambda delivery: bench.settler.copy(delivery, DeadLetter("no")),
            )
            for at, work in enumerate(works):
                for gate in gates:
                    gate.clear()
                delivery = bench.take(f"w{at}")
                work(delivery)
                assert not await bench.settler.flush(timeout=0)
                await turns()
                assert not await bench.settler.flush(timeout=1)
                assert not await bench.settler.flush([delivery], timeout=1)
                assert await bench.settler.flush([bench.take("other")], timeout=1)
                loop = asyncio.get_running_loop()
                start = loop.time()
                for gate in gates:
                    loop.call_later(5, gate.set)
                assert await bench.settler.flush([delivery])
                assert loop.time() - start == 5

    @virtual
    async def test_it_waits_for_what_is_between_two_tries(self) -> None:
        async with Bench() as bench:
            bench.adapter.on_settle = failing([Unavailable("no")] * 4)
            bench.adapter.on_send = failing([ConnectionLost("no")] * 4)
            bench.settler.settle(bench.take("a"), ACK)
            bench.settler.copy(bench.take("b"), Retry(1))
            assert not await bench.settler.flush(timeout=0.05)
            assert await bench.settler.flush()
            assert sum(bench.ends) == 2

    @virtual
    async def test_it_waits_for_no_more_than_it_was_asked_for(self) -> None:
        async with Bench() as bench:
            mine, other = bench.take("mine"), bench.take("other")
            bench.adapter.on_settle = lambda delivery, settlement: (
                Unavailable("no") if delivery is other else None
            )
            bench.settler.settle(other, ACK)
            bench.settler.settle(mine, ACK)
            assert await bench.settler.flush([mine], timeout=1)
            assert not await bench.settler.flush(timeout=1)

    @virtual
    async def test_several_can_wait_at_once(self) -> None:
        async with Bench() as bench:
            bench.adapter.settling.clear()
            bench.settler.settle(bench.take("a"), ACK)
            flushes = [asyncio.create_task(bench.settler.flush()) for _ in range(3)]
            await turns()
            bench.adapter.settling.set()
            assert await asyncio.gather(*flushes) == [True, True, True]


class TestClosing:
    @virtual
    async def test_it_leaves_what_has_not_ended_unsettled(self) -> None:
        async with Bench() as bench:
            bench.adapter.on_settle = lambda delivery, settlement: Unavailable("no")
            bench.adapter.on_send = lambda to, message: ConnectionLost("no")
            bench.settler.settle(bench.take("a"), ACK)
            bench.settler.copy(bench.take("b"), Retry(1))
            await asyncio.sleep(10)
            await bench.settler.close()
            tried = len(bench.adapter.batches), len(bench.adapter.tried)
            await asyncio.sleep(100)
            assert (len(bench.adapter.batches), len(bench.adapter.tried)) == tried
            assert not bench.ends
            assert len(bench.subscription.out) == 2
            assert len(asyncio.all_tasks()) == 1

    @virtual
    async def test_a_broker_that_does_not_answer_does_not_keep_it(self) -> None:
        works: tuple[Callable[[Bench], None], ...] = (
            lambda bench: bench.settler.settle(bench.take("a"), ACK),
            lambda bench: bench.settler.mark(bench.take("a"), b"{}"),
            lambda bench: bench.settler.copy(bench.take("a"), Retry(1)),
        )
        for work in works:
            async with Bench() as bench:
                for gate in (bench.adapter.settling, bench.adapter.marking, bench.adapter.sending):
                    gate.clear()
                work(bench)
                await asyncio.sleep(1)
                async with asyncio.timeout(1):
                    await bench.settler.close()
                assert len(asyncio.all_tasks()) == 1
                assert len(bench.subscription.out) == 1

    @virtual
    async def test_its_tasks_have_names(self) -> None:
        async with Bench():
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert {"brokerkit settler", "brokerkit copies"} <= names


@virtual
async def test_a_hook_that_raises_changes_nothing() -> None:
    def broken(event: HookEvent) -> None:
        raise Bug

    async with Bench() as bench:
        object.__setattr__(bench.settler, "_hooks", [broken, bench.events.append])
        bench.adapter.on_send = failing([ConnectionLost("no")])
        bench.settler.settle(bench.take("a"), ACK)
        bench.settler.copy(bench.take("b"), Retry(1))
        assert await bench.settler.flush()
        assert sorted(bench.outcomes) == [("a", "ack"), ("b", "retry")]


@virtual
async def test_wall_time_is_the_systems_own_unless_given() -> None:
    adapter = FakeAdapter()
    settler = Settler(adapter, INLET, DEAD, on_end=lambda count: None, on_released=lambda delivery: None)
    assert settler._clock.time() > 1_600_000_000
    assert settler._hooks == ()
    assert logging.getLogger("brokerkit").name == "brokerkit"


class TestFence:
    @virtual
    @pytest.mark.parametrize("settlement", [Retry(after=1), DeadLetter("no")])
    async def test_a_failure_after_the_lease_makes_no_copy_of_what_is_somebody_elses(
        self, settlement: Retry | DeadLetter
    ) -> None:
        async with Bench() as bench:
            delivery = bench.take("a")
            bench.adapter.on_mark = lambda delivery, mark: Stale("another has it")
            bench.settler.copy(delivery, settlement)
            await bench.settler.flush()
            assert not bench.adapter.sent
            assert not bench.adapter.dead
            assert not bench.adapter.settled
            assert bench.released == ["a"]
            assert sum(bench.ends) == 1

    @virtual
    async def test_a_copy_waits_while_it_cannot_be_asked_whose_the_original_is(self) -> None:
        async with Bench() as bench:
            answers: list[SettleError | None] = [Unavailable("down"), Unavailable("down"), None]
            bench.adapter.on_mark = lambda delivery, mark: answers.pop(0)
            bench.settler.copy(bench.take("a"), DeadLetter("no"))
            await bench.settler.flush()
            assert len(bench.adapter.dead) == 1
            assert not answers

    @virtual
    async def test_asking_changes_no_mark_that_stands(self) -> None:
        async with Bench() as bench:
            delivery = bench.take("a")
            bench.settler.mark(delivery, b'{"v":1,"alone":2}')
            await bench.settler.flush()
            bench.adapter.sending.clear()
            bench.settler.copy(delivery, DeadLetter("no"))
            await asyncio.sleep(1)
            assert delivery.mark == b'{"v":1,"alone":2}'
            assert [kind for kind, *_ in bench.adapter.trace] == ["mark"]
            bench.adapter.sending.set()
            await bench.settler.flush()


class TestOrderOfSettlements:
    @virtual
    async def test_with_order_by_key_no_ack_overtakes_one_that_could_not_be_settled(self) -> None:
        async with Bench() as bench:
            bench.adapter.on_settle = lambda delivery, settlement: Unavailable("locked")
            one, two, three = (bench.take(name) for name in "abc")
            for delivery in (one, two, three):
                delivery.order = "key"
            bench.settler.settle(one, ACK)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            bench.settler.settle(two, ACK)
            await asyncio.sleep(0.001)
            bench.adapter.on_settle = lambda delivery, settlement: None
            bench.settler.settle(three, ACK)
            await bench.settler.flush()
            assert [name for kind, name, *_ in bench.adapter.trace if kind == "ack"] == ["a", "b", "c"]
            assert sum(bench.ends) == 3
            bench.settler.settle(bench.take("d"), ACK)
            await bench.settler.flush()
            assert sum(bench.ends) == 4

    @virtual
    async def test_a_shelf_is_forgotten_when_the_settler_closes(self) -> None:
        async with Bench() as bench:
            bench.adapter.on_settle = lambda delivery, settlement: Unavailable("locked")
            delivery = bench.take("a")
            delivery.order = "key"
            bench.settler.settle(delivery, ACK)
            await asyncio.sleep(0.01)
            assert not await bench.settler.flush(timeout=1)
        await asyncio.sleep(100)
        assert not bench.ends

    @virtual
    async def test_flushing_waits_for_what_was_shelved_and_is_on_its_way_again(self) -> None:
        async with Bench() as bench:
            bench.adapter.on_settle = lambda delivery, settlement: Unavailable("locked")
            delivery = bench.take("a")
            delivery.order = "key"
            bench.settler.settle(delivery, ACK)
            await asyncio.sleep(0.001)
            bench.adapter.on_settle = lambda delivery, settlement: None
            bench.adapter.settling.clear()
            await asyncio.sleep(60)
            assert not await bench.settler.flush(timeout=1)
            bench.adapter.settling.set()
            assert await bench.settler.flush(timeout=1)
            assert sum(bench.ends) == 1
