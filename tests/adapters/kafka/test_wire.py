"""A message as a Kafka record, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.adapters.kafka.wire import Raw, read, read_waiting, size_of, write
from brokerkit.errors import BadHeader
from brokerkit.message import Message


@dataclass
class Stored:
    value: bytes | None
    key: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    offset: int = 0
    timestamp: int = 0


def stored(raw: Raw) -> Stored:
    value, key, headers = raw
    return Stored(value, key, tuple(headers))


NAMES = st.sampled_from(["a", "b", "content-type", "bk-packed", "bk-wait", "ce_id", "Content-Type"])
VALUES = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.binary(max_size=8))
MESSAGES = st.builds(
    Message,
    body=st.binary(max_size=20),
    content_type=st.one_of(st.none(), st.text(st.characters(codec="ascii"), max_size=8)),
    key=st.one_of(st.none(), st.binary(max_size=8)),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=6).map(tuple),
)


@given(MESSAGES)
def test_a_message_comes_back_as_it_was_sent(message: Message) -> None:
    assert read(stored(write(message, None))) == message


@given(MESSAGES, st.floats(0, 43_200))
def test_what_waits_comes_back_with_its_wait_and_without_a_trace_of_it(message: Message, wait: float) -> None:
    found, seconds = read_waiting(stored(write(message, wait)))
    assert found == message
    assert seconds == pytest.approx(wait, abs=0.001)


@given(MESSAGES)
def test_the_size_is_not_underestimated(message: Message) -> None:
    assert size_of(write(message, 1.0)) >= message.size


def test_a_stranger_s_record_is_read_as_far_as_it_goes() -> None:
    record = Stored(
        None, b"k", (("raw", b"\xff"), ("none", None), ("content-type", b"\xfe"), ("bk-packed", b"7,x"))
    )
    assert read(record) == Message(
        body=b"",
        key=b"k",
        headers=(("raw", b"\xff"), ("none", ""), ("content-type", b"\xfe"), ("bk-packed", "7,x")),
    )


@pytest.mark.parametrize("wait", [b"", b"nan", b"inf", b"-5", b"soon", None])
def test_a_forged_wait_waits_not_at_all(wait: bytes | None) -> None:
    message, seconds = read_waiting(Stored(b"x", None, (("bk-wait", wait),)))
    assert (message.headers, seconds) == ((), 0.0)


def test_a_forged_wait_is_at_most_a_day() -> None:
    assert read_waiting(Stored(b"x", None, (("bk-wait", b"1e9"),)))[1] == 24 * 3600


def test_a_lone_surrogate_is_refused_by_name() -> None:
    with pytest.raises(BadHeader, match="'h'"):
        write(Message(body=b"", headers=(("h", "\ud800"),)), None)
