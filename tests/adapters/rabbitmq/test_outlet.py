"""Publishing: one honest outcome for each message, whatever happens to the connection meanwhile."""

import asyncio
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import aiormq.exceptions as amqp
import pytest
from pamqp import commands

from brokerkit.adapters.rabbitmq.outlet import Outlet
from brokerkit.adapters.rabbitmq.parcels import Parcel
from brokerkit.adapters.rabbitmq.publisher import Publisher
from brokerkit.errors import (
    BadHeader,
    PublishUnknown,
    SendError,
    Throttled,
    TooLarge,
    Unauthorised,
    Unroutable,
)
from brokerkit.message import Address, Message
from tests.adapters.rabbitmq.broker import Adapters, fresh, inlet, join, sure, texts
from tests.adapters.rabbitmq.stubs import StubClient, StubLink, turns

ACKED = commands.Basic.Ack(1)


class Wire:
    """A publishing channel: what was written, and who waits for the broker's word."""

    number = 1
    largest = 4096

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: BaseException | None = None
        self.slots: list[Any] = []
        self.names: dict[str, Any] = {}
        self.writes: list[bytes] = []
        self.open = True

    @property
    def alive(self) -> bool:
        return not self.closed.done()

    def expect(self, slot: Any, name: str | None) -> Callable[[], None] | None:
        self.slots.append(slot)
        if name is None:
            return None
        self.names[name] = slot
        return lambda: self.names.pop(name, None)

    def write(self, frames: bytes) -> bool:
        if self.open:
            self.writes.append(frames)
        return self.open


class Broker(StubClient):
    """One connection with one publishing channel."""

    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire()
        self.blocked = False

    @property
    def ready(self) -> bool:
        return not self.blocked

    async def unblocked(self, _: float) -> bool:
        return not self.blocked

    async def channel(self, **_: Any) -> Any:
        return self.wire

    def fail(self, error: BaseException | None) -> None:
        if not self.lost.done():
            self.error = error
            self.alive = False
            self.lost.set_result(None)

    def abort(self) -> None:
        self.fail(None)


def parcels(count: int, *, mandatory: bool = False, size: int = 1) -> list[Parcel]:
    return [Parcel("e", "k", b"x" * size, None, {}, mandatory) for _ in range(count)]


def outlet_of(broker: Broker) -> Outlet:
    client: Any = broker
    wire: Any = broker.wire
    return Outlet(client, wire)


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def kinds(outcomes: Any) -> Counter[str]:
    return Counter(type(outcome).__name__ for outcome in outcomes)


async def test_what_is_given_in_one_turn_leaves_in_one_write_and_each_gets_its_own_outcome() -> None:
    broker = Broker()
    outlet = outlet_of(broker)
    sends = [asyncio.create_task(outlet.publish(parcels(2), soon())) for _ in range(3)]
    await turns()
    assert len(broker.wire.writes) == 1
    assert len(broker.wire.slots) == 6
    for slot in broker.wire.slots[:5]:
        slot.set_result(ACKED)
    broker.wire.slots[5].set_exception(amqp.DeliveryError(None, commands.Basic.Nack()))
    results = await asyncio.gather(*sends)
    assert [kinds(each) for each in results] == [
        {"NoneType": 2},
        {"NoneType": 2},
        {"NoneType": 1, "Throttled": 1},
    ]


async def test_what_comes_back_has_no_queue_and_its_name_is_forgotten() -> None:
    broker = Broker()
    sending = asyncio.create_task(outlet_of(broker).publish(parcels(2, mandatory=True), soon()))
    await turns()
    assert len(broker.wire.names) == 2
    returned: Any = SimpleNamespace(delivery=commands.Basic.Return(312, "NO_ROUTE", "e", "k"))
    broker.wire.slots[0].set_exception(amqp.PublishError(returned, returned.delivery))
    broker.wire.slots[1].set_result(ACKED)
    assert kinds(await sending) == {"NotFound": 1, "NoneType": 1}
    assert broker.wire.names == {}


async def test_a_lost_connection_makes_what_is_unconfirmed_unknown_and_keeps_what_was_confirmed() -> None:
    broker = Broker()
    sending = asyncio.create_task(outlet_of(broker).publish(parcels(3), soon()))
    await turns()
    broker.wire.slots[1].set_result(ACKED)
    broker.fail(None)
    outcomes = await asyncio.wait_for(sending, 2)
    assert [type(each) for each in outcomes] == [PublishUnknown, type(None), PublishUnknown]
    assert all(slot.done() and slot.cancelled() for slot in broker.wire.slots)  # a late word changes nothing


async def test_a_channel_that_the_broker_closes_for_a_large_message_names_that_one_only() -> None:
    broker = Broker()
    mixed = [*parcels(1), *parcels(1, size=2000), *parcels(1)]
    sending = asyncio.create_task(outlet_of(broker).publish(mixed, soon()))
    await turns()
    broker.wire.error = amqp.ChannelPreconditionFailed(
        "message size 2000 is larger than configured max size 1000"
    )
    broker.wire.closed.set_result(None)
    outcomes = await asyncio.wait_for(sending, 2)
    assert [type(each) for each in outcomes] == [PublishUnknown, TooLarge, PublishUnknown]
    assert broker.lost.done()


