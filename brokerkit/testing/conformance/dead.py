"""
Dead places: kept apart, readable without taking, and the way back leads to the one group.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102, PLR2004

from brokerkit.delivery import Delivery
from brokerkit.message import Address, Message
from brokerkit.testing.conformance.bench import Bench, bodies, inlet, text
from brokerkit.testing.conformance.gate import needs

__all__ = ["DeadPlace"]


def dead(channel: str, group: str = "g") -> Address:
    """Return a group's dead place."""
    return Address(channel, group, "dead")


async def pages(bench: Bench, at: Address, limit: int, cursor: str | None = None) -> list[Delivery]:
    """Browse to the end."""
    found: list[Delivery] = []
    while True:
        page, cursor = await bench.browses.browse(at, cursor=cursor, limit=limit)
        assert len(page) <= limit
        found.extend(page)
        if cursor is None or not page:
            return found


class DeadPlace:
    """Tests of dead places and of browsing."""

    async def test_a_dead_letter_is_kept_for_its_group_and_reaches_no_handler(self, bench: Bench) -> None:
        one, two = await bench.member(group="one"), await bench.member(group="two")
        letter = Message(body=b"\x00x", key=b"k", headers=(("bk-story", "{}"), ("a", b"\xff")))
        await bench.send(bench.first, dead(bench.name(), "one"), [letter])
        letters = await bench.member(group="one", place="dead")
        others = await bench.member(group="two", place="dead")
        (delivery,) = await letters.take(1, ack=True)
        assert (delivery.message, delivery.address) == (letter, dead(bench.name(), "one"))
        for member in (one, two, others):
            await member.nothing(0.1)

    async def test_an_unsettled_dead_letter_stays_and_a_settled_one_goes(self, bench: Bench) -> None:
        await bench.member()
        await bench.send(bench.first, dead(bench.name()), ["1", "2", "3"])
        letters = await bench.member(place="dead")
        taken = await letters.take(3)
        await letters.ack(taken[:1])
        await letters.close()
        again = await bench.member(place="dead")
        assert sorted(bodies(await again.take(2, ack=True))) == sorted(bodies(taken[1:]))
        await again.nothing()

    async def test_a_letter_sent_back_reaches_the_group_that_failed_it_and_no_other(
        self, bench: Bench
    ) -> None:
        one, two = await bench.member(group="one"), await bench.member(group="two")
        await bench.send(bench.first, bench.name(), ["1"])
        (failed,) = await one.take(1)
        await two.take(1, ack=True)
        await bench.send(bench.first, dead(bench.name(), "one"), [failed.message])
        await one.ack([failed])
        letters = await bench.member(group="one", place="dead")
        (letter,) = await letters.take(1)
        await bench.send(bench.first, inlet(bench.name(), "one"), [letter.message])
        await letters.ack([letter])
        assert bodies(await one.take(1, ack=True)) == ["1"]
        await two.nothing()

    @needs("browses")
    async def test_browsing_reads_dead_letters_in_pages_and_takes_none(self, bench: Bench) -> None:
        await bench.member()
        sent = [str(number) for number in range(25)]
        await bench.send(bench.first, dead(bench.name()), sent)
        assert bodies(await pages(bench, dead(bench.name()), 10)) == sent
        assert bodies(await pages(bench, dead(bench.name()), 25)) == sent
        letters = await bench.member(place="dead")
        found = {each.message.body: each.position for each in await pages(bench, dead(bench.name()), 25)}
        taken = await letters.take(25)
        assert {each.message.body: each.position for each in taken} == found
        assert sorted(bodies(taken), key=int) == sent
        await letters.ack(each for each in taken if int(each.message.body) > 4)
        assert bodies(await pages(bench, dead(bench.name()), 3)) == sent[:5]

    @needs("browses")
    async def test_browsing_an_empty_place_ends_at_once(self, bench: Bench) -> None:
        await bench.member()
        await bench.member(place="dead")
        assert await pages(bench, dead(bench.name()), 10) == []

    @needs("browses")
    async def test_a_channel_can_be_followed_from_its_end(self, bench: Bench) -> None:
        await bench.member()
        await bench.send(bench.first, bench.name(), ["old"])
        page, cursor = await bench.browses.browse(Address(bench.name()), cursor="end", limit=10)
        assert bodies(page) == []
        assert cursor is not None, "without a cursor nothing can be followed from the end"
        for body in ("1", "2"):
            await bench.send(bench.first, bench.name(), [body])
            page, after = await bench.browses.browse(Address(bench.name()), cursor=cursor, limit=10)
            assert (bodies(page), page[0].message.body) == ([body], body.encode())
            assert after is not None, "a page that is not empty says where it ends"
            cursor = after
        page, _ = await bench.browses.browse(Address(bench.name()), cursor=cursor, limit=10)
        assert bodies(page) == []

    @needs("browses")
    async def test_browsing_a_channel_disturbs_no_group(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), [text("1", "k"), text("2", "k")])
        found = await pages(bench, Address(bench.name()), 1)
        assert bodies(found) == ["1", "2"]
        assert {delivery.address for delivery in found} == {Address(bench.name())}
        taken = await member.take(2, ack=True)
        assert [delivery.arrivals in {None, 1} for delivery in taken] == [True, True]
