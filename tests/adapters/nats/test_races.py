"""Moments of which a real server shows one in a thousand: each is played with a stub, on a loop whose time is its own."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from brokerkit.adapters.nats.failure import NoAnswer
from brokerkit.delivery import Delivery
from brokerkit.errors import Unavailable
from brokerkit.settlement import ACK, Retry
from brokerkit.testing import run_virtual
from tests.adapters.nats.stubs import NOTHING, StubApi, World, comes, pinned, stand_still


def play(what: Coroutine[Any, Any, None]) -> None:
    run_virtual(what, horizon=300)


async def a_moment() -> None:
    """Let everything run that can run now."""
    for _ in range(20):
        await asyncio.sleep(0)


def numbers(deliveries: list[Delivery]) -> list[str]:
    return [each.message.body.decode() for each in deliveries]


async def no_answer(_subject: str, _data: bytes) -> bytes:
    text = "no answer within 5 s"
    raise NoAnswer(text)


# -- a loop that stood still


def test_what_comes_after_a_standstill_is_believed_only_behind_an_answer_to_something_asked_after_it() -> (
    None
):
    async def main() -> None:
        world = World(lease=3.0)
        member = await world.competing()
        receiving = asyncio.create_task(member.receive(10))
        await a_moment()
        answered = asyncio.Event()

        async def late(_: str) -> dict[str, Any]:
            await answered.wait()
            return NOTHING

        world.api.info = late
        stand_still(20.0)
        member._tick()  # the overdue timer comes first, then what lay in the socket
        comes(member.sources[0], 1)
        await a_moment()
        comes(member.sources[0], 2)
        await a_moment()
        assert not receiving.done()
        answered.set()
        await a_moment()
        comes(member.sources[0], 3)
        assert numbers(list(await receiving)) == ["3"]
        await member.close()

    play(main())


def test_a_standstill_does_not_drop_what_a_pinned_partition_brings_for_the_pin_decides_there() -> None:
    async def main() -> None:
        world = World(lease=3.0)
        world.api.info = owned_by("me")
        member = await world.keyed(pin_timeout=30.0)
        source = member.parts[0].source
        comes(source, 1, pin="me")
        await asyncio.sleep(0.1)
        assert member.parts[0].state == "owned"
        stand_still(2.0)
        member._tick()
        comes(source, 2, pin="me")
        comes(source, 3, pin="me")
        assert numbers(list(await member.receive(10))) == ["1", "2", "3"]
        await member.close()

    play(main())


# -- credit


def test_credit_that_was_used_up_by_what_a_standstill_made_doubtful_is_asked_for_again() -> None:
    async def main() -> None:
        world = World(place="dead", lease=3.0)
        member = await world.competing()
        receiving = asyncio.create_task(member.receive(2))
        await a_moment()
        assert world.link.asked("c--dead", "g") == 2
        stand_still(2.0)
        comes(member.sources[0], 1)
        comes(member.sources[0], 2)
        await a_moment()
        assert world.link.asked("c--dead", "g") == 4
        comes(member.sources[0], 1, deliveries=2)
        assert numbers(list(await receiving)) == ["1"]
        await member.close()

    play(main())


def test_credit_that_was_used_up_by_what_is_held_already_is_asked_for_again() -> None:
    async def main() -> None:
        world = World(place="dead", lease=30.0)
        member = await world.competing()
        receiving = asyncio.create_task(member.receive(1))
        await a_moment()
        comes(member.sources[0], 1)
        await receiving
        receiving = asyncio.create_task(member.receive(1))
        await a_moment()
        asked = world.link.asked("c--dead", "g")
        while member.sources[0].credit:
            comes(member.sources[0], 1, deliveries=2)  # the server has forgotten that it is here
        await a_moment()
        assert world.link.asked("c--dead", "g") > asked
        comes(member.sources[0], 2)
        assert numbers(list(await receiving)) == ["2"]
        await member.close()

    play(main())


def test_credit_that_was_used_up_by_copies_for_others_is_asked_for_again() -> None:
    async def main() -> None:
        world = World(lease=3.0)
        world.api.info = owned_by("somebody")
        member = await world.keyed()
        receiving = asyncio.create_task(member.receive(2))
        await asyncio.sleep(0.1)
        asked = world.link.asked("c--inlet", "g")
        inlet = member.sources[-1]
        while inlet.credit:
            comes(inlet, inlet.credit, key="k")
        await a_moment()
        assert world.link.asked("c--inlet", "g") > asked
        assert len(world.link.data_for("$JS.ACK.c--inlet.g.")) == asked
        receiving.cancel()
        await member.close()

    play(main())


def test_what_a_killed_server_has_forgotten_to_have_sent_is_asked_for_again_so_that_it_can_be_acked() -> None:
    async def main() -> None:
        world = World(lease=30.0)
        member = await world.competing()
        receiving = asyncio.create_task(member.receive(3))
        await a_moment()
        source = member.sources[0]
        for seq in (1, 2, 3):
            comes(source, seq)
        held = list(await receiving)
        await asyncio.sleep(1.0)  # whoever was quick is asked for ahead no more
        asked, failures = world.link.asked("c", "g"), [1]

        async def info(name: str) -> dict[str, Any]:
            if failures:
                failures.pop()
                text = "nothing listens: the server has only just begun"
                raise NoAnswer(text)
            return {**NOTHING, "delivered": {"stream_seq": 1 if name == "g" else 0, "consumer_seq": 1}}

        world.api.info = info
        for tell in list(world.link.on_back):  # nobody waits in receive: there is no room for more
            tell()
        await asyncio.sleep(2.0)
        assert world.link.asked("c", "g") == asked + 2
        comes(source, 2, deliveries=1)
        comes(source, 3, deliveries=1)
        assert list(await member.settle([(each, ACK) for each in held])) == [None] * 3
        await member.close()

    play(main())


# -- what is given back


def test_a_return_whose_answer_was_lost_is_not_sent_again_and_its_lease_is_not_renewed() -> None:
    async def main() -> None:
        world = World(lease=3.0)
        member = await world.competing()
        receiving = asyncio.create_task(member.receive(1))
        await a_moment()
        comes(member.sources[0], 1)
        (delivery,) = await receiving
        world.link.answer = no_answer
        (outcome,) = await member.settle([(delivery, Retry())])
        assert isinstance(outcome, Unavailable)
        world.link.answer = world.link.says_ok
        await asyncio.sleep(2.5)
        assert list(await member.settle([(delivery, Retry())])) == [None]
        assert world.link.data_for("$JS.ACK.") == [b"-NAK"]
        await member.close()

    play(main())


def test_a_return_that_failed_before_it_was_written_is_written_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        world = World(lease=3.0)
        member = await world.competing()
        receiving = asyncio.create_task(member.receive(2))
        await a_moment()
        comes(member.sources[0], 1)
        comes(member.sources[0], 2)
        done, returned = await receiving

        async def fails(*_: object) -> None:
            text = "there is no connection"
            raise NoAnswer(text, written=False)

        known = (member.sources[0].stream, member.sources[0].name, (2, 1000))
        world.site.returns.add(*known)  # an earlier one
        with monkeypatch.context() as faulty:
            faulty.setattr(member, "before_acks", fails)
            outcomes = await member.settle([(done, ACK), (returned, Retry())])
            assert [type(each) for each in outcomes] == [Unavailable, Unavailable]
        assert world.link.data_for("$JS.ACK.") == []
        assert world.site.returns.count(*known) == 1
        assert list(await member.settle([(done, ACK), (returned, Retry())])) == [None, None]
        assert world.site.returns.count(*known) == 2
        assert world.link.data_for("$JS.ACK.") == [b"+ACK", b"-NAK"]
        await member.close()

    play(main())


def test_a_return_that_could_not_be_written_is_written_later() -> None:
    async def main() -> None:
        world = World(lease=3.0)
        member = await world.competing()
        receiving = asyncio.create_task(member.receive(1))
        await a_moment()
        comes(member.sources[0], 1)
        (delivery,) = await receiving
        world.link.up = False
        (outcome,) = await member.settle([(delivery, Retry())])
        assert isinstance(outcome, Unavailable)
        world.link.up = True
        assert list(await member.settle([(delivery, Retry())])) == [None]
        assert world.link.data_for("$JS.ACK.") == [b"-NAK"]
        await member.close()

    play(main())


# -- partitions


def owned_by(pin: str, **more: Any) -> Any:
    async def info(_: str) -> dict[str, Any]:
        return pinned(pin, **more) if pin else {**NOTHING, **more}

    return info


def test_a_consumer_that_does_not_answer_costs_no_other_partition() -> None:
    async def main() -> None:
        world = World(lease=30.0)

        async def info(name: str) -> dict[str, Any]:
            if name == "g--p1":
                await asyncio.Event().wait()
            return pinned("me")

        world.api.info = info
        member = await world.keyed(partitions=2)
        comes(member.parts[0].source, 1, pin="me")
        assert numbers(list(await member.receive(1))) == ["1"]
        await asyncio.sleep(30.0)
        assert [part.state for part in member.parts] == ["owned", "claiming"]
        assert world.lost == []
        await member.close()

    play(main())


def test_a_claim_whose_inbox_could_not_be_opened_is_made_again() -> None:
    async def main() -> None:
        world = World(lease=3.0)
        member = await world.keyed()
        await a_moment()
        await member.parts[0].source.drain()  # as if it had never been opened
        member.parts[0].state = "idle"
        world.link.refused_listens = 1
        member.changed()
        await a_moment()
        asked = world.link.asked("c", "g--p0")
        await asyncio.sleep(3.0)
        assert world.link.asked("c", "g--p0") > asked
        await member.close()

    play(main())


def test_a_copy_is_not_taken_on_a_claim_of_a_partition_that_somebody_is_pinned_to() -> None:
    async def main() -> None:
        for pin, taken in (("somebody", 0), ("", 1)):
            world = World(lease=3.0)
            world.api.info = owned_by(pin)
            member = await world.keyed()
            await a_moment()
            receiving = asyncio.create_task(member.receive(1))
            await a_moment()
            comes(member.sources[-1], 1, key="k")
            await a_moment()
            assert member.parts[0].state == "claiming"
            assert (receiving.done(), len(world.link.data_for("$JS.ACK."))) == (bool(taken), 1 - taken)
            receiving.cancel()
            await member.close()

    play(main())


class Takeover(StubApi):
    """A server with two messages out; a new one is sent right behind its second answer."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.behind: list[int] = []
        self.source: Any = None
        self.pending = 2
        self.world = world

    async def consumer(self, _stream: str, name: str, *, timeout: float = 5.0) -> dict[str, Any]:
        found = pinned(
            "me",
            num_ack_pending=self.pending,
            delivered={"stream_seq": 2, "consumer_seq": 2},
        )
        while self.behind:
            comes(self.source, self.behind.pop(0), pin="me")
            self.pending += 1
        return found


