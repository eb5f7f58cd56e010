"""
SQS without brokerkit: botocore in eight threads. FastStream has no SQS.
"""

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlsplit

import botocore.session  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs]
from botocore.config import (  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs]
    Config,
)

from tests.bench.work import Client, Failed, Meter, Task

_botocore: Any = botocore

__all__ = ["Botocore"]

THREADS: Final = 8
BATCH: Final = 10


class Botocore(Client):
    """Eight threads; batches of ten to send, and to receive and delete."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._queue = ""
        session: Any = _botocore.session.get_session()
        self._client: Any = session.create_client(
            "sqs",
            endpoint_url=f"http://{urlsplit(task.url).netloc}",
            region_name="us-east-1",
            aws_access_key_id="x",
            aws_secret_access_key="x",
            config=Config(max_pool_connections=THREADS, retries={"mode": "standard"}),
        )
        self._pool = ThreadPoolExecutor(THREADS)

    async def _each(self, work: Any, parts: Sequence[Any]) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._pool, work, part) for part in parts))

    async def open(self) -> None:
        made = await asyncio.to_thread(self._client.create_queue, QueueName=self.task.place)
        self._queue = made["QueueUrl"]

    async def publish(self, items: Sequence[Any]) -> None:
        attributes = {"content-type": {"DataType": "String", "StringValue": "application/cloudevents+json"}}

        def send(bodies: Sequence[bytes]) -> None:
            entries = [
                {"Id": str(number), "MessageBody": body.decode(), "MessageAttributes": attributes}
                for number, body in enumerate(bodies)
            ]
            answer = self._client.send_message_batch(QueueUrl=self._queue, Entries=entries)
            if answer.get("Failed"):
                raise Failed(json.dumps(answer["Failed"]))

        await self._each(send, [items[at : at + BATCH] for at in range(0, len(items), BATCH)])

    async def consume(self, meter: Meter) -> None:
        loop = asyncio.get_running_loop()
        lock = threading.Lock()
        over = threading.Event()

        def count(bodies: Sequence[str]) -> None:
            with lock:
                if meter.count(bodies):
                    over.set()

        def take(_: int) -> None:
            while not over.is_set():
                answer = self._client.receive_message(
                    QueueUrl=self._queue,
                    MaxNumberOfMessages=BATCH,
                    WaitTimeSeconds=1,
                    MessageAttributeNames=["All"],
                )
                messages = answer.get("Messages", [])
                if not messages:
                    continue
                entries = [
                    {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                    for number, message in enumerate(messages)
                ]
                deleted = self._client.delete_message_batch(QueueUrl=self._queue, Entries=entries)
                if deleted.get("Failed"):
                    raise Failed(json.dumps(deleted["Failed"]))
                count([message["Body"] for message in messages])
                if over.is_set():
                    loop.call_soon_threadsafe(meter.over.set)

        threads = asyncio.gather(
            *(loop.run_in_executor(self._pool, take, number) for number in range(THREADS))
        )
        await meter.wait()
        meter.stop()
        await threads

    async def left(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = await asyncio.to_thread(
            self._client.get_queue_attributes, QueueUrl=self._queue, AttributeNames=names
        )
        return sum(int(answer["Attributes"][name]) for name in names)

    async def close(self) -> None:
        self._pool.shutdown(wait=False)
        self._client.close()
