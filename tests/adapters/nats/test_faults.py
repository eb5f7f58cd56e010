"""What goes wrong between here and the server, by the numbers of the list of faults."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import nats.errors
import pytest

from brokerkit.adapters.nats import link as link_module
from brokerkit.adapters.nats.competing import CompetingSubscription
from brokerkit.adapters.nats.failure import NoAnswer
from brokerkit.adapters.nats.link import Listener
from brokerkit.errors import ConnectionLost, PublishUnknown, SendError, Stale, TooLarge
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Retry
from tests.adapters.nats.conftest import Connect
from tests.adapters.nats.members import PATIENCE, bodies, inlet, join, send
from tests.conftest import StartOwn
from tests.servers import RealServer

ROOT = Path(__file__).parents[3]


def client_of(adapter: Any) -> Any:
    return adapter.link._client


async def until(check: Callable[[], bool]) -> None:
    """Wait for what the client tells by no event."""
    async with asyncio.timeout(PATIENCE):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def left(adapter: Any, channel: str) -> int:
    """Return how many messages the server has that are not settled."""
    info = await adapter.api.consumer(channel, "g")
    return int(info["num_pending"]) + int(info["num_ack_pending"])


async def until_sent(adapter: Any, channel: str, body: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            (outcome,) = await adapter.send(Address(channel), [Message(body=body.encode(), copy_id=body)])
            if outcome is None:
                return
            assert outcome.retryable, outcome
            await asyncio.sleep(0.05)


async def test_f41_a_send_to_a_frozen_server_ends_as_unknown_and_closing_ends(
    connect: Connect, channel: str, own_server: StartOwn
) -> None:
    server = await asyncio.to_thread(own_server, "nats")
    adapter = await connect(server.url, send_timeout=1.0)
    member = await join(adapter, inlet(channel))
    await send(adapter, Address(channel), "held")
    await member.take(1)
    loop = asyncio.get_running_loop()
    server.freeze()
    try:
        begin = loop.time()
        outcomes = await adapter.send(Address(channel), [Message(body=b"1"), Message(body=b"2")])
        assert [type(outcome) for outcome in outcomes] == [PublishUnknown, PublishUnknown]
        assert 0.9 < loop.time() - begin < 2.5
        begin = loop.time()
        await member.subscription.close()
        await adapter.close()
        assert loop.time() - begin < 10
    finally:
        server.thaw()


async def test_f41_a_subscription_on_a_frozen_server_loses_what_it_holds_and_says_so(
    connect: Connect, channel: str, own_server: StartOwn
) -> None:
    server = await asyncio.to_thread(own_server, "nats")
    adapter = await connect(server.url, lease=1.0, ping_interval=0.5)
    member = await join(adapter, inlet(channel))
    await send(adapter, Address(channel), "1")
    held = await member.take(1)
    server.freeze()
    try:
        async with asyncio.timeout(PATIENCE):
            await member.told.wait()
            assert member.lost == held
            (outcome,) = await member.subscription.settle([(held[0], ACK)])
            assert isinstance(outcome, Stale)
            with pytest.raises(ConnectionLost):
                await member.subscription.receive(1)
    finally:
        server.thaw()


async def test_f45_headers_over_the_limit_are_too_large_before_the_wire_and_the_connection_stays(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    await send(adapter, Address(channel), "first")
    before = client_of(adapter).stats["reconnects"]
    limit = adapter.link.max_payload
    fits = Message(body=b"x" * (adapter.capabilities.max_message - 200), headers=(("a", "v" * 100),))
    over = Message(body=b"x" * (limit - 78_000), headers=(("raw", b"\xff" * 60_000),))
    assert over.size <= adapter.capabilities.max_message
    outcomes = await adapter.send(Address(channel), [over, fits])
    assert [type(outcome) for outcome in outcomes] == [TooLarge, type(None)]
    assert "headers included" in str(outcomes[0])
    assert adapter.link.up
    assert client_of(adapter).stats["reconnects"] == before


async def test_f46_a_server_that_is_away_for_more_than_sixty_reconnections_is_found_again(
    connect: Connect, channel: str, own_server: StartOwn, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await asyncio.to_thread(own_server, "nats")
    monkeypatch.setattr(link_module, "_RECONNECT", (0.001, 0.002))
    adapter = await connect(server.url)
    member = await join(adapter, inlet(channel))
    await asyncio.to_thread(server.kill)
    await until(lambda: any(each.reconnects > 65 for each in client_of(adapter).server_pool))
    await asyncio.to_thread(server.start)
    await until_sent(adapter, channel, "after")
    assert bodies(await member.take(1, ack=True)) == ["after"]


async def test_f47_two_thousand_delayed_returns_stop_nothing_that_is_new(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    member = await join(adapter, inlet(channel))
    await send(adapter, Address(channel), *["waits"] * 2000)
    taken = await member.take(2000)
    outcomes = await member.subscription.settle([(each, Retry(after=60)) for each in taken])
    assert not any(outcomes)
    for number in range(5):
        await send(adapter, Address(channel), *[f"{number}-{each}" for each in range(100)])
        assert len(await member.take(100, ack=True)) == 100


async def test_f48_receive_cancelled_two_hundred_times_in_the_middle_of_a_stream_loses_nothing(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    member = await join(adapter, inlet(channel))
    sending = asyncio.create_task(send(adapter, Address(channel), *[str(number) for number in range(2000)]))
    taken: list[str] = []
    cancelled = 0
    loop = asyncio.get_running_loop()
    begin = loop.time()
    while len(taken) < 2000:
        receiving = asyncio.create_task(member.subscription.receive(7))
        if cancelled < 200:
            for _ in range(cancelled % 4):
                await asyncio.sleep(0)
            receiving.cancel()
            cancelled += 1
        await asyncio.wait([receiving], timeout=PATIENCE)
        if not receiving.cancelled():
            batch = receiving.result()
            assert {each.arrivals for each in batch} == {1}
            taken += bodies(batch)
            await member.ack(batch)
    await sending
    assert sorted(taken, key=int) == [str(number) for number in range(2000)]
    assert loop.time() - begin < adapter.options.lease / 2


async def test_f52_two_delayed_copies_at_one_inlet_are_both_delivered_and_none_is_early(
    connect: Connect, channel: str
) -> None:
    # The server's schedules, of which a second one on a subject replaces the first, are not used.
    adapter = await connect()
    member = await join(adapter, inlet(channel))
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for name in ("one", "two"):
        await send(adapter, inlet(channel), name, after=0.7)
    taken = await member.take(2, ack=True)
    assert loop.time() - begin >= 0.699
    assert sorted(bodies(taken)) == ["one", "two"]
    assert all(each.returns == (each.arrivals or 0) - 1 for each in taken)


async def test_a_client_that_gives_up_after_an_error_of_the_server_is_replaced(
    connect: Connect, channel: str, nats_server: RealServer
) -> None:
    adapter = await connect()
    member = await join(adapter, inlet(channel))
    await send(adapter, Address(channel), "before")
    first = client_of(adapter)
    first._transport.write(b"NONSENSE\r\n")
    await until(lambda: client_of(adapter) is not first and adapter.link.up)
    assert first.is_closed
    await until_sent(adapter, channel, "after")
    assert sorted(bodies(await member.take(2, ack=True))) == ["after", "before"]


@pytest.mark.parametrize("closes", [False, True])
async def test_a_replacement_that_cannot_listen_to_everything_is_let_go(
    connect: Connect, channel: str, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    adapter = await connect()
    member = await join(adapter, inlet(channel))
    await send(adapter, Address(channel), "before")
    first = client_of(adapter)
    attach = adapter.link._attach
    used: list[Any] = []

    async def fails_at_the_second(listener: Listener) -> None:
        used.append(client_of(adapter))
        if len(used) == 2:
            if closes:
                await used[-1].close()
            text = "maximum subscriptions exceeded"
            raise nats.errors.Error(text)
        await attach(listener)

    monkeypatch.setattr(adapter.link, "_attach", fails_at_the_second)
    first._transport.write(b"NONSENSE\r\n")
    await until(lambda: len(used) > 2 and adapter.link.up and not adapter.link._tasks)
    await until_sent(adapter, channel, "after")
    assert sorted(bodies(await member.take(2, ack=True))) == ["after", "before"]
    assert {client for client in used if not client.is_closed} == {client_of(adapter)}
    assert len(set(used)) == 2


async def test_sends_that_were_on_their_way_when_the_server_died_are_unknown_at_once(
    connect: Connect, channel: str, own_server: StartOwn
) -> None:
    server = await asyncio.to_thread(own_server, "nats")
    adapter = await connect(server.url, send_timeout=15.0)
    await send(adapter, Address(channel), "first")
    server.freeze()
    sending = asyncio.create_task(adapter.send(Address(channel), [Message(body=b"1", copy_id="1")]))
    await until(lambda: bool(adapter.link._calls) and not client_of(adapter).pending_data_size)
    begin = asyncio.get_running_loop().time()
    await asyncio.to_thread(server.kill)
    (outcome,) = await sending
    assert isinstance(outcome, PublishUnknown)
    assert asyncio.get_running_loop().time() - begin < 5
    (refused,) = await adapter.send(Address(channel), [Message(body=b"2")])
    assert isinstance(refused, ConnectionLost)
    with pytest.raises(
        NoAnswer
    ):  # and nothing is kept in the client, to be sent when nobody expects it any more
        await adapter.link.publish(f"{channel}.p0", b"late")
    await asyncio.to_thread(server.start)
    await until_sent(adapter, channel, "1")
    member = await join(adapter, inlet(channel))
    assert bodies(await member.take(2, ack=True)) == ["first", "1"]
    assert await left(adapter, channel) == 0


async def test_what_was_confirmed_and_what_was_held_survives_a_kill_of_the_server(
    connect: Connect, channel: str, own_server: StartOwn
) -> None:
    server = await asyncio.to_thread(own_server, "nats")
    adapter = await connect(server.url, lease=5)
    member = await join(adapter, inlet(channel))
    await send(adapter, Address(channel), *map(str, range(20)))
    held = await member.take(20)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    await until(lambda: adapter.link.up)
    open_ones = held
    while open_ones:  # as the settler does: until it is accepted, or somebody else's
        outcomes = await member.subscription.settle([(each, ACK) for each in open_ones])
        pairs = zip(open_ones, outcomes, strict=True)
        open_ones = [each for each, outcome in pairs if outcome is not None and outcome.retryable]
    again = await member.take(len(member.lost), ack=True)
    assert sorted(bodies(again)) == sorted(bodies(member.lost))
    assert await left(adapter, channel) == 0


async def test_an_inbox_that_the_server_has_lost_in_silence_is_noticed_and_made_anew(
    connect: Connect, channel: str
) -> None:
    adapter = await connect(lease=3)
    member = await join(adapter, inlet(channel))
    waiting = asyncio.create_task(member.take(1, ack=True))
    sources = cast("CompetingSubscription", member.subscription).sources
    await until(lambda: all(source.credit for source in sources))
    for source in sources:
        assert source._listener is not None
        await client_of(adapter)._send_unsubscribe(source._listener.native._id)
    await adapter.link.call("$JS.API.INFO", timeout=5)
    await send(adapter, Address(channel), "1")
    (delivery,) = await waiting
    assert bodies([delivery]) == ["1"]


SENDER = """
import asyncio, sys
from brokerkit.adapters.nats import NatsAdapter
from brokerkit.message import Address, Message

