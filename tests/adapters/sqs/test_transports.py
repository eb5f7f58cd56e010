"""Both transports do the same; credentials, endpoints and clocks are botocore's or put right."""

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
from botocore.credentials import RefreshableCredentials  # type: ignore[import-untyped]
from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from brokerkit.adapters.sqs import SqsAdapter
from brokerkit.adapters.sqs.calls import Answer, CallFailed
from brokerkit.adapters.sqs.http import HttpTransport
from brokerkit.adapters.sqs.session import AwsSession, BotoTransport
from brokerkit.adapters.sqs.signer import Keys
from brokerkit.adapters.sqs.url import read_url
from brokerkit.errors import Stale
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Retry
from brokerkit.testing.conformance.member import bodies
from tests.adapters.sqs.conftest import Connect, member

BOTH = pytest.mark.parametrize("transport", ["aiohttp", "botocore"])


@BOTH
async def test_a_message_goes_its_whole_way(connect: Connect, channel: str, transport: str) -> None:
    adapter = await connect(transport=transport)
    made = HttpTransport if transport == "aiohttp" else BotoTransport
    assert isinstance(adapter._transport, made)
    consumer = await member(adapter, channel)
    sent = [
        Message(body=b"\xff\x00", key=b"k", headers=(("a", b"\xfe"), ("a", "ü"))),
        Message(body="漢字\r\n\t😀".encode(), content_type="text/plain"),
        Message(body=b""),
    ]
    assert list(await adapter.send(Address(channel), sent)) == [None] * 3
    taken = await consumer.take(3)
    assert sorted((each.message for each in taken), key=repr) == sorted(sent, key=repr)
    outcomes = await consumer.subscription.settle(
        [(taken[0], ACK), (taken[1], Retry(after=1.2)), (taken[2], Retry(after=0.1))]
    )
    assert list(outcomes) == [None] * 3
    again = await consumer.take(2)
    assert {each.message.body for each in again} == {each.message.body for each in taken[1:]}
    await consumer.close()
    heir = await member(adapter, channel)
    await heir.take(2, ack=True)
    await heir.nothing(0.5)


@BOTH
async def test_what_is_held_for_longer_than_its_lease_stays_ours_and_delays_are_kept(
    connect: Connect, channel: str, transport: str
) -> None:
    adapter = await connect(transport=transport, lease=2)
    holder, other = await member(adapter, channel), await member(await connect(lease=2), channel)
    await adapter.send(Address(channel), [Message(body=b"1")])
    held = await holder.take(1)
    begin = time.monotonic()
    await adapter.send(Address(channel, "g", "inlet"), [Message(body=b"late")], after=2.5)
    assert bodies(await other.take(1, ack=True)) == ["late"]
    assert time.monotonic() - begin >= 2.5
    await other.nothing(2.5)
    await holder.ack(held)


@BOTH
async def test_order_by_key_and_a_cancelled_receive(connect: Connect, channel: str, transport: str) -> None:
    adapter = await connect(transport=transport, poll=1)
    consumer = await member(adapter, channel, order="key")
    waiting = asyncio.create_task(consumer.subscription.receive(10))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await adapter.send(Address(channel), [Message(body=str(n).encode(), key=b"k") for n in range(30)])
    taken = await consumer.take(30, limit=7, ack=True)
    assert bodies(taken) == [str(n) for n in range(30)]
    assert {each.arrivals for each in taken} == {1}


@BOTH
async def test_a_refusal_has_the_same_word(connect: Connect, channel: str, transport: str) -> None:
    adapter = await connect(transport=transport)
    await member(adapter, channel)
    desk = adapter._desk
    assert desk is not None
    queue = await desk.queues.get(f"{channel}--g")
    entries: list[Mapping[str, Any]] = [{"Id": "0", "ReceiptHandle": "nonsense"}]
    outcomes = await desk.chunk("DeleteMessageBatch", queue, [dict(entries[0])], 5)
    assert [type(outcome) for outcome in outcomes] == [Stale]
    gone = type(queue)("gone", f"{queue.url}-gone", queue.limit, "")
    with pytest.raises(CallFailed) as error:
        await desk.call("ReceiveMessage", gone, {"MaxNumberOfMessages": 1}, 5)
    assert error.value.code in {"QueueDoesNotExist", "NonExistentQueue"}


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("sqs://AKIA:s@eu-west-1", "https://sqs.eu-west-1.amazonaws.com"),
        ("sqs://AKIA:s@cn-north-1", "https://sqs.cn-north-1.amazonaws.com.cn"),
        ("sqs://AKIA:s@us-gov-west-1", "https://sqs.us-gov-west-1.amazonaws.com"),
    ],
)
async def test_endpoints_are_botocore_s(url: str, endpoint: str) -> None:
    session = AwsSession(read_url(url, {}))
    await session.open()
    assert (session.endpoint, session.region) == (endpoint, url.rpartition("@")[2])
    assert session.tls() is not None
    session.close()


