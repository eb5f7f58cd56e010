"""What counts as confirmed, and what a send says that could not be written; and a server that stops reading."""

import asyncio
import json
from typing import Any, cast

import pytest
from nats.aio.client import Client

from brokerkit.adapters.nats import NatsAdapter
from brokerkit.adapters.nats.client import BrokerClient
from brokerkit.adapters.nats.link import Call, Incoming, Link
from brokerkit.adapters.nats.places import Places
from brokerkit.adapters.nats.sender import Sender
from brokerkit.errors import ConnectionLost, PublishUnknown, SendError, Throttled
from brokerkit.message import Address, Message
from brokerkit.testing import run_virtual
from tests.adapters.nats.conftest import Connect
from tests.adapters.nats.members import PATIENCE
from tests.adapters.nats.test_faults import client_of, until, until_sent
from tests.conftest import StartOwn
from tests.servers import Certificates

NO_HEADERS = b"NATS/1.0\r\n\r\n"


def error(number: int, text: str, code: int = 503) -> bytes:
    return b'{"error":{"code":%d,"err_code":%d,"description":"%b"},"stream":"S","seq":0}' % (
        code,
        number,
        text.encode(),
    )


class FullLink:
    """A connection that takes nothing more: each wait for room is in vain, and two seconds long."""

    where = "nats://stub"
    up = True
    full = True
    max_payload = 1_000_000

    def __init__(self) -> None:
        self.begun: list[str] = []

    async def room(self) -> None:
        await asyncio.sleep(2.0)

    def begin(self, subject: str, data: bytes, head: bytes) -> Call:
        self.begun.append(subject)
        return Call("1", subject, asyncio.get_running_loop().create_future())

    def forget(self, call: Call) -> None:
        pass


class OwnPlaces:
    async def own(self, channel: str, place: str) -> None:
        pass


def sender_on(link: FullLink, timeout: float = 1.0) -> Sender:
    return Sender(cast("Link", link), cast("Places", OwnPlaces()), timeout=timeout, max_delay=60.0)


@pytest.mark.parametrize(
    ("data", "meant"),
    [
        (b'{"stream":"S", "seq":1}', None),
        (b'{"stream":"S","seq":7,"duplicate":true}', None),
        (b'{"stream":"S","domain":"d","seq":7}', None),
        (b'{"stream":"S","seq":0,"duplicate":true}', PublishUnknown),
        (b'{"stream":"S","seq":true}', PublishUnknown),
        (b'{"stream":"","seq":1}', PublishUnknown),
        (b'{"seq":1}', PublishUnknown),
        (b'{"ok":true}', PublishUnknown),
        (b'{"error":"no"}', PublishUnknown),
        (b'{"error":{"code":400}}', PublishUnknown),
        (b'{"error"', PublishUnknown),
        (b'["error"]', PublishUnknown),
        (b"+ACK", PublishUnknown),
        (b"\xff", PublishUnknown),
        (b"", PublishUnknown),
        (error(10158, "duplicate message id is in process", 409), PublishUnknown),
        (error(10077, "store is closed"), PublishUnknown),
        (error(10077, "maximum messages exceeded"), Throttled),
        (error(10047, "insufficient storage resources available", 500), Throttled),
        (error(10060, "expected stream does not match", 400), SendError),
    ],
)
async def test_only_the_stream_confirms_and_what_may_be_stored_is_unknown(
    data: bytes, meant: type[SendError] | None
) -> None:
    future: asyncio.Future[Incoming | None] = asyncio.get_running_loop().create_future()
    future.set_result(Incoming("", "", data, {}))
    outcome = sender_on(FullLink())._outcome(Call("1", "s", future))
    assert (outcome and type(outcome)) == meant


async def test_a_bystander_that_answers_confirms_nothing(connect: Connect, channel: str) -> None:
    subject = f"their.{channel}"
    adapter = await connect(native={channel: subject}, send_timeout=0.5)
    await adapter.api.create_stream({"name": channel, "subjects": [subject], "no_ack": True})
    bystander = await connect()

    def hear(message: Incoming) -> None:
        for each in (b"", b"+ACK", b'{"ok":true}'):
            client_of(bystander).put(b"PUB %b %d\r\n%b\r\n" % (message.reply.encode(), len(each), each))

    await bystander.link.listen(subject, hear)
    await bystander.link.call("$JS.API.INFO", timeout=5)  # it listens by now
    outcomes = await adapter.send(Address(channel), [Message(body=b"1"), Message(body=b"2")])
    assert [type(each) for each in outcomes] == [PublishUnknown, PublishUnknown]
    assert [type(each) for each in await adapter.send(Address(channel), [Message(body=b"3")])] == [
        PublishUnknown
    ]


