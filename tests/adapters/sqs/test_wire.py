"""What is sent is what is read, in text that SQS takes and one attribute."""

import base64
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.adapters.sqs.wire import dedupe_id, delayed, entry_of, lane_of, read_message
from brokerkit.message import Message

ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LANE = re.compile(r"[!-~]{1,128}")

values = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.binary(max_size=30))
header_names = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1)
messages = st.builds(
    Message,
    body=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda t: t.encode("utf-8", "ignore"))),
    content_type=st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    key=st.none() | st.binary(max_size=200),
    headers=st.lists(st.tuples(header_names, values), max_size=12).map(tuple),
    copy_id=st.none() | st.text(max_size=200),
)


def received(fields: dict[str, Any], *, group: str | None = None) -> dict[str, Any]:
    """Return what a receive brings of what a send has given."""
    raw: dict[str, Any] = {
        "Body": fields["MessageBody"],
        "Attributes": {"MessageGroupId": group} if group else {},
    }
    if "MessageAttributes" in fields:
        raw["MessageAttributes"] = fields["MessageAttributes"]
    return raw


@given(messages, st.booleans())
def test_any_message_comes_back_as_it_was_sent(message: Message, fifo: bool) -> None:
    entry = entry_of(message)
    fields = entry.arguments(fifo=fifo, body="MessageBody")
    read = read_message(received(fields, group=fields.get("MessageGroupId")), fifo=fifo)
    if entry.packed is None and fifo:
        assert message.key is None
    assert read.message == message.replace(copy_id=None)
    assert read.after == 0


@given(messages)
def test_what_travels_is_legal_text_in_at_most_one_attribute(message: Message) -> None:
    fields = entry_of(message).arguments(fifo=True, body="MessageBody")
    assert fields["MessageBody"]
    assert not ILLEGAL.search(fields["MessageBody"])
    attributes = fields.get("MessageAttributes", {})
    assert len(attributes) <= 1
    for attribute in attributes.values():
        assert attribute["StringValue"].isascii()
        assert not ILLEGAL.search(attribute["StringValue"])
    assert LANE.fullmatch(fields["MessageGroupId"])
    assert LANE.fullmatch(fields["MessageDeduplicationId"])


@given(messages)
def test_the_size_is_that_of_all_that_travels(message: Message) -> None:
    entry = entry_of(message)
    size = len(entry.body.encode())
    for name, value in entry.arguments(fifo=False, body="MessageBody").get("MessageAttributes", {}).items():
        size += len(name) + len(value["DataType"]) + len(value["StringValue"])
    assert entry.size == size


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_two_keys_have_two_lanes_and_one_key_has_one(one: bytes, two: bytes) -> None:
    assert (lane_of(one, "a") == lane_of(two, "b")) == (one == two)
    assert lane_of(one, "a") != lane_of(None, "a")


def test_without_a_key_each_copy_has_a_lane_of_its_own_and_a_resend_has_the_same() -> None:
    assert entry_of(Message(body=b"x", copy_id="1")).lane == entry_of(Message(body=b"x", copy_id="1")).lane
    assert entry_of(Message(body=b"x", copy_id="1")).lane != entry_of(Message(body=b"x", copy_id="2")).lane
    assert entry_of(Message(body=b"x")).lane != entry_of(Message(body=b"x")).lane


@given(st.text(max_size=300), st.text(max_size=300))
def test_two_copies_have_two_deduplication_ids_and_one_copy_has_one(one: str, two: str) -> None:
    assert (dedupe_id(one) == dedupe_id(two)) == (one == two)


def test_a_delay_is_noted_for_the_receiver_and_changed_by_a_hop() -> None:
    fields = entry_of(Message(body=b"\xff", key=b"k"), 1234.5678).arguments(fifo=False, body="MessageBody")
    assert read_message(received(fields), fifo=False).after == 1234.568
    again = read_message(received(delayed(received(fields), 900.25)), fifo=False)
    assert (again.after, again.message) == (900.25, Message(body=b"\xff", key=b"k"))


def test_a_stranger_s_message_is_taken_as_it_is() -> None:
    raw = {
        "Body": "plain",
        "Attributes": {"MessageGroupId": "customer-7"},
        "MessageAttributes": {
            "content-type": {"DataType": "String", "StringValue": "text/plain"},
            "count": {"DataType": "Number", "StringValue": "7"},
            "raw": {"DataType": "Binary", "BinaryValue": base64.b64encode(b"\xff").decode()},
            "raw-by-botocore": {"DataType": "Binary", "BinaryValue": b"\xfe"},
        },
    }
    headers = (("count", "7"), ("raw", b"\xff"), ("raw-by-botocore", b"\xfe"))
    expected = Message(body=b"plain", content_type="text/plain", headers=headers)
    assert read_message(raw, fifo=False).message == expected
    assert read_message(raw, fifo=True).message == expected.replace(key=b"customer-7")


@pytest.mark.parametrize(
    "packed",
    [
        "garbage",
        "[]",
        '{"no": "version"}',
        '{"v":1,"b":1}',
        '{"v":1,"k":7,"t":[],"h":{"a":1},"d":"soon"}',
        '{"v":1,"h":[[0,"a",{"b":"%%"}]]}',
        '{"v":1,"d":-5}',
        '{"v":1,"d":1e99}',
        "[" * 100_000,
    ],
)
def test_a_forged_attribute_breaks_nothing_and_holds_nothing_back(packed: str) -> None:
    raw = {
        "Body": "%not base64%",
        "MessageAttributes": {"bk-packed": {"DataType": "String", "StringValue": packed}},
    }
    read = read_message(raw, fifo=False)
    assert read.message.body == b"%not base64%"
    assert read.after == 0


def test_eleven_headers_and_more_are_still_one_attribute() -> None:
    headers = tuple((f"h-{number}", "v") for number in range(128))
    fields = entry_of(Message(body=b"x", headers=headers)).arguments(fifo=False, body="MessageBody")
    assert list(fields["MessageAttributes"]) == ["bk-packed"]
