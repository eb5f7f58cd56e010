"""Headers and properties: what comes out is what went in, and nothing of it acts at the broker."""

import datetime as dt

import pamqp.decode
import pamqp.encode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.adapters.rabbitmq.wire import (
    HEADER_ROOM,
    arrivals_of,
    headers_to_forward,
    message_of,
    table_of,
)
from brokerkit.errors import TooLarge
from brokerkit.message import Message

NAMES = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1
) | st.sampled_from(
    [
        "CC",
        "BCC",
        "cc",
        "x-death",
        "X-Delivery-Count",
        "bk-key",
        "bk-wait",
        "bk-packed",
        "bk-order",
        "bk-attempt",
    ]
)
VALUES = st.text() | st.binary() | st.text(st.characters(categories=["Cs"]), max_size=1)
MESSAGES = st.builds(
    Message,
    body=st.binary(),
    content_type=st.none() | st.text(max_size=300),
    key=st.none() | st.binary(max_size=20) | st.text(max_size=5).map(str.encode),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=8).map(tuple),
)


def through_the_wire(table: dict[str, str]) -> dict[str, object]:
    _, decoded = pamqp.decode.field_table(pamqp.encode.field_table(dict(table)))
    return dict(decoded)


@given(MESSAGES)
def test_every_message_survives_the_client_s_own_encoding(message: Message) -> None:
    content_type, table = table_of(message)
    assert content_type is None or content_type.isascii()
    assert message_of(content_type, through_the_wire(table), message.body) == message


@given(MESSAGES)
def test_nothing_is_written_that_the_broker_acts_on_and_no_number(message: Message) -> None:
    _, table = table_of(message, 1500)
    assert table["bk-wait"] == "1500"
    for name, value in table.items():
        assert not name.lower().startswith("x-")
        assert name.lower() not in {"cc", "bcc"}
        assert type(value) is str


@given(MESSAGES)
def test_a_hop_keeps_everything_but_the_wait(message: Message) -> None:
    content_type, table = table_of(message, 7300)
    arrived = through_the_wire(table) | {
        "x-death": [{"count": 1}],
        "x-delivery-count": 3,
        "x-first-death-queue": "q",
    }
    forwarded = headers_to_forward(arrived, 2300)
    assert forwarded == {**table, "bk-wait": "2300"}
    assert message_of(content_type, headers_to_forward(arrived, 0), message.body) == message


def test_common_headers_are_readable_for_others() -> None:
    headers = (("ce-type", "order.placed"), ("ce-id", "1"), ("traceparent", "00-ab"))
    _, table = table_of(Message(body=b"x", key="küche".encode(), headers=headers))
    assert table == {**dict(headers), "bk-key": "küche", "bk-order": "1,0,2"}


def test_what_strangers_send_becomes_text_and_a_forged_note_of_ours_harms_nothing() -> None:
    when = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    table = {
        "n": 1,
        "yes": True,
        "none": None,
        "list": [1, "a"],
        "table": {"a": 1},
        "when": when,
        "float": 0.5,
        "raw": b"\xff",
    }
    found = dict(
        message_of(
            None, {**table, "bk-order": "9,9", "bk-packed": "{", "bk-key-coding": "base64"}, b"x"
        ).headers
    )
    assert found == {
        "n": "1",
        "yes": "true",
        "none": "null",
        "list": '[1, "a"]',
        "table": '{"a": 1}',
        "when": '"2026-01-01 00:00:00+00:00"',
        "float": "0.5",
        "raw": b"\xff",
        "bk-packed": "{",
    }


@pytest.mark.parametrize("key", ["no base64!", 7, b"\xff"])
def test_a_foreign_key_is_never_refused(key: object) -> None:
    found = message_of(None, {"bk-key": key, "bk-key-coding": "base64"}, b"x")
    assert found.key == (key if isinstance(key, bytes) else str(key).encode())


def test_headers_that_do_not_fit_into_one_frame_are_too_large() -> None:
    fits = Message(body=b"", headers=(("a", "x" * 40_000), ("b", "ü" * 20_000)))
    table_of(fits)
    with pytest.raises(TooLarge, match=str(HEADER_ROOM)):
        table_of(Message(body=b"", headers=(("a", "x" * 40_000), ("a", b"x" * 70_000))))


def test_arrivals_are_the_broker_s_word_and_only_of_what_has_come_back() -> None:
    assert arrivals_of({}, redelivered=False) == 1
    assert arrivals_of({"x-delivery-count": 9}, redelivered=False) == 1
    assert arrivals_of({"x-delivery-count": 2}, redelivered=True) == 3
    assert arrivals_of({}, redelivered=True) is None
    assert arrivals_of({"x-delivery-count": "many"}, redelivered=True) is None
