"""What the server sends, cut anywhere."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from brokerkit.adapters.nats.reading import MessageParser, read_headers

Seen = list[tuple[Any, ...]]


class Client:
    """Notes what a parser passes on."""

    def __init__(self) -> None:
        self.seen: Seen = []

    def take(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.seen.append(("message", sid, bytes(subject), bytes(reply), data, headers))

    async def _process_msg(self, *message: Any) -> None:
        self.take(*message)

    async def _process_ping(self) -> None:
        self.seen.append(("ping",))

    async def _process_pong(self) -> None:
        self.seen.append(("pong",))

    async def _process_err(self, text: str) -> None:
        self.seen.append(("error", text))


HEAD = b"NATS/1.0\r\nkey: value\r\n\r\n"
BODIES = st.sampled_from([b"", b"x", b"\r\n", b"MSG a 1 5\r\nhello\r\n", b"PING\r\n", b"y" * 300])
NAMES = st.sampled_from([b"a", b"orders.p0", b"$JS.ACK.s.c.1.1.1.1.0"])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    body = draw(BODIES)
    reply = draw(st.sampled_from([b"", b"_INBOX.1 "]))
    sid = draw(st.integers(1, 300))
    if draw(st.booleans()):
        sizes = b"%d %d" % (len(HEAD), len(HEAD) + len(body))
        return b"HMSG %b %d %b%b\r\n%b%b\r\n" % (draw(NAMES), sid, reply, sizes, HEAD, body)
    return b"MSG %b %d %b%d\r\n%b\r\n" % (draw(NAMES), sid, reply, len(body), body)


LINES = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'no'\r\n"])


@given(st.lists(st.one_of(messages(), LINES), max_size=12), st.data())
async def test_messages_are_read_as_the_client_reads_them_wherever_the_stream_is_cut(
    parts: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    ours, theirs = Client(), Client()
    quick, slow = MessageParser(ours), Parser(theirs)
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        await quick.parse(stream[begin:end])
    await slow.parse(stream)
    assert ours.seen == theirs.seen
    assert len(ours.seen) == sum(not part.startswith(b"+OK") for part in parts)


async def test_a_message_of_a_megabyte_comes_whole_and_the_next_one_behind_it() -> None:
    client = Client()
    parser = MessageParser(client)
    body = b"z" * 1_000_000
    stream = b"MSG a 1 %d\r\n%b\r\n" % (len(body), body) + b"MSG a 1 2\r\nhi\r\n" * 2
    for at in range(0, len(stream), 32_768):
        await parser.parse(stream[at : at + 32_768])
    assert [len(message[4]) for message in client.seen] == [1_000_000, 2, 2]


async def test_what_a_broken_connection_had_sent_in_part_is_forgotten() -> None:
    client = Client()
    parser = MessageParser(client)
    await parser.parse(b"MSG a 1 5\r\nhel")
    parser.reset()
    await parser.parse(b"MSG a 1 2\r\nhi\r\n")
    assert [message[4] for message in client.seen] == [b"hi"]


@pytest.mark.parametrize(
    "line", [b"MSG a\r\n", b"MSG a x 0\r\n\r\n", b"MSG a 1 x\r\n", b"HMSG a 5\r\nhello\r\n", b"WHAT\r\n"]
)
async def test_nonsense_is_an_error_of_the_protocol(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        await MessageParser(Client()).parse(line)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0\r\na: b\r\nC:d : e \r\n\r\n", {"a": "b", "C": "d : e"}),
        (b"NATS/1.0 404 No Messages\r\n\r\n", {"Status": "404", "Description": "No Messages"}),
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (
            b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Stream: 7\r\n\r\n",
            {"Status": "100", "Description": "Idle Heartbeat", "Nats-Last-Stream": "7"},
        ),
        (b"NATS/1.0\r\nbad name: x\r\n\xc3\xa9: y\r\nv: \xff\r\n\r\n", {"v": "\ufffd"}),
    ],
)
def test_headers_and_the_status_in_their_first_line_are_read(raw: bytes, found: dict[str, str]) -> None:
    assert read_headers(raw) == found
