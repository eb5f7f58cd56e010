"""What goes wrong is said in our words, in time, and without a secret."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest

from brokerkit.adapters.sqs import SqsAdapter, intake
from brokerkit.adapters.sqs.calls import Answer, Arguments, CallFailed
from brokerkit.adapters.sqs.failure import lost, send_error, settle_error, short
from brokerkit.errors import (
    Closed,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    PublishUnknown,
    SendError,
    Stale,
    Throttled,
    TooLarge,
    Unauthorised,
    Unavailable,
)
from brokerkit.message import Address, Message
from brokerkit.testing.conformance.member import bodies
from tests.adapters.sqs.conftest import Connect, member
from tests.adapters.sqs.test_batches import Go, Install
from tests.servers import Certificates


@asynccontextmanager
async def answering(answer: bytes, context: ssl.SSLContext | None = None) -> AsyncGenerator[int]:
    """Run a server that says one thing to everybody."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # who trusts nobody here hangs up
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


def http(status: str, body: bytes) -> bytes:
    """Return an answer."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body


async def test_nobody_there_is_connection_lost() -> None:
    with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1"):
        await SqsAdapter("sqs://127.0.0.1:1").connect()


async def test_wrong_credentials_are_unauthorised_and_show_in_no_text() -> None:
    body = b'{"__type":"com.amazon.coral.service#InvalidClientTokenId","message":"not valid"}'
    async with answering(http("403 Forbidden", body)) as port:
        with pytest.raises(Unauthorised, match="InvalidClientTokenId") as error:
            await SqsAdapter(f"sqs://KEYID:hush-hush@127.0.0.1:{port}").connect()
    assert "hush" not in str(error.value)
    assert "hush" not in repr(error.value.__cause__)


async def test_who_may_not_list_may_still_read() -> None:
    body = b'{"__type":"AccessDeniedException","message":"no sqs:ListQueues"}'
    async with answering(http("403 Forbidden", body)) as port:
        adapter = SqsAdapter(f"sqs://127.0.0.1:{port}")
        await adapter.connect()
        await adapter.close()


async def test_without_credentials_it_is_unauthorised(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(Unauthorised, match="no AWS credentials"):
        await SqsAdapter("sqs://eu-west-1").connect()
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(ConfigurationError, match="missing"):
        await SqsAdapter("sqs://eu-west-1").connect()


async def test_a_certificate_of_a_stranger_is_refused_and_named(certificates: Certificates) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server.certificate, certificates.server.key)
    async with answering(http("200 OK", b"{}"), context) as port:
        for options in ("", f"&tls_ca={certificates.stranger}"):
            with pytest.raises(ConfigurationError, match=r"certificate.*tls_ca"):
                await SqsAdapter(f"sqs://a:b@127.0.0.1:{port}?tls=on{options}").connect()
        for options in (f"tls_ca={certificates.authority}", "tls_verify=off"):
            adapter = SqsAdapter(f"sqs://a:b@127.0.0.1:{port}?tls=on&{options}")
            await adapter.connect()
            await adapter.close()


async def test_the_frequent_calls_verify_the_certificate_too(certificates: Certificates) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server.certificate, certificates.server.key)
    async with answering(http("200 OK", b"{}"), context) as port:
        adapter = SqsAdapter(f"sqs://a:b@127.0.0.1:{port}?tls=on&tls_verify=off")
        await adapter.connect()
        assert adapter._session is not None
        good, bad = adapter._transport, SqsAdapter(f"sqs://a:b@127.0.0.1:{port}?tls=on")
        assert good is not None
        await good.call("ReceiveMessage", {}, timeout=5)
        await adapter.close()
        adapter = SqsAdapter(f"sqs://a:b@127.0.0.1:{port}?tls=on&tls_verify=off")
        await adapter.connect()
        session = adapter._session
        assert session is not None
        session._options = bad._options
        bad._build(session)
        assert bad._transport is not None
        with pytest.raises(CallFailed, match="certificate"):
            await bad._transport.call("ReceiveMessage", {}, timeout=5)
        await bad._transport.close()
        await adapter.close()


async def test_a_place_of_an_unknown_group_is_not_found(connect: Connect, channel: str) -> None:
    adapter = await connect()
    for place in ("inlet", "dead"):
        (outcome,) = await adapter.send(Address(channel, "g", place), [Message(body=b"1")])
        assert isinstance(outcome, NotFound)


async def test_a_queue_that_is_deleted_ends_the_subscription_and_is_made_again_by_the_next(
    connect: Connect, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_PATIENCE", 1.0)
    adapter = await connect()
    consumer = await member(adapter, channel)
    assert adapter._desk is not None
    queue = await adapter._desk.queues.get(f"{channel}--g")
    waiting = asyncio.create_task(consumer.receive())
    await asyncio.sleep(0.1)
    await adapter._desk.queues.call("DeleteQueue", {"QueueUrl": queue.url})
    with pytest.raises(ConnectionLost):
        await waiting
    await consumer.close()
    again = await member(adapter, channel)
    assert list(await adapter.send(Address(channel), [Message(body=b"1")])) == [None]
    assert bodies(await again.take(1, ack=True)) == ["1"]


async def test_a_lost_answer_to_a_send_is_unknown(connect: Connect, channel: str, meddle: Install) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)

    async def between(name: str, arguments: Arguments, go: Go) -> Answer:
        answer = await go(arguments)
        if name == "SendMessageBatch":
            message = "the answer was lost"
            raise CallFailed(message, code="unreachable", sent=True)
        return answer

    meddle(between)
    (outcome,) = await adapter.send(Address(channel), [Message(body=b"1")])
    assert isinstance(outcome, PublishUnknown)
    assert bodies(await consumer.take(1, ack=True)) == ["1"]


async def test_polls_that_fail_for_a_while_are_tried_again_in_silence(
    connect: Connect, channel: str, meddle: Install
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)
    failures = 4

    async def between(name: str, arguments: Arguments, go: Go) -> Answer:
        nonlocal failures
        if name == "ReceiveMessage" and failures:
            failures -= 1
            message = "a test"
            raise CallFailed(message, code="ServiceUnavailable", status=503, sent=True)
        return await go(arguments)

    meddle(between)
    await adapter.send(Address(channel), [Message(body=b"1")])
    assert bodies(await consumer.take(1, ack=True)) == ["1"]
    assert failures == 0


async def test_a_poll_that_is_not_allowed_ends_the_receive(
    connect: Connect, channel: str, meddle: Install
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)

    async def between(name: str, arguments: Arguments, go: Go) -> Answer:
        if name == "ReceiveMessage":
            message = "no sqs:ReceiveMessage"
            raise CallFailed(message, code="AccessDenied", status=403)
        return await go(arguments)

    meddle(between)
    with pytest.raises(Unauthorised):
        await consumer.receive()


async def test_a_closed_adapter_says_so(connect: Connect, channel: str) -> None:
    adapter = await connect()
    await adapter.close()
    (outcome,) = await adapter.send(Address(channel), [Message(body=b"1")])
    assert isinstance(outcome, Closed)
    with pytest.raises(Closed):
        await adapter.connect()
    with pytest.raises(Closed):
        await adapter.measure(Address(channel, "g", "inlet"))


@pytest.mark.parametrize(
    ("code", "status", "sent", "error"),
    [
        ("AccessDenied", 403, False, Unauthorised),
        ("ExpiredToken", 403, False, Unauthorised),
        ("QueueDoesNotExist", 400, False, NotFound),
        ("RequestThrottled", 403, False, Throttled),
        ("OverLimit", 403, False, Throttled),
        ("BatchRequestTooLong", 400, False, TooLarge),
        ("ServiceUnavailable", 503, True, PublishUnknown),
        ("timeout", 0, True, PublishUnknown),
        ("unreachable", 0, False, ConnectionLost),
        ("certificate", 0, False, ConnectionLost),
        ("InvalidParameterValue", 400, False, SendError),
    ],
)
def test_a_send_s_failure_has_a_class(code: str, status: int, sent: bool, error: type) -> None:
    assert type(send_error(CallFailed("x", code=code, status=status, sent=sent), "queue q")) is error


@pytest.mark.parametrize(
    ("code", "fault", "error"),
    [
        ("ReceiptHandleIsInvalid", True, Stale),
        ("AWS.SimpleQueueService.MessageNotInflight", True, Stale),
        ("InternalError", False, Unavailable),
        ("RequestThrottled", True, Unavailable),
        ("AccessDenied", True, Unavailable),
    ],
)
def test_a_settlement_s_failure_has_a_class(code: str, fault: bool, error: type) -> None:
    assert type(settle_error({"Code": code, "SenderFault": fault}, "queue q")) is error


def test_a_call_that_changes_nothing_is_lost_or_refused() -> None:
    assert type(lost(CallFailed("x", code="timeout", sent=True), "q")) is ConnectionLost
    assert type(lost(CallFailed("x", code="certificate"), "q")) is ConfigurationError
    assert type(lost(CallFailed("x", code="InvalidAddress", status=400), "q")) is ConfigurationError


def test_codes_are_the_same_in_every_version_of_the_protocol() -> None:
    for code in (
        "QueueDoesNotExist",
        "AWS.SimpleQueueService.QueueDoesNotExist",
        "com.amazonaws.sqs#QueueDoesNotExist",
    ):
        assert short(code) == "QueueDoesNotExist"
