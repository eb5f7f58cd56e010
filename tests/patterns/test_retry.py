import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
import tenacity
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity.wait import WaitBaseT

from brokerkit.errors import (
    Closed,
    ConfigurationError,
    ConnectionLost,
    DecodeError,
    HandlerCancelled,
    HandlerResultError,
    HandlerTimeout,
    TooLarge,
)
from brokerkit.patterns.retry import LONGEST, Rule, longest_wait, retry
from brokerkit.settlement import ACK, Ack, DeadLetter, Retry, Settle, Settlement
from brokerkit.testing.clock import VirtualClock, run_virtual
from tests.patterns.deliveries import delivery_of, place_of


class Wall:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


def ending(*ends: Settlement | BaseException) -> Any:
    """Return a handler that ends in each of these ways, one after the other, and the list of its calls."""
    calls: list[int] = []

    async def handler(delivery: Any) -> Settlement:
        end = ends[min(len(calls), len(ends) - 1)]
        calls.append(delivery.attempt)
        if isinstance(end, BaseException):
            raise end
        return end

    handler.calls = calls  # type: ignore[attr-defined]
    return handler


async def test_a_success_passes_as_it_is_and_leaves_no_story() -> None:
    delivery = delivery_of()
    assert await retry()(ending(ACK))(delivery) is ACK
    assert delivery.story == []


async def test_a_failure_becomes_a_counted_retry_that_says_why() -> None:
    settlement = await retry(wait=tenacity.wait_fixed(7))(ending(ValueError("no stock")))(delivery_of())
    assert settlement == Retry(after=7, reason="ValueError: no stock", counts=True)


async def test_the_story_has_one_entry_for_each_failure_and_only_the_last_has_a_trace() -> None:
    delivery = delivery_of()
    handler = retry(attempts=3, wait=tenacity.wait_fixed(0), clock=Wall(12.3456))(
        ending(ValueError("a"), KeyError("b"), OSError("c"))
    )
    assert (await handler(delivery)) == DeadLetter("exhausted", "attempt 3 of 3: OSError: c")
    assert [(entry["n"], entry["type"], entry["message"], entry["at"]) for entry in delivery.story] == [
        (1, "ValueError", "a", 12345),
        (2, "KeyError", "'b'", 12345),
        (3, "OSError", "c", 12345),
    ]
    assert ["trace" in entry for entry in delivery.story] == [False, False, True]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("x"),
        ConnectionResetError("x"),
        HandlerTimeout("x"),
        HandlerCancelled("x"),
        ConnectionLost("x"),
        Closed("x"),
    ],
)
async def test_what_may_pass_is_tried_again_whatever_on_names(error: Exception) -> None:
    assert isinstance(await retry(on=ConnectionError)(ending(error))(delivery_of(order="key")), Retry)


@pytest.mark.parametrize("error", [ValueError("x"), TooLarge("x"), HandlerResultError("x")])
async def test_what_cannot_pass_is_a_dead_letter_at_once(error: Exception) -> None:
    settlement = await retry(on=ConnectionError)(ending(error))(delivery_of())
    assert settlement == DeadLetter("unrecoverable", f"{type(error).__name__}: x")


async def test_a_broken_payload_is_a_dead_letter_at_once_with_its_own_reason() -> None:
    assert await retry()(ending(DecodeError("bad json")))(delivery_of()) == DeadLetter(
        "decode_error", "DecodeError: bad json"
    )


async def test_what_is_given_up_on_is_not_tried_again() -> None:
    handler = retry(give_up_on=(KeyError, ValueError))(ending(ValueError("x")))
    assert await handler(delivery_of()) == DeadLetter("unrecoverable", "ValueError: x")


@pytest.mark.parametrize(
    ("errors", "again"),
    [
        ([ConnectionError(), ConnectionError()], True),
        ([ConnectionError(), ValueError()], False),
        ([HandlerTimeout(), ConnectionError()], True),
    ],
)
async def test_a_group_of_errors_is_tried_again_if_all_of_them_are(
    errors: list[Exception], again: bool
) -> None:
    handler = retry(on=ConnectionError)(ending(ExceptionGroup("several", errors)))
    assert isinstance(await handler(delivery_of(order="key")), Retry) is again