async def main(url, channel):
    adapter = NatsAdapter(url)
    await adapter.connect()
    assert not any(await adapter.send(Address(channel), [Message(body=b"%d" % n) for n in range(50)]))
    await adapter.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_closing_gives_back_what_is_still_on_its_way_and_nothing_waits_for_a_lease(
    connect: Connect, channel: str, nats_server: RealServer
) -> None:
    adapter = await connect()
    member = await join(adapter, inlet(channel))
    receiving = asyncio.create_task(member.subscription.receive(100))
    sources = cast("CompetingSubscription", member.subscription).sources
    await until(lambda: all(source.credit == 100 for source in sources))
    receiving.cancel()
    # this loop stands still meanwhile, so what the server sends lies in the socket when it closes
    subprocess.run([sys.executable, "-c", SENDER, nats_server.url, channel], check=True, cwd=ROOT)  # noqa: ASYNC221
    await member.subscription.close()
    taken = await (await join(adapter, inlet(channel))).take(50, ack=True)  # within less than the lease
    assert sorted(bodies(taken), key=int) == [str(number) for number in range(50)]
    assert {each.arrivals for each in taken} == {2}


async def test_a_deleted_consumer_is_a_lost_connection_and_subscribing_again_makes_it_anew(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    member = await join(adapter, inlet(channel))
    waiting = asyncio.create_task(member.subscription.receive(1))
    sources = cast("CompetingSubscription", member.subscription).sources
    await until(lambda: all(source.credit for source in sources))
    await adapter.api.ask(f"CONSUMER.DELETE.{channel}.g")
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ConnectionLost, match="Deleted"):
            await waiting
    await member.subscription.close()
    again = await join(adapter, inlet(channel))
    await send(adapter, Address(channel), "1")
    assert bodies(await again.take(1, ack=True)) == ["1"]


async def test_a_stream_that_was_deleted_is_made_again_by_the_next_send(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    await send(adapter, Address(channel), "1")
    await adapter.api.ask(f"STREAM.DELETE.{channel}")
    await send(adapter, Address(channel), "2")
    outcomes: list[SendError | None] = list(await adapter.send(Address(channel), [Message(body=b"3")]))
    assert outcomes == [None]
