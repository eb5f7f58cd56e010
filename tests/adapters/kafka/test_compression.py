"""Compressed records: what others have compressed is read, and what we compress is read by others."""

from typing import Any, Final

import aiokafka as _aiokafka  # type: ignore[import-untyped]
import pytest

from brokerkit.message import Address
from tests.adapters.kafka.kit import connected, fresh, inlet, join, send, servers_of, text
from tests.servers import RealServer

aiokafka: Final[Any] = _aiokafka
CODECS = ["gzip", "snappy", "lz4", "zstd"]
PATIENCE = 30.0
BODIES = [str(number).encode() * 100 for number in range(20)]


@pytest.mark.parametrize("codec", CODECS)
async def test_what_a_foreign_producer_has_compressed_is_read(codec: str, kafka_server: RealServer) -> None:
    channel = fresh()
    async with connected(kafka_server.url) as adapter:
        member = await join(adapter, inlet(channel), PATIENCE)
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=servers_of(kafka_server.url), compression_type=codec, linger_ms=50
        )
        async with producer:
            for body in BODIES:
                await producer.send(channel, body)
            await producer.flush()
        taken = await member.take(len(BODIES))
        assert sorted(each.message.body for each in taken) == sorted(BODIES)


@pytest.mark.parametrize("codec", CODECS)
async def test_what_we_compress_is_read_by_a_foreign_consumer(codec: str, kafka_server: RealServer) -> None:
    channel = fresh()
    async with connected(kafka_server.url, compression=codec, partitions=1) as adapter:
        await adapter.provision([(Address(channel), "earliest", "none")], create=True)
        await send(adapter, Address(channel), [text(body.decode()) for body in BODIES])
    consumer = aiokafka.AIOKafkaConsumer(
        channel, bootstrap_servers=servers_of(kafka_server.url), auto_offset_reset="earliest"
    )
    async with consumer:
        assert [(await consumer.getone()).value for _ in BODIES] == BODIES