async def test_credentials_are_refreshed_in_time_and_the_old_ones_serve_meanwhile() -> None:
    session = AwsSession(read_url("sqs://AKIA:s@eu-west-1", {}))
    await session.open()
    made: list[str] = []

    def fresh() -> dict[str, str]:
        made.append(f"key-{len(made)}")
        life = 600 if len(made) == 1 else 7200  # within the time in which botocore advises to refresh
        ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + life))
        return {"access_key": made[-1], "secret_key": "s", "token": "t", "expiry_time": ends}

    session._fixed = None
    refreshable: Any = RefreshableCredentials
    session._credentials = refreshable.create_from_metadata(fresh(), fresh, "test")
    session._frozen = Keys("key-0", "s", "t")
    first = await session.keys()
    assert first == Keys("key-0", "s", "t")
    refreshing = session._refreshing
    assert refreshing is not None
    assert await session.keys() == first
    assert session._refreshing is refreshing
    await refreshing
    assert await session.keys() == Keys("key-1", "s", "t")
    session.close()


@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "AccessDenied"}}, "AssumeRole"),
        RuntimeError("refreshed credentials are still expired"),
    ],
)
async def test_credentials_that_cannot_be_refreshed_fail_the_call_and_no_more(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = AwsSession(read_url("sqs://AKIA:s@eu-west-1", {}))
    await session.open()

    def refuse() -> None:
        raise error

    monkeypatch.setattr(session, "_fixed", None)
    monkeypatch.setattr(session, "_freeze", refuse)
    with pytest.raises(CallFailed, match="could not be refreshed"):
        await session.keys()
    session.close()


async def test_a_call_waits_for_credentials_no_longer_than_for_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = AwsSession(read_url("sqs://AKIA:s@eu-west-1?send_timeout=0.5", {}))
    await session.open()
    go = threading.Event()
    monkeypatch.setattr(session, "_fixed", None)
    monkeypatch.setattr(session, "_freeze", go.wait)
    with pytest.raises(CallFailed, match="TimeoutError"):
        await session.keys()
    go.set()
    session.close()


async def test_a_clock_that_is_an_hour_off_is_put_right_by_the_service_s(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = await connect()
    transport = adapter._transport
    assert isinstance(transport, HttpTransport)
    monkeypatch.setattr(transport, "_wall", lambda: time.time() - 3600)
    stamps: list[float] = []

    async def post(target: str, body: bytes, timeout: float) -> tuple[dict[str, Any], int, float | None]:
        stamps.append(transport._wall() + transport._skew)
        if abs(stamps[-1] - time.time()) > 300:
            return {"__type": "SignatureDoesNotMatch", "message": "too old"}, 403, time.time()
        return {"Messages": []}, 200, time.time()

    monkeypatch.setattr(transport, "_post", post)
    for _ in range(2):
        answer = await transport.call("ReceiveMessage", {}, timeout=5)
        assert isinstance(answer, Answer)
    assert len(stamps) == 3

    async def wrong(target: str, body: bytes, timeout: float) -> tuple[dict[str, Any], int, float | None]:
        return {"__type": "com.amazon#SignatureDoesNotMatch"}, 403, time.time()

    monkeypatch.setattr(transport, "_post", wrong)
    with pytest.raises(CallFailed, match="SignatureDoesNotMatch"):
        await transport.call("ReceiveMessage", {}, timeout=5)


async def test_an_adapter_that_was_never_connected_closes() -> None:
    await SqsAdapter("sqs://127.0.0.1:1").close()
