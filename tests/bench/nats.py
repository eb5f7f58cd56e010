"""
NATS JetStream without brokerkit: nats-py, and FastStream on it.

One stream on disk with one durable consumer and without a limit on what is unacked.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

import nats
from faststream.nats import JStream, NatsBroker, PullSub
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from tests.bench.windows import in_window
from tests.bench.work import WINDOW, Client, Envelope, Failed, Meter, Order, Task

_nats: Any = nats

__all__ = ["FastStreamPull", "FastStreamPush", "Fetch", "Pull", "PullModel"]

_DURABLE: Final = "billing"
_FETCH: Final = 500
_EXPIRES: Final = 30
_NS: Final = 1_000_000_000
_HEADERS: Final = {"content-type": "application/cloudevents+json"}


class Pull(Client):
    """`publish_async`; pull requests into one callback, an ack without answer for each message, a flush at the end."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._stream = task.place
        self._subject = f"{task.place}.all"
        self._connection: Any = None

    async def open(self) -> None:
        self._connection = await _nats.connect(self.task.url)
        self.server = f"nats-server {self._connection.connected_server_version}"
        js = self._connection.jetstream()
        stream = StreamConfig(
            name=self._stream,
            subjects=[f"{self._stream}.*"],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
        )
        await js.add_stream(stream)
        try:
            await js.consumer_info(self._stream, _DURABLE)
        except NotFoundError:
            await js.add_consumer(self._stream, self._consumer())

    def _consumer(self) -> ConsumerConfig:
        return ConsumerConfig(
            durable_name=_DURABLE, ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_ack_pending=-1
        )

    async def publish(self, items: Sequence[Any]) -> None:
        js = self._connection.jetstream(publish_async_max_pending=WINDOW)
        futures = [await js.publish_async(self._subject, body, headers=_HEADERS) for body in items]
        await js.publish_async_completed()
        for future in futures:
            future.result()

    async def consume(self, meter: Meter) -> None:
        connection = self._connection
        inbox = connection.new_inbox()
        ask = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{_DURABLE}"
        credit = 0

        async def more() -> None:
            nonlocal credit
            wanted = {"batch": WINDOW - credit, "expires": _EXPIRES * _NS}
            credit = WINDOW
            await connection.publish(ask, json.dumps(wanted).encode(), reply=inbox)

        async def on_message(message: Any) -> None:
            nonlocal credit
            if not message.reply:
                error = f"the server answered {message.headers}"
                raise Failed(error)
            self._handle(meter, message.data)
            await connection.publish(message.reply, b"+ACK")
            credit -= 1
            if credit <= WINDOW // 2:
                await more()

        subscription = await connection.subscribe(
            inbox, cb=on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        await more()
        await meter.wait()
        await connection.flush()
        meter.stop()
        await subscription.unsubscribe()

    def _handle(self, meter: Meter, body: bytes) -> None:
        meter.add(body)

    async def left(self) -> int:
        info = await self._connection.jetstream().consumer_info(self._stream, _DURABLE)
        return int(info.num_pending + info.num_ack_pending)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


class PullModel(Pull):
    """The same, with each body read into pydantic models: what a program that uses its messages cannot do without."""

    def _handle(self, meter: Meter, body: bytes) -> None:
        meter.add(Envelope.model_validate_json(body).data.id)


class Fetch(Pull):
    """`fetch(500)`, as the client's documentation has it."""

    async def consume(self, meter: Meter) -> None:
        js = self._connection.jetstream()
        subscription = await js.pull_subscribe_bind(consumer=_DURABLE, stream=self._stream)
        async with asyncio.timeout(300):
            while not meter.over.is_set():
                for message in await subscription.fetch(_FETCH, timeout=5):
                    meter.add(message.data)
                    await message.ack()
        await self._connection.flush()
        meter.stop()
        await subscription.unsubscribe()


class FastStreamPull(Pull):
    """
    `NatsBroker` with a pull subscriber, which it recommends, in batches of 500 that are handled at once.

    Its default policy, REJECT_ON_ERROR: an ack after the handler.
    """

    models = True

    async def publish(self, items: Sequence[Any]) -> None:
        broker = self._broker()
        subject, stream = self._subject, self._stream

        async def one(order: Order) -> None:
            await broker.publish(order, subject, stream=stream)

        async with broker:
            await broker.start()
            await in_window(one, items)

    def _broker(self) -> Any:
        return NatsBroker(self.task.url, logger=None)

    def _subscriber(self, broker: Any) -> Any:
        return broker.subscriber(
            self._subject,
            stream=JStream(self._stream, declare=False),
            durable=_DURABLE,
            config=self._consumer(),
            pull_sub=PullSub(batch_size=_FETCH),
        )

    async def consume(self, meter: Meter) -> None:
        broker = self._broker()

        async def charge(order: Order) -> None:
            meter.add(order.id)

        self._subscriber(broker)(charge)

        async with broker:
            await broker.start()
            await meter.wait()
            meter.stop()


class FastStreamPush(FastStreamPull):
    """The same with a push subscriber, which handles one message at a time."""

    def _consumer(self) -> ConsumerConfig:
        config = super()._consumer()
        config.deliver_subject = f"{self._stream}-push"
        config.filter_subject = self._subject
        return config

    def _subscriber(self, broker: Any) -> Any:
        return broker.subscriber(
            self._subject,
            stream=JStream(self._stream, declare=False),
            durable=_DURABLE,
            config=self._consumer(),
            pending_msgs_limit=-1,
            pending_bytes_limit=-1,
        )
