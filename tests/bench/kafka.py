"""
Kafka without brokerkit: aiokafka alone, and FastStream on aiokafka.

Topics have six partitions, as brokerkit's have; every producer is idempotent and waits for all replicas.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from aiokafka import (  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs]
    AIOKafkaConsumer,
    AIOKafkaProducer,
    TopicPartition,
)
from aiokafka.admin import (  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs]
    AIOKafkaAdminClient,
    NewTopic,
)
from aiokafka.errors import (  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs]
    TopicAlreadyExistsError,
)
from faststream.kafka import KafkaBroker

from tests.bench.windows import in_window
from tests.bench.work import WINDOW, Client, Envelope, Meter, Order, Task

__all__ = ["AioKafka", "AioKafkaModel", "FastStream", "FastStreamBatch"]

PARTITIONS: Final = 6
_BATCH: Final = 500
_COMMITS: Final = 0.2
_GROUP: Final = "billing"
_HEADERS: Final = [("content-type", b"application/cloudevents+json")]


class AioKafka(Client):
    """A window of futures to publish; `getmany(500)` to consume, with commits by a timer."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._servers = urlsplit(task.url).netloc
        self._topic = task.place

    async def open(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        with suppress(TopicAlreadyExistsError):
            await admin.create_topics([NewTopic(self._topic, PARTITIONS, 1)])
        await admin.close()

    async def publish(self, items: Sequence[Any]) -> None:
        producer: Any = AIOKafkaProducer(
            bootstrap_servers=self._servers,
            acks="all",
            enable_idempotence=True,
            max_batch_size=256 * 1024,
        )
        await producer.start()
        try:
            window: deque[asyncio.Future[Any]] = deque()
            for number, body in enumerate(items):
                if len(window) >= WINDOW:
                    await window.popleft()
                key = b"acme-%d" % (number % 1000)
                window.append(await producer.send(self._topic, body, key=key, headers=_HEADERS))
            for future in window:
                await future
        finally:
            await producer.stop()

    def _consumer(self) -> Any:
        return AIOKafkaConsumer(
            self._topic,
            bootstrap_servers=self._servers,
            group_id=_GROUP,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )

    async def consume(self, meter: Meter) -> None:
        consumer = self._consumer()
        await consumer.start()

        async def commits() -> None:
            while True:
                await asyncio.sleep(_COMMITS)
                await consumer.commit()

        timer = asyncio.create_task(commits())
        try:
            async with asyncio.timeout(300):
                while not meter.over.is_set():
                    found = await consumer.getmany(timeout_ms=1000, max_records=_BATCH)
                    for records in found.values():
                        self._handle(meter, [record.value for record in records])
            await consumer.commit()
            meter.stop()
        finally:
            timer.cancel()
            await consumer.stop()

    def _handle(self, meter: Meter, bodies: Sequence[bytes]) -> None:
        meter.add_all(bodies)

    async def left(self) -> int:
        admin: Any = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        committed = await admin.list_consumer_group_offsets(_GROUP)
        await admin.close()
        consumer: Any = AIOKafkaConsumer(bootstrap_servers=self._servers)
        await consumer.start()
        partitions = [TopicPartition(self._topic, number) for number in range(PARTITIONS)]
        ends = await consumer.end_offsets(partitions)
        await consumer.stop()
        return sum(ends[each] - (committed[each].offset if each in committed else 0) for each in partitions)

    async def close(self) -> None:
        """Nothing is open between the calls."""


class AioKafkaModel(AioKafka):
    """The same, with each body read into pydantic models: what a program that uses its messages cannot do without."""

    def _handle(self, meter: Meter, bodies: Sequence[bytes]) -> None:
        meter.add_all([Envelope.model_validate_json(body).data.id for body in bodies])


class FastStream(AioKafka):
    """`KafkaBroker`, one message a call both ways; its default policy, ACK_FIRST: offsets are committed by a timer."""

    models = True

    def _broker(self) -> Any:
        return KafkaBroker(self._servers, acks="all", enable_idempotence=True, logger=None)

    async def publish(self, items: Sequence[Any]) -> None:
        broker = self._broker()
        topic = self._topic

        async def one(order: Order) -> None:
            await broker.publish(order, topic=topic, key=order.customer.encode())

        async with broker:
            await broker.start()
            await in_window(one, items)

    def _subscribe(self, broker: Any, meter: Meter) -> None:
        async def charge(order: Order) -> None:
            meter.add(order.id)

        broker.subscriber(self._topic, group_id=_GROUP, auto_offset_reset="earliest")(charge)

    async def consume(self, meter: Meter) -> None:
        broker = self._broker()
        self._subscribe(broker, meter)
        async with broker:
            await broker.start()
            await meter.wait()
            meter.stop()


class FastStreamBatch(FastStream):
    """The same, with `batch=True`: a list of models for each call."""

    def _subscribe(self, broker: Any, meter: Meter) -> None:
        async def charge(orders: list[Order]) -> None:
            meter.add_all([order.id for order in orders])

        broker.subscriber(
            self._topic,
            group_id=_GROUP,
            auto_offset_reset="earliest",
            batch=True,
            max_records=_BATCH,
        )(charge)