async def test_a_group_with_a_broken_payload_in_it_is_not_tried_again() -> None:
    handler = retry()(ending(ExceptionGroup("several", [ValueError(), DecodeError("x")])))
    assert isinstance(await handler(delivery_of(order="key")), DeadLetter)


async def test_a_predicate_may_decide_and_a_broken_one_costs_no_message() -> None:
    def picky(error: Exception) -> bool:
        return "again" in str(error)

    assert isinstance(await retry(on=picky)(ending(ValueError("again")))(delivery_of(order="key")), Retry)
    assert isinstance(await retry(on=picky)(ending(ValueError("no")))(delivery_of(order="key")), DeadLetter)

    def broken(error: Exception) -> bool:
        raise RuntimeError

    assert isinstance(await retry(on=broken)(ending(ValueError("no")))(delivery_of(order="key")), Retry)


async def test_the_most_derived_rule_wins_before_everything_else() -> None:
    rules: dict[type[Exception], Rule] = {
        OSError: DeadLetter("rejected"),
        ConnectionError: lambda error: ACK if str(error) == "done already" else None,
    }
    pattern = retry(rules=rules, give_up_on=ConnectionError)
    assert await pattern(ending(OSError()))(delivery_of()) == DeadLetter("rejected")
    assert await pattern(ending(ConnectionResetError("done already")))(delivery_of()) is ACK
    assert await pattern(ending(ConnectionResetError("x")))(delivery_of()) == DeadLetter(
        "unrecoverable", "ConnectionResetError: x"
    )


async def test_a_broken_rule_costs_no_message() -> None:
    def divides(_: Exception) -> Any:
        return 1 / 0

    def says(_: Exception) -> Any:
        return "ack"

    rules: dict[type[Exception], Rule] = {ValueError: divides, KeyError: says}
    assert isinstance(await retry(rules=rules)(ending(ValueError()))(delivery_of(order="key")), Retry)
    assert isinstance(await retry(rules=rules)(ending(KeyError()))(delivery_of(order="key")), Retry)


async def test_an_uncounted_rule_leaves_no_trace_in_the_story() -> None:
    delivery = delivery_of(attempt=99)
    polite = Retry(after=30, reason="busy", counts=False)
    assert await retry(rules={ValueError: polite})(ending(ValueError()))(delivery) is polite
    assert delivery.story == []


@pytest.mark.parametrize("raised", [False, True])
async def test_a_counted_retry_of_the_handlers_own_is_under_the_same_limit(raised: bool) -> None:
    asked = Retry(after=5, reason="later")
    handler = retry(attempts=2)(ending(Settle(asked) if raised else asked))
    assert await handler(delivery_of(attempt=1)) == asked
    assert await handler(delivery_of(attempt=2)) == DeadLetter("exhausted", "attempt 2 of 2: later")


@pytest.mark.parametrize("raised", [False, True])
@pytest.mark.parametrize("asked", [Retry(after=5, counts=False), DeadLetter("rejected", "no"), ACK])
async def test_what_does_not_count_passes_untouched_at_any_attempt(asked: Settlement, raised: bool) -> None:
    delivery = delivery_of(attempt=1_000)
    assert await retry(attempts=2)(ending(Settle(asked) if raised else asked))(delivery) == asked
    assert delivery.story == []


async def test_attempts_are_counted_from_the_delivery_not_from_the_process() -> None:
    handler = retry(attempts=5)(ending(ValueError("x")))
    assert isinstance(await handler(delivery_of(attempt=4, order="key")), Retry)
    assert await handler(delivery_of(attempt=5)) == DeadLetter("exhausted", "attempt 5 of 5: ValueError: x")


async def test_the_last_wait_is_cut_to_the_deadline_and_then_it_is_over() -> None:
    wall = Wall(1000.0)
    handler = retry(attempts=None, deadline=60, wait=tenacity.wait_fixed(45), clock=wall)(
        ending(ValueError("x"))
    )
    assert await handler(delivery_of(first=1000.0)) == Retry(after=45, reason="ValueError: x")
    wall.now = 1045.0
    assert await handler(delivery_of(first=1000.0)) == Retry(after=15, reason="ValueError: x")
    wall.now = 1060.0
    settlement = await handler(delivery_of(first=1000.0))
    assert settlement == DeadLetter("exhausted", "attempt 1, deadline of 60 s is over: ValueError: x")