async def test_what_was_never_written_is_not_said_to_be_unknown() -> None:
    broker = Broker()
    broker.wire.open = False
    assert kinds(await outlet_of(broker).publish(parcels(3), soon())) == {"ConnectionLost": 3}
    broker = Broker()
    sending = asyncio.create_task(outlet_of(broker).publish(parcels(1), soon()))
    await asyncio.sleep(0)
    assert len(broker.wire.slots) == 1
    broker.fail(None)  # before the end of the turn, at which it would be written
    assert kinds(await sending) == {"ConnectionLost": 1}
    assert broker.wire.writes == []


async def test_a_send_whose_time_is_up_ends_the_connection_and_everybody_s_send_with_it() -> None:
    broker = Broker()
    outlet = outlet_of(broker)
    late = asyncio.create_task(outlet.publish(parcels(1), soon(0.05)))
    other = asyncio.create_task(outlet.publish(parcels(1), soon()))
    assert kinds(await asyncio.wait_for(late, 2)) == {"PublishUnknown": 1}
    assert kinds(await asyncio.wait_for(other, 2)) == {"PublishUnknown": 1}
    assert broker.lost.done()
    assert not outlet.alive


async def test_who_waits_for_room_until_its_time_is_up_has_sent_nothing_and_ends_nothing() -> None:
    broker = Broker()
    outlet = outlet_of(broker)
    full = asyncio.create_task(outlet.publish(parcels(1000), soon()))
    await turns()
    assert kinds(await outlet.publish(parcels(1), soon(0.05))) == {"ConnectionLost": 1}
    assert not broker.lost.done()
    for slot in broker.wire.slots:
        slot.set_result(ACKED)
    assert kinds(await full) == {"NoneType": 1000}


async def test_who_waits_for_room_gets_it_in_turn_and_wakes_when_the_connection_is_lost() -> None:
    broker = Broker()
    outlet = outlet_of(broker)
    big = asyncio.create_task(outlet.publish(parcels(1500), soon()))
    small = [asyncio.create_task(outlet.publish(parcels(1), soon())) for _ in range(1500)]
    await turns()
    assert len(broker.wire.slots) == 1000
    for slot in broker.wire.slots[:10]:
        slot.set_result(ACKED)
    await turns(100)
    assert len(broker.wire.slots) == 1010
    broker.fail(None)
    outcomes = await asyncio.wait_for(big, 2)
    assert [outcome is None for outcome in outcomes[:10]] == [True] * 10
    assert kinds(outcomes)["PublishUnknown"] + kinds(outcomes)["ConnectionLost"] == 1490
    for each in await asyncio.wait_for(asyncio.gather(*small), 2):
        assert isinstance(each[0], SendError)


async def test_a_cancelled_send_leaves_what_is_on_its_way_and_takes_no_room_for_ever() -> None:
    broker = Broker()
    outlet = outlet_of(broker)
    sending = asyncio.create_task(outlet.publish(parcels(1500), soon()))
    await turns()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    for slot in list(broker.wire.slots):
        slot.set_result(ACKED)
    again = asyncio.create_task(outlet.publish(parcels(1000), soon()))
    await turns()
    for slot in broker.wire.slots[1000:]:
        slot.set_result(ACKED)
    assert kinds(await again) == {"NoneType": 1000}


@pytest.mark.parametrize("count", [600, 1200])  # of 1,200 some wait for room
async def test_what_a_cancelled_send_has_left_on_its_way_is_given_up_at_its_deadline(count: int) -> None:
    broker = Broker()
    outlet = outlet_of(broker)
    sending = asyncio.create_task(outlet.publish(parcels(count), soon(0.05)))
    await turns()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert not broker.lost.done()  # it may be confirmed still
    await asyncio.wait_for(broker.lost, 2)
    assert len(broker.wire.slots) == min(count, 1000)
    assert all(slot.done() for slot in broker.wire.slots)
    assert not outlet.alive


async def test_a_cancelled_send_that_is_confirmed_in_time_ends_nothing() -> None:
    broker = Broker()
    sending = asyncio.create_task(outlet_of(broker).publish(parcels(3), soon(0.05)))
    await turns()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    for slot in broker.wire.slots:
        slot.set_result(ACKED)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(broker.lost), 0.2)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("write access to exchange 'no' in vhost '/'", [PublishUnknown, Unauthorised, Unauthorised]),
        (
            "write access to topic 'k' in exchange 'no' in vhost '/'",
            [PublishUnknown, Unauthorised, PublishUnknown],
        ),
        ("access to exchange 'another' in vhost '/'", [PublishUnknown, PublishUnknown, PublishUnknown]),
    ],
)
async def test_a_forbidden_publish_is_unauthorised_and_what_was_out_with_it_is_unknown(
    what: str, expected: list[type[SendError]]
) -> None:
    broker = Broker()
    mixed = [
        Parcel(exchange, key, b"", None, {}) for exchange, key in (("yes", "k"), ("no", "k"), ("no", "j"))
    ]
    sending = asyncio.create_task(outlet_of(broker).publish(mixed, soon()))
    await turns()
    broker.wire.error = amqp.ChannelAccessRefused(f"ACCESS_REFUSED - {what} refused for user 'u'")
    broker.wire.closed.set_result(None)
    assert [type(each) for each in await asyncio.wait_for(sending, 2)] == expected


