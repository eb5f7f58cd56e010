"""What the producer takes over from its client: the way into a batch, and the choice of a partition."""

import random
import secrets

from aiokafka.partitioner import DefaultPartitioner  # type: ignore[import-untyped]

from brokerkit.adapters.kafka.aio_producer import AioProducer, _partition
from brokerkit.message import Address
from tests.adapters.kafka.kit import connected, fresh, inlet, join, numbers, send, text
from tests.servers import RealServer


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
