"""
brokerkit's lines: a bus, a pydantic model, and four patterns, the same code on every broker.
"""

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Final

from brokerkit import Bus, Delivery, Retry
from brokerkit.adapter import Identifies, Measures
from brokerkit.message import Address
from brokerkit.patterns import bulkhead, dedupe, retry, timeout
from brokerkit.publisher import Outgoing
from tests.bench.windows import in_window
from tests.bench.work import WINDOW, Client, Failed, Meter, Order, Task

__all__ = ["BusClient", "BusManyClient"]

CONCURRENCY: Final = 16
HOUR: Final = 3600.0
_GROUP = "billing"
_BATCH = WINDOW // 2


class BusClient(Client):
    """`bus.publish`, one message a call; one handler in one group."""

    models = True

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._channel = task.place
        self._meter = Meter(1, 1)
        self._parked = 0
        self._bus = self._new_bus()

    def _new_bus(self) -> Bus:
        bus = Bus(self.task.url, name="bench")

        @bus.subscriber(
            self._channel,
            group=_GROUP,
            patterns=[bulkhead("bench", 1000), dedupe(), retry(attempts=5), timeout(10)],
            concurrency=CONCURRENCY,
            prefetch=WINDOW,
        )
        async def charge(order: Order, delivery: Delivery) -> Retry | None:
            if order.note == "later":
                self._parked += 1
                return Retry(HOUR, "in an hour")
            self._meter.add(order.id)
            return None

        return bus

    async def open(self) -> None:
        await self._bus.connect()
        adapter = self._bus.adapter
        if isinstance(adapter, Identifies):
            self.server = adapter.server
        await self._bus.provision(create=True)
        if self.task.waiting:
            await self._park(self.task.waiting - await self._delayed())

    async def publish(self, items: Sequence[Any]) -> None:
        bus, channel = self._bus, self._channel

        async def one(order: Order) -> None:
            await bus.publish(channel, order, key=order.customer)

        await in_window(one, items)

    async def fill(self, items: Sequence[Any]) -> None:
        await self._many(items)

    async def consume(self, meter: Meter) -> None:
        self._meter = meter
        async with self._bus.consuming():
            await meter.wait()
            await self._all_out()
            meter.stop()

    async def _all_out(self) -> None:
        """Wait until the broker has confirmed every settlement."""
        (engine,) = self._bus.engines
        while engine.counts.out:  # noqa: ASYNC110 - the engine tells nobody; an event would need a hook a message
            await asyncio.sleep(0.001)

    async def _park(self, count: int) -> None:
        """Have so many more messages wait for a retry that is an hour away."""
        if count <= 0:
            return
        token = secrets.token_hex(4)
        later = [
            Order(
                id=f"later-{token}-{number}",
                customer=f"acme-{number % 1000}",
                total=0,
                lines=[],
                note="later",
            )
            for number in range(count)
        ]
        await self._many(later)
        async with self._bus.consuming():
            async with asyncio.timeout(600):
                while self._parked < count:  # noqa: ASYNC110 - nothing is measured here
                    await asyncio.sleep(0.01)
            await self._all_out()

    async def _many(self, orders: Sequence[Order]) -> None:
        bus, channel = self._bus, self._channel

        async def some(batch: Sequence[Order]) -> None:
            outgoing = [Outgoing(data=order, key=order.customer) for order in batch]
            for outcome in await bus.publish_many(channel, outgoing):
                if outcome.error is not None:
                    raise outcome.error

        await in_window(some, list(_batches(orders)), width=WINDOW // _BATCH)

    async def _measured(self) -> tuple[int, int]:
        """Return how many are unsettled and not on purpose, and how many are delayed."""
        adapter, inlet = self._bus.adapter, Address(self._channel, _GROUP, "inlet")
        if isinstance(adapter, Measures):
            found = await adapter.measure(inlet)
            return found.waiting + found.in_flight, found.delayed
        if self.task.broker == "rabbitmq":
            return await _in_queues(self.task.url, self._channel)
        message = f"{type(adapter).__name__} does not say how much is left"
        raise Failed(message)

    async def _delayed(self) -> int:
        return (await self._measured())[1]

    async def left(self) -> int:
        unsettled, delayed = await self._measured()
        # a broker that counts what waits for its time among the rest cannot tell them apart
        return max(0, unsettled + delayed - self.task.waiting)

    async def close(self) -> None:
        await self._bus.close()


class BusManyClient(BusClient):
    """`bus.publish_many`, two batches of half a window at once."""

    async def publish(self, items: Sequence[Any]) -> None:
        await self._many(items)


def _batches(orders: Sequence[Order]) -> Iterable[Sequence[Order]]:
    return (orders[at : at + _BATCH] for at in range(0, len(orders), _BATCH))


async def _in_queues(url: str, channel: str) -> tuple[int, int]:
    """Count what is in the queue of the group, and on the rungs of its ladder."""
    import aiormq

    from brokerkit.adapters.rabbitmq import names

    connection: Any = await aiormq.connect(url)
    try:
        asked = await connection.channel()
        counts = [
            int((await asked.queue_declare(name, passive=True)).message_count)
            for name in (
                names.queue(channel, _GROUP),
                *(names.rung_queue(channel, _GROUP, seconds) for seconds in names.RUNGS),
            )
        ]
    finally:
        await connection.close()
    return counts[0], sum(counts[1:])
