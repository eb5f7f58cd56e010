"""
Settlement: what is acked is gone, what is not comes back, and who no longer holds something changes nothing.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102, PLR2004

import asyncio

from brokerkit.adapter import Settled
from brokerkit.errors import SettleError, Stale
from brokerkit.settlement import ACK, Retry
from brokerkit.testing.conformance.bench import Bench, bodies
from brokerkit.testing.conformance.gate import needs, spared_by
from brokerkit.testing.conformance.member import share

__all__ = ["Settlement"]


def harmless(outcome: SettleError | None) -> bool:
    """Return whether an outcome is one that a second settlement may have."""
    return outcome is None or isinstance(outcome, Stale)


class Settlement:
    """Tests of `settle`, of returns and of arrivals."""

    @spared_by("acked-may-return")
    async def test_what_is_acked_does_not_return(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), [str(number) for number in range(20)])
        await member.take(20, ack=True)
        await member.close()
        again = await bench.member()
        await bench.send(bench.first, bench.name(), ["next"])
        assert bodies(await again.until("next")) == []
        await again.nothing()

    async def test_what_is_unsettled_returns_after_close(self, bench: Bench) -> None:
        member = await bench.member()
        sent = [str(number) for number in range(20)]
        await bench.send(bench.first, bench.name(), sent)
        await member.take(20)
        await member.close()
        assert sorted(bodies(await (await bench.member()).take(20, ack=True)), key=int) == sent

    async def test_what_is_unsettled_returns_after_the_adapter_closes(self, bench: Bench) -> None:
        adapter = await bench.adapter()
        member = await bench.member(adapter=adapter)
        await bench.send(bench.first, bench.name(), ["1", "2"])
        await member.take(2)
        await adapter.close()
        assert sorted(bodies(await (await bench.member()).take(2, ack=True))) == ["1", "2"]

    async def test_settling_out_of_order_loses_nothing(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), [str(number) for number in range(20)])
        taken = await member.take(20)
        await member.ack([each for each in reversed(taken) if int(each.message.body) % 2])
        await member.close()
        even = {str(number) for number in range(0, 20, 2)}
        again = await bench.member()
        back = set(bodies(await again.take(10, ack=True)))
        if bench.capabilities.log:
            back |= set(bodies(await again.some(1.0)))
            assert back >= even
        else:
            assert back == even

    async def test_a_second_ack_is_harmless_and_so_are_its_neighbours(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["1", "2", "3"])
        one, two, three = await member.take(3)
        same_batch = await member.subscription.settle([(one, ACK), (one, ACK), (two, ACK)])
        assert (same_batch[0], harmless(same_batch[1]), same_batch[2]) == (None, True, None)
        later = await member.subscription.settle([(one, ACK), (three, ACK), (two, Retry())])
        assert (harmless(later[0]), later[1], harmless(later[2])) == (True, None, True)
        await bench.send(bench.first, bench.name(), ["next"])
        assert bodies(await member.until("next")) == []
        await member.nothing()

    async def test_an_ack_after_a_return_does_not_lose_the_message(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["1"])
        (old,) = await member.take(1)
        assert list(await member.subscription.settle([(old, Retry())])) == [None]
        (outcome,) = await member.subscription.settle([(old, ACK)])
        assert isinstance(outcome, Stale)
        (new,) = await member.take(1)
        assert new is not old
        (outcome,) = await member.subscription.settle([(old, ACK)])
        assert isinstance(outcome, Stale)
        await member.ack([new])

    async def test_settling_nothing_is_nothing(self, bench: Bench) -> None:
        assert list(await (await bench.member()).subscription.settle([])) == []

    async def test_settling_what_another_member_holds_is_stale_or_done_once(self, bench: Bench) -> None:
        holder = await bench.member()
        await bench.send(bench.first, bench.name(), ["1", "2"])
        taken = await holder.take(2)
        other = await bench.member()  # not before: a broker that pushes would have given it its half
        outcomes = await other.subscription.settle([(delivery, ACK) for delivery in taken])
        if outcomes == [None, None]:  # a receipt is a bearer's, as on SQS: then it is settled, and truly
            assert all(map(harmless, await holder.subscription.settle([(each, ACK) for each in taken])))
            await holder.close()
            await other.nothing()
            return
        assert [type(outcome) for outcome in outcomes] == [Stale, Stale]
        await other.nothing()
        await holder.ack(taken[1:])
        await holder.close()
        assert bodies(await other.take(1, ack=True)) == bodies(taken[:1])

    @needs("lease")
    async def test_an_old_delivery_does_not_settle_the_new_one_of_the_same_member(self, bench: Bench) -> None:
        process = await bench.elsewhere()
        sleeper = await process.member(bench.name())
        await bench.send(bench.first, bench.name(), ["1"])
        old = await sleeper.take(1)
        await process.stop()
        other = await bench.member()
        await other.take(1)
        process.resume()
        assert await sleeper.lost() == old
        await other.close()
        new = await sleeper.take(1)
        (outcome,) = await sleeper.settle([(old[0], ACK)])
        assert isinstance(outcome, Stale)
        (outcome,) = await sleeper.settle([(new[0], Retry())])
        assert outcome is None
        assert bodies(await sleeper.take(1)) == ["1"]

    async def test_settling_after_close_is_stale_and_harmless(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["1", "2"])
        one, two = await member.take(2)
        await member.close()
        outcomes = await member.subscription.settle([(one, ACK), (two, Retry(after=60))])
        assert [type(outcome) for outcome in outcomes] == [Stale, Stale]
        again = await bench.member()
        assert sorted(bodies(await again.take(2))) == ["1", "2"]
        outcomes = await member.subscription.settle([(one, ACK), (two, ACK)])
        assert [type(outcome) for outcome in outcomes] == [Stale, Stale]
        await again.close()
        assert sorted(bodies(await (await bench.member()).take(2, ack=True))) == ["1", "2"]

    async def test_a_return_comes_back_as_a_new_delivery_of_the_same_message(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["1"])
        (old,) = await member.take(1)
        await member.subscription.settle([(old, Retry())])
        (new,) = await member.take(1, ack=True)
        assert new is not old
        assert (new.message, new.address) == (old.message, old.address)

    async def test_a_return_is_not_early_and_not_late(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["0.2", "0.5", "0.8"])
        taken = await member.take(3)
        begin = asyncio.get_running_loop().time()
        returns = [(delivery, Retry(after=float(delivery.message.body))) for delivery in taken]
        assert list(await member.subscription.settle(returns)) == [None] * 3
        for _ in range(3):
            (delivery,) = await member.take(1, ack=True)
            late = asyncio.get_running_loop().time() - begin - float(delivery.message.body)
            bench.figure("uncounted return, seconds late", late)
            assert -0.001 <= late <= bench.lateness, delivery.message.body

    async def test_a_return_that_waits_stops_nothing_else(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), [str(number) for number in range(50)])
        taken = await member.take(50)
        await member.subscription.settle([(delivery, Retry(after=60)) for delivery in taken])
        await bench.send(bench.first, bench.name(), [f"new-{number}" for number in range(50)])
        assert {body[:4] for body in bodies(await member.take(50, ack=True))} == {"new-"}

    async def test_a_position_is_the_message_s_own_and_the_same_at_every_arrival(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["1", "2"])
        first = {bodies([each])[0]: each.position for each in await member.take(2)}
        await member.close()
        again = await (await bench.member()).take(2, ack=True)
        assert {bodies([each])[0]: each.position for each in again} == first
        assert first["1"] != first["2"] or first["1"] is None

    @needs("counts_arrivals")
    async def test_arrivals_count_from_one(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["1"])
        (delivery,) = await member.take(1)
        assert (delivery.arrivals, delivery.returns, delivery.suspect) == (1, 0, False)

    @needs("counts_arrivals")
    @spared_by("returns-count-as-arrivals")
    async def test_polite_returns_never_make_a_suspect(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["1"])
        for arrival in range(1, 6):
            (delivery,) = await member.take(1)
            assert (delivery.arrivals, delivery.returns, delivery.suspect) == (arrival, arrival - 1, False)
            if arrival % 2:
                await member.subscription.settle([(delivery, Retry(after=0.01))])
            else:
                await member.close()
                member = await bench.member()

    @needs("lease", "counts_arrivals")
    async def test_two_deaths_make_a_suspect(self, bench: Bench) -> None:
        await (await bench.member()).close()  # the group exists
        await bench.send(bench.first, bench.name(), ["1"])
        for arrival in (1, 2):
            process = await bench.elsewhere()
            member = await process.member(bench.name())
            (delivery,) = await member.take(1)
            assert (delivery.arrivals, delivery.suspect) == (arrival, False)
            await process.stop()
        died = asyncio.get_running_loop().time()
        (delivery,) = await (await bench.member()).take(1, ack=True)
        bench.figure("redelivery: seconds after a death", asyncio.get_running_loop().time() - died)
        assert (delivery.arrivals, delivery.returns, delivery.suspect) == (3, 0, True)

    @needs("lease")
    async def test_a_late_settlement_after_the_lease_is_stale_and_harms_nothing(self, bench: Bench) -> None:
        process = await bench.elsewhere()
        sleeper = await process.member(bench.name())
        await bench.send(bench.first, bench.name(), ["1", "2"])
        held = await sleeper.take(2)
        await process.stop()
        other = await bench.member()
        taken = await other.take(2)
        assert sorted(bodies(taken)) == ["1", "2"]
        process.resume()
        late: list[Settled] = [(held[0], ACK), (held[1], Retry(after=60))]
        outcomes = await sleeper.settle(late)
        assert [type(outcome) for outcome in outcomes] == [Stale, Stale]
        await other.ack(taken[:1])
        await other.close()
        # the one that was stopped is a member again, and where a part has one owner it may be that one
        late_one, woken = await share([await bench.member(), sleeper], 1, bench.patience)
        assert bodies([*late_one, *woken]) == bodies(taken[1:])

    @needs("lease")
    async def test_who_loses_its_lease_is_told(self, bench: Bench) -> None:
        process = await bench.elsewhere()
        sleeper = await process.member(bench.name())
        await bench.send(bench.first, bench.name(), ["1"])
        held = await sleeper.take(1)
        await process.stop()
        await (await bench.member()).take(1, ack=True)
        process.resume()
        assert await sleeper.lost() == held

    @needs("lease")
    async def test_who_has_lost_its_lease_goes_on_with_what_is_new(self, bench: Bench) -> None:
        process = await bench.elsewhere()
        sleeper = await process.member(bench.name())
        await bench.send(bench.first, bench.name(), ["1"])
        await sleeper.take(1)
        await process.stop()
        other = await bench.member()
        await other.take(1, ack=True)
        await other.close()
        process.resume()
        await bench.send(bench.first, bench.name(), ["2"])
        assert bodies(await sleeper.take(1, ack=True)) == ["2"]

    @needs("lease")
    async def test_a_long_holder_keeps_what_it_holds(self, bench: Bench) -> None:
        holder, other = await bench.member(), await bench.member()
        await bench.send(bench.first, bench.name(), ["1"])
        mine, theirs = await share([holder, other], 1, bench.patience)
        if theirs:
            holder, other = other, holder
        taken = mine or theirs
        await other.nothing(2.5 * (bench.capabilities.lease or 0))
        await holder.ack(taken)
        assert holder.lost == []