def test_a_takeover_does_not_count_what_came_behind_the_server_s_answer() -> None:
    async def main() -> None:
        world = World(lease=30.0)
        member = await world.keyed()
        part = member.parts[0]
        api = Takeover(world)
        api.source = part.source
        world.site.api = api  # type: ignore[assignment]
        receiving = asyncio.create_task(member.receive(10))
        comes(part.source, 2, pin="me")
        await a_moment()
        api.behind = [3]
        await asyncio.sleep(0.5)
        assert (part.state, receiving.done()) == ("taking", False)
        comes(part.source, 1, pin="me", deliveries=2)
        assert numbers(list(await receiving)) == ["1", "2", "3"]
        await member.close()

    play(main())


def test_a_takeover_asks_for_what_is_out_also_when_more_came_behind_the_server_s_answer() -> None:
    async def main() -> None:
        world = World(lease=30.0)
        member = await world.keyed()
        part = member.parts[0]
        api = Takeover(world)
        api.source, api.behind = part.source, [3, 4]
        world.site.api = api  # type: ignore[assignment]
        comes(part.source, 2, pin="me")
        await asyncio.sleep(0.5)
        assert world.link.data_for("$JS.ACK.c.g--p0.1.1.") == [b"-NAK"]
        await member.close()

    play(main())


