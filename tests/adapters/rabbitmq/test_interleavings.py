"""What happens between two turns of the loop: leaving, losing and settling while something else is on its way."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

import brokerkit.adapters.rabbitmq.subscription as module
from brokerkit.adapters.rabbitmq.channel import Channel
from brokerkit.adapters.rabbitmq.presence import Presence
from brokerkit.adapters.rabbitmq.tallies import Tallies
from brokerkit.errors import ConnectionLost, Stale
from brokerkit.settlement import ACK
from tests.adapters.rabbitmq.stubs import (
    AT,
    StubChannel,
    StubClient,
    StubLink,
    StubPulse,
    message,
    subscription,
    turns,
    waiting_copy,
)


async def opened(
    client: StubClient, queues: list[str], pulse: StubPulse | None = None, **options: Any
) -> Any:
    made, lost = subscription(client, **options)
    stub: Any = client
    beat: Any = pulse or StubPulse()
    await made.open(stub, beat, queues)
    return made, lost


async def test_a_connection_that_has_died_unannounced_leaves_the_others_their_turns() -> None:
    client, pulse = StubClient(), StubPulse()
    member, lost = await opened(client, ["q"], pulse)
    client.channels[0].arrive(message(1))
    (held,) = await member.receive(1)
    client.channels[0].arrive(message(2))
    client.alive = False  # and nobody has been told yet
    pulse.doubtful, pulse.answer = True, False
    reading = asyncio.create_task(member.receive(1))
    await turns()
    assert not reading.done()
    client.lost.set_result(None)
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(reading, 5)
    assert lost == [held]


async def test_a_partition_that_has_ended_is_reported_although_the_others_have_work() -> None:
    client = StubClient()
    member, _ = await opened(client, ["p0", "p1"])
    for tag in range(1, 5):
        client.channels[0].arrive(message(tag))
    client.channels[1].cancel()
    with pytest.raises(ConnectionLost, match="p1"):
        await member.receive(1)


async def test_a_partition_that_is_being_consumed_anew_when_its_member_leaves_has_no_consumer_left() -> None:
    client = StubClient()
    member, _ = await opened(client, ["p0", "p1"])
    slow = client.channels[1]
    slow.close_gate.clear()
    client.gate.clear()
    member._start(member._requeue(member._sources[0]))
    await turns()
    leaving = asyncio.create_task(member.close())
    await turns()
    client.gate.set()
    await turns()
    assert "consume p0" in client.channels[2].log
    slow.close_gate.set()
    await asyncio.wait_for(leaving, 5)
    assert [channel.alive for channel in client.channels] == [False, False, False]


async def test_a_partition_whose_consuming_is_cut_off_has_no_consumer_left() -> None:
    client = StubClient(lambda channel: channel.open_gate.clear())
    member, _ = subscription(client)
    stub: Any = client
    pulse: Any = StubPulse()
    opening = asyncio.create_task(member.open(stub, pulse, ["q"]))
    await turns()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert [channel.alive for channel in client.channels] == [False]


class StubForwarder:
    """A copy is confirmed when the test says so."""

    def __init__(self) -> None:
        self.confirmed = asyncio.Event()
        self.begun = asyncio.Event()
        self.wanted: list[bool] = []

    async def forward(self, *_: object, until: Any) -> bool:
        self.begun.set()
        await self.confirmed.wait()
        self.wanted.append(not until())
        return True


async def test_a_copy_that_is_on_its_way_to_its_rung_is_acked_before_the_channel_is_closed() -> None:
    client, forwarder = StubClient(), StubForwarder()
    member, _ = await opened(client, ["q"], forwarder=forwarder)
    (channel,) = client.channels
    channel.arrive(waiting_copy(1))
    await forwarder.begun.wait()
    leaving = asyncio.create_task(member.close())
    await turns()
    forwarder.confirmed.set()
    await asyncio.wait_for(leaving, 5)
    assert channel.log == ["consume q", "ack [1]", "close"]
    assert forwarder.wanted == [False]  # none that has not begun is begun any more


async def test_a_copy_that_is_confirmed_too_late_is_not_acked_behind_the_close_of_its_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_FORWARDS", 0.0)
    client, forwarder = StubClient(), StubForwarder()
    member, _ = await opened(client, ["q"], forwarder=forwarder)
    (channel,) = client.channels
    channel.close_gate.clear()
    channel.arrive(waiting_copy(1))
    await forwarder.begun.wait()
    leaving = asyncio.create_task(member.close())
    await turns()
    forwarder.confirmed.set()
    await turns()
    channel.close_gate.set()
    await asyncio.wait_for(leaving, 5)
    assert channel.log == ["consume q", "close"]


async def test_nothing_is_acked_on_a_connection_that_gives_no_sign_of_life() -> None:
    client, pulse = StubClient(), StubPulse()
    member, _ = await opened(client, ["q"], pulse)
    client.channels[0].arrive(message(1))
    held = await member.receive(1)
    pulse.doubtful, pulse.answer = True, False
    outcomes = await member.settle([(each, ACK) for each in held])
    assert [type(outcome) for outcome in outcomes] == [Stale]
    assert client.channels[0].log == ["consume q"]


async def test_an_ack_is_not_written_for_a_channel_that_the_broker_has_closed_or_given_away() -> None:
    """The client takes the number out at once, and says some turns later that the channel is closed."""
    written: list[bytes] = []
    writer = SimpleNamespace(write=written.append, is_closing=lambda: False)
    raw: Any = SimpleNamespace(number=3, closing=asyncio.get_running_loop().create_future(), is_closed=False)
    raw.connection = SimpleNamespace(channels={3: raw})
    transport: Any = SimpleNamespace(writer=writer)
    channel = Channel(raw, transport)
    assert channel.ack([(1, False)])
    raw.connection.channels[3] = object()
    assert not channel.ack([(2, False)])
    del raw.connection.channels[3]
    assert not channel.ack([(3, False)])
    assert len(written) == 1
    raw.closing.cancel()


async def test_a_message_whose_headers_cannot_be_read_is_handed_out_without_them_and_can_be_acked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = StubClient()
    member, _ = await opened(client, ["q"])

    def unreadable(headers: object) -> int:
        if headers is not None:
            raise RecursionError
        return 0

    monkeypatch.setattr(module, "read_wait", unreadable)
    client.channels[0].arrive(message(1, exchange="c--g--return", key="in", **{"bk-wait": "x", "b": "2"}))
    (delivery,) = await asyncio.wait_for(member.receive(1), 5)
    assert (delivery.message.body, delivery.message.headers) == (b"1", ())
    assert list(await member.settle([(delivery, ACK)])) == [None]
    assert client.channels[0].log == ["consume q", "ack [1]"]


async def test_signs_of_life_that_could_not_be_opened_leave_no_channel_behind() -> None:
    def refuse(channel: StubChannel) -> None:
        channel.refuses = True

    client = StubClient(refuse)
    link: Any = StubLink(client)
    presence = Presence("members", 2.0, lambda: None, link)
    with pytest.raises(ConnectionLost):
        await presence.open()
    await presence.close()
    assert [channel.alive for channel in client.channels] == [False]


async def test_counts_leave_no_channel_behind_when_one_fails_or_the_member_leaves() -> None:
    client = StubClient()
    link: Any = StubLink(client)
    tallies = Tallies(AT, link)
    assert list(await tallies.tally([("a", -1)])) == [0]
    client.channels[0].refuses = True
    (failed,) = await tallies.tally([("a", 1)])
    assert not isinstance(failed, int)
    assert not client.channels[0].alive
    assert list(await tallies.tally([("a", -1)])) == [0]
    await tallies.close()
    assert [channel.alive for channel in client.channels] == [False, False]


async def test_a_member_that_has_lost_the_connection_of_its_signs_listens_anew() -> None:
    client = StubClient()
    link: Any = StubLink(client)
    presence = Presence("members", 0.01, lambda: None, link)
    await presence.open()
    client.channels[0].closed.set_result(None)
    async with asyncio.timeout(5):
        while not any("hello" in line for channel in client.channels[1:] for line in channel.log):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await presence.close()
    assert [channel.alive for channel in client.channels] == [False, False]
