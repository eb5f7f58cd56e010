import asyncio
import gc
from typing import Any

import pytest

from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError, Unsupported
from brokerkit.patterns.bulkhead import bulkhead
from brokerkit.settlement import ACK, Retry, Settlement
from tests.patterns.deliveries import delivery_of


class Gate:
    """A handler whose callers wait until they are let through, in the order in which they came in."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.most = 0
        self.entered: list[str] = []
        self._open: dict[str, asyncio.Future[None]] = {}

    async def __call__(self, delivery: Delivery) -> Settlement:
        name = delivery.event.id
        self.entered.append(name)
        self.inside.append(name)
        self.most = max(self.most, len(self.inside))
        self._open[name] = asyncio.get_running_loop().create_future()
        try:
            await self._open[name]
        finally:
            self.inside.remove(name)
        return ACK

    def let(self, name: str, error: Exception | None = None) -> None:
        if error is None:
            self._open[name].set_result(None)
        else:
            self._open[name].set_exception(error)


async def settle_down() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_no_more_than_the_limit_are_inside_and_the_first_to_wait_is_the_next() -> None:
    gate = Gate()
    handler = bulkhead("card-api", 2)(gate)
    tasks = [asyncio.ensure_future(handler(delivery_of(name))) for name in "abcde"]
    await settle_down()
    assert gate.entered == ["a", "b"]
    gate.let("b")
    await settle_down()
    late = asyncio.ensure_future(handler(delivery_of("late")))
    await settle_down()
    gate.let("a", ValueError())
    await settle_down()
    assert gate.entered == ["a", "b", "c", "d"]
    for name in ("c", "d", "e", "late"):
        gate.let(name)
        await settle_down()
    await asyncio.gather(*tasks, late, return_exceptions=True)
    assert gate.entered == ["a", "b", "c", "d", "e", "late"]
    assert gate.most == 2


async def test_a_cancelled_waiter_takes_no_slot_along() -> None:
    gate = Gate()
    handler = bulkhead("card-api", 1)(gate)
    first, second, third = (asyncio.ensure_future(handler(delivery_of(name))) for name in "abc")
    await settle_down()
    second.cancel()
    await settle_down()
    gate.let("a")
    await settle_down()
    assert gate.entered == ["a", "c"]
    gate.let("c")
    await asyncio.gather(first, second, third, return_exceptions=True)
    assert await bulkhead("card-api", 1)(_quick)(delivery_of()) is ACK


async def test_a_waiter_cancelled_as_its_turn_comes_hands_the_slot_on() -> None:
    gate = Gate()
    pattern = bulkhead("card-api", 1)
    handler = pattern(gate)
    tasks = [asyncio.ensure_future(handler(delivery_of(name))) for name in "abc"]
    await settle_down()
    pattern._room.hand_on()  # as if the one inside had left: b has the slot now, and has not run yet
    tasks[1].cancel()
    await settle_down()
    assert gate.entered == ["a", "c"]
    pattern._room.free -= 1
    gate.let("a")
    gate.let("c")
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_cancelled_handling_gives_its_slot_back() -> None:
    gate = Gate()
    handler = bulkhead("card-api", 1)(gate)
    first = asyncio.ensure_future(handler(delivery_of("a")))
    await settle_down()
    first.cancel()
    second = asyncio.ensure_future(handler(delivery_of("b")))
    await settle_down()
    gate.let("b")
    assert await second is ACK


async def test_two_of_one_name_share_a_compartment_and_two_names_do_not() -> None:
    gate = Gate()
    one, other = bulkhead("card-api", 1), bulkhead("card-api", 1)
    third = bulkhead("mail", 1)
    tasks = [
        asyncio.ensure_future(pattern(gate)(delivery_of(name)))
        for pattern, name in ((one, "a"), (other, "b"), (third, "c"))
    ]
    await settle_down()
    assert gate.entered == ["a", "c"]
    for name in ("a", "c", "b"):
        gate.let(name)
        await settle_down()
    await asyncio.gather(*tasks)


async def test_two_of_one_name_with_different_limits_are_refused_at_start() -> None:
    one, other = bulkhead("card-api", 1), bulkhead("card-api", 2)
    await one.start()
    with pytest.raises(ConfigurationError, match="another bulkhead of that name has the limit 1"):
        await other.start()
    with pytest.raises(ConfigurationError):
        await other(_quick)(delivery_of())
    await one.close()
    del one
    gc.collect()
    await other.start()


def test_every_loop_has_compartments_of_its_own() -> None:
    pattern = bulkhead("card-api", 1)

    async def leave_it_full() -> None:
        task = asyncio.ensure_future(pattern(Gate())(delivery_of()))
        await settle_down()
        pattern._room.free = 0
        task.cancel()

    asyncio.run(leave_it_full())
    assert asyncio.run(_handled(pattern)) is ACK


async def test_one_too_many_waiters_is_returned_uncounted() -> None:
    gate = Gate()
    handler = bulkhead("card-api", 1, max_waiting=1)(gate)
    tasks = [asyncio.ensure_future(handler(delivery_of(name))) for name in "abc"]
    await settle_down()
    assert tasks[2].result() == Retry(after=1.0, reason="bulkhead card-api is full", counts=False)
    for name in "ab":
        gate.let(name)
        await settle_down()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("arguments", [("", 1), (3, 1), ("a", 0), ("a", True), ("a", 1.5)])
def test_what_makes_no_sense_is_refused(arguments: Any) -> None:
    with pytest.raises(ConfigurationError):
        bulkhead(*arguments)
    with pytest.raises(ConfigurationError):
        bulkhead("a", 1, max_waiting=-1)


@pytest.mark.parametrize("isolation", ["thread", "process", "x"])
def test_what_comes_later_is_refused_by_name(isolation: str) -> None:
    with pytest.raises(Unsupported, match=isolation):
        bulkhead("a", 1, isolation=isolation)


def test_it_prints_as_it_is_configured() -> None:
    assert repr(bulkhead("card-api", 8)) == "bulkhead('card-api', 8)"
    assert repr(bulkhead("card-api", 8, max_waiting=3)) == "bulkhead('card-api', 8, max_waiting=3)"


async def _quick(_: Delivery) -> Settlement:
    return ACK


async def _handled(pattern: Any) -> Settlement:
    settlement: Settlement = await pattern(_quick)(delivery_of())
    return settlement
