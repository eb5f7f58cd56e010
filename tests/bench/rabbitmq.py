"""
RabbitMQ without brokerkit: aiormq, aio-pika, and FastStream on aio-pika.

One durable quorum queue behind a topic exchange, persistent messages, and confirms, as brokerkit has it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import aio_pika
import aiormq
from aiormq import spec
from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitQueue

from tests.bench.windows import in_window
from tests.bench.work import WINDOW, Client, Envelope, Meter, Order, Task

__all__ = ["AioPika", "AioPikaModel", "Aiormq", "FastStream"]

_COALESCE: Final = 100
_TICK: Final = 0.005
_KEY: Final = "all"
_CONTENT: Final = "application/cloudevents+json"


class Aiormq(Client):
    """`basic_publish` with confirms; `basic_consume`, and one ack, `multiple`, for a hundred messages or 5 ms."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._queue = task.place
        self._exchange = f"{task.place}-x"
        self._url = task.url
        self._connections: list[Any] = []

    async def _channel(self, *, confirms: bool = True) -> Any:
        connection: Any = await aiormq.connect(self._url)
        self._connections.append(connection)
        self.server = _server(connection)
        return await connection.channel(publisher_confirms=confirms)

    async def open(self) -> None:
        channel = await self._channel()
        await channel.exchange_declare(self._exchange, exchange_type="topic", durable=True)
        await channel.queue_declare(self._queue, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.queue_bind(self._queue, self._exchange, _KEY)

    async def publish(self, items: Sequence[Any]) -> None:
        channel = await self._channel()
        exchange = self._exchange

        async def one(body: bytes) -> None:
            properties = spec.Basic.Properties(delivery_mode=2, content_type=_CONTENT)
            confirmed = await channel.basic_publish(
                body, exchange=exchange, routing_key=_KEY, properties=properties
            )
            assert isinstance(confirmed, spec.Basic.Ack)

        await in_window(one, items)

    async def consume(self, meter: Meter) -> None:
        channel = await self._channel(confirms=False)
        await channel.basic_qos(prefetch_count=WINDOW)
        last = acked = 0

        async def on_message(message: Any) -> None:
            nonlocal last, acked
            meter.add(message.body)
            last = message.delivery.delivery_tag
            if last - acked >= _COALESCE:
                acked = last
                await channel.basic_ack(last, multiple=True, wait=False)

        async def tick() -> None:
            nonlocal acked
            while True:
                await asyncio.sleep(_TICK)
                if acked < last:
                    acked = last
                    await channel.basic_ack(last, multiple=True, wait=False)

        timer = asyncio.create_task(tick())
        try:
            await channel.basic_consume(self._queue, on_message)
            await meter.wait()
            if acked < last:
                await channel.basic_ack(last, multiple=True)
            meter.stop()
        finally:
            timer.cancel()
        await channel.close()

    async def left(self) -> int:
        channel = await self._channel()
        declared = await channel.queue_declare(self._queue, passive=True)
        await channel.close()
        return int(declared.message_count)

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()


class AioPika(Aiormq):
    """A callback on a queue, and one ack for each message, as most programs have it."""

    async def consume(self, meter: Meter) -> None:
        connection = await aio_pika.connect(self._url)
        async with connection:
            channel = await connection.channel(publisher_confirms=False)
            await channel.set_qos(prefetch_count=WINDOW)
            queue = await channel.get_queue(self._queue)

            acked = 0
            last = asyncio.Event()

            async def on_message(message: Any) -> None:
                nonlocal acked
                self._handle(meter, message.body)
                await message.ack()
                acked += 1
                if acked >= meter.total:
                    last.set()

            await queue.consume(on_message)
            await meter.wait()
            async with asyncio.timeout(30):
                await last.wait()
            meter.stop()

    def _handle(self, meter: Meter, body: bytes) -> None:
        meter.add(body)


class AioPikaModel(AioPika):
    """The same, with each body read into pydantic models: what a program that uses its messages cannot do without."""

    def _handle(self, meter: Meter, body: bytes) -> None:
        meter.add(Envelope.model_validate_json(body).data.id)


class FastStream(Aiormq):
    """`RabbitBroker`, one message a call both ways; its default policy, REJECT_ON_ERROR: an ack after the handler."""

    models = True

    def _broker(self) -> Any:
        return RabbitBroker(self._url, default_channel=Channel(prefetch_count=WINDOW), logger=None)

    async def publish(self, items: Sequence[Any]) -> None:
        broker = self._broker()
        exchange = RabbitExchange(self._exchange, type=ExchangeType.TOPIC, durable=True)

        async def one(order: Order) -> None:
            await broker.publish(order, exchange=exchange, routing_key=_KEY, persist=True)

        async with broker:
            await broker.start()
            await in_window(one, items)

    async def consume(self, meter: Meter) -> None:
        broker = self._broker()
        queue = RabbitQueue(self._queue, queue_type=QueueType.QUORUM, durable=True, declare=False)

        async def charge(order: Order) -> None:
            meter.add(order.id)

        broker.subscriber(queue)(charge)

        async with broker:
            await broker.start()
            await meter.wait()
            meter.stop()


def _server(connection: Any) -> str:
    said: Any = connection.server_properties
    host = urlsplit(str(connection.url)).hostname
    try:
        product, version = said["product"], said["version"]
    except (KeyError, TypeError):
        return f"RabbitMQ at {host}"
    return " ".join(each.decode() if isinstance(each, bytes) else str(each) for each in (product, version))
