"""
Opening, closing, cancelling and losing the connection: none of it loses a message, and none of it hangs.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102, PLR2004

import asyncio

from brokerkit.adapter import Adapter
from brokerkit.errors import Closed, ConnectionLost
from brokerkit.message import Address
from brokerkit.testing.conformance.bench import Bench, bodies, eventually, inlet, text
from brokerkit.testing.conformance.gate import needs

__all__ = ["Lifecycle"]

_ENOUGH = 20
"""Sends that are confirmed before it is enough."""


class Lifecycle:
    """Tests of `receive`, `close` and reconnection."""

    async def test_close_ends_a_receive_that_waits(self, bench: Bench) -> None:
        member = await bench.member()
        waiting = asyncio.create_task(member.receive())
        await asyncio.sleep(0.05)
        begin = asyncio.get_running_loop().time()
        await member.close()
        assert list(await waiting) == []
        assert asyncio.get_running_loop().time() - begin < 5

    async def test_closing_the_adapter_ends_a_receive_that_waits(self, bench: Bench) -> None:
        adapter = await bench.adapter()
        member = await bench.member(adapter=adapter)
        waiting = asyncio.create_task(member.receive())
        await asyncio.sleep(0.05)
        await adapter.close()
        assert list(await waiting) == []

    async def test_receive_after_close_is_empty(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), ["1"])
        await member.close()
        assert list(await member.receive()) == []

    async def test_ten_closes_at_once_are_one(self, bench: Bench) -> None:
        adapter = await bench.adapter()
        member = await bench.member(adapter=adapter)
        await bench.send(bench.first, bench.name(), ["1"])
        await member.take(1)
        async with asyncio.timeout(bench.patience):
            await asyncio.gather(*(member.subscription.close() for _ in range(10)))
            await asyncio.gather(*(adapter.close() for _ in range(10)))
        assert bodies(await (await bench.member()).take(1, ack=True)) == ["1"]

    async def test_subscribing_on_a_closed_adapter_is_closed(self, bench: Bench) -> None:
        adapter = await bench.adapter()
        await adapter.close()
        try:
            await bench.member(adapter=adapter)
        except Closed:
            return
        message = "subscribe on a closed adapter did not raise Closed"
        raise AssertionError(message)

    async def test_receive_never_exceeds_its_limit(self, bench: Bench) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), [str(number) for number in range(60)])
        taken = 0
        for limit in (1, 2, 7, 50):
            batch = await member.receive(limit)
            assert 1 <= len(batch) <= limit
            taken += len(batch)
        await member.take(60 - taken)

    async def test_a_greedy_receiver_lets_others_of_its_loop_have_their_turn(self, bench: Bench) -> None:
        member = await bench.member()
        # as many as fit into the prefetch of a member: a broker that pushes gives no more before some are settled
        await bench.send(bench.first, bench.name(), [str(number) for number in range(90)])
        turns: list[int] = []
        taken = 0

        async def neighbour() -> None:
            while True:
                await asyncio.sleep(0)
                turns.append(taken)

        task = asyncio.create_task(neighbour())
        while taken < 90:
            taken += len(await member.receive(1))
        task.cancel()
        assert len(set(turns)) > 10

    async def test_a_receive_that_waits_gets_what_comes_within_a_second(self, bench: Bench) -> None:
        member = await bench.member()
        for number in range(5):
            waiting = asyncio.create_task(member.receive())
            await asyncio.sleep(0.05)
            begin = asyncio.get_running_loop().time()
            await bench.send(bench.first, bench.name(), [str(number)])
            await member.ack(await waiting)
            assert asyncio.get_running_loop().time() - begin < 1 + bench.lateness

    async def test_a_receive_that_is_cancelled_200_times_loses_nothing_and_delays_nothing(
        self, bench: Bench
    ) -> None:
        member = await bench.member()
        sent = [str(number) for number in range(200)]
        taken: list[str] = []
        for body in sent:
            waiting = asyncio.create_task(member.subscription.receive(10))
            sending = asyncio.create_task(bench.send(bench.first, bench.name(), [body]))
            for _ in range(int(body) % 7):
                await asyncio.sleep(0)
            waiting.cancel()
            await sending
            (result,) = await asyncio.gather(waiting, return_exceptions=True)
            if not isinstance(result, BaseException):
                taken += bodies(result)
                await member.ack(result)
        begin = asyncio.get_running_loop().time()
        while len(taken) < len(sent):
            batch = await member.receive()
            assert [each.arrivals in {None, 1} for each in batch] == [True] * len(batch)
            taken += bodies(batch)
            await member.ack(batch)
        assert sorted(taken, key=int) == sent
        assert asyncio.get_running_loop().time() - begin < min(
            1 + bench.lateness, bench.capabilities.lease or 10
        )

    async def test_what_a_cancelled_receive_was_to_get_comes_to_it_or_to_its_neighbour(
        self, bench: Bench
    ) -> None:
        gives_up, stays = await bench.member(), await bench.member()
        for number in range(30):
            first = asyncio.create_task(gives_up.receive(1))
            await asyncio.sleep(0.002)
            tasks = {asyncio.create_task(stays.receive(1)): stays}
            sending = asyncio.create_task(bench.send(bench.first, bench.name(), [str(number)]))
            for _ in range(number % 5):
                await asyncio.sleep(0)
            first.cancel()
            await sending
            await asyncio.wait([first])
            # A broker that pushes may have put it into the first one's hands already.
            again = first if not first.cancelled() else asyncio.create_task(gives_up.receive(1))
            tasks[again] = gives_up
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks.keys() - done:
                task.cancel()
            await asyncio.wait(tasks)
            taken = [(member, await task) for task, member in tasks.items() if not task.cancelled()]
            assert [bodies(batch) for _, batch in taken] == [[str(number)]]
            for member, batch in taken:
                await member.ack(batch)

    async def test_opening_and_closing_many_times_loses_nothing(self, bench: Bench) -> None:
        await (await bench.member()).close()
        sent = [str(number) for number in range(100)]
        await bench.send(bench.first, bench.name(), sent)
        seen: set[str] = set()
        for _ in range(10):
            member = await bench.member(adapter=bench.first)
            batch = await member.receive(10)
            done = batch[: len(batch) // 2]
            await member.ack(done)
            seen.update(bodies(done))
            await member.close()
        last = await bench.member()
        while seen != set(sent):
            seen.update(bodies(await last.take(1, ack=True)))

    async def test_two_subscriptions_of_one_adapter_close_apart(self, bench: Bench) -> None:
        one = await bench.member(group="one", adapter=bench.first)
        two = await bench.member(group="two", adapter=bench.first)
        await one.close()
        await bench.send(bench.first, bench.name(), ["1"])
        assert bodies(await two.take(1, ack=True)) == ["1"]

    async def test_what_was_confirmed_outlives_its_sender(self, bench: Bench) -> None:
        member = await bench.member()
        await member.close()
        process = await bench.elsewhere()
        sent = [text(str(number)) for number in range(50)]
        await process.send(Address(bench.name()), sent)
        await process.send(inlet(bench.name(), "g"), [text("late")], after=0.3)
        await process.stop()
        again = await bench.member()
        taken = await again.take(51, ack=True)
        assert sorted(bodies(taken)) == sorted([*(str(number) for number in range(50)), "late"])

    @needs("restarts")
    async def test_after_a_restart_one_subscribes_again_and_goes_on(self, bench: Bench) -> None:
        adapter = await bench.adapter()
        member = await bench.member(adapter=adapter)
        await bench.send(adapter, bench.name(), ["1", "2"])
        (held,) = await member.take(1)
        await bench.restarts.restart()
        up = asyncio.get_running_loop().time()
        try:
            await member.some(0.5)
        except ConnectionLost:
            await member.close()
        else:
            await member.close()
        again = await bench.member(adapter=adapter)
        await eventually(lambda: sends(adapter, bench), bench.patience, "a send that is confirmed")
        bench.figure(
            "restart: seconds until a send is confirmed again", asyncio.get_running_loop().time() - up
        )
        expected = {"1", "2", "3"} if bench.capabilities.durable else {"3"}
        seen: set[str] = set()
        while not expected <= seen:
            seen.update(bodies(await again.take(1, ack=True)))
        assert held.message.body in {b"1", b"2"}

    @needs("restarts")
    async def test_sends_during_a_restart_are_confirmed_or_refused_in_words(self, bench: Bench) -> None:
        await (await bench.member()).close()  # its group exists, and nobody keeps a share and takes nothing
        adapter = await bench.adapter()
        confirmed = ["0"] * await sends(adapter, bench, "0")  # a publisher that has worked before
        restart = asyncio.create_task(bench.restarts.restart())
        number = 0
        async with asyncio.timeout(3 * bench.patience):
            while not restart.done() or len(confirmed) < _ENOUGH:
                number += 1
                async with asyncio.timeout(bench.patience):
                    (outcome,) = await adapter.send(Address(bench.name()), [text(str(number))])
                assert outcome is None or outcome.retryable, outcome
                confirmed += [str(number)] * (outcome is None)
                await asyncio.sleep(0.005)
            await restart
        if bench.capabilities.durable:
            member = await bench.member()
            seen: set[str] = set()
            while not seen >= set(confirmed):
                seen.update(bodies(await member.take(1, ack=True)))


async def sends(adapter: Adapter, bench: Bench, body: str = "3") -> bool:
    """Try to send one more."""
    return list(await adapter.send(Address(bench.name()), [text(body)])) == [None]
