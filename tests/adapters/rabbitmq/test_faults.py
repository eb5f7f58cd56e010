"""The faults that a RabbitMQ can have, on a real one; the numbers are those of the project's list of faults."""

import asyncio
import itertools
import random
import time
from collections import Counter

import pytest

from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError, ConnectionLost, NotFound, PublishUnknown, Unroutable
from brokerkit.message import Address, Message
from brokerkit.sandbox import Server
from brokerkit.settlement import ACK, Retry
from tests.adapters.rabbitmq.broker import Adapters, Member, fresh, inlet, join, sure, texts, until_sent
from tests.servers import RealServer

pytestmark = pytest.mark.faults


async def test_f41_a_publish_to_a_frozen_broker_is_unknown_in_time_and_close_ends_in_time(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    control = rabbitmq_server.control
    adapter = await adapters(send_timeout=1.5, heartbeat=10)
    channel = fresh()
    member = await join(adapter, inlet(channel))
    await sure(adapter, Address(channel), texts(3))
    held = await member.take(2)
    control.freeze()
    try:
        begin = time.monotonic()
        outcomes = await adapter.send(Address(channel), texts(20))
        assert [type(outcome) for outcome in outcomes] == [PublishUnknown] * 20
        assert time.monotonic() - begin < 2.5
        outcomes = await adapter.send(Address(channel), texts(2))
        assert [type(outcome) for outcome in outcomes] == [ConnectionLost] * 2
        assert time.monotonic() - begin < 5
        await member.subscription.settle([(held[0], ACK)])
        begin = time.monotonic()
        await member.subscription.close()
        assert time.monotonic() - begin < 5
        begin = time.monotonic()
        await adapter.close()
        assert time.monotonic() - begin < 8
    finally:
        control.thaw()


async def test_f42_no_cancellation_of_the_client_reaches_a_publisher_or_ends_its_task(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    control = rabbitmq_server.control
    adapter = await adapters(send_timeout=30, heartbeat=1)
    channel = fresh()
    await join(adapter, inlet(channel))
    await sure(adapter, Address(channel), texts(1))
    control.freeze()
    try:
        tasks = [asyncio.create_task(adapter.send(Address(channel), texts(1, n))) for n in range(50)]
        done, pending = await asyncio.wait(tasks, timeout=20)
    finally:
        control.thaw()
    assert not pending  # the heartbeat gave the connection up long before the send's own time was over
    assert not any(task.cancelled() for task in done)
    outcomes = [task.result()[0] for task in done]
    assert {type(outcome) for outcome in outcomes} == {PublishUnknown}
    assert await until_sent(adapter, Address(channel), Message(body=b"after")) >= 1


async def test_f43_of_one_event_for_a_good_and_a_missing_place_exactly_the_missing_one_is_reported(
    adapters: Adapters,
) -> None:
    adapter = await adapters()
    good, missing = fresh("good"), fresh("missing")
    member = await join(adapter, inlet(good))
    await sure(adapter, Address(missing), texts(1))  # its exchange exists, no group reads it
    for number in range(20):
        message = Message(body=str(number).encode(), copy_id="the-same-id")
        to_good, to_missing, to_nobody, again = await asyncio.gather(
            adapter.send(Address(good), [message], must_route=True),
            adapter.send(Address(missing), [message] * 3, must_route=True),
            adapter.send(inlet(missing), [message]),
            adapter.send(Address(good), [message] * 3, must_route=True),
        )
        assert (list(to_good), list(again)) == ([None], [None] * 3)
        assert [type(outcome) for outcome in to_missing] == [Unroutable] * 3
        assert [type(outcome) for outcome in to_nobody] == [NotFound]
    assert len(await member.take(80, ack=True)) == 80


async def test_f44_thirty_clean_restarts_with_prefetch_50_drop_nothing(adapters: Adapters) -> None:
    channel = fresh()
    adapter = await adapters()
    await (await join(adapter, inlet(channel))).subscription.close()
    await sure(adapter, Address(channel), texts(50))
    for _ in range(30):
        member = await join(adapter, inlet(channel), prefetch=50)
        await member.take(1)
        await member.subscription.close()
    last = await join(adapter, inlet(channel), prefetch=50)
    taken = await last.take(50, ack=True)
    assert sorted(int(each.message.body) for each in taken) == list(range(50))
    assert max(each.arrivals or 0 for each in taken) >= 20


async def test_f51_a_return_on_a_server_without_delays_of_its_own_is_no_hot_loop(adapters: Adapters) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    await sure(adapter, Address(channel), texts(1))
    begin = time.monotonic()
    for _ in range(4):
        (delivery,) = await member.take(1)
        await member.subscription.settle([(delivery, Retry(after=0.3))])
    await member.take(1, ack=True)
    assert 1.2 <= time.monotonic() - begin < 4


class Field:
    """Publishers and consumers that go on whatever happens, and a ledger of what they saw."""

    def __init__(self, adapters: Adapters, channel: str) -> None:
        self.adapters = adapters
        self.channel = channel
        self.confirmed: set[str] = set()
        self.started: Counter[str] = Counter()
        self.finished: set[str] = set()
        self.early: list[str] = []
        self.due: dict[str, float] = {}
        self.stopping = False
        self.longest = 0.0

    async def publish(self, who: int) -> None:
        adapter = await self.adapters(heartbeat=2, send_timeout=5)
        for number in itertools.count():
            if self.stopping:
                return
            name = f"{who}-{number}"
            begin = time.monotonic()
            await until_sent(adapter, Address(self.channel), Message(body=name.encode()))
            self.confirmed.add(name)
            self.longest = max(self.longest, time.monotonic() - begin)
            await asyncio.sleep(0.002)

    async def consume(self) -> None:
        adapter = await self.adapters(heartbeat=2, send_timeout=5)
        while True:
            try:
                member = await join(adapter, inlet(self.channel), prefetch=50)
                await self._consume(member)
            except BrokerkitError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(random.uniform(0.1, 0.3))

    async def _consume(self, member: Member) -> None:
        try:
            while batch := await member.subscription.receive(20):
                for delivery in batch:
                    self._handle(delivery)
                await asyncio.sleep(0)
                await member.subscription.settle([(each, ACK) for each in batch])
        finally:
            await member.subscription.close()

    def _handle(self, delivery: Delivery) -> None:
        name = delivery.message.body.decode()
        self.started[name] += 1
        self.finished.add(name)
        if time.monotonic() < self.due.get(name, 0.0):
            self.early.append(name)

    async def delay(self, seconds: float, count: int) -> None:
        """Send copies that wait in the ladder."""
        adapter = await self.adapters()
        for number in range(count):
            name = f"delayed-{seconds}-{number}"
            self.due[name] = time.monotonic() + seconds
            await sure(adapter, inlet(self.channel), [Message(body=name.encode())], after=seconds)
            self.confirmed.add(name)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
async def test_f11_nothing_confirmed_is_lost_over_a_restart_of_the_broker(
    adapters: Adapters, rabbitmq_server: RealServer, how: str
) -> None:
    control: Server = rabbitmq_server.control
    field = Field(adapters, fresh())
    await (await join(await adapters(), inlet(field.channel))).subscription.close()
    tasks = [asyncio.create_task(field.publish(who)) for who in range(20)]
    consumers = [asyncio.create_task(field.consume()) for _ in range(2)]
    bulk_of = await adapters(heartbeat=2, send_timeout=30, max_unrouted=1_000_000)
    bulk = [
        asyncio.create_task(bulk_of.send(Address(field.channel + "-bulk"), texts(1000))) for _ in range(10)
    ]
    await field.delay(7.3, 10)
    await field.delay(1.0, 10)
    await asyncio.sleep(1)
    before = len(field.confirmed)
    bulk += [
        asyncio.create_task(bulk_of.send(Address(field.channel + "-bulk"), texts(1000))) for _ in range(20)
    ]
    await asyncio.wait(bulk[10:], timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
    down = time.monotonic()
    await asyncio.to_thread(control.stop if how == "SIGTERM" else control.kill)
    await asyncio.to_thread(control.start)
    up = time.monotonic()
    while len(field.confirmed) < before + 200:
        await asyncio.sleep(0.05)
        assert time.monotonic() - up < 60
        assert not any(task.done() for task in [*tasks, *consumers])
    again = time.monotonic() - up
    outcomes = [outcome for each in await asyncio.wait_for(asyncio.gather(*bulk), 60) for outcome in each]
    assert {type(outcome) for outcome in outcomes} == {type(None), PublishUnknown, ConnectionLost}
    await until_sent(bulk_of, Address(field.channel + "-bulk"), Message(body=b"again"))
    await sure(
        bulk_of, Address(field.channel + "-bulk"), texts(1500)
    )  # no room was left on the lost connection
    field.stopping = True
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    end = time.monotonic() + 60
    while not field.confirmed <= field.finished:
        await asyncio.sleep(0.05)
        assert time.monotonic() < end, f"lost: {sorted(field.confirmed - field.finished)[:10]}"
        assert not any(task.done() for task in consumers)
    for task in consumers:
        task.cancel()
    await asyncio.gather(*consumers, return_exceptions=True)
    twice = sum(count - 1 for count in field.started.values())
    print(
        f"\n{how}: confirmed {len(field.confirmed)}, lost 0, handled twice {twice}, early {len(field.early)}, "
        f"down {up - down:.1f} s, 200 confirmed {again:.1f} s after up, longest publish {field.longest:.1f} s"
    )
    assert field.early == []
    assert field.longest < 60
