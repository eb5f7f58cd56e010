"""
The polls of one queue.

They belong to the subscription, never to the `receive` that wanted them, and none is ever aborted: an abandoned poll goes on
at the service and swallows what comes (tried: 20 of 20 messages).
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

from brokerkit.adapters.sqs.calls import CallFailed
from brokerkit.adapters.sqs.desk import BATCH, Desk
from brokerkit.adapters.sqs.failure import is_missing, lost
from brokerkit.adapters.sqs.held import Source
from brokerkit.errors import ConnectionLost

__all__ = ["Intake", "Take"]

_ATTRIBUTES = ("ApproximateFirstReceiveTimestamp", "ApproximateReceiveCount", "SentTimestamp")
_PATIENCE = 5.0
_LONGEST_BACKOFF = 5.0
_SHORTEST_REST, _LONGEST_REST = 0.01, 0.1

_log = logging.getLogger(__name__)

Take = Callable[[Source, Sequence[dict[str, Any]], float], int]
"""Takes what a poll has brought and the loop's time before which the poll was sent; returns how many can be handed out now."""


class Intake:
    """
    Polls one queue as long as something is wanted: one poll while it is quiet, several while answers come back full.

    With `poll=0` the service answers at once, and a quiet queue is asked again after a rest of up to 0.1 s.

    A failing poll is tried again with growing pauses for 5 s; then `fail` is told, and it goes on.
    """

    def __init__(self, desk: Desk, source: Source, take: Take, fail: Callable[[Exception], None]) -> None:
        self._desk = desk
        self._source = source
        self._take = take
        self._fail = fail
        self._wanted = 0
        self._asked = 0
        self._allowed = 1
        self._polls: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._failing = 0.0
        self._rest = _SHORTEST_REST
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False

    def seek(self, wanted: int) -> None:
        """Poll until so many more have come; 0 starts no further poll."""
        self._wanted = wanted
        if self._closed or self._pause is not None:
            return
        while self._asked < wanted and self._may_poll():
            ask = min(BATCH, wanted - self._asked)
            if ask < BATCH and self._asked:
                break  # ten at a time: a poll for a few costs as much, and so does what ends a few
            self._asked += ask
            task = asyncio.get_running_loop().create_task(self._poll(ask))
            self._polls.add(task)
            task.add_done_callback(self._polled)

    async def close(self, seconds: float) -> None:
        """Start no more polls and wait for those under way; what is not back by then is given up."""
        self._closed = True
        self._stop_waiting()
        polls = set(self._polls)
        if polls:
            _, late = await asyncio.wait(polls, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _may_poll(self) -> bool:
        polls = len(self._polls)
        if polls >= self._desk.options.polls:
            return False
        return polls < self._allowed or self._asked < BATCH

    async def _poll(self, ask: int) -> None:
        loop = asyncio.get_running_loop()
        options = self._desk.options
        attributes = [*_ATTRIBUTES, "MessageGroupId"] if self._source.queue.fifo else list(_ATTRIBUTES)
        arguments = {
            "MaxNumberOfMessages": ask,
            "WaitTimeSeconds": options.poll,
            "VisibilityTimeout": options.lease,
            "MessageSystemAttributeNames": attributes,
            "MessageAttributeNames": ["All"],
        }
        begun = loop.time()
        try:
            timeout = options.poll + options.send_timeout
            answer = await self._desk.call("ReceiveMessage", self._source.queue, arguments, timeout)
            found: Sequence[dict[str, Any]] = answer.data.get("Messages") or ()
            ready = self._take(self._source, found, begun)
        except CallFailed as error:
            self._failed(error)
            return
        except Exception as error:  # noqa: BLE001 - one odd answer must not end the intake
            _log.exception("what a poll of %s has brought could not be read", self._source.queue.name)
            self._failed(CallFailed(repr(error), code="unreadable", sent=True))
            return
        finally:
            self._asked -= ask
        self._failures = 0
        if len(found) == ask:
            self._allowed = min(self._allowed * 2, options.polls)
        elif not found:
            self._allowed = 1
        self._wanted = max(self._wanted - ready, 0)
        self._rest = _SHORTEST_REST if found else min(self._rest * 2, _LONGEST_REST)
        if found:
            self._stop_waiting()
        elif not options.poll:
            self._wait(self._rest)

    def _polled(self, task: asyncio.Task[None]) -> None:
        self._polls.discard(task)
        self.seek(self._wanted)

    def _wait(self, seconds: float) -> None:
        if self._pause is None and not self._closed:
            self._pause = asyncio.get_running_loop().call_later(seconds, self._seek_again)

    def _stop_waiting(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _seek_again(self) -> None:
        self._pause = None
        self.seek(self._wanted)

    def _failed(self, error: CallFailed) -> None:
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        queue = self._source.queue
        if not self._failures:
            self._failing = loop.time()
        self._failures += 1
        what = f"{self._desk.options.text}: queue {queue.name}"
        if not error.sent and error.status and not is_missing(error):
            self._fail(lost(error, what))
        elif loop.time() - self._failing > _PATIENCE:
            # Gone, at last: a server that has just started denies queues that it has not restored yet (tried), and one made
            # in their place would cost their messages. Some servers answer 503 for a queue that was deleted.
            if error.status:
                self._desk.queues.forget(queue)
            self._fail(ConnectionLost(f"{what} cannot be read: {error}"))
        ceiling = min(_LONGEST_BACKOFF, 0.1 * 2.0 ** min(self._failures, 10))
        self._wait(random.uniform(ceiling / 4, ceiling))  # noqa: S311 - jitter
