"""The broker goes away and comes back, politely and not, while messages are published and consumed."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from brokerkit.delivery import Delivery
from brokerkit.errors import ConnectionLost, PublishUnknown
from brokerkit.settlement import Retry
from tests.faults.conftest import Broker, scaled

MESSAGES = scaled(10_000)
WAITING = scaled(1_000)
PUBLISHERS = 20
PUBLISH_TIMEOUT = 30.0
RESUMED_WITHIN = 30.0
PACE = 0.02
"""Seconds between two publishes of one publisher, so that some are always under way and some still to come."""

pytestmark = pytest.mark.faults


class Run:
    """Publishers and a consumer, and what both saw."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.confirmed: set[str] = set()
        self.unknown: set[str] = set()
        self.handled: Counter[str] = Counter()
        self.slowest = 0.0
        self.handled_at = 0.0
        self.progress = asyncio.Event()

    def note(self, delivery: Delivery) -> None:
        self.handled[delivery.event.id] += 1
        self.handled_at = asyncio.get_running_loop().time()
        self.progress.set()

    async def publish(self, bus: Any, first: int, count: int) -> None:
        loop = asyncio.get_running_loop()
        for number in range(first, first + count):
            name = f"e{number}"
            begin = loop.time()
            try:
                await bus.publish(
                    "orders", {"n": number}, type="order.placed", id=name, key=f"k{number % 50}"
                )
            except (PublishUnknown, ConnectionLost):
                self.unknown.add(name)
            else:
                self.confirmed.add(name)
            self.slowest = max(self.slowest, loop.time() - begin)
            self.progress.set()
            await asyncio.sleep(PACE)

    async def until_confirmed(self, count: int, seconds: float) -> None:
        """Wait until so many publishes are confirmed."""
        async with asyncio.timeout(seconds):
            while len(self.confirmed) < count:
                self.progress.clear()
                await self.progress.wait()

    async def until_handled(self, count: int, seconds: float) -> None:
        """Wait until so many different events were handled."""
        async with asyncio.timeout(seconds):
            while len(self.handled) < count:
                self.progress.clear()
                await self.progress.wait()

    async def until_all_handled(self, seconds: float) -> None:
        """Wait until every confirmed event was handled."""
        async with asyncio.timeout(seconds):
            while not self.confirmed <= self.handled.keys():
                self.progress.clear()
                await self.progress.wait()


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "SIGSTOP"])
async def test_r1_a_broker_that_is_restarted_twice_under_load_loses_nothing_and_hangs_nobody(
    broker: Broker, how: str, record_property: Any
) -> None:
    run = Run(broker)
    consumer, publisher = broker.bus("consumer"), broker.bus("publisher", publish_timeout=PUBLISH_TIMEOUT)

    @consumer.subscriber("orders", group="billing", concurrency=64)
    async def handle(delivery: Delivery) -> None:
        run.note(delivery)

    resumed: list[float] = []
    async with publisher, consumer, consumer.consuming():
        each = MESSAGES // PUBLISHERS
        publishers = [
            asyncio.create_task(run.publish(publisher, number * each, each)) for number in range(PUBLISHERS)
        ]
        for third in (1, 2):
            await run.until_confirmed(MESSAGES * third // 3, 120)
            back = await broker.restart(how)
            seen = len(run.handled)
            if seen < MESSAGES:
                await run.until_handled(seen + 1, RESUMED_WITHIN)
                resumed.append(run.handled_at - back)
        async with asyncio.timeout(120):
            await asyncio.gather(*publishers)
        await run.until_all_handled(120)
    twice = sum(times > 1 for times in run.handled.values())
    record_property(
        "figure",
        f"{MESSAGES} messages, {how}: confirmed {len(run.confirmed)}, unknown {len(run.unknown)}, lost 0, handled twice {twice}, "
        f"slowest publish {run.slowest:.1f} s, resumed after {max(resumed, default=0):.1f} s",
    )
    assert run.slowest <= PUBLISH_TIMEOUT + 2
    assert run.slowest > 0.3, "no publish was under way while the broker was away"
    assert run.confirmed | run.unknown == {f"e{number}" for number in range(MESSAGES)}
    assert run.handled.keys() <= run.confirmed | run.unknown


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "SIGSTOP"])
async def test_r2_delayed_retries_that_wait_across_a_restart_come_back_and_not_early(
    broker: Broker, how: str, record_property: Any
) -> None:
    loop = asyncio.get_running_loop()
    due: dict[str, float] = {}
    early: dict[str, float] = {}
    late: dict[str, float] = {}
    progress = asyncio.Event()
    after = 12.0
    bus = broker.bus()

    @bus.subscriber("orders", group="billing", concurrency=64)
    async def handle(delivery: Delivery) -> Retry | None:
        name = delivery.event.id
        progress.set()
        if delivery.attempt == 1:
            due.setdefault(name, loop.time() + after)
            return Retry(after, "not yet")
        difference = loop.time() - due[name]
        if difference < -0.05:
            early[name] = -difference
        late[name] = difference
        return None

    async with bus, bus.consuming():
        await bus.publish_many(
            "orders",
            [{"n": number} for number in range(0)],
        )
        for number in range(WAITING):
            await bus.publish("orders", {"n": number}, type="order.placed", id=f"e{number}")
        async with asyncio.timeout(60):
            while len(due) < WAITING:
                progress.clear()
                await progress.wait()
        await broker.restart(how)
        async with asyncio.timeout(after + 90):
            while len(late) < WAITING:
                progress.clear()
                await progress.wait()
    allowed = "early-after-restart" in bus.adapter.capabilities.limits
    record_property(
        "figure",
        f"{WAITING} retries, {how}: lost 0, early {len(early)} (at most {max(early.values(), default=0):.1f} s), "
        f"latest {max(late.values()):.1f} s late",
    )
    assert late.keys() == {f"e{number}" for number in range(WAITING)}
    assert allowed or not early
