"""
Isolation: what may have killed its process runs alone, with a crash mark standing meanwhile.

A suspect is a delivery that arrived more often than its polite returns explain. It runs with nothing else of its group
beside it, and only one suspect at a time runs in the process. Before it starts a mark is written beside it, or, where the
broker keeps none, its start is counted in a tally of the group; every ending that the process survives takes that back.
So only a message that really ends its process keeps its marks, and its neighbours, which came back with it, never do.

Who kills a process from outside (a deploy, the kernel short of memory) hits whatever happens to run. So that this cannot be
the same message again and again, those with marks stand behind those without, and wait some seconds first.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal

from brokerkit.adapter import Holds, Marks, Tallies
from brokerkit.context import asked_to_stop
from brokerkit.copies import mark_of, tally_name
from brokerkit.delivery import Delivery
from brokerkit.errors import SettleError, Unavailable
from brokerkit.settler import by_subscription

if TYPE_CHECKING:
    from brokerkit.engine import Engine

__all__ = ["Isolation", "Standing"]

Standing = Literal["stands", "stale", "unavailable"]

_log = logging.getLogger("brokerkit")
_TRIES = 8
_PATIENCE = 30.0
_FIRST_BACKOFF = 0.02
_READ = "starts read"


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
        self._counted: set[int] = set()

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
            await self._look_at_tallies()
            if not self.suspects:
                return
            await self._shut_gate()
            try:
                quiet = await self._engine.until_quiet(_PATIENCE)
                if quiet and self.suspects:
                    await self._run_one(self._least_marked())
            finally:
                self._open_gate()
            if not quiet:
                self._engine.tell_shut(len(self.suspects), _PATIENCE)
                await asyncio.sleep(_PATIENCE)

    async def _look_at_tallies(self) -> None:
        """Ask how often the suspects were begun and not ended, where no mark says so; who was, is judged anew."""
        for subscription, part in by_subscription(
            [(each, each) for each in self.suspects if _is_unread(each)]
        ):
            assert isinstance(subscription, Tallies)  # noqa: S101 - or it would not be unread
            counts = await self._tally(subscription, [(delivery, 0) for _, delivery in part])
            for (_, delivery), count in zip(part, counts, strict=True):
                if not isinstance(count, int):
                    continue
                delivery.extra = {**(delivery.extra or {}), _READ: True}
                if count and delivery in self.suspects:
                    delivery.alone = count
                    self.suspects.remove(delivery)
                    self._engine.judge(delivery)

    async def _tally(
        self, subscription: Tallies, changes: Sequence[tuple[Delivery, int]]
    ) -> Sequence[int | SettleError]:
        try:
            counts = await subscription.tally(
                [(tally_name(delivery), change) for delivery, change in changes]
            )
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and asked_to_stop():
                raise
            _log.warning("starts could not be counted: %r", error)
            return [Unavailable(repr(error))] * len(changes)
        if len(counts) != len(changes):
            return [Unavailable("the adapter returned a wrong number of counts")] * len(changes)
        return counts

    async def forget(self, delivery: Delivery) -> None:
        """Let the starts of one that is done be forgotten; what stays behind harms nobody."""
        if (
            delivery.alone
            and not isinstance(delivery.subscription, Marks)
            and isinstance(delivery.subscription, Tallies)
        ):
            await self._tally(delivery.subscription, [(delivery, -delivery.alone)])

    def _least_marked(self) -> Delivery:
        delivery = min(self.suspects, key=lambda suspect: suspect.alone)
        self.suspects.remove(delivery)
        return delivery

    async def _shut_gate(self) -> None:
        await self._alone.acquire()
        self.gate = True

    def _open_gate(self) -> None:
        """Let the group go on, and the suspects of others; once."""
        if self.gate:
            self.gate = False
            self._alone.release()
            self._engine.wake_workers()

    async def _run_one(self, delivery: Delivery) -> None:
        """Handle one suspect in a task of its own, so that a cancellation it leaves behind ends with it."""

        async def before() -> Standing:
            return await _unbroken(self._mark(delivery, delivery.alone + 1, tries=1))

        async def after() -> Standing:
            self._open_gate()  # the danger is over, and a broker that does not answer must stop nobody
            return await _unbroken(self._mark(delivery, delivery.alone, tries=_TRIES))

        self._current = delivery
        self._handling = asyncio.create_task(self._engine.handle_alone(delivery, before, after))
        await asyncio.wait([self._handling])
        if not self._handling.cancelled() and (error := self._handling.exception()) is not None:
            _log.critical("a suspect could not be handled: %r", error, exc_info=error)
        self._counted.discard(id(delivery))
        self._handling = self._current = None

    async def _mark(self, delivery: Delivery, alone: int, *, tries: int) -> Standing:
        """
        Write a crash mark where the subscription keeps them.

        Taking one back is tried for some seconds: a mark that is left standing would count against an innocent.
        """
        if not isinstance(delivery.subscription, Marks | Tallies):
            return "stands"
        backoff = _FIRST_BACKOFF
        for left in reversed(range(tries)):
            error = await self._write(delivery, alone)
            if error is None:
                return "stands"
            if not error.retryable:
                return "stale"
            if left:
                await asyncio.sleep(backoff)
                backoff *= 2
        _log.error("the crash mark of %r could not be written", delivery)
        return "unavailable"

    async def _write(self, delivery: Delivery, alone: int) -> SettleError | None:
        """Let so many marks stand: beside the delivery, else in the tally."""
        subscription = delivery.subscription
        if not isinstance(subscription, Marks):
            return await self._count(delivery, alone)
        mark = mark_of(delivery, alone=alone)
        try:
            (error,) = await subscription.mark([(delivery, mark)])
        except (Exception, asyncio.CancelledError) as failure:
            if isinstance(failure, asyncio.CancelledError) and asked_to_stop():
                raise
            _log.warning("a crash mark could not be written: %r", failure)
            return Unavailable(repr(failure))
        if error is None:
            delivery.mark = mark
        return error

    async def _count(self, delivery: Delivery, alone: int) -> SettleError | None:
        """Count a start of what is still ours, or take it back."""
        subscription = delivery.subscription
        assert isinstance(subscription, Tallies)  # noqa: S101 - asked before
        begins = alone > delivery.alone
        if not begins and id(delivery) not in self._counted:
            return None  # taken back already
        if begins and isinstance(subscription, Holds):
            try:
                (error,) = await subscription.hold([delivery])
            except Exception as failure:  # noqa: BLE001 - it could not be asked
                error = Unavailable(repr(failure))
            if error is not None:
                return error
        if begins:
            self._counted.add(id(delivery))  # also where the answer is lost: it may have been counted
        else:
            self._counted.discard(
                id(delivery)
            )  # once: where the answer is lost, one too few is the harmless side
        (count,) = await self._tally(subscription, [(delivery, 1 if begins else -1)])
        if isinstance(count, SettleError):
            return count
        return None


def _is_unread(delivery: Delivery) -> bool:
    subscription = delivery.subscription
    if isinstance(subscription, Marks) or not isinstance(subscription, Tallies):
        return False
    return delivery.extra is None or _READ not in delivery.extra


async def _unbroken(work: Coroutine[Any, Any, Standing]) -> Standing:
    """Do it to the end even if cancelled meanwhile; the engine has set `delivery.stopped` by then and looks at that."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()
