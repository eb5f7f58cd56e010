"""
Delayed copies: not early, not much too late, in nobody's way, and for their group only.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102, PLR2004

import asyncio

from brokerkit.errors import DelayTooLong
from brokerkit.message import Address
from brokerkit.testing.conformance.bench import Bench, bodies, inlet, text
from brokerkit.testing.conformance.gate import needs

__all__ = ["Delay"]

WAITING = 2_000


class Delay:
    """Tests of `send(inlet, after=...)`."""

    async def test_a_delayed_copy_is_not_early_and_not_late(self, bench: Bench) -> None:
        member = await bench.member()
        begin = asyncio.get_running_loop().time()
        for after in (0.8, 0.2, 0.5):
            await bench.send(bench.first, inlet(bench.name(), "g"), [str(after)], after=after)
        for _ in range(3):
            (delivery,) = await member.take(1, ack=True)
            late = asyncio.get_running_loop().time() - begin - float(delivery.message.body)
            bench.figure("delayed copy, seconds late", late)
            assert -0.001 <= late <= bench.lateness, delivery.message.body

    async def test_each_of_a_batch_has_its_own_delay(self, bench: Bench) -> None:
        member = await bench.member()
        begin = asyncio.get_running_loop().time()
        delays = [0.6, 0.0, 0.3]
        await bench.send(
            bench.first, inlet(bench.name(), "g"), [str(after) for after in delays], after=delays
        )
        for _ in range(3):
            (delivery,) = await member.take(1, ack=True)
            late = asyncio.get_running_loop().time() - begin - float(delivery.message.body)
            bench.figure("delayed copy, seconds late", late)
            assert -0.001 <= late <= bench.lateness, delivery.message.body

    async def test_a_delayed_copy_wakes_a_receive_that_waits_for_a_later_one(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, inlet(bench.name(), "g"), ["later"], after=30)
        waiting = asyncio.create_task(member.take(1, ack=True))
        await asyncio.sleep(0.05)
        await bench.send(await bench.adapter(), inlet(bench.name(), "g"), ["sooner"], after=0.2)
        assert bodies(await waiting) == ["sooner"]

    async def test_a_delayed_copy_reaches_no_other_group(self, bench: Bench) -> None:
        one, two = await bench.member(group="one"), await bench.member(group="two")
        await bench.send(bench.first, inlet(bench.name(), "one"), ["copy"], after=0.2)
        (delivery,) = await one.take(1, ack=True)
        assert delivery.address == inlet(bench.name(), "one")
        await two.nothing()

    async def test_two_thousand_that_wait_do_not_stop_the_intake(self, bench: Bench) -> None:
        member = await bench.member()
        for _ in range(WAITING // 200):
            await bench.send(bench.first, inlet(bench.name(), "g"), ["waits"] * 200, after=120)
        for number in range(3):
            await bench.send(bench.first, bench.name(), [f"{number}-{each}" for each in range(100)])
            taken = bodies(await member.take(100, ack=True))
            assert sorted(taken) == sorted(f"{number}-{each}" for each in range(100))

    async def test_a_copy_that_was_due_while_nobody_was_there_comes_at_once(self, bench: Bench) -> None:
        member = await bench.member()
        await member.close()
        await bench.send(bench.first, inlet(bench.name(), "g"), ["1"], after=0.2)
        await asyncio.sleep(0.3)
        assert bodies(await (await bench.member()).take(1, ack=True)) == ["1"]

    async def test_a_delayed_copy_outlives_its_sender_and_its_group_s_members(self, bench: Bench) -> None:
        member = await bench.member()
        sender = await bench.adapter()
        begin = asyncio.get_running_loop().time()
        await bench.send(sender, inlet(bench.name(), "g"), ["1"], after=0.5)
        await sender.close()
        await member.close()
        assert bodies(await (await bench.member()).take(1, ack=True)) == ["1"]
        assert asyncio.get_running_loop().time() - begin >= 0.499

    @needs("durable", "restarts")
    async def test_a_delayed_copy_outlives_a_restart(self, bench: Bench) -> None:
        member = await bench.member()
        begin = asyncio.get_running_loop().time()
        await bench.send(bench.first, inlet(bench.name(), "g"), ["1"], after=1.0)
        await member.close()
        await bench.restarts.restart()
        again = await bench.member()
        assert bodies(await again.take(1, ack=True)) == ["1"]
        assert bench.spared("early-after-restart") or asyncio.get_running_loop().time() - begin >= 0.999

    @needs("max_delay")
    async def test_a_delay_above_the_maximum_is_refused_and_the_maximum_is_not(self, bench: Bench) -> None:
        member = await bench.member()
        most = bench.capabilities.max_delay
        outcomes = await bench.first.send(
            inlet(bench.name(), "g"), [text("1"), text("2"), text("3")], after=[most, most + 1, 0]
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), DelayTooLong, type(None)]
        assert bodies(await member.take(1, ack=True)) == ["3"]
        await member.nothing()

    @needs("order_key")
    async def test_a_delayed_copy_comes_with_order_by_key_too(self, bench: Bench) -> None:
        member = await bench.member(order="key")
        await bench.send(bench.first, inlet(bench.name(), "g"), [text("late", "k")], after=1.0)
        await bench.send(bench.first, bench.name(), [text("1", "k"), text("2", "k")])
        taken = await member.take(3, ack=True)
        assert bodies(taken) == ["1", "2", "late"]
        assert [delivery.address for delivery in taken[1:]] == [
            Address(bench.name()),
            inlet(bench.name(), "g"),
        ]

    @needs("order_key")
    async def test_copies_for_keys_of_which_nothing_new_comes_are_handed_out_once(self, bench: Bench) -> None:
        members = [await bench.member(order="key"), await bench.member(order="key")]
        sent = [text(str(number), f"k{number}") for number in range(20)]
        await bench.send(bench.first, inlet(bench.name(), "g"), sent)
        taken: list[str] = []
        async with asyncio.timeout(bench.patience):
            while len(taken) < len(sent):
                for member in members:
                    came = await member.some(0.05)
                    await member.ack(came)
                    taken += bodies(came)
        assert sorted(taken, key=int) == [str(number) for number in range(20)]
