"""
Sends to one queue, in batches: what comes together while calls are on their way goes in the next.

A standard queue has several calls on their way at once; a FIFO queue has lanes, so that messages of one group stay in order,
and what follows a message of its group that was not stored is not stored either.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from brokerkit.adapters.sqs.calls import CallFailed
from brokerkit.adapters.sqs.failure import entry_error, send_error
from brokerkit.adapters.sqs.url import MiB
from brokerkit.adapters.sqs.wire import Entry
from brokerkit.errors import ConnectionLost, SendError

__all__ = ["Batch", "Outbox", "Parcel"]

_BATCH = 10
_CALLS = 8
_LEAST = 0.05

Post = Callable[[list[dict[str, Any]], float], Awaitable[dict[str, Any]]]
"""Makes the call for one batch within so many seconds; raises `CallFailed`."""


@dataclass(slots=True)
class Batch:
    """What one `send` gives: the lanes in which something was not stored."""

    failed: set[str] = field(default_factory=set[str])


@dataclass(slots=True, eq=False)
class Parcel:
    """One message on its way to one queue. until: the loop's time for its answer. sent: it is in a call."""

    entry: Entry
    fields: dict[str, Any]
    batch: Batch
    done: asyncio.Future[SendError | None]
    until: float
    sent: bool = False


class Outbox:
    """The sends to one queue or topic. what: how errors call it."""

    def __init__(self, what: str, post: Post, *, fifo: bool, limit: int = MiB) -> None:
        self._what = what
        self._post = post
        self._fifo = fifo
        self._limit = limit
        self._lanes: list[deque[Parcel]] = [deque() for _ in range(_CALLS if fifo else 1)]
        self._busy = [0] * len(self._lanes)
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, parcel: Parcel) -> None:
        """Take one for the next batch."""
        lane = crc32(parcel.entry.lane.encode()) % _CALLS if self._fifo else 0
        self._lanes[lane].append(parcel)
        # After the caller's other messages have been put too: they belong in the same batch.
        asyncio.get_running_loop().call_soon(self._go, lane)

    def give_up(self, parcel: Parcel) -> None:
        """Answer one whose time is over, as far as it is known what has become of it."""
        if parcel.sent:
            late = CallFailed("no answer in time", code="timeout", sent=True)
            _answer(parcel, send_error(late, self._what))
        else:
            _answer(parcel, _too_late(self._what))

    def drop(self, error: SendError) -> None:
        """Answer what has not been sent yet."""
        for lane in self._lanes:
            while lane:
                _answer(lane.popleft(), error)

    def _go(self, lane: int) -> None:
        most = 1 if self._fifo else _CALLS
        while self._lanes[lane] and self._busy[lane] < most:
            parcels = self._next(lane)
            if not parcels:
                continue
            self._busy[lane] += 1
            task = asyncio.get_running_loop().create_task(self._send(lane, parcels))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next(self, lane: int) -> list[Parcel]:
        """Take up to ten that fit into one call; answer those whose time is over or whose lane has failed."""
        waiting = self._lanes[lane]
        now = asyncio.get_running_loop().time()
        parcels: list[Parcel] = []
        size = 0
        while (
            waiting and len(parcels) < _BATCH and (not parcels or size + waiting[0].entry.size <= self._limit)
        ):
            parcel = waiting.popleft()
            if parcel.done.done():
                continue
            if now > parcel.until:
                _answer(parcel, _too_late(self._what))
            elif self._fifo and parcel.entry.lane in parcel.batch.failed:
                _answer(parcel, _not_sent(self._what))
            else:
                parcel.sent = True
                parcels.append(parcel)
                size += parcel.entry.size
        return parcels

    async def _send(self, lane: int, parcels: Sequence[Parcel]) -> None:
        entries = [{"Id": str(index), **parcel.fields} for index, parcel in enumerate(parcels)]
        # as long as the youngest may wait; who cannot wait so long gives up alone
        seconds = max(parcel.until for parcel in parcels) - asyncio.get_running_loop().time()
        try:
            answer = await self._post(entries, max(seconds, _LEAST))
            failed = {int(each["Id"]): entry_error(each, self._what) for each in answer.get("Failed") or ()}
            stored = {int(each["Id"]) for each in answer.get("Successful") or ()}
            unsaid = send_error(
                CallFailed("the answer does not name it", code="unsaid", sent=True), self._what
            )
            outcomes = [
                failed.get(index, None if index in stored else unsaid) for index in range(len(parcels))
            ]
        except CallFailed as error:
            outcomes = [send_error(error, self._what)] * len(parcels)
        except Exception as error:  # noqa: BLE001 - a bug must not leave a publisher waiting for ever
            outcomes = [send_error(CallFailed(repr(error), code="bug", sent=True), self._what)] * len(parcels)
        self._busy[lane] -= 1
        for parcel, outcome in zip(parcels, outcomes, strict=True):
            if outcome is not None and self._fifo:
                parcel.batch.failed.add(parcel.entry.lane)
            _answer(parcel, outcome)
        self._go(lane)


def _answer(parcel: Parcel, outcome: SendError | None) -> None:
    if not parcel.done.done():
        parcel.done.set_result(outcome)


def _too_late(what: str) -> SendError:
    return ConnectionLost(f"{what}: it could not be sent in time")


def _not_sent(what: str) -> SendError:
    return ConnectionLost(f"{what}: it was not sent, because one before it with its key was not stored")
