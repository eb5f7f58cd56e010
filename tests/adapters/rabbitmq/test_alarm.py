"""A broker in a memory alarm: what publishes waits, what consumes and acks goes on."""

import asyncio
import subprocess
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from brokerkit.adapter import Tallies
from brokerkit.message import Address, Message
from brokerkit.sandbox import Server
from tests.adapters.rabbitmq.broker import Adapters, fresh, inlet, join, sure, texts, until_sent
from tests.servers import RealServer

pytestmark = pytest.mark.faults

CONTROL = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")


def watermark(server: Server, share: str) -> None:
    """Set the share of the memory at which the broker stops taking publishes."""
    environment = {
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": str(server.folder),
        "RABBITMQ_NODENAME": "brokerkit@localhost",
        "RABBITMQ_CONF_ENV_FILE": str(server.folder / "none.conf"),
        "ERL_EPMD_PORT": str(server.ports["mapper"]),
    }
    words = [str(CONTROL), "set_vm_memory_high_watermark", share]
    subprocess.run(words, env=environment, check=True, capture_output=True, timeout=60)


@asynccontextmanager
async def alarm(server: Server) -> AsyncGenerator[None]:
    await asyncio.to_thread(watermark, server, "0.00001")
    try:
        yield
    finally:
        await asyncio.to_thread(watermark, server, "0.4")


async def test_in_an_alarm_signs_counts_and_publishes_wait_and_acks_arrive(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    channel = fresh()
    adapter, sender = await adapters(heartbeat=2, partitions=2), await adapters(send_timeout=1)
    member = await join(adapter, inlet(channel), order="key")
    assert isinstance(member.subscription, Tallies)
    await sure(sender, Address(channel), [Message(body=b"x", key=str(n).encode()) for n in range(20)])
    held = await member.take(20)
    async with alarm(rabbitmq_server.control):
        counting = asyncio.create_task(member.subscription.tally([("a", 1)]))
        outcomes = await sender.send(Address(channel), texts(3))
        assert all(outcome is not None and outcome.retryable for outcome in outcomes)
        await asyncio.sleep(
            0.5
        )  # a sign of life each second: the connection that says it is blocked from then on
        await member.ack(held)
        begin = time.monotonic()
        await member.subscription.close()
        assert time.monotonic() - begin < 5
        await adapter.close()
        counting.cancel()
        await asyncio.wait({counting})
    await until_sent(sender, Address(channel), Message(body=b"after"))
    heir = await join(await adapters(heartbeat=2), inlet(channel), order="key")
    bodies: list[bytes] = []
    while b"after" not in bodies:
        bodies += [each.message.body for each in await heir.take(1, ack=True)]
    assert b"x" not in bodies