async def test_what_amqp_cannot_carry_harms_only_itself() -> None:
    broker = Broker()
    bad = Parcel("e", "k", b"", None, {"n": object()})
    outlet = outlet_of(broker)
    assert kinds(await outlet.publish([bad] * 1001, soon(1))) == {"BadHeader": 1001}
    wide = Parcel("e", "k", b"", None, {"n": 1e300})
    assert kinds(await outlet.publish([wide] * 1001, soon(1))) == {"BadHeader": 1001}
    long = Parcel("e", "k", b"", None, {"n": "x" * 5000})
    assert kinds(await outlet.publish([long] * 1001, soon(1))) == {"TooLarge": 1001}
    sending = asyncio.create_task(outlet.publish([*parcels(1), bad, *parcels(1)], soon()))
    await turns()
    for slot in broker.wire.slots:
        slot.set_result(ACKED)
    assert [type(each) for each in await sending] == [type(None), BadHeader, type(None)]


def keeps_its_room(_: Outlet, __: object) -> None:
    """Stand in for a client that never ends a publish."""


class Reconnecting(StubLink):
    """A link whose connection is another one after it was lost."""

    def __init__(self) -> None:
        self.brokers = [Broker()]
        super().__init__(self.brokers[0])

    async def client(self) -> Any:
        if not self.brokers[-1].alive:
            self.brokers.append(Broker())
        return self.brokers[-1]


async def test_the_room_that_was_taken_on_a_lost_connection_is_free_on_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link: Any = Reconnecting()
    publisher = Publisher(link)
    full = asyncio.create_task(publisher.publish(parcels(1000), soon()))
    await turns()
    with monkeypatch.context() as patch:
        patch.setattr(Outlet, "settled", keeps_its_room)  # none of them gives its room back
        link.brokers[0].fail(None)
        assert kinds(await asyncio.wait_for(full, 2)) == {"PublishUnknown": 1000}
    again = asyncio.create_task(publisher.publish(parcels(1000), soon()))
    await turns()
    assert len(link.brokers[1].wire.slots) == 1000
    for slot in link.brokers[1].wire.slots:
        slot.set_result(ACKED)
    assert kinds(await again) == {"NoneType": 1000}


async def test_a_blocked_broker_is_throttled_and_nothing_is_written() -> None:
    link: Any = Reconnecting()
    publisher = Publisher(link)
    link.brokers[0].blocked = True
    (outcome,) = await publisher.publish(parcels(1), soon(0.1))
    assert isinstance(outcome, Throttled)
    assert link.brokers[0].wire.slots == []
    link.brokers[0].blocked = False
    sending = asyncio.create_task(publisher.publish(parcels(1), soon()))
    await turns()
    link.brokers[0].blocked = True  # what is out stays out
    link.brokers[0].wire.slots[0].set_result(ACKED)
    assert list(await sending) == [None]
    (outcome,) = await publisher.publish(parcels(1), soon(0.1))
    assert isinstance(outcome, Throttled)


async def test_a_channel_whose_name_begins_like_a_rung_is_unroutable_like_any_other(
    adapters: Adapters,
) -> None:
    adapter = await adapters()
    (outcome,) = await adapter.send(Address(fresh("refunds")), texts(1), must_route=True)
    assert isinstance(outcome, Unroutable)


async def test_returns_among_many_confirms_reach_their_own_message(adapters: Adapters) -> None:
    adapter = await adapters()
    channel, nobody = fresh(), fresh()
    member = await join(adapter, inlet(channel), prefetch=1000)
    await sure(adapter, Address(nobody), texts(1))
    sends = [
        adapter.send(Address(nobody if number % 3 == 0 else channel), texts(1, number), must_route=True)
        for number in range(600)
    ]
    outcomes = [outcome for (outcome,) in await asyncio.gather(*sends)]
    assert [isinstance(outcome, Unroutable) for outcome in outcomes] == [
        number % 3 == 0 for number in range(600)
    ]
    taken = await member.take(400, ack=True)
    assert sorted(int(each.message.body) for each in taken) == [n for n in range(600) if n % 3]


async def test_a_body_of_many_frames_arrives_whole(adapters: Adapters) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    bodies = [bytes([number]) * size for number, size in enumerate((0, 131064, 131065, 400_000))]
    await sure(adapter, Address(channel), [Message(body=body) for body in bodies])
    assert [each.message.body for each in await member.take(4, ack=True)] == bodies
