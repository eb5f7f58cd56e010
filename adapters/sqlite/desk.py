"""
What a subscription asks of the file, as one call each: every one is a transaction of the writer thread.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from brokerkit.adapter import Order, Start
from brokerkit.adapters.sqlite import leases, members
from brokerkit.adapters.sqlite.claims import Claim
from brokerkit.adapters.sqlite.keeper import Keeper, Local, life_file
from brokerkit.adapters.sqlite.leases import Ending, Receipt
from brokerkit.adapters.sqlite.lock import FileLock
from brokerkit.adapters.sqlite.places import open_place
from brokerkit.adapters.sqlite.shares import is_uneven
from brokerkit.adapters.sqlite.transaction import Transaction
from brokerkit.adapters.sqlite.wake import Listener
from brokerkit.adapters.sqlite.writer import Writer
from brokerkit.clock import Clock
from brokerkit.errors import BrokerkitError
from brokerkit.message import Address

__all__ = ["Desk", "Face"]

_log = logging.getLogger(__name__)


class Face(Protocol):
    """What a member is told in the event loop."""

    def nudge(self) -> None:
        """There may be messages."""
        ...

    def balance(self) -> None:
        """Its share of the slots may have changed."""
        ...

    def expect(self, due: float) -> None:
        """The next message is due at this wall time."""
        ...

    def lost(self, member: int) -> None:
        """The member of this number was declared dead."""
        ...


class Desk:
    """The calls of all subscriptions of one adapter. `settled` hears how many messages came to an end."""

    def __init__(
        self,
        writer: Writer,
        keeper: Keeper,
        *,
        clock: Clock,
        listener: Listener,
        settled: Callable[[int], None],
    ) -> None:
        self.clock = clock
        self._writer = writer
        self._keeper = keeper
        self._listener = listener
        self._settled = settled

    async def enrol(self, face: Face, at: Address, order: Order, start: Start) -> Local:
        """Open the place and become a member of it, with a lock file that shows that this process lives."""

        def work(tx: Transaction) -> Local:
            self._keeper.bury_dead(tx)
            place = open_place(tx, at, start, order)
            member = members.join(tx, place.id, self._listener.address, self._keeper.lease)
            life = _life(tx, self._writer, member)
            local = Local(
                id=member,
                place=place,
                life=life,
                nudge=face.nudge,
                balance=face.balance,
                expect=face.expect,
                lost=partial(face.lost, member),
            )
            tx.committed.append(lambda: self._keeper.add(local))
            return local

        joining = self._writer.write(work)
        try:
            return await asyncio.shield(joining)
        except asyncio.CancelledError:
            joining.add_done_callback(_let_go)
            raise

    async def claim(self, local: Local, limit: int) -> Claim:
        """Hand out at most `limit` messages."""

        def work(tx: Transaction) -> Claim:
            found = leases.claim(tx, local.place, local.id, limit)
            if found.gone:
                tx.committed.append(lambda: self._keeper.remove(local.id))
            return found

        return await self._writer.write(work)

    async def settle(
        self, local: Local, endings: Sequence[Ending], *, release: bool
    ) -> tuple[Sequence[bool], bool]:
        """End some deliveries, and with `release` those slots that are finished; return also if some are not yet."""

        def work(tx: Transaction) -> tuple[Sequence[bool], bool]:
            outcomes = leases.settle(tx, local.place.id, endings)
            return outcomes, release and leases.rebalance(tx, local.place, local.id)

        outcomes, surplus = await self._writer.write(work)
        self._settled(len(outcomes))
        return outcomes, surplus

    async def mark(self, local: Local, marks: Sequence[tuple[Receipt, bytes | None]]) -> Sequence[bool]:
        """Write or erase marks, on the disk before it returns."""
        return await self._writer.write(lambda tx: leases.mark(tx, local.place.id, marks), synced=True)

    async def balance(self, local: Local) -> bool:
        """Take or release slots, and return whether some wait to be released."""
        if not await self._writer.read(lambda tx: is_uneven(tx, local.place.id, local.id)):
            return False
        return await self._writer.write(lambda tx: leases.rebalance(tx, local.place, local.id))

    async def is_alive(self, local: Local) -> bool:
        """Show a sign of life, and return whether the member still exists."""

        def work(tx: Transaction) -> bool:
            gone = bool(members.beat(tx, (local.id,)))
            if gone:
                tx.committed.append(lambda: self._keeper.remove(local.id))
            return not gone

        return await self._writer.write(work)

    async def resign(self, local: Local, deadline: float) -> None:
        """Return everything politely and leave; what the deadline cuts off is done later by the keeper."""
        local.leaving = True

        def work(tx: Transaction) -> None:
            members.leave(tx, local.place.id, local.id)
            tx.committed.append(lambda: self._keeper.remove(local.id))

        try:
            async with asyncio.timeout(deadline):
                await self._writer.write(work)
        except (TimeoutError, BrokerkitError) as error:
            _log.warning("member %d could not leave yet, and will as soon as possible: %r", local.id, error)


def _life(tx: Transaction, writer: Writer, member: int) -> FileLock:
    path = life_file(writer.database.path, member)
    path.unlink(missing_ok=True)  # of an earlier database in the same place
    life = FileLock(path, create=True)
    life.acquire()
    tx.undone.append(life.close)
    tx.undone.append(lambda: path.unlink(missing_ok=True))
    return life


def _let_go(joining: "asyncio.Future[Local]") -> None:
    """Let the keeper take out a member that nobody waits for any more."""
    if not joining.cancelled() and joining.exception() is None:
        joining.result().leaving = True
