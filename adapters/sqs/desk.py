"""
What the subscriptions of one adapter share: the transport, the broker's clock, and batches with an outcome for each.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from brokerkit.adapters.sqs.calls import Answer, CallFailed, Transport
from brokerkit.adapters.sqs.clock import BrokerClock
from brokerkit.adapters.sqs.failure import settle_error
from brokerkit.adapters.sqs.queues import Queue, Queues
from brokerkit.adapters.sqs.url import Options
from brokerkit.errors import SettleError

__all__ = ["BATCH", "Desk"]

BATCH = 10
"""Most entries of one call."""

_CALLS = 8
_MOST_RETURNS = 50_000


class Desk:
    """
    The way of subscriptions to the service.

    returns: polite returns that this process has made, by message id; the service counts them as arrivals, and says no more.
    turn, renewals: what a call waits for, so that a thousand messages are not as many connections. Renewals have turns of
    their own: a lease must not end because others stand in the queue.
    """

    def __init__(self, transport: Transport, queues: Queues, options: Options) -> None:
        self.queues = queues
        self.options = options
        self.clock = BrokerClock()
        self.returns: OrderedDict[str, int] = OrderedDict()
        self.turn = asyncio.Semaphore(_CALLS)
        self.renewals = asyncio.Semaphore(_CALLS)
        self._transport = transport

    async def call(
        self, operation: str, queue: Queue, arguments: Mapping[str, Any], timeout: float
    ) -> Answer:
        """Make one call about a queue; what the answer says of the time is noted. Raises `CallFailed`."""
        answer = await self._transport.call(operation, {"QueueUrl": queue.url, **arguments}, timeout=timeout)
        if answer.date is not None:
            self.clock.note(answer.date)
        return answer

    async def batch(
        self, operation: str, queue: Queue, entries: Sequence[dict[str, Any]], timeout: float
    ) -> list[SettleError | None]:
        """Make calls of ten entries each, several at once, and return one outcome for each entry."""
        chunks = [entries[start : start + BATCH] for start in range(0, len(entries), BATCH)]
        parts = await asyncio.gather(*(self._in_turn(operation, queue, chunk, timeout) for chunk in chunks))
        return [outcome for part in parts for outcome in part]

    async def chunk(
        self, operation: str, queue: Queue, entries: Sequence[dict[str, Any]], timeout: float
    ) -> list[SettleError | None]:
        """Make one call of up to ten entries, now, and return one outcome for each."""
        numbered = [{"Id": str(index), **entry} for index, entry in enumerate(entries)]
        what = f"{operation} at {queue.name}"
        try:
            answer = await self.call(operation, queue, {"Entries": numbered}, timeout)
        except CallFailed as error:
            return [settle_error(error, what)] * len(entries)
        outcomes: list[SettleError | None] = [
            settle_error({"Code": "unsaid", "Message": "the answer does not name it"}, what)
        ] * len(entries)
        for each in answer.data.get("Successful") or ():
            outcomes[int(each["Id"])] = None
        for each in answer.data.get("Failed") or ():
            outcomes[int(each["Id"])] = settle_error(each, what)
        return outcomes

    async def _in_turn(
        self, operation: str, queue: Queue, entries: Sequence[dict[str, Any]], timeout: float
    ) -> list[SettleError | None]:
        async with self.turn:
            return await self.chunk(operation, queue, entries, timeout)

    def note_return(self, message_id: str) -> None:
        """Remember a polite return; the oldest are forgotten."""
        self.returns[message_id] = self.returns.pop(message_id, 0) + 1
        if len(self.returns) > _MOST_RETURNS:
            self.returns.popitem(last=False)
