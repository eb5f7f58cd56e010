"""
Isolation: what may have killed its process runs alone, with a crash mark standing meanwhile.

A suspect is a delivery that arrived more often than its polite returns explain. It runs with nothing else of its group
beside it, and only one suspect at a time runs in the process. Before it starts a mark is written beside it; every ending
that the process survives takes the mark back. So only a message that really ends its process keeps its marks, and its
neighbours, which came back with it, never do.

Who kills a process from outside (a deploy, the kernel short of memory) hits whatever happens to run. So that this cannot be
the same message again and again, those with marks stand behind those without, and wait some seconds first.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Literal

from brokerkit.adapter import Marks
from brokerkit.context import asked_to_stop
from brokerkit.copies import mark_of
from brokerkit.delivery import Delivery
from brokerkit.errors import SettleError, Unavailable

if TYPE_CHECKING:
    from brokerkit.engine import Engine

__all__ = ["Isolation", "Standing"]

Standing = Literal["stands", "stale", "unavailable"]

_log = logging.getLogger("brokerkit")
_TRIES = 8
_PATIENCE = 30.0
_FIRST_BACKOFF = 0.02


class Isolation:
    """
    The suspects of one engine.

    gate: while it is shut, the engine's workers start nothing.
    """

    def __init__(self, engine: "Engine", alone: asyncio.Lock) -> None:
        self.suspects: list[Delivery] = []
        self.gate = False
        self._engine = engine
        self._alone = alone
        self._task: asyncio.Task[None] | None = None
        self._handling: asyncio.Task[None] | None = None
        self._dismissed = False
        self._current: Delivery | None = None

    def add(self, delivery: Delivery) -> None:
        """Take a suspect; it runs when its turn has come."""
        self.suspects.append(delivery)
        if self._task is None:
            self._begin()

    def clear(self) -> None:
        """Forget the suspects that have not started."""
        self.suspects.clear()

    async def pardon(self) -> None:
        """Take back the mark of a suspect that is abandoned: its handler did not end, but the process lives."""
        delivery = self._current
        if delivery is not None:
            await self._mark(delivery, delivery.alone, tries=_TRIES)

    def dismiss(self, stuck: set[int]) -> None:
        """Stop; a handling whose task is among the stuck is left alone, for nobody can wait for it."""
        self._dismissed = True
        for task in (self._task, self._handling):
            if task is not None and id(task) not in stuck:
                task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._run(), name="brokerkit isolation")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.critical("isolation ended: %r", error, exc_info=error)
        if self.suspects and not self._dismissed and not task.cancelled():
            self._begin()

    async def _run(self) -> None:
        while self.suspects:
            async with self._alone:
                self.gate = True
                try:
                    quiet = await self._engine.until_quiet(_PATIENCE)
                    if quiet and self.suspects:
                        await self._run_one(self._least_marked())
                finally:
                    self._open_gate()
            if not quiet:
                self._engine.tell_shut(len(self.suspects), _PATIENCE)
                await asyncio.sleep(_PATIENCE)

    def _least_marked(self) -> Delivery:
        delivery = min(self.suspects, key=lambda suspect: suspect.alone)
        self.suspects.remove(delivery)
        return delivery

    def _open_gate(self) -> None:
        if self.gate:
            self.gate = False
            self._engine.wake_workers()

    async def _run_one(self, delivery: Delivery) -> None:
        """Handle one suspect in a task of its own, so that a cancellation it leaves behind ends with it."""

        async def before() -> Standing:
            return await _unbroken(self._mark(delivery, delivery.alone + 1, tries=1))

        async def after() -> Standing:
            self._open_gate()  # the danger is over, and a broker that does not answer must not stop the group
            return await _unbroken(self._mark(delivery, delivery.alone, tries=_TRIES))

        self._current = delivery
        self._handling = asyncio.create_task(self._engine.handle_alone(delivery, before, after))
        await asyncio.wait([self._handling])
        if not self._handling.cancelled() and (error := self._handling.exception()) is not None:
            _log.critical("a suspect could not be handled: %r", error, exc_info=error)
        self._handling = self._current = None

    async def _mark(self, delivery: Delivery, alone: int, *, tries: int) -> Standing:
        """
        Write a crash mark where the subscription keeps them.

        Taking one back is tried for some seconds: a mark that is left standing would count against an innocent.
        """
        if not isinstance(delivery.subscription, Marks):
            return "stands"
        backoff = _FIRST_BACKOFF
        for left in reversed(range(tries)):
            mark = mark_of(delivery, alone=alone)
            error = await self._write(delivery.subscription, delivery, mark)
            if error is None:
                delivery.mark = mark
                return "stands"
            if not error.retryable:
                return "stale"
            if left:
                await asyncio.sleep(backoff)
                backoff *= 2
        _log.error("the crash mark of %r could not be written", delivery)
        return "unavailable"

    async def _write(self, subscription: Marks, delivery: Delivery, mark: bytes) -> SettleError | None:
        try:
            return (await subscription.mark([(delivery, mark)]))[0]
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and asked_to_stop():
                raise
            _log.warning("a crash mark could not be written: %r", error)
            return Unavailable(repr(error))


async def _unbroken(work: Coroutine[Any, Any, Standing]) -> Standing:
    """Do it to the end even if cancelled meanwhile; the engine has set `delivery.stopped` by then and looks at that."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()