def test_a_short_wait_keeps_the_slot_and_takes_exactly_that_long() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        handler = ending(ValueError(), ValueError(), ACK)
        delivery = delivery_of()
        begun = loop.time()
        assert await retry(wait=tenacity.wait_fixed(0.5), clock=VirtualClock())(handler)(delivery) is ACK
        assert loop.time() - begun == 1.0
        assert handler.calls == [1, 2, 3]
        assert delivery.attempt == 3
        assert [entry["n"] for entry in delivery.story] == [1, 2]

    run_virtual(main())


@pytest.mark.parametrize(("order", "wait"), [("key", 0.5), ("key", 0), ("none", 1.0)])
async def test_a_long_wait_and_any_wait_of_a_lane_leaves_the_slot(order: Any, wait: float) -> None:
    handler = ending(ValueError("x"))
    assert await retry(wait=tenacity.wait_fixed(wait))(handler)(delivery_of(order=order)) == Retry(
        after=wait, reason="ValueError: x"
    )
    assert handler.calls == [1]


async def test_attempts_in_place_are_limited_too() -> None:
    handler = ending(Retry())
    settlement = await retry(attempts=4)(handler)(delivery_of(attempt=2))
    assert settlement == DeadLetter("exhausted", "attempt 4 of 4: Retry")
    assert handler.calls == [2, 3, 4]


async def test_a_cancellation_passes_and_settles_nothing() -> None:
    delivery = delivery_of()
    with pytest.raises(asyncio.CancelledError):
        await retry(rules={Exception: ACK})(ending(asyncio.CancelledError()))(delivery)
    assert delivery.story == []


def test_a_cancellation_during_a_wait_in_place_passes_and_counts_nothing() -> None:
    async def main() -> None:
        delivery = delivery_of()
        task = asyncio.ensure_future(retry(wait=tenacity.wait_fixed(0.9))(ending(ValueError()))(delivery))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert delivery.attempt == 1

    run_virtual(main())


STRATEGIES: list[Callable[[], WaitBaseT]] = [
    tenacity.wait_exponential,
    lambda: tenacity.wait_exponential(max=math.inf),
    lambda: tenacity.wait_random_exponential(multiplier=1, max=300),
    tenacity.wait_exponential_jitter,
    lambda: tenacity.wait_incrementing(increment=1e300, max=math.inf),
    lambda: lambda _: math.nan,
    lambda: lambda _: -math.inf,
    lambda: lambda _: 10**400,
    lambda: lambda _: 1 / 0,
]


@pytest.mark.parametrize("make", STRATEGIES)
@pytest.mark.parametrize("attempt", [1, 64, 5_000, 999_999])
async def test_no_attempt_overflows_any_strategy(make: Callable[[], Any], attempt: int) -> None:
    pattern = retry(attempts=1_000_000, wait=make(), in_place=0)
    settlement = await pattern(ending(ValueError()))(delivery_of(attempt=attempt))
    assert isinstance(settlement, Retry)
    assert isinstance(settlement.after, float)
    assert 0 <= settlement.after <= LONGEST == 43_200


@settings(deadline=None)
@given(st.floats(min_value=0, allow_infinity=False))
async def test_a_wait_that_the_handler_asks_for_is_bounded(after: float) -> None:
    settlement = await retry(in_place=0)(ending(Retry(after=after)))(delivery_of())
    assert isinstance(settlement, Retry)
    assert 0 <= settlement.after <= LONGEST


async def test_the_story_of_a_message_that_fails_for_days_stays_short() -> None:
    async def failing(_: Any) -> Settlement:
        message = "x"
        raise ValueError(message)

    handler = retry(attempts=None, deadline=1e9, clock=Wall(0))(failing)
    delivery = delivery_of(order="key")
    for attempt in range(1, 1001):
        delivery.attempt = attempt
        await handler(delivery)
    assert len(delivery.story) == 32
    assert delivery.story[0]["n"] == 1
    assert delivery.story[1] == {"cut": 1000 - 31}
    assert delivery.story[-1]["n"] == 1000


