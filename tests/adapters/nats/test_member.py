"""What a member does with what arrives at an awkward moment."""

import asyncio
from typing import cast

import pytest

from brokerkit.adapters.nats.competing import CompetingSubscription
from brokerkit.adapters.nats.held import Held
from brokerkit.adapters.nats.link import Incoming
from brokerkit.errors import Stale
from brokerkit.message import Address
from brokerkit.settlement import ACK, Retry
from tests.adapters.nats.conftest import Connect
from tests.adapters.nats.members import bodies, inlet, join, send


def incoming(channel: str, seq: int, stored: int, *, deliveries: int = 1, body: bytes = b"x") -> Incoming:
    reply = f"$JS.ACK.{channel}.g.{deliveries}.{seq}.{seq}.{stored}.0"
    return Incoming(f"{channel}.p0", reply, body, {})


async def test_an_arrival_of_what_is_held_is_the_same_message_only_if_it_was_stored_at_the_same_time(
    connect: Connect, channel: str
) -> None:
    member = await join(await connect(), inlet(channel))
    made = cast("CompetingSubscription", member.subscription)
    source = made.sources[0]
    made.arrived(source, incoming(channel, 7, 1000))
    (old,) = await member.take(1)
    made.arrived(source, incoming(channel, 7, 1000, deliveries=2))
    assert bodies(await member.some(0.1)) == []
    assert member.lost == []
    # the stream was deleted and made again: another message has the number
    made.arrived(source, incoming(channel, 7, 2000, body=b"another"))
    assert bodies(await member.take(1)) == ["another"]
    await asyncio.sleep(0)
    assert member.lost == [old]
    (outcome,) = await made.settle([(old, ACK)])
    assert isinstance(outcome, Stale)


async def test_what_came_while_the_loop_stood_still_is_not_handed_out(connect: Connect, channel: str) -> None:
    member = await join(await connect(lease=3), inlet(channel))
    made = cast("CompetingSubscription", member.subscription)
    made._alive -= 2.0
    made.arrived(made.sources[0], incoming(channel, 7, 1000))
    assert bodies(await member.some(0.1)) == []


async def test_returns_of_this_process_are_known_to_be_polite_over_a_new_subscription(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    await send(adapter, Address(channel), "1")
    for arrival in range(1, 5):
        member = await join(adapter, inlet(channel))
        (delivery,) = await member.take(1)
        assert (delivery.arrivals, delivery.returns, delivery.suspect) == (arrival, arrival - 1, False)
        if arrival % 2:
            assert list(await member.subscription.settle([(delivery, Retry(after=0.05))])) == [None]
        await member.subscription.close()


async def test_what_another_process_returned_is_not_known(connect: Connect, channel: str) -> None:
    await send(await connect(), Address(channel), "1")
    for arrival in (1, 2, 3):
        adapter = await connect()
        member = await join(adapter, inlet(channel))
        (delivery,) = await member.take(1)
        assert (delivery.arrivals, delivery.returns) == (arrival, 0)
        await adapter.close()


async def test_holding_renews_and_says_what_is_no_longer_ours(connect: Connect, channel: str) -> None:
    member = await join(await connect(lease=3), inlet(channel))
    made = cast("CompetingSubscription", member.subscription)
    await send(await connect(), Address(channel), "1", "2", "3")
    one, two, three = await member.take(3)
    await member.ack([two])
    made.held[made.sources[0], three.receipt.seq].until = 0.0  # type: ignore[attr-defined]
    until = one.receipt.until  # type: ignore[attr-defined]
    await asyncio.sleep(0.05)
    outcomes = await made.hold([one, two, three])
    assert [type(outcome) for outcome in outcomes] == [type(None), Stale, Stale]
    assert one.receipt.until >= until  # type: ignore[attr-defined]
    assert member.lost == [three]


async def test_a_settlement_after_the_lease_is_stale_before_anybody_has_looked_at_the_clock(
    connect: Connect, channel: str
) -> None:
    member = await join(await connect(), inlet(channel))
    made = cast("CompetingSubscription", member.subscription)
    await send(await connect(), Address(channel), "1", "2")
    one, two = await member.take(2)
    made._stop_ticking()
    one.receipt.until = 0.0  # type: ignore[attr-defined]
    outcomes = await made.settle([(one, ACK), (two, ACK)])
    assert [type(outcome) for outcome in outcomes] == [Stale, type(None)]
    assert member.lost == [one]


async def test_what_is_back_before_its_return_was_confirmed_is_a_new_delivery(
    connect: Connect, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = await join(await connect(), inlet(channel))
    made = cast("CompetingSubscription", member.subscription)
    await send(await connect(), Address(channel), "1")
    (old,) = await member.take(1)
    source, held = made.sources[0], cast("Held", old.receipt)
    seq, stored = held.identity
    confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def answered_late(*_: object, **__: object) -> None:
        await confirmed

    monkeypatch.setattr(source, "send", answered_late)
    settling = asyncio.create_task(made.settle([(old, Retry())]))
    await asyncio.sleep(0.01)
    made.arrived(source, incoming(channel, seq, stored, deliveries=2))
    (new,) = await member.take(1)
    assert (new is not old, new.arrivals, new.returns) == (True, 2, 1)
    monkeypatch.undo()
    confirmed.set_result(None)
    assert list(await settling) == [None]
    await member.ack([new])
    assert member.lost == []


async def test_what_goes_back_goes_back_in_the_order_of_the_stream(connect: Connect, channel: str) -> None:
    adapter = await connect()
    sent = [str(number) for number in range(30)]
    await send(adapter, Address(channel), *sent)
    member = await join(adapter, inlet(channel))
    await member.take(30)
    await member.subscription.close()
    assert bodies(await (await join(adapter, inlet(channel))).take(30, ack=True)) == sent


async def test_a_member_holds_no_more_than_its_prefetch_when_it_does_not_ask(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    member = await join(adapter, inlet(channel), prefetch=2)
    other = await join(await connect(), inlet(channel))
    await send(adapter, Address(channel), "1", "2")
    held = await member.take(2)
    await send(adapter, Address(channel), *map(str, range(3, 13)))
    assert len(await other.take(10, ack=True)) == 10
    await member.ack(held)
