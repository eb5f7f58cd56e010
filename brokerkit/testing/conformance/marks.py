"""
Marks: a few bytes beside an unsettled delivery, for its next owner and for nobody else. Tallies: counts of a group.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102

from brokerkit.adapter import Marks, Tallies
from brokerkit.delivery import Delivery
from brokerkit.errors import SettleError, Stale
from brokerkit.settlement import Retry
from brokerkit.testing.conformance.bench import Bench, Member, bodies, inlet
from brokerkit.testing.conformance.gate import needs
from brokerkit.testing.conformance.member import share

__all__ = ["Marking", "Tallying"]


async def write(member: Member, delivery: Delivery, value: bytes | None) -> SettleError | None:
    """Write one mark."""
    assert isinstance(member.subscription, Marks)
    (outcome,) = await member.subscription.mark([(delivery, value)])
    return outcome


class Marking:
    """Tests of `mark`."""

    @needs("marks")
    async def test_a_mark_is_there_for_the_next_owner(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["1", "2"])
        taken = await member.take(2)
        assert [delivery.mark for delivery in taken] == [None, None]
        marked = bodies(taken[:1])
        assert await write(member, taken[0], b"\x00mark\xff") is None
        await member.close()
        again = await (await bench.member()).take(2, ack=True)
        assert {bodies([each])[0]: each.mark for each in again} == {
            body: b"\x00mark\xff" if [body] == marked else None for body in ("1", "2")
        }

    @needs("marks")
    async def test_the_last_mark_counts_and_none_erases_it(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["1"])
        for value in (b"a", b"b", None, b"", b"c" * 1000, None):
            (delivery,) = await member.take(1)
            await write(member, delivery, b"overwritten")
            await write(member, delivery, value)
            await member.subscription.settle([(delivery, Retry())])
            (delivery,) = await member.take(1)
            assert delivery.mark == value
            await member.subscription.settle([(delivery, Retry())])

    @needs("marks")
    async def test_a_mark_outlives_a_return_with_a_delay(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, inlet(bench.name(), "g"), ["1"])
        (delivery,) = await member.take(1)
        await write(member, delivery, b"m")
        await member.subscription.settle([(delivery, Retry(after=0.2))])
        (delivery,) = await member.take(1, ack=True)
        assert delivery.mark == b"m"

    @needs("marks")
    async def test_a_mark_is_the_group_s_own(self, bench: Bench) -> None:
        one, two = await bench.member(group="one"), await bench.member(group="two")
        await bench.send(bench.first, bench.name(), ["1"])
        (delivery,) = await one.take(1)
        await write(one, delivery, b"m")
        (other,) = await two.take(1)
        assert other.mark is None
        await two.subscription.settle([(other, Retry())])
        (other,) = await two.take(1, ack=True)
        assert other.mark is None

    @needs("marks")
    async def test_who_no_longer_holds_it_cannot_mark_it(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["1"])
        (delivery,) = await member.take(1)
        await member.close()
        assert isinstance(await write(member, delivery, b"m"), Stale)
        other = await bench.member()
        (again,) = await other.take(1)
        assert again.mark is None
        assert isinstance(await write(member, delivery, b"m"), Stale)
        await other.subscription.settle([(again, Retry())])
        (again,) = await other.take(1, ack=True)
        assert again.mark is None

    @needs("marks", "lease")
    async def test_a_mark_outlives_the_death_of_who_wrote_it(self, bench: Bench) -> None:
        process = await bench.elsewhere()
        sleeper = await process.member(bench.name())
        await bench.send(bench.first, bench.name(), ["1"])
        (delivery,) = await sleeper.take(1)
        assert await sleeper.mark(delivery, b"before") is None
        await process.stop()
        other = await bench.member()
        (again,) = await other.take(1)
        assert again.mark == b"before"
        process.resume()
        assert isinstance(await sleeper.mark(delivery, b"after"), Stale)
        await other.close()
        # the one that was stopped is a member again, and where a part has one owner it may be that one
        late, woken = await share([await bench.member(), sleeper], 1, bench.patience)
        assert [each.mark for each in (*late, *woken)] == [b"before"]


A, B = "a" * 32, "0123456789abcdef" * 2


async def tally(member: Member, *changes: tuple[str, int]) -> list[object]:
    """Change some counts and return the new ones."""
    assert isinstance(member.subscription, Tallies)
    return list(await member.subscription.tally(changes))


class Tallying:
    """Tests of `tally`."""

    @needs("tallies")
    async def test_a_tally_counts_by_name_and_is_there_for_the_next_member(self, bench: Bench) -> None:
        member = await bench.member()
        assert await tally(member, (A, 0)) == [0]
        assert await tally(member, (A, 1), (B, 1)) == [1, 1]
        assert await tally(member, (A, 1)) == [2]
        await member.close()
        again = await bench.member()
        assert await tally(again, (A, 0), (B, 0)) == [2, 1]
        assert await tally(again, (A, -1), (B, -1)) == [1, 0]
        assert await tally(await bench.member(), (A, 0), (B, 0)) == [1, 0]

    @needs("tallies")
    async def test_a_tally_never_goes_below_zero(self, bench: Bench) -> None:
        member = await bench.member()
        assert await tally(member, (A, -1)) == [0]
        assert await tally(member, (A, 1)) == [1]
        assert await tally(member, (A, -5)) == [0]
        assert await tally(member, (A, 1)) == [1]

    @needs("tallies")
    async def test_a_tally_is_the_group_s_own(self, bench: Bench) -> None:
        one, two = await bench.member(group="one"), await bench.member(group="two")
        assert await tally(one, (A, 1)) == [1]
        assert await tally(two, (A, 0)) == [0]

    @needs("tallies")
    async def test_forty_tallies_are_kept_apart(self, bench: Bench) -> None:
        member = await bench.member()
        names = [f"{number:032x}" for number in range(40)]
        assert await tally(member, *((name, 1) for name in names)) == [1] * 40
        assert await tally(member, *((name, 1) for name in names[::2])) == [2] * 20
        assert await tally(member, *((name, 0) for name in names)) == [2, 1] * 20

    @needs("tallies", "order_key")
    async def test_a_tally_is_kept_with_order_by_key_too(self, bench: Bench) -> None:
        member = await bench.member(order="key")
        assert await tally(member, (A, 1)) == [1]
        await member.close()
        assert await tally(await bench.member(order="key"), (A, 0)) == [1]

    @needs("tallies", "lease")
    async def test_a_tally_outlives_the_death_of_who_counted(self, bench: Bench) -> None:
        await (await bench.member()).close()
        process = await bench.elsewhere()
        dying = await process.member(bench.name())
        assert await dying.tally((A, 1)) == [1]
        await process.stop()
        assert await tally(await bench.member(), (A, 0)) == [1]
