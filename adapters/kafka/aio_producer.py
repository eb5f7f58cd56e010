"""
aiokafka's producer behind the seam: idempotent, bounded at every end.
"""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from brokerkit.adapters.kafka.client import BATCH
from brokerkit.adapters.kafka.failure import connection_error, send_error
from brokerkit.adapters.kafka.lib import Partition, ProducerClient, murmur2
from brokerkit.adapters.kafka.lib import errors as kafka
from brokerkit.adapters.kafka.options import Options
from brokerkit.adapters.kafka.wire import RawHeaders
from brokerkit.errors import ConnectionLost, PublishUnknown

__all__ = ["AioProducer"]

_LARGEST = 1 << 30
_TORN = 1.0
_LOG_APPEND_TIME = 1


class AioProducer:
    """One idempotent session; see `client.Producer`."""

    def __init__(self, options: Options, settings: dict[str, Any]) -> None:
        self._options = options
        self._producer: Any = ProducerClient(
            **settings,
            acks="all",
            enable_idempotence=True,
            max_batch_size=BATCH,
            max_request_size=_LARGEST,  # the topic's own limit is checked before
            compression_type=options.compression,
            partitioner=_partition,
            linger_ms=0,
        )

    async def start(self) -> None:
        """Connect and get an id; who cancels this has to call `stop`."""
        try:
            await self._producer.start()
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise connection_error(error, self._options.url.text) from error

    async def enqueue(
        self, topic: str, value: bytes, key: bytes | None, headers: RawHeaders
    ) -> "asyncio.Future[Any]":
        """Take a record; the batch that it is put into is sent as soon as one is free."""
        try:
            future: asyncio.Future[Any] = await self._producer.send(topic, value, key, headers=headers)
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise send_error(error, topic) from error
        return future

    def offer(
        self, topic: str, value: bytes, key: bytes | None, headers: RawHeaders
    ) -> "asyncio.Future[Any] | None":
        """
        Take a record at once, if its topic is known and its batch has room.

        The client's own `send` does the same in two coroutines, which is most of what a send of one message costs.
        """
        producer = self._producer
        accumulator = producer._message_accumulator  # noqa: SLF001
        metadata = producer._metadata  # noqa: SLF001
        if accumulator._closed or accumulator._exception is not None:  # noqa: SLF001
            return None
        if metadata.partitions_for_topic(topic) is None:
            return None
        place = Partition(topic, producer._partition(topic, None, key, value, key, value))  # noqa: SLF001
        pending = accumulator._batches.get(place)  # noqa: SLF001
        batch = pending[-1] if pending else accumulator._append_batch(accumulator.create_builder(), place)  # noqa: SLF001
        future: asyncio.Future[Any] | None = batch.append(key, value, None, headers=headers)
        return future

    def narrow(self, size: int) -> None:
        """Make no batch larger than so many bytes from now on."""
        self._producer._message_accumulator._batch_size = size  # noqa: SLF001 - read for each new batch

    def outcome(self, future: "asyncio.Future[Any]", topic: str) -> tuple[Exception | None, float | None]:
        """Read a future that is done."""
        if future.cancelled():
            return PublishUnknown(f"{topic}: the client gave the send up"), None
        error = future.exception()
        if error is not None:
            found = send_error(error, topic)
            # it was handed over: that no answer came says nothing of what is stored
            return (PublishUnknown(str(found)) if isinstance(found, ConnectionLost) else found), None
        answer = future.result()
        if answer is None or answer.timestamp_type != _LOG_APPEND_TIME:
            return None, None
        return None, answer.timestamp / 1000

    async def stop(self, seconds: float) -> None:
        """
        Let what is under way settle, then tear the session down.

        On a broker that does not answer `stop` never ends, and a sender that is cancelled waits for a request that nobody
        answers: so its own requests are cancelled as well.
        """
        producer, sender = self._producer, self._producer._sender  # noqa: SLF001
        stopping = asyncio.ensure_future(producer.stop())
        if seconds > 0:
            await asyncio.wait({stopping}, timeout=seconds)
        if stopping.done():
            if not stopping.cancelled():
                stopping.exception()
            return
        producer._closed = True  # noqa: SLF001
        closing = asyncio.ensure_future(producer.client.close())
        await asyncio.wait({closing}, timeout=_TORN)
        tasks = [stopping, closing, *_children(sender)]
        if sender.sender_task is not None:
            tasks.append(sender.sender_task)
        for task in tasks:
            task.cancel()
        done, _ = await asyncio.wait(tasks, timeout=_TORN)
        for task in done:
            with contextlib.suppress(asyncio.CancelledError):
                task.exception()


_hash = lru_cache(maxsize=4096)(murmur2)


def _partition(key: bytes | None, every: Sequence[int], available: Sequence[int]) -> int:
    """Choose as every Kafka client does; the client's own hash is Python, and keys come again."""
    if key is None:
        return random.choice(available or every)  # noqa: S311 - any will do
    found: int = _hash(key)
    return every[(found & 0x7FFFFFFF) % len(every)]


def _children(sender: Any) -> Sequence["asyncio.Task[Any]"]:
    """Return the tasks that a sender or its accumulator has started and that wait for the broker."""
    accumulator = sender._message_accumulator  # noqa: SLF001
    found: list[asyncio.Task[Any]] = []
    for task in asyncio.all_tasks():
        coroutine = task.get_coro()
        frame = getattr(coroutine, "cr_frame", None)
        owner = None if frame is None else frame.f_locals.get("self")
        if owner is sender or owner is accumulator:
            found.append(task)
    return [task for task in found if task is not asyncio.current_task()]
