"""
A member of a group in the event loop: what it holds, how it waits, and what it does when it has lost everything.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from functools import partial

from brokerkit.adapter import OnLost, Order, Settled, Start
from brokerkit.adapters.sqlite.claims import Claimed
from brokerkit.adapters.sqlite.desk import Desk
from brokerkit.adapters.sqlite.keeper import Local
from brokerkit.adapters.sqlite.leases import Ending, Receipt
from brokerkit.adapters.sqlite.row import message_of
from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError, SettleError, Stale, Unavailable
from brokerkit.message import Address
from brokerkit.settlement import Ack

__all__ = ["SqliteSubscription"]

_CLOSE = 5.0
"""Seconds that closing waits for the file."""

_LONGEST_TIMER = 60.0
"""Seconds after which a due time is looked at again: the wall clock may have been set meanwhile."""

_log = logging.getLogger(__name__)


class SqliteSubscription:
    """
    A place in one channel for one group; also `Marks`.

    A claim belongs to the subscription, not to the `receive` that caused it: what it brings after a cancellation
    is handed out by the next `receive`.
    """

    def __init__(self, desk: Desk, at: Address, order: Order, start: Start, on_lost: OnLost) -> None:
        self._desk = desk
        self._at = at
        self._channel = Address(at.channel)
        self._order: Order = order
        self._start: Start = start
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._local: Local | None = None
        self._ready: deque[Delivery] = deque()
        self._out: dict[int, Delivery] = {}
        self._changed = asyncio.Event()
        self._waits = False
        self._nudged = True
        self._busy: set[str] = set()
        self._surplus = False
        self._timer: asyncio.TimerHandle | None = None
        self._failure: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    async def enrol(self) -> None:
        """Become a member; the group exists from here on. Raises `ConfigurationError` and `ConnectionLost`."""
        self._local = await self._desk.enrol(self, self._at, self._order, self._start)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait until there is something; empty when closed, `ConnectionLost` when the file cannot be used."""
        if limit < 1:
            message = f"receive({limit}): ask for at least one"
            raise ValueError(message)
        while not self._closed:
            if self._ready:
                return self._hand_out(limit)
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            self._seek(limit)
            self._changed.clear()
            self._waits = True
            try:
                await self._changed.wait()
            finally:
                self._waits = False
        return ()

    async def settle(self, settled: Sequence[Settled]) -> Sequence[SettleError | None]:
        """End some deliveries in one transaction; `Stale` for what is no longer held here."""
        endings = [
            (self._receipt(delivery), None if isinstance(settlement, Ack) else settlement.after)
            for delivery, settlement in settled
        ]
        local = self._local
        if local is None or self._closed:
            return [_stale(delivery) for delivery, _ in settled]
        try:
            kept, self._surplus = await self._desk.settle(local, endings, release=self._surplus)
        except BrokerkitError as error:
            return [_unavailable(error)] * len(settled)
        self._note(endings)
        return self._outcomes([delivery for delivery, _ in settled], kept, ended=True)

    async def mark(self, marks: Sequence[tuple[Delivery, bytes | None]]) -> Sequence[SettleError | None]:
        """Write or erase bytes beside unsettled deliveries; on the disk before it returns."""
        local = self._local
        if local is None or self._closed:
            return [_stale(delivery) for delivery, _ in marks]
        try:
            kept = await self._desk.mark(local, [(self._receipt(delivery), blob) for delivery, blob in marks])
        except BrokerkitError as error:
            return [_unavailable(error)] * len(marks)
        return self._outcomes([delivery for delivery, _ in marks], kept, ended=False)

    async def close(self) -> None:
        """Leave within 5 s: what is unsettled goes back to the group as a polite return, in order. Idempotent."""
        if self._closing is None:
            self._closed = True
            self._changed.set()
            self._closing = self._loop.create_task(self._leave())
        await asyncio.shield(self._closing)

    def nudge(self) -> None:
        """Look again: there may be messages. In the event loop only, as the next four."""
        self._nudged = True
        self._changed.set()

    def balance(self) -> None:
        """Look at the share of the slots; a claim does so too, and a waiting `receive` claims when it is nudged."""
        if self._order == "key" and self._local is not None and not (self._waits or self._closed):
            self._start_task("balance", self._balance(self._local))

    def expect(self, due: float) -> None:
        """Look again at this wall time."""
        delay = min(max(due - self._desk.clock.time(), 0.0), _LONGEST_TIMER)
        at = self._loop.time() + delay
        if self._timer is not None:
            if not self._timer.cancelled() and self._loop.time() < self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self.nudge)

    def lost(self, member: int) -> None:
        """Forget everything, because this member was declared dead: it belongs to others already. Join again."""
        if self._local is None or self._local.id != member or self._closed:
            return
        self._local = None
        lost, self._out = list(self._out.values()), {}
        self._ready.clear()
        self._start_task("recover", self._recover(lost))

    def _hand_out(self, limit: int) -> Sequence[Delivery]:
        deliveries = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        self._out.update((_receipt(delivery).seq, delivery) for delivery in deliveries)
        return deliveries

    def _seek(self, limit: int) -> None:
        if self._local is None:
            self._start_task("recover", self._recover([]))
        elif self._nudged:
            self._start_task("claim", self._claim(self._local, limit))

    async def _claim(self, local: Local, limit: int) -> None:
        self._nudged = False
        claim = await self._desk.claim(local, limit)
        if self._local is not local:
            return
        if claim.gone:
            self.lost(local.id)
            return
        self._ready.extend(self._delivery(row, local.id) for row in claim.rows)
        self._surplus = claim.surplus
        self._nudged = self._nudged or bool(claim.rows) or claim.again
        if claim.due is not None:
            self.expect(claim.due)

    async def _balance(self, local: Local) -> None:
        self._surplus = await self._desk.balance(local)

    async def _recover(self, lost: Sequence[Delivery]) -> None:
        if lost:
            await self._on_lost(lost, 0.0)
        if not self._closed:
            await self.enrol()
            self._nudged = True
        if self._closed and self._local is not None:
            # It joined while it was leaving, and nobody waited: the keeper takes it out as soon as the file is free.
            local, self._local = self._local, None
            local.leaving = True

    async def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._tasks:
            # A claim or a joining may be on its way to the file: what it brings has to be returned as well.
            await asyncio.wait(self._tasks, timeout=_CLOSE)
        local, self._local = self._local, None
        self._ready.clear()
        self._out.clear()
        if local is not None:
            await self._desk.resign(local, _CLOSE)

    def _start_task(self, what: str, work: Coroutine[None, None, None]) -> None:
        """Start a task of which there is one at a time; it belongs to the subscription and is never cancelled."""
        if what in self._busy:
            work.close()
            return
        self._busy.add(what)
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._task_done, what))

    def _task_done(self, what: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._busy.discard(what)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not self._closed:
            self._failure = error
            self._nudged = True
        self._changed.set()

    def _delivery(self, row: Claimed, member: int) -> Delivery:
        return Delivery(
            message_of(row.key, row.head, row.body),
            self._at if row.copy else self._channel,
            Receipt(row.seq, member, row.arrivals, row.slot, bool(row.copy)),
            arrivals=row.arrivals,
            returns=row.returns,
            position=("0", row.seq),
            mark=row.mark,
        )

    def _receipt(self, delivery: Delivery) -> Receipt:
        """Return the receipt of what is out here, else one that matches no row."""
        receipt = _receipt(delivery)
        return receipt if self._out.get(receipt.seq) is delivery else _NOTHING

    def _note(self, endings: Sequence[Ending]) -> None:
        waits = [after for _, after in endings if after is not None]
        if waits:
            self.expect(self._desk.clock.time() + max(min(waits), 0.0))

    def _outcomes(
        self, deliveries: Sequence[Delivery], kept: Sequence[bool], *, ended: bool
    ) -> Sequence[SettleError | None]:
        outcomes: list[SettleError | None] = []
        for delivery, good in zip(deliveries, kept, strict=True):
            seq = _receipt(delivery).seq
            if (ended or not good) and self._out.get(seq) is delivery:
                del self._out[seq]
                if not good and self._local is not None:
                    self._start_task("verify", self._verify(self._local))
            outcomes.append(None if good else _stale(delivery))
        return outcomes

    async def _verify(self, local: Local) -> None:
        """Find out at once whether one stale delivery means that all is lost."""
        if not await self._desk.is_alive(local):
            self.lost(local.id)


_NOTHING = Receipt(-1, -1, 0, 0, copy=False)


def _receipt(delivery: Delivery) -> Receipt:
    receipt = delivery.receipt
    return receipt if isinstance(receipt, Receipt) else _NOTHING


def _stale(delivery: Delivery) -> Stale:
    return Stale(f"{delivery.address} {delivery.position}: it is no longer ours")


def _unavailable(error: BrokerkitError) -> Unavailable:
    found = Unavailable(str(error))
    found.__cause__ = error
    return found
