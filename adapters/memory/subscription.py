"""
A member of a group: what it holds, how it waits and how it learns that it has lost something.
"""

import asyncio
import math
from collections.abc import Callable, Generator, Sequence
from types import coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from brokerkit.adapter import OnLost, Settled
from brokerkit.adapters.memory.queues import stored_of
from brokerkit.delivery import Delivery
from brokerkit.errors import ConnectionLost, SettleError, Stale, Unavailable
from brokerkit.settlement import Ack, Retry

if TYPE_CHECKING:
    from brokerkit.adapters.memory.adapter import MemoryAdapter
    from brokerkit.adapters.memory.place import Place
    from brokerkit.adapters.memory.unkind import Dice

__all__ = ["MemorySubscription"]

T = TypeVar("T")

_BEATS = 3
"""How often a lease is renewed before it would run out."""


class MemorySubscription:
    """
    A place in one channel for one group; also `Marks`.

    A `receive` lets the event loop turn once before it takes anything, so that one busy member cannot starve
    its neighbours; it takes and returns in one step, so that a cancellation loses nothing.
    """

    def __init__(self, adapter: "MemoryAdapter", place: "Place", on_lost: OnLost) -> None:
        self.out: set[Delivery] = set()
        self.loop = asyncio.get_running_loop()
        self.until = math.inf
        self._adapter = adapter
        self._broker = adapter.broker
        self._place = place
        self._on_lost = on_lost
        self._waiter: asyncio.Future[None] | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._closed = False
        self._cut = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait for something and return at most `limit`; empty when closed, `ConnectionLost` when cut."""
        if limit < 1:
            message = f"receive({limit}): ask for at least one"
            raise ValueError(message)
        await _turn()
        if not self._adapter.gentle and not self._closed and self._adapter.dice.hit("drop_connection"):
            self._adapter.disconnect()
        while True:
            if not self._closed:
                await self._adapter.passed()
            with self._broker.lock:
                batch = self._take(limit)
                if batch is not None:
                    return batch if self._adapter.gentle else _shuffled(batch, self._adapter.dice)
                waiter = self._waiter = self.loop.create_future()
                self._place.waiting[self] = None
                due = self._place.next_due()
            await self._wait(waiter, due)

    async def settle(self, settled: Sequence[Settled]) -> Sequence[SettleError | None]:
        """End some deliveries; `Stale` for what is no longer held here."""
        await self._adapter.passed()
        if not self._adapter.gentle or self._broker.refused_settlements:
            return [self._settle_unkindly(delivery, settlement) for delivery, settlement in settled]
        outcomes: list[SettleError | None] = [None] * len(settled)
        done: list[
            Any
        ] = []  # of Stored: what is in `out` was made here, and this loop is the price of an ack
        out = self.out
        with self._broker.lock:
            for index, (delivery, settlement) in enumerate(settled):
                if delivery not in out:
                    outcomes[index] = _stale(delivery)
                elif isinstance(settlement, Ack):
                    out.remove(delivery)
                    done.append(delivery.receipt)
                else:
                    self._return(delivery, settlement)
            self._place.finish(done)
        return outcomes

    async def mark(self, marks: Sequence[tuple[Delivery, bytes | None]]) -> Sequence[SettleError | None]:
        """Keep bytes beside unsettled deliveries for their next owner; None erases them."""
        await self._adapter.passed()
        outcomes: list[SettleError | None] = []
        with self._broker.lock:
            for delivery, value in marks:
                if delivery in self.out:
                    self._place.note(delivery, value)
                outcomes.append(None if delivery in self.out else _stale(delivery))
        return outcomes

    async def close(self) -> None:
        """Leave; what is unsettled goes back in order, as a polite return."""
        self.leave(polite=True)

    def start(self) -> None:
        """Become a member; with a lease, begin to renew it. The broker's lock is held."""
        lease = self._adapter.lease
        if lease is not None:
            self.until = self.loop.time() + lease
            self._beat = self.loop.call_later(lease / _BEATS, self._renew, lease)
        self._place.join(self)

    def leave(self, *, polite: bool) -> None:
        """End this subscription, at its owner's wish or because the connection is cut."""
        with self._broker.lock:
            lost = self._place.leave(self, polite=polite)
            self._closed = self._closed or polite
            self._cut = self._cut or not polite
            self._adapter.subscriptions.pop(self, None)
            self.wake()
        if self._beat is not None and self._is_here():
            self._beat.cancel()
        if lost and not polite:
            self._tell(lost)

    def expire(self) -> None:
        """Lose everything because the lease has run out; the broker's lock is held."""
        lost = self._place.leave(self, polite=False)
        if lost:
            self._tell(lost)

    def lose(self, delivery: Delivery) -> None:
        """Lose the lease of one delivery and of what is tied to it; the broker's lock is held."""
        self._tell(self._place.lose(self, delivery))

    def wake(self) -> bool:
        """Let a waiting `receive` look again; False if its loop is closed. The broker's lock is held."""
        self._place.waiting.pop(self, None)
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return not self.loop.is_closed()
        return self._call(_finish, waiter)

    def _take(self, limit: int) -> list[Delivery] | None:
        if self._closed:
            return []
        if self._cut:
            message = (
                f"the connection of {self._place.address} to {self._adapter.url} was cut; subscribe again"
            )
            raise ConnectionLost(message)
        if self not in self._place.members:
            self._place.join(self)
        return self._place.take(self, limit, self.loop.time()) or None

    async def _wait(self, waiter: asyncio.Future[None], due: float | None) -> None:
        timer = None if due is None else self.loop.call_at(due, _finish, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            with self._broker.lock:
                woken = self._waiter is not waiter
                self._waiter = None
                self._place.waiting.pop(self, None)
                if woken:
                    self._place.queue.pass_on()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _return(self, delivery: Delivery, settlement: Retry) -> None:
        after = min(settlement.after, self._adapter.capabilities.max_delay)
        due = self.loop.time() + after if after > 0 else None
        self._place.put_back(self, delivery, due=due, polite=True)

    def _settle_unkindly(self, delivery: Delivery, settlement: Ack | Retry) -> SettleError | None:
        dice = self._adapter.dice
        with self._broker.lock:
            if delivery not in self.out:
                return _stale(delivery)
            if self._broker.refuses_settlement() or dice.hit("refuse_settle"):
                message = f"{delivery!r}: the broker takes no settlement now"
                return Unavailable(message)
            if dice.hit("lose_lease"):
                self.lose(delivery)
                return _stale(delivery)
            if isinstance(settlement, Retry):
                self._return(delivery, settlement)
            elif dice.hit("redeliver"):
                self._place.put_back(self, delivery, due=None, polite=False)
            else:
                self.out.remove(delivery)
                self._place.finish([stored_of(delivery)])
        return None

    def _renew(self, lease: float) -> None:
        """
        Renew the lease and end those of others that have run out.

        One that is late itself judges nobody: a loop that was blocked has made all its members late.
        """
        if self._closed or self._cut:
            return
        self._beat = self.loop.call_later(lease / _BEATS, self._renew, lease)
        if self._adapter.gate.shut or self._broker.gate.shut:
            return
        with self._broker.lock:
            now = self.loop.time()
            late = now > self.until
            self.until = now + lease
            if self not in self._place.members:
                self._place.join(self)
                self.wake()
            elif not late:
                self._place.police(now)

    def _tell(self, lost: list[Delivery]) -> None:
        self._call(self._spawn, lost)

    def _spawn(self, lost: list[Delivery]) -> None:
        task = self.loop.create_task(_told(self._on_lost, lost))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _call(self, function: Callable[[T], None], argument: T) -> bool:
        """Call on this subscription's own loop: at once if it is running here."""
        if self._is_here():
            function(argument)
            return True
        try:
            self.loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            return False
        return True

    def _is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False


@coroutine
def _turn() -> Generator[None, None, None]:
    """Let the event loop turn once."""
    yield


async def _told(on_lost: OnLost, lost: list[Delivery]) -> None:
    await on_lost(lost, 0.0)


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _stale(delivery: Delivery) -> Stale:
    message = f"{delivery!r} is no longer held by this subscription"
    return Stale(message)


def _shuffled(batch: list[Delivery], dice: "Dice") -> list[Delivery]:
    for index in range(len(batch) - 1):
        here, there = batch[index].message.key, batch[index + 1].message.key
        if (here is None or here != there) and dice.hit("reorder"):
            batch[index], batch[index + 1] = batch[index + 1], batch[index]
    return batch
