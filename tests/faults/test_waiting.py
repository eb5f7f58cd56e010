"""Thousands of retries that wait are in nobody's way."""

import asyncio
from typing import Any

import pytest

from brokerkit.delivery import Delivery
from brokerkit.publisher import Outgoing
from brokerkit.settlement import Retry
from tests.faults.conftest import Broker, scaled

pytestmark = pytest.mark.faults

WAITING = scaled(10_000)
HOUR = 3600.0


async def test_f47_new_messages_are_handled_while_thousands_of_retries_wait(
    any_broker: Broker, record_property: Any
) -> None:
    loop = asyncio.get_running_loop()
    bus = any_broker.bus()
    asked: set[str] = set()
    handled: set[str] = set()
    early: list[str] = []
    progress = asyncio.Event()

    @bus.subscriber("orders", group="billing", concurrency=64)
    async def handle(delivery: Delivery) -> Retry | None:
        name = delivery.event.id
        progress.set()
        if name.startswith("later"):
            if delivery.attempt > 1:
                early.append(name)
                return None
            asked.add(name)
            return Retry(HOUR, "in an hour")
        handled.add(name)
        return None

    async def publish(word: str) -> float:
        begin = loop.time()
        for first in range(0, WAITING, 500):
            outgoing = [
                Outgoing(data={"n": n}, type="order.placed", id=f"{word}{n}")
                for n in range(first, min(first + 500, WAITING))
            ]
            outcomes = await bus.publish_many("orders", outgoing)
            assert not [outcome.error for outcome in outcomes if outcome.error is not None]
        return begin

    async def until_all(seen: set[str]) -> float:
        async with asyncio.timeout(300):
            while len(seen) < WAITING:
                progress.clear()
                await progress.wait()
        return loop.time()

    async with bus, bus.consuming():
        begin = await publish("before")
        without = await until_all(handled) - begin
        handled.clear()
        await publish("later")
        await until_all(asked)
        begin = await publish("after")
        beside = await until_all(handled) - begin
    record_property(
        "figure",
        f"{WAITING} wait: {WAITING} new ones in {beside:.2f} s, {without:.2f} s without them (ratio {without / beside:.2f})",
    )
    assert not early
