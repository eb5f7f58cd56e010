"""
Groups: every group sees every message, its members share them, and no group notices another.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102

from brokerkit.adapter import Order, Start
from brokerkit.message import Address
from brokerkit.settlement import Retry
from brokerkit.testing.conformance.bench import Bench, bodies, eventually, inlet
from brokerkit.testing.conformance.gate import needs, spared_by
from brokerkit.testing.conformance.member import share

__all__ = ["Groups"]


class Groups:
    """Tests of groups and of where they start."""

    async def test_two_groups_each_get_all(self, bench: Bench) -> None:
        one, two = await bench.member(group="one"), await bench.member(group="two")
        sent = [str(number) for number in range(50)]
        await bench.send(bench.first, bench.name(), sent)
        assert sorted(bodies(await one.take(50, ack=True)), key=int) == sent
        assert sorted(bodies(await two.take(50, ack=True)), key=int) == sent

    async def test_members_share_and_nobody_gets_what_another_holds(self, bench: Bench) -> None:
        members = [await bench.member(), await bench.member(), await bench.member(adapter=bench.first)]
        sent = [str(number) for number in range(120)]
        await bench.send(bench.first, bench.name(), sent)
        held = await share(members, len(sent), bench.patience)
        assert sorted(bodies([*held[0], *held[1], *held[2]]), key=int) == sent

    async def test_settling_in_one_group_changes_nothing_in_another(self, bench: Bench) -> None:
        one, two = await bench.member(group="one"), await bench.member(group="two")
        await bench.send(bench.first, bench.name(), ["1", "2"])
        first, second = await one.take(2)
        await one.subscription.settle([(second, Retry(after=60))])
        await one.ack([first])
        taken = await two.take(2)
        assert sorted(bodies(taken)) == ["1", "2"]
        assert [delivery.arrivals in {None, 1} for delivery in taken] == [True, True]

    @spared_by("no-replay")
    async def test_a_new_group_from_the_earliest_sees_what_is_kept(self, bench: Bench) -> None:
        await bench.send(bench.first, bench.name(), ["1", "2", "3"])
        one = await bench.member(group="one")
        assert sorted(bodies(await one.take(3))) == ["1", "2", "3"]
        two = await bench.member(group="two")
        assert sorted(bodies(await two.take(3, ack=True))) == ["1", "2", "3"]

    async def test_a_new_group_from_the_latest_sees_only_what_comes_after(self, bench: Bench) -> None:
        keeper = await bench.member(group="keeper")
        await bench.send(bench.first, bench.name(), ["old"])
        late = await bench.member(group="late", start="latest")
        await bench.send(bench.first, bench.name(), ["new"])
        assert bodies(await late.take(1, ack=True)) == ["new"]
        await late.nothing()
        assert sorted(bodies(await keeper.take(2, ack=True))) == ["new", "old"]

    async def test_a_group_that_exists_ignores_start(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["1"])
        await member.take(1, ack=True)
        await member.close()
        await bench.send(bench.first, bench.name(), ["2"])
        again = await bench.member(start="latest")
        assert bodies(await again.take(1, ack=True)) == ["2"]
        await again.close()
        third = await bench.member(start="earliest")
        await third.nothing()

    async def test_what_comes_while_no_member_is_there_waits(self, bench: Bench) -> None:
        member = await bench.member()
        await member.close()
        sent = [str(number) for number in range(30)]
        await bench.send(bench.first, bench.name(), sent)
        assert sorted(bodies(await (await bench.member()).take(30, ack=True)), key=int) == sent

    async def test_a_copy_reaches_its_group_only_and_says_where_it_came_in(self, bench: Bench) -> None:
        one, two = await bench.member(group="one"), await bench.member(group="two")
        await bench.send(bench.first, inlet(bench.name(), "one"), ["copy"])
        await bench.send(bench.first, bench.name(), ["to all"])
        addresses = {bodies([each])[0]: each.address for each in await one.take(2, ack=True)}
        assert addresses == {"copy": inlet(bench.name(), "one"), "to all": Address(bench.name())}
        assert bodies(await two.take(1, ack=True)) == ["to all"]
        await two.nothing()

    async def test_a_copy_that_comes_back_still_says_where_it_came_in(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, inlet(bench.name(), "g"), ["copy"])
        await member.take(1)
        await member.close()
        (again,) = await (await bench.member()).take(1, ack=True)
        assert again.address == inlet(bench.name(), "g")

    @needs("provisions")
    async def test_provision_names_what_is_missing_and_makes_it_on_request(self, bench: Bench) -> None:
        adapter = bench.provisions
        places: list[tuple[Address, Start, Order]] = [
            (inlet(bench.name(), "g"), "earliest", "none"),
            (Address(bench.name(), "g", "dead"), "earliest", "none"),
        ]
        assert await adapter.provision(places, create=False)
        await adapter.provision(places, create=True)
        assert list(await adapter.provision(places, create=True)) == []
        assert list(await adapter.provision(places, create=False)) == []
        await bench.send(bench.first, bench.name(), ["1"])
        assert bodies(await (await bench.member(start="latest")).take(1, ack=True)) == ["1"]

    @needs("browses")
    async def test_groups_that_exist_are_listed(self, bench: Bench) -> None:
        await bench.member(group="one")
        await bench.member(group="two")
        found = await bench.browses.groups()
        assert {"one", "two"} == {group for channel, group in found if channel == bench.name()}

    @needs("describes")
    async def test_the_commands_of_an_operator_are_text_and_the_same_every_time(self, bench: Bench) -> None:
        places: list[tuple[Address, Start, Order]] = [
            (inlet(bench.name("a"), "g"), "earliest", "none"),
            (inlet(bench.name("b"), "g"), "latest", "none"),
        ]
        commands = bench.describes.commands(places)
        assert commands
        assert all(command.strip() for command in commands)
        assert bench.describes.commands(places) == commands

    @needs("identifies")
    async def test_the_server_says_what_it_is(self, bench: Bench) -> None:
        assert bench.identifies.server.strip()

    @needs("measures")
    async def test_measure_counts_what_waits_is_delayed_and_is_out(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), [str(number) for number in range(5)])
        await bench.send(bench.first, inlet(bench.name(), "g"), ["later"], after=60)
        await member.take(2)

        found = await bench.measures.measure(inlet(bench.name(), "g"))

        async def settled_down() -> bool:
            nonlocal found
            found = await bench.measures.measure(inlet(bench.name(), "g"))
            return (found.waiting, found.delayed, found.in_flight) == (3, 1, 2)

        # what is out is written down a moment later by some brokers
        await eventually(settled_down, bench.patience, "3 that wait, 1 delayed, 2 in flight")
        assert found.oldest is None or 0 <= found.oldest < bench.patience