def test_a_takeover_asks_again_for_what_it_could_not_ask_for() -> None:
    async def main() -> None:
        world = World(lease=30.0)
        member = await world.keyed()
        part = member.parts[0]
        world.api.info = owned_by("me", num_ack_pending=2, delivered={"stream_seq": 2, "consumer_seq": 2})
        world.link.answer = no_answer
        comes(part.source, 2, pin="me")
        await asyncio.sleep(0.5)
        world.link.answer = world.link.says_ok
        del world.link.written[:]
        await asyncio.sleep(0.5)
        assert world.link.data_for("$JS.ACK.c.g--p0.1.1.") == [b"-NAK"]
        await member.close()

    play(main())


def test_a_pin_that_may_have_run_out_while_things_were_given_back_is_not_taken_from_whoever_has_it() -> None:
    async def main() -> None:
        for slow, unpinned in ((2.5, []), (0.0, ["g--p0"])):
            world = World(lease=30.0)
            world.api.info = owned_by("me")
            member = await world.keyed(pin_timeout=2.0)
            comes(member.parts[0].source, 1, pin="me")
            await member.receive(1)

            async def slowly(_subject: str, _data: bytes, slow: float = slow) -> bytes:
                await asyncio.sleep(slow)
                return b"{}"

            world.link.answer = slowly
            await member.close()
            assert world.api.unpinned == unpinned

    play(main())


def test_a_partition_that_is_given_back_before_its_pin_was_confirmed_is_unpinned() -> None:
    async def main() -> None:
        world = World(lease=30.0)
        member = await world.keyed()
        answered = asyncio.Event()

        async def late(_: str) -> dict[str, Any]:
            await answered.wait()
            return pinned("me")

        world.api.info = late
        comes(member.parts[0].source, 1, pin="me")
        await member.close()
        assert world.api.unpinned == ["g--p0"]

    play(main())


def test_a_renewal_that_was_not_written_prolongs_no_pin() -> None:
    async def main() -> None:
        world = World(lease=3.0)
        world.api.info = owned_by("me")
        member = await world.keyed(pin_timeout=3.0)
        part = member.parts[0]
        comes(part.source, 1, pin="me")
        (delivery,) = await member.receive(1)
        until = part.until
        written = world.link.publish

        async def refused(subject: str, data: bytes = b"", *, reply: str = "") -> None:
            if "MSG.NEXT" in subject:
                text = "there is no connection"
                raise NoAnswer(text, written=False)
            await written(subject, data)

        world.link.publish = refused  # type: ignore[method-assign]
        await asyncio.sleep(2.0)
        assert part.until == until
        world.link.publish = written  # type: ignore[method-assign]
        await asyncio.sleep(1.0)  # it is tried again at once, and not a third of the time-out later
        assert part.until > until
        assert list(await member.settle([(delivery, ACK)])) == [None]
        await member.close()

    play(main())
