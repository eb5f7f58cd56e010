"""What waits in memory, with a broker's clock that is not ours."""

import asyncio
import time
from collections.abc import Sequence

from brokerkit.adapters.kafka.clock import BrokerClock
from brokerkit.adapters.kafka.partition import Partition
from brokerkit.adapters.kafka.shelf import Shelf
from brokerkit.delivery import Delivery
from brokerkit.message import Address, Message

AT = Address("c", "g", "inlet")


class Bench:
    """A shelf, and what came of it."""

    def __init__(self, clock: BrokerClock | None = None, *, fails: int = 0) -> None:
        self.clock = clock or BrokerClock()
        self.due: list[tuple[int, float]] = []
        self.hops: list[tuple[int, float]] = []
        self.left = 0
        self.fails = fails
        self.came = asyncio.Event()
        self.hopped = asyncio.Event()
        self.shelf = Shelf(self.clock, hop=self.hop, on_due=self.on_due, on_left=self.on_left)

    def on_due(self, part: Partition, delivery: Delivery) -> None:
        assert delivery.position is not None
        self.due.append((delivery.position[1], self.clock.time()))
        self.came.set()

    def on_left(self, part: Partition) -> None:
        self.left += 1
        self.came.set()

    async def hop(self, items: Sequence[tuple[Delivery, float]]) -> Sequence[object]:
        await asyncio.sleep(0)
        self.hops += [
            (delivery.position[1], left) for delivery, left in items if delivery.position is not None
        ]
        self.hopped.set()
        if self.fails:
            self.fails -= 1
            return [ConnectionError("not now")] * len(items)
        return [None] * len(items)


def opened(part: Partition, offset: int) -> Delivery:
    delivery = Delivery(Message(body=b""), AT, part, position=(part.name, offset))
    part.open[offset] = delivery
    return delivery


def rung(seconds: int) -> Partition:
    part = Partition("c--g--retry", 0, AT, wait=seconds)
    part.adopt(0, None, end=0, slack=0)
    return part


async def test_what_is_due_comes_in_its_order_and_never_early() -> None:
    bench, part = Bench(), rung(0)
    now = int(bench.clock.time() * 1000)
    for offset, seconds in enumerate((0.15, 0.05, 0.1)):
        bench.shelf.wait(part, opened(part, offset), now, seconds)
    while len(bench.due) < 3:
        bench.came.clear()
        await bench.came.wait()
    assert [offset for offset, _ in bench.due] == [1, 2, 0]
    for (_, at), seconds in zip(bench.due, (0.05, 0.1, 0.15), strict=True):
        assert at >= now / 1000 + seconds
    assert part.held == 0


async def test_a_rung_s_seconds_count_from_the_append_by_the_broker_s_clock() -> None:
    clock = BrokerClock()
    clock.confirmed(time.time() + 100)
    bench, part = Bench(clock), rung(5)
    bench.shelf.wait(part, opened(part, 0), int((time.time() + 100 - 4.9) * 1000), 0.0)
    async with asyncio.timeout(2):
        await bench.came.wait()
    assert bench.hops == []


async def test_what_has_a_second_or_more_left_hops_and_is_finished_when_that_is_confirmed() -> None:
    bench, part = Bench(fails=1), rung(5)
    bench.shelf.wait(part, opened(part, 7), int((bench.clock.time() - 5) * 1000), 3.0)
    async with asyncio.timeout(3):
        await bench.hopped.wait()
        assert 7 in part.open
        await bench.came.wait()
    assert part.open == {}
    assert bench.left == 1
    assert all(1.5 < left <= 3.01 for _, left in bench.hops)
    assert bench.due == []


async def test_what_has_less_than_a_second_left_stays_here_for_it() -> None:
    bench, part = Bench(), rung(5)
    begin = bench.clock.time()
    bench.shelf.wait(part, opened(part, 0), int((begin - 5) * 1000), 0.2)
    await bench.came.wait()
    assert bench.hops == []
    assert bench.due[0][1] >= begin + 0.199


async def test_what_is_dropped_never_comes_and_holds_nothing() -> None:
    bench, part, other = Bench(), rung(0), rung(0)
    now = int(bench.clock.time() * 1000)
    dropped = opened(part, 0)
    bench.shelf.wait(part, dropped, now, 0.05)
    bench.shelf.wait(other, opened(other, 1), now, 0.1)
    assert id(dropped) in bench.shelf.ids()
    bench.shelf.drop([part])
    await bench.came.wait()
    assert [offset for offset, _ in bench.due] == [1]
    assert (part.held, other.held, bench.shelf.ids()) == (0, 0, set())


async def test_a_hop_of_a_partition_that_is_lost_meanwhile_finishes_nothing() -> None:
    bench, part = Bench(), rung(5)
    bench.shelf.wait(part, opened(part, 0), int((bench.clock.time() - 5) * 1000), 3.0)
    part.live = False
    await bench.hopped.wait()
    await bench.shelf.settled(1)
    assert (list(part.open), bench.left) == ([0], 0)


async def test_a_return_comes_after_its_seconds() -> None:
    bench, part = Bench(), rung(0)
    begin = asyncio.get_running_loop().time()
    bench.shelf.back(part, opened(part, 0), 0.1)
    await bench.came.wait()
    assert asyncio.get_running_loop().time() - begin >= 0.099


async def test_the_broker_s_clock_is_never_taken_to_be_ahead() -> None:
    clock = BrokerClock()
    now = time.time()
    clock.confirmed(now - 10)
    assert clock.time() <= now - 10 + 1
    clock.confirmed(time.time() - 9)
    assert now - 10 <= clock.time() <= now - 9 + 1
