"""Counts whose answers get lost."""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any, cast

from brokerkit.adapters.nats.api import Api
from brokerkit.adapters.nats.failure import NO_MESSAGE, ApiError, NoAnswer
from brokerkit.adapters.nats.link import Incoming, Link
from brokerkit.adapters.nats.tallies import Tallies
from brokerkit.errors import Unavailable
from brokerkit.message import Address


class Store:
    """
    A server that stores counts.

    lost: how many answers to changes get lost, the change being made. blind: how many looks go unanswered after that. pause:
    what each change waits for.
    """

    where = "nats://stub"

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.lost = 0
        self.blind = 0
        self.pause: asyncio.Event | None = None

    async def call(self, subject: str, data: bytes, *, timeout: float) -> Incoming:
        if self.pause is not None:
            await self.pause.wait()
        self.counts[subject] = int(data)
        self._answer()
        return Incoming("", "", b"{}", {})

    async def ask(self, verb: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if verb.startswith("STREAM.PURGE"):
            self.counts.pop(request["filter"], None)
            self._answer()
            return {}
        if self.blind and not self.lost:
            self.blind -= 1
            raise NoAnswer(verb)
        count = self.counts.get(request["last_by_subj"])
        if count is None:
            raise ApiError(404, NO_MESSAGE, "no message found")
        return {"message": {"data": base64.b64encode(b"%d" % count).decode()}}

    def _answer(self) -> None:
        if self.lost:
            self.lost -= 1
            text = "no answer within 5 s"
            raise NoAnswer(text)


def tallies(store: Store) -> Tallies:
    return Tallies(cast("Link", store), cast("Api", store), Address("c", "g", "inlet"), 1)


async def test_a_count_whose_answer_was_lost_is_counted_once() -> None:
    store = Store()
    made = tallies(store)
    store.lost = 1
    assert await made.tally([("m", 1)]) == [1]
    store.lost = 1
    assert await made.tally([("m", -1)]) == [0]
    assert store.counts == {}


async def test_a_count_of_which_nothing_is_known_is_counted_once_when_it_is_tried_again() -> None:
    store = Store()
    made = tallies(store)
    assert await made.tally([("m", 1)]) == [1]
    for change, count in ((1, 2), (-1, 1)):
        store.lost, store.blind = 1, 1
        (outcome,) = await made.tally([("m", change)])
        assert isinstance(outcome, Unavailable)
        assert await made.tally([("m", change)]) == [count]


async def test_a_count_of_which_nothing_is_known_is_taken_back_by_whoever_was_told_that_it_failed() -> None:
    store = Store()
    made = tallies(store)
    store.lost, store.blind = 1, 1
    (outcome,) = await made.tally([("m", 1)])
    assert isinstance(outcome, Unavailable)
    assert await made.tally([("m", -1)]) == [0]
    assert store.counts == {}


async def test_what_another_member_has_counted_meanwhile_is_believed() -> None:
    store = Store()
    made = tallies(store)
    store.lost, store.blind = 1, 1
    await made.tally([("m", 1)])
    await tallies(store).tally([("m", 1), ("m", 1)])
    assert await made.tally([("m", 1)]) == [4]


async def test_a_count_on_its_way_is_not_overtaken_by_its_pardon() -> None:
    store = Store()
    made = tallies(store)
    store.pause = asyncio.Event()
    counting = asyncio.create_task(made.tally([("m", 1)]))
    await asyncio.sleep(0)
    pardon = asyncio.create_task(made.tally([("m", -1)]))
    for _ in range(5):
        await asyncio.sleep(0)
    store.pause.set()
    assert (await counting, await pardon) == ([1], [0])
    assert store.counts == {}
