"""
`order="key"`: the messages of a key come in order, whoever owns it and however its owner leaves.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102, PLR2004

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence

from brokerkit.delivery import Delivery
from brokerkit.settlement import Retry
from brokerkit.testing.conformance.bench import Bench, Member, bodies, text
from brokerkit.testing.conformance.gate import needs, spared_by
from brokerkit.testing.conformance.member import share

__all__ = ["Ordering"]

KEYS = tuple(f"k{number}" for number in range(16))


def numbered(rounds: Iterable[int]) -> list[tuple[str, int]]:
    """Return (key, number) for each key and round, interleaved."""
    return [(key, number) for number in rounds for key in KEYS]


def by_key(deliveries: Iterable[Delivery]) -> dict[str, list[int]]:
    """Return the numbers of each key as they came."""
    found: dict[str, list[int]] = defaultdict(list)
    for delivery in deliveries:
        assert delivery.message.key is not None
        found[delivery.message.key.decode()].append(int(delivery.message.body))
    return dict(found)


async def send(bench: Bench, rounds: Iterable[int]) -> None:
    """Send one message for each key and round."""
    await bench.send(bench.first, bench.name(), [text(str(number), key) for key, number in numbered(rounds)])


def all_of(rounds: Iterable[int]) -> dict[str, list[int]]:
    """Return what `by_key` should find."""
    return {key: list(rounds) for key in KEYS}


class Ordering:
    """Tests of order by key, with one member, with two, and across every change of owner."""

    @needs("order_key")
    async def test_each_key_is_in_order_with_one_member(self, bench: Bench) -> None:
        member = await bench.member(order="key")
        await send(bench, range(20))
        assert by_key(await member.take(320, limit=13, ack=True)) == all_of(range(20))

    @needs("order_key")
    @spared_by("order-in-one-process")
    async def test_each_key_is_in_order_and_with_one_owner_at_a_time_with_two_members(
        self, bench: Bench
    ) -> None:
        members = [await bench.member(order="key"), await bench.member(order="key")]
        seen: list[Delivery] = []
        held: dict[bytes | None, Member] = {}
        enough = asyncio.Event()

        async def consume(member: Member) -> None:
            while batch := await member.subscription.receive(5):
                for delivery in batch:
                    assert held.setdefault(delivery.message.key, member) is member
                seen.extend(batch)
                await asyncio.sleep(0)
                if len(seen) >= 320:
                    enough.set()
                for key in {delivery.message.key for delivery in batch}:
                    del held[key]
                await member.ack(batch)

        async with asyncio.timeout(bench.patience * 2), asyncio.TaskGroup() as group:
            for member in members:
                group.create_task(consume(member))
            for number in range(20):
                await send(bench, [number])
            await enough.wait()
            for member in members:
                await member.close()
        assert by_key(seen) == all_of(range(20))

    @needs("order_key")
    @spared_by("order-in-one-process")
    async def test_two_members_share_the_keys(self, bench: Bench) -> None:
        members = [await bench.member(order="key"), await bench.member(order="key")]
        keys = [f"k{number}" for number in range(200)]
        await bench.send(bench.first, bench.name(), [text("0", key) for key in keys])
        one, two = await share(members, len(keys), bench.patience)
        assert min(len(one), len(two)) > 0

    @needs("order_key")
    @spared_by("order-in-one-process")
    async def test_a_key_of_which_something_is_out_stays_with_its_owner_when_another_joins(
        self, bench: Bench
    ) -> None:
        owner = await bench.member(order="key")
        await send(bench, [0])
        held = await owner.take(16)
        other = await bench.member(order="key")
        await send(bench, [1])
        assert by_key(await other.some(0.3)) == {}
        await owner.ack(held)
        rest = await share([owner, other], 16, bench.patience)
        assert by_key(rest[0] + rest[1]) == all_of([1])

    @needs("order_key")
    @spared_by("order-in-one-process")
    async def test_who_joins_gets_its_share_although_the_owner_is_always_busy(self, bench: Bench) -> None:
        keys = [f"k{number}" for number in range(200)]  # enough to have something out in every part
        owner = await bench.member(order="key")
        await bench.send(bench.first, bench.name(), [text("0", key) for key in keys])
        held = await owner.take(200)
        other = await bench.member(order="key")
        for number in range(1, 10):
            await bench.send(bench.first, bench.name(), [text(str(number), key) for key in keys])
            newer = await owner.some(0.1)
            await owner.ack(held)
            held = newer
            if await other.some(0.1):
                return
        message = "the one that joined has got nothing"
        raise AssertionError(message)

    @needs("order_key")
    async def test_the_next_owner_gets_what_was_unsettled_in_order_and_before_what_is_newer(
        self, bench: Bench
    ) -> None:
        owner = await bench.member(order="key")
        await send(bench, range(4))
        # All 64 where a key's next comes before the last one is settled; a broker may wait for that (SQS does).
        taken = [*await owner.take(16), *await owner.some(1.0)]
        done = [each for each in taken if each.message.body == b"1"]
        await owner.ack(done)
        await owner.close()
        await send(bench, [4])
        heir = await bench.member(order="key")
        back = by_key([*await heir.take(16 * 5 - len(done), ack=True), *await heir.some(0.3)])
        for key, numbers in back.items():
            assert [number for number in numbers if number != 1] == [0, 2, 3, 4], key

    @needs("order_key")
    @spared_by("order-in-one-process")
    async def test_a_member_that_stays_takes_over_in_order_from_one_that_leaves(self, bench: Bench) -> None:
        stays, leaves = await bench.member(order="key"), await bench.member(order="key")
        await send(bench, range(5))
        one, two = await share([stays, leaves], 80, bench.patience)
        assert by_key(one).keys() & by_key(two).keys() == set()
        first = [each for each in two if each.message.body == b"0"]
        await leaves.ack(first)
        await stays.ack(one)
        await leaves.close()
        await send(bench, [5])
        expected = len(KEYS) + len(two) - len(first)
        rest = by_key(await stays.take(expected, limit=7, ack=True))
        for key, numbers in rest.items():
            assert numbers == ([1, 2, 3, 4, 5] if key in by_key(two) else [5]), key

    @needs("order_key", "lease")
    @spared_by("order-in-one-process")
    async def test_an_owner_that_dies_midway_leaves_no_inversion(self, bench: Bench) -> None:
        process = await bench.elsewhere()
        dies = await process.member(bench.name(), order="key")
        await send(bench, range(5))
        taken = await dies.take(80)
        await dies.ack([each for each in taken if each.message.body == b"0"])
        await process.stop()
        died = asyncio.get_running_loop().time()
        heir = await bench.member(order="key")
        await send(bench, [5])
        inherited = await heir.take(1, limit=1, ack=True)
        bench.figure(
            "order by key: seconds from an owner's death to its heir's first",
            asyncio.get_running_loop().time() - died,
        )
        inherited += await heir.take(79, limit=7, ack=True)
        if (
            bench.capabilities.log
        ):  # there a commit follows the ack: what was just acked may come again, in its place
            inherited += await heir.some(0.3)
        found = by_key(inherited)
        again = [[0]] if bench.capabilities.log else []
        assert found.keys() == set(KEYS)
        assert all(each[-5:] == [1, 2, 3, 4, 5] and each[:-5] in [[], *again] for each in found.values())

    @needs("order_key", "lease")
    @spared_by("order-in-one-process")
    async def test_an_owner_that_wakes_after_its_lease_gets_only_what_comes_later(self, bench: Bench) -> None:
        process = await bench.elsewhere()
        sleeper = await process.member(bench.name(), order="key")
        await send(bench, range(2))
        await sleeper.take(32)
        await process.stop()
        heir = await bench.member(order="key")
        held = await heir.take(32)
        process.resume()
        await send(bench, [2])
        assert by_key(await sleeper.some(0.4)) == {}
        await heir.ack(held)
        rest = await share([heir, sleeper], 16, bench.patience)
        assert by_key(rest[0] + rest[1]) == all_of([2])

    @needs("order_key")
    async def test_other_keys_flow_while_one_is_held(self, bench: Bench) -> None:
        member = await bench.member(order="key")
        await bench.send(bench.first, bench.name(), [text("0", "held")])
        held = await member.take(1)
        await send(bench, range(10))
        assert by_key(await member.take(160, ack=True)) == all_of(range(10))
        await member.ack(held)

    @needs("order_key", "key_returns")
    async def test_a_return_comes_before_the_newer_ones_of_its_key(self, bench: Bench) -> None:
        member = await bench.member(order="key")
        await bench.send(bench.first, bench.name(), [text(str(number), "k") for number in range(4)])
        taken = await member.take(2)
        await member.subscription.settle([(delivery, Retry()) for delivery in taken])
        assert bodies(await member.take(4, ack=True)) == ["0", "1", "2", "3"]

    @needs("order_key", "key_returns")
    async def test_what_waits_for_its_return_holds_its_key_and_no_other(self, bench: Bench) -> None:
        member = await bench.member(order="key")
        await bench.send(bench.first, bench.name(), [text(str(number), "k") for number in range(4)])
        (first,) = await member.take(1)
        await member.subscription.settle([(first, Retry(after=0.6))])
        await send(bench, range(3))
        others = await member.some(0.3)
        assert by_key(others) == all_of(range(3))
        await member.ack(others)
        assert bodies(await member.take(4, ack=True)) == ["0", "1", "2", "3"]

    @needs("order_key")
    async def test_messages_without_a_key_flow(self, bench: Bench) -> None:
        members = [await bench.member(order="key"), await bench.member(order="key")]
        sent = [str(number) for number in range(100)]
        await bench.send(bench.first, bench.name(), sent)
        one, two = await share(members, 100, bench.patience)
        assert sorted(bodies(one + two), key=int) == sent

    @needs("order_key")
    async def test_members_that_come_and_go_leave_no_inversion(self, bench: Bench) -> None:
        seen: dict[tuple[bytes | None, bytes], Delivery] = {}

        async def done(member: Member, deliveries: Sequence[Delivery]) -> None:
            await member.ack(deliveries)
            for each in deliveries:
                seen.setdefault((each.message.key, each.message.body), each)

        await (await bench.member(order="key")).close()
        await send(bench, range(30))
        for index in range(8):
            members = [await bench.member(order="key") for _ in range(1 + index % 3)]
            for member in members:
                taken = await member.some(0.05, limit=20)
                await done(member, taken[: len(taken) // 2])
            for member in members:
                await member.close()
        last = await bench.member(order="key")
        while len(seen) < 480:
            await done(last, await last.take(1))
        assert by_key(seen.values()) == all_of(range(30))
