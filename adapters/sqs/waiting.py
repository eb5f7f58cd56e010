"""
Copies that came before they are due: what is short waits in hand, what is long is parked at the broker.

A standard queue holds a copy for up to 15 minutes by itself. What remains is slept away in the inlet, by its visibility: no
new copy, so nothing that could be doubled, and only the inlet's own share of what may be in flight is used. The time left is
counted by the broker's clock alone, so a park that a crash has cut short is simply begun again with the right rest.
"""

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from brokerkit.adapters.sqs.calls import CallFailed
from brokerkit.adapters.sqs.desk import Desk
from brokerkit.adapters.sqs.fanout import LONGEST_DELAY
from brokerkit.adapters.sqs.held import Held, Keeper, Source, put_back
from brokerkit.adapters.sqs.wire import delayed

__all__ = ["IN_HAND", "Parking", "parks_of"]

IN_HAND = 1.0
"""Seconds up to which something waits in hand."""

_LONGEST_PARK = 11 * 3600
_CROWD = 60_000
_CROWD_AGE = 30.0
_LONGEST_PAUSE = 5.0

_log = logging.getLogger(__name__)


def parks_of(after: float, *, fifo: bool) -> int:
    """Return how often a copy with this delay was parked before it was due: polite returns that the broker counts as arrivals."""
    rest = after if fifo else after - LONGEST_DELAY
    return math.ceil(rest / _LONGEST_PARK) if rest > IN_HAND else 0


class Parking:
    """The parked copies of one inlet."""

    def __init__(self, desk: Desk, source: Source, keeper: Keeper) -> None:
        self._desk = desk
        self._source = source
        self._keeper = keeper
        self._counted = -math.inf
        self._crowded = False
        self._counting = asyncio.Lock()

    def left(self, raw: dict[str, Any], after: float) -> float:
        """Return how many seconds are left of a copy's delay."""
        if after <= 0:
            return 0.0
        attributes: Mapping[str, str] = raw.get("Attributes") or {}
        sent = _seconds(attributes.get("SentTimestamp"))
        first = _seconds(attributes.get("ApproximateFirstReceiveTimestamp"))
        for stamp in (sent, first):
            if stamp is not None:
                self._desk.clock.note(stamp)
        now = self._desk.clock.now()
        return 0.0 if sent is None or now is None else sent + after - now

    async def park(self, copies: Sequence[tuple[Held, float, dict[str, Any]]]) -> None:
        """
        Send copies to sleep for (most of) the seconds that are left.

        One that cannot be put to sleep comes back by itself after its lease, and is put to sleep then.
        """
        crowded = not self._source.queue.fifo and await self._is_crowded()
        copies = [copy for copy in copies if not self._keeper.expired(copy[0])]
        if crowded:
            await self._hop(copies)
            return
        entries = [put_back(held, min(int(left), _LONGEST_PARK)) for held, left, _ in copies]
        timeout = self._desk.options.send_timeout
        await self._desk.batch("ChangeMessageVisibilityBatch", self._source.queue, entries, timeout)

    async def _is_crowded(self) -> bool:
        """Say whether so many are in flight that the broker's limit of 120,000 is near."""
        loop = asyncio.get_running_loop()
        async with self._counting:
            if loop.time() - self._counted > _CROWD_AGE:
                self._crowded = await self._count()
                self._counted = loop.time()
        return self._crowded

    async def _count(self) -> bool:
        name = "ApproximateNumberOfMessagesNotVisible"
        try:
            found = await self._desk.queues.attributes(self._source.queue, [name])
        except CallFailed:
            # whoever may not read attributes parks, and meets the limit at twice as many
            return self._crowded
        return int(found.get(name, 0)) > _CROWD

    async def _hop(self, copies: Sequence[tuple[Held, float, dict[str, Any]]]) -> None:
        """
        Send each on as a copy of its own that the broker delays, and delete the original when that is confirmed.

        The original is kept from others until it is deleted: handed out again, it would be a second message.
        """
        kept = [held for held, _, _ in copies]
        for held in kept:
            held.settling = True
        self._keeper.held.update(kept)
        try:
            # One by one: ten large ones together would be above the limit of a call.
            sent = await asyncio.gather(*(self._sent_on(*copy) for copy in copies))
            await self._delete([held for held, gone in zip(kept, sent, strict=True) if gone])
        finally:
            self._keeper.held.difference_update(kept)

    async def _sent_on(self, held: Held, left: float, raw: dict[str, Any]) -> bool:
        async with self._desk.turn:
            if self._keeper.expired(held):
                return False
            entries, timeout = [_hop_of(raw, left)], self._desk.options.send_timeout
            (outcome,) = await self._desk.chunk("SendMessageBatch", self._source.queue, entries, timeout)
        return outcome is None

    async def _delete(self, sent: Sequence[Held]) -> None:
        """Delete these, and try it again for as long as they are ours."""
        queue, timeout = self._source.queue, self._desk.options.send_timeout
        pause = 0.1
        while sent := [held for held in sent if held in self._keeper.held]:
            deletes = [{"ReceiptHandle": held.handle} for held in sent]
            outcomes = await self._desk.batch("DeleteMessageBatch", queue, deletes, timeout)
            pairs = [(held, each) for held, each in zip(sent, outcomes, strict=True) if each is not None]
            sent = [held for held, error in pairs if error.retryable]
            if pairs:
                text = "%d copies that were sent on in %s could not be deleted: %s"
                _log.warning(text, len(pairs), queue.name, pairs[0][1])
            if sent:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)


def _hop_of(raw: dict[str, Any], left: float) -> dict[str, Any]:
    return delayed(raw, left) | {"DelaySeconds": min(math.floor(left), LONGEST_DELAY)}


def _seconds(stamp: object) -> float | None:
    return int(stamp) / 1000 if isinstance(stamp, str) and stamp.isdigit() else None
