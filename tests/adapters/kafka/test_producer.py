"""What the producer takes over from its client: the way into a batch, and the choice of a partition."""

import asyncio
import random
import secrets
from typing import Any, Final

import aiokafka as _aiokafka  # type: ignore[import-untyped]
from aiokafka.partitioner import DefaultPartitioner  # type: ignore[import-untyped]

from brokerkit.adapters.kafka.aio_producer import AioProducer, _partition
from brokerkit.errors import PublishUnknown
from brokerkit.message import Address
from tests.adapters.kafka.kit import connected, fresh, inlet, join, numbers, send, servers_of, text
from tests.servers import RealServer

aiokafka: Final[Any] = _aiokafka
kafka: Final[Any] = aiokafka.errors


def test_a_key_goes_to_the_partition_that_every_kafka_client_chooses() -> None:
    theirs = DefaultPartitioner()
    for size in range(40):
        key = secrets.token_bytes(size)
        every = list(range(random.randrange(1, 50)))
        assert {_partition(key, every, every[1:]) for _ in range(2)} == {theirs(key, every, every[1:])}


def test_without_a_key_any_partition_that_has_a_leader_is_chosen() -> None:
    assert {_partition(None, range(6), [2, 4]) for _ in range(200)} == {2, 4}
    assert {_partition(None, range(2), []) for _ in range(200)} == {0, 1}


async def test_what_a_batch_has_room_for_is_taken_at_once_and_the_rest_follows_in_order(
    kafka_server: RealServer,
) -> None:
    channel = fresh()
    async with connected(kafka_server.url, partitions=1) as adapter:
        await send(adapter, Address(channel), [text(0)])
        session = adapter._writer._session
        assert session is not None
        producer = session.producer
        assert isinstance(producer, AioProducer)
        large = b"x" * 40_000
        first = producer.offer(channel, b"1", None, [("large", large)])
        assert first is not None
        assert producer.offer(channel, b"2", None, [("large", large)]) is None
        second = await producer.enqueue(channel, b"2", None, [("large", large)])
        third = producer.offer(channel, b"3", None, [])
        assert third is not None
        for future in (first, second, third):
            await future
        assert producer.offer(fresh("unknown"), b"4", None, []) is None
        member = await join(adapter, inlet(channel), 30)
        assert numbers(await member.take(4, ack=True)) == [0, 1, 2, 3]


async def test_no_batch_of_small_messages_is_too_large_for_a_topic_with_a_small_limit(
    kafka_server: RealServer,
) -> None:
    channel, large = fresh(), fresh()
    admin = aiokafka.admin.AIOKafkaAdminClient(bootstrap_servers=servers_of(kafka_server.url))
    await admin.start()
    try:
        configs = {"max.message.bytes": "20000"}
        await admin.create_topics([aiokafka.admin.NewTopic(channel, 1, 1, topic_configs=configs)])
    finally:
        await admin.close()
    async with connected(kafka_server.url, partitions=1) as adapter:
        await send(adapter, Address(large), [text("x" * 30_000)])  # a session that has made larger batches
        await send(adapter, Address(channel), [text(f"{number:03}" + "x" * 3000) for number in range(100)])
        each = [
            adapter.send(Address(channel), [text(f"{number:03}" + "x" * 3000)]) for number in range(100, 200)
        ]
        assert await asyncio.gather(*each) == [[None]] * 100


def test_what_was_handed_over_and_got_no_answer_is_unknown() -> None:
    producer = AioProducer.__new__(AioProducer)
    for error in (kafka.NotLeaderForPartitionError(), kafka.UnknownError(), kafka.KafkaConnectionError()):
        loop = asyncio.new_event_loop()
        future: asyncio.Future[Any] = loop.create_future()
        future.set_exception(error)
        found, _ = producer.outcome(future, "t")
        assert isinstance(found, PublishUnknown)
        loop.close()
