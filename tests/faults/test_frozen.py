"""A broker that stands still: it accepts connections and answers nothing."""

import asyncio
from typing import Any

import pytest

from brokerkit.errors import BrokerkitError, ConnectionLost, PublishUnknown
from tests.faults.conftest import Broker

pytestmark = pytest.mark.faults

PUBLISH_TIMEOUT = 4.0
CLOSES_WITHIN = 25.0


async def test_f41_a_publish_to_a_frozen_broker_ends_as_unknown_within_its_timeout_and_so_does_close(
    broker: Broker, record_property: Any
) -> None:
    loop = asyncio.get_running_loop()
    bus = broker.bus(publish_timeout=PUBLISH_TIMEOUT)
    await bus.connect()
    await bus.publish("orders", {"n": 0}, type="order.placed", id="warm")
    broker.machine.freeze()
    try:
        begin = loop.time()
        outcomes = await asyncio.gather(
            *(bus.publish("orders", {"n": n}, type="order.placed", id=f"e{n}") for n in range(1, 21)),
            return_exceptions=True,
        )
        published = loop.time() - begin
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        begin = loop.time()
        async with asyncio.timeout(CLOSES_WITHIN):
            await bus.close()
        closed = loop.time() - begin
    finally:
        broker.machine.thaw()
    record_property(
        "figure",
        f"publish ended after {published:.1f} s of {PUBLISH_TIMEOUT:.0f} s, close after {closed:.1f} s",
    )
    assert {type(outcome) for outcome in outcomes} <= {PublishUnknown, ConnectionLost}
    assert published <= PUBLISH_TIMEOUT + 2


async def test_r3_after_a_freeze_everything_confirmed_is_there(broker: Broker, record_property: Any) -> None:
    bus = broker.bus(publish_timeout=60.0)
    seen: set[str] = set()
    progress = asyncio.Event()

    @bus.subscriber("orders", group="billing")
    async def handle(event: dict[str, int]) -> None:
        seen.add(f"e{event['n']}")
        progress.set()

    async with bus, bus.consuming():
        await bus.publish("orders", {"n": 0}, type="order.placed", id="e0")
        broker.machine.freeze()
        publishes = [
            asyncio.create_task(bus.publish("orders", {"n": n}, type="order.placed", id=f"e{n}"))
            for n in range(1, 51)
        ]
        try:
            await asyncio.wait(publishes, timeout=8)
        finally:
            broker.machine.thaw()
        async with asyncio.timeout(90):
            outcomes = await asyncio.gather(*publishes, return_exceptions=True)
            confirmed = {outcome.id for outcome in outcomes if not isinstance(outcome, BaseException)}
            while not confirmed <= seen:
                progress.clear()
                await progress.wait()
    record_property("figure", f"50 publishes over a freeze of 8 s: confirmed {len(confirmed)}, lost 0")
    assert all(isinstance(each, BrokerkitError) for each in outcomes if isinstance(each, BaseException))
