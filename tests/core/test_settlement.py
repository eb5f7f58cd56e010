from decimal import Decimal
from typing import Any

import pytest

from brokerkit.settlement import ACK, Ack, DeadLetter, Retry, Settle


@pytest.mark.parametrize(
    "after", [-1, -0.001, float("nan"), float("inf"), 10**400, Decimal(-1), Decimal("NaN")]
)
def test_b22_a_wait_is_finite_and_not_negative(after: Any) -> None:
    with pytest.raises(ValueError, match=r"Retry\(after=.*give a finite number of seconds"):
        Retry(after=after)


@pytest.mark.parametrize("after", [0, 1, 1.5, Decimal("1.5"), True])
def test_whatever_number_is_given_a_wait_is_a_float(after: Any) -> None:
    retry = Retry(after=after)

    assert type(retry.after) is float
    assert retry.after == float(after)


def test_a_retry_is_at_once_and_counts_unless_said_otherwise() -> None:
    assert Retry() == Retry(after=0.0, reason="", counts=True)


@pytest.mark.parametrize("text", [None, 7, ValueError("x"), b"x"])
def test_words_that_are_no_text_are_refused_in_the_handler(text: Any) -> None:
    """Later, in the settler, they would keep the message and its neighbours from ever being settled."""
    for make in (lambda: Retry(reason=text), lambda: DeadLetter(text), lambda: DeadLetter("word", text)):
        with pytest.raises(TypeError, match="give text"):
            make()


def test_a_dead_letter_has_a_word() -> None:
    assert DeadLetter() == DeadLetter("rejected", "")
    with pytest.raises(ValueError, match="give a word"):
        DeadLetter("")


@pytest.mark.parametrize("settlement", [ACK, Ack(), Retry(5), DeadLetter("no")])
def test_a_settlement_can_be_raised_past_except_exception(settlement: Ack | Retry | DeadLetter) -> None:
    def leave() -> None:
        raise Settle(settlement)

    def careless() -> None:
        try:
            leave()
        except Exception:  # noqa: BLE001 - the point
            pytest.fail("swallowed")

    with pytest.raises(Settle) as caught:
        careless()
    assert caught.value.settlement == settlement
    assert caught.value.args == (settlement,)


@pytest.mark.parametrize("odd", [None, Ack, "ack", Settle(ACK)])
def test_only_a_settlement_can_be_raised(odd: Any) -> None:
    with pytest.raises(TypeError, match=r"Settle\(\) takes Ack, Retry or DeadLetter"):
        Settle(odd)