async def test_a_bystander_that_is_quicker_than_the_stream_does_not_end_the_wait_for_it(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    await until_sent(adapter, channel, "1")
    call = adapter.link.begin(f"{channel}.p0", b"2", NO_HEADERS)
    for each in (b"", b"+ACK", b'{"ok":true}'):
        adapter.link._answered(Incoming(f"{adapter.link._inbox}.{call.number}", "", each, {}))
    async with asyncio.timeout(PATIENCE):
        answer = await call.future
    assert answer is not None
    assert json.loads(answer.data)["seq"] == 2


def test_what_found_no_room_before_its_time_was_over_is_told_as_not_sent() -> None:
    async def main() -> None:
        link = FullLink()
        to = Address("c", "g", "inlet")
        outcomes = await sender_on(link).send(
            to, [Message(body=b"1"), Message(body=b"2")], [0, 0], must_route=False, most=1000
        )
        assert [type(each) for each in outcomes] == [ConnectionLost, ConnectionLost]
        assert "not sent" in str(outcomes[0])
        assert link.begun == []

    run_virtual(main(), horizon=60)


def test_a_wait_for_room_can_be_cancelled_and_ends_by_itself() -> None:
    async def main() -> None:
        client: Any = BrokerClient()
        client._status = Client.CONNECTED
        client._flush_timeout = 2.0
        client._flush_queue = asyncio.Queue()
        client._flusher_task = asyncio.ensure_future(asyncio.Event().wait())  # blocked in a write
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.room()
        begin = asyncio.get_running_loop().time()
        await client.room()
        assert asyncio.get_running_loop().time() - begin == pytest.approx(2.0)
        client._flusher_task.cancel()

    run_virtual(main(), horizon=60)


async def fill(adapter: NatsAdapter, channel: str) -> list[Call]:
    """Write to a server that does not read until the socket is full, and one more, which is not even begun to be written."""
    calls = [adapter.link.begin(f"{channel}.p0", b"x" * 500_000, NO_HEADERS) for _ in range(60)]
    await until(lambda: not client_of(adapter)._pending)
    assert client_of(adapter)._transport._bare_io_writer.transport.get_write_buffer_size()
    return [*calls, adapter.link.begin(f"{channel}.p0", b"late", NO_HEADERS)]


async def stored(adapter: NatsAdapter, channel: str) -> list[bytes]:
    """Return the beginnings of what a channel has."""
    found: list[bytes] = []
    cursor: str | None = None
    while not found or cursor is not None:
        page, cursor = await adapter.browse(Address(channel), cursor=cursor, limit=100)
        found += [each.message.body[:5] for each in page]
    return found


@pytest.mark.parametrize("tls", [False, True])
async def test_a_server_that_stops_reading_is_left_and_what_was_not_written_is_never_written(
    connect: Connect, channel: str, own_server: StartOwn, certificates: Certificates, tls: bool
) -> None:
    options: dict[str, object] = {"tls_ca": str(certificates.authority)} if tls else {}
    security = certificates.server if tls else None
    server = await asyncio.to_thread(own_server, "nats", security=security)
    adapter = await connect(server.url, ping_interval=0.5, send_timeout=60.0, **options)
    await until_sent(adapter, channel, "first")
    server.freeze()
    try:
        calls = await fill(adapter, channel)
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([each.future for each in calls])
        assert not adapter.link.up
    finally:
        server.thaw()
    await until_sent(adapter, channel, "after")
    found = await stored(adapter, channel)
    assert b"late" not in found
    assert found[-1] == b"after"


async def test_closing_on_a_server_that_does_not_read_leaves_nothing_to_be_written_later(
    connect: Connect, channel: str, own_server: StartOwn
) -> None:
    server = await asyncio.to_thread(own_server, "nats")
    adapter = await connect(server.url)
    await until_sent(adapter, channel, "first")
    transport = client_of(adapter)._transport._io_writer.transport
    server.freeze()
    try:
        await fill(adapter, channel)
        await adapter.close()
        assert not transport.get_write_buffer_size()
    finally:
        server.thaw()
    other = await connect(server.url)
    await until_sent(other, channel, "after")
    assert b"late" not in await stored(other, channel)
