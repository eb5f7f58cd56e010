"""The ladder: hops end, never early, and what is forged is no wait."""

import math

from hypothesis import given
from hypothesis import strategies as st

from brokerkit.adapters.rabbitmq.ladder import MAX_DELAY, in_milliseconds, read_wait, step
from brokerkit.adapters.rabbitmq.names import RUNGS


@given(st.floats(0, MAX_DELAY))
def test_the_hops_add_up_to_the_delay_and_the_last_second_waits_in_memory(delay: float) -> None:
    left = in_milliseconds(delay)
    assert delay * 1000 - 1e-6 <= left < delay * 1000 + 1
    waited, hops = 0, 0
    while True:
        rung, left = step(left)
        if rung is None:
            break
        assert rung in RUNGS
        waited += rung * 1000
        hops += 1
    assert left < 1000
    assert waited + left == in_milliseconds(delay)
    assert hops <= 26


def test_the_largest_rung_that_fits_is_taken() -> None:
    assert step(999) == (None, 999)
    assert step(1000) == (1, 0)
    assert step(7300) == (5, 2300)
    assert step(120_000) == (120, 0)
    assert step(43_200_000) == (21_600, 21_600_000)


@given(st.none() | st.integers() | st.floats() | st.text() | st.binary())
def test_a_forged_wait_is_a_number_in_range_or_nothing(value: object) -> None:
    assert 0 <= read_wait(value) <= MAX_DELAY * 1000


def test_a_wait_is_text() -> None:
    assert read_wait("2300") == 2300
    assert read_wait("9" * 30) == 0
    assert read_wait("-1") == 0
    assert read_wait("٣") == 0
    assert not math.isnan(read_wait("nan"))