@pytest.mark.parametrize(
    ("strategy", "attempts", "longest"),
    [
        (tenacity.wait_fixed(5), 5, 5.0),
        (tenacity.wait_fixed(5), 1, 0.0),
        (tenacity.wait_none(), 5, 0.0),
        (tenacity.wait_random(1, 9), 2, 9.0),
        (tenacity.wait_exponential(max=300), 5, 8.0),
        (tenacity.wait_exponential(), None, LONGEST),
        (tenacity.wait_random_exponential(multiplier=1, max=300), 5, 8.0),
        (tenacity.wait_random_exponential(multiplier=1, max=300), 50, 300.0),
        (tenacity.wait_exponential_jitter(max=60, jitter=3), 3, 5.0),
        (tenacity.wait_exponential_jitter(max=60, jitter=3), 5000, 60.0),
        (tenacity.wait_incrementing(1, 10, 500), 4, 21.0),
        (tenacity.wait_fixed(3) + tenacity.wait_random(0, 2), 5, 5.0),
        (
            tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_random(0, 600), tenacity.wait_fixed(2)),
            3,
            600.0,
        ),
        (
            tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_random(0, 600), tenacity.wait_fixed(2)),
            2,
            1.0,
        ),
        (tenacity.wait_exception(lambda error: float(str(error))), 5, 0.0),
    ],
)
def test_the_longest_wait_of_a_known_strategy_is_exact(
    strategy: Any, attempts: int | None, longest: float
) -> None:
    assert longest_wait(strategy, attempts) == longest


def test_the_longest_wait_of_an_unknown_strategy_is_asked_for() -> None:
    assert longest_wait(lambda state: 400.0 if state.attempt_number == 700 else 1.0, 1000) == 400.0

    class Longer(tenacity.wait_random):
        def __call__(self, retry_state: Any) -> float:
            return 2 * super().__call__(retry_state)

    assert 100 < longest_wait(Longer(0, 100), 10) <= 200


def test_a_lane_that_would_be_held_too_long_is_refused_by_name_and_figure() -> None:
    pattern = retry(attempts=12, wait=tenacity.wait_random_exponential(multiplier=1, max=900))
    with pytest.raises(
        ConfigurationError,
        match=r"shop\.charge \(orders/billing\).* 900 s .*max_hold \(300 s\).*lower maximum",
    ):
        pattern.check(place_of(order="key"))
    pattern.check(place_of(order="key", max_hold=900))
    pattern.check(place_of(order="none"))
    retry(attempts=12, wait=tenacity.wait_fixed(900), deadline=200).check(place_of(order="key"))
    retry().check(place_of(order="key"))


def test_a_rule_may_be_what_holds_a_lane_too_long() -> None:
    with pytest.raises(ConfigurationError, match="600 s"):
        retry(rules={ValueError: Retry(after=600)}).check(place_of(order="key"))


def test_a_wait_that_the_broker_cannot_keep_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="what this broker can delay"):
        retry(wait=tenacity.wait_fixed(901)).check(place_of(max_delay=900))
    retry(wait=tenacity.wait_fixed(0.5)).check(place_of(max_delay=0))


@pytest.mark.parametrize(
    "arguments",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"attempts": True},
        {"attempts": 2.5},
        {"attempts": 1_000_001},
        {"attempts": None},
        {"deadline": 0},
        {"deadline": math.inf},
        {"deadline": math.nan},
        {"in_place": -1},
        {"in_place": math.nan},
        {"wait": 5},
        {"on": asyncio.CancelledError},
        {"on": (ValueError, KeyboardInterrupt)},
        {"on": "ValueError"},
        {"give_up_on": BaseException},
        {"rules": {ValueError: "ack"}},
        {"rules": {BaseException: ACK}},
    ],
)
def test_what_makes_no_sense_is_refused_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        retry(**arguments)


def test_it_prints_as_it_is_configured() -> None:
    pattern = retry(
        attempts=3,
        on=(OSError, KeyError),
        give_up_on=ValueError,
        deadline=60,
        wait=tenacity.wait_fixed(5),
        rules={TypeError: Ack()},
    )
    assert repr(pattern) == (
        "retry(attempts=3, on=(OSError, KeyError), give_up_on=ValueError, deadline=60, "
        "wait=wait_fixed(wait_fixed=5.0), rules={TypeError: Ack()}, in_place=1)"
    )
