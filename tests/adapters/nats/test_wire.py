"""A message on the wire: comes out as it went in, and means nothing to the server."""

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.adapters.nats import wire
from brokerkit.adapters.nats.reading import read_headers
from brokerkit.adapters.nats.servertime import ServerTime, nanoseconds
from brokerkit.message import Address, Message
from tests.adapters.nats.conftest import Connect
from tests.adapters.nats.members import inlet, join

NAMES = st.text(string.ascii_letters + string.digits + "-_.!~/()", min_size=1, max_size=8) | st.sampled_from(
    [
        "Nats-Rollup",
        "nats-ttl",
        "Nats-Expected-Stream",
        "Nats-Msg-Id",
        "Nats-Schedule",
        "Status",
        "bk-key",
        "bk-after",
        "BK-PACKED",
    ]
)
HEADERS = st.lists(st.tuples(NAMES, st.text(max_size=12) | st.binary(max_size=12)), max_size=6).map(tuple)
MESSAGES = st.builds(
    Message,
    body=st.binary(max_size=50),
    content_type=st.none() | st.text(string.printable.strip() + " ", max_size=20),
    key=st.none() | st.binary(max_size=20),
    headers=HEADERS,
    copy_id=st.none() | st.text(min_size=1, max_size=30),
)
LINE = {chr(code) for code in range(0x20, 0x7F)}


@given(MESSAGES, st.sampled_from([0, 0.0004, 1.5, 43_200]))
def test_what_goes_in_comes_out_and_travels_in_printable_ascii(message: Message, after: float) -> None:
    encoded = wire.encode(message, scope="g", after=after)
    for name, value in encoded.items():
        assert set(name) | set(value) <= LINE
        assert value == value.strip()
    assert wire.decode(encoded.items(), message.body) == message.replace(copy_id=None)


@given(MESSAGES)
def test_nothing_of_a_sender_s_acts_on_the_server(message: Message) -> None:
    encoded = wire.encode(message)
    acting = {name for name in encoded if name.lower().startswith("nats-")}
    assert acting <= ({"Nats-Msg-Id"} if message.copy_id else set())
    assert wire.after_of(encoded) == 0


@given(MESSAGES)
def test_headers_are_written_as_they_are_read(message: Message) -> None:
    encoded = wire.encode(message)
    head = wire.head_of(encoded)
    assert head.startswith(b"NATS/1.0\r\n")
    assert head.endswith(b"\r\n\r\n") or not encoded
    assert read_headers(head) == encoded


@pytest.mark.parametrize(
    ("after", "text"), [(0.0001, "1"), (0.001, "1"), (1.0005, "1001"), (43_200.0, "43200000")]
)
def test_a_delay_is_rounded_up_to_milliseconds(after: float, text: str) -> None:
    assert wire.encode(Message(body=b""), after=after)[wire.AFTER] == text


@pytest.mark.parametrize("value", ["", "-1", "1e9", "9" * 16, "٣", "1.5", "soon"])
def test_an_odd_delay_is_none(value: str) -> None:
    assert wire.after_of({wire.AFTER: value}) == 0


def test_two_groups_copies_are_never_one_and_a_strange_id_is_hashed() -> None:
    message = Message(body=b"", copy_id="id")
    assert wire.encode(message, scope="a")["Nats-Msg-Id"] != wire.encode(message, scope="b")["Nats-Msg-Id"]
    strange = [
        wire.encode(Message(body=b"", copy_id=each))["Nats-Msg-Id"] for each in ("é\r\n", "é\r\n ", "x" * 300)
    ]
    assert len(set(strange)) == 3
    assert all(set(each) <= LINE for each in strange)


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.orders.billing.3.17.20.1795625388064000001.5",
        "$JS.ACK._.hash.orders.billing.3.17.20.1795625388064000001.5.tok",
    ],
)
def test_both_forms_of_a_reply_are_read(reply: str) -> None:
    assert wire.read_receipt(reply) == (3, 17, 1795625388064000001)


def test_the_server_s_time_is_never_later_here_than_there() -> None:
    now = [100.0]
    clock = ServerTime(lambda: now[0])
    assert clock.age == float("inf")
    clock.observe("2026-11-25T16:49:48.064000001Z")
    assert clock.now() == nanoseconds("2026-11-25T16:49:48.064000001Z")
    now[0] += 1.5
    assert clock.now() == nanoseconds("2026-11-25T16:49:49.564000001Z")
    assert nanoseconds("2026-11-25T18:49:48+02:00") == nanoseconds("2026-11-25T16:49:48Z")


async def test_what_a_raw_client_writes_into_headers_changes_nothing_and_the_server_s_are_hidden(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    member = await join(adapter, inlet(channel))
    client: Any = adapter.link._client
    headers = {
        "Nats-Msg-Id": "theirs",
        "bk-after": "60000",
        "bk-v": "1",
        "bk-attempt": "9",
        "bk-packed": "not ours",
        "Content-Type": "text/plain",
        "Trace": "ü",
    }
    await client.publish(f"{channel}.p0", b"raw", headers=headers)
    (delivery,) = await member.take(1, ack=True)
    assert delivery.address == Address(channel)
    assert delivery.message.content_type == "text/plain"
    assert delivery.message.headers == (
        ("bk-v", "1"),
        ("bk-attempt", "9"),
        ("Trace", "ü"),
        ("bk-packed", "not ours"),
    )


async def test_headers_that_would_act_are_carried_and_do_not_act(connect: Connect, channel: str) -> None:
    adapter = await connect()
    member = await join(adapter, inlet(channel))
    acting = (
        ("Nats-Rollup", "all"),
        ("Nats-TTL", "1s"),
        ("Nats-Expected-Stream", "another"),
        ("Nats-Expected-Last-Sequence", "99"),
        ("Nats-Schedule", "@at 2099-01-01T00:00:00Z"),
        ("Nats-Msg-Id", "one"),
    )
    messages = [Message(body=str(number).encode(), headers=acting) for number in range(3)]
    assert list(await adapter.send(Address(channel), messages)) == [None] * 3
    taken = await member.take(3, ack=True)
    assert [each.message.headers for each in taken] == [acting] * 3
