"""
Life signs of the members of this adapter, and watch over all others of the file. Runs in the writer thread.

Two ways show that a member is dead: the kernel has freed its lock file, which a killed process cannot prevent,
or its beat has stood still for a whole lease by the clock of the one who watches. The thread does this, not the
event loop: a handler that blocks the loop does not cost the lease.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from brokerkit.adapters.sqlite.database import Work
from brokerkit.adapters.sqlite.leases import peek
from brokerkit.adapters.sqlite.lock import FileLock
from brokerkit.adapters.sqlite.members import Sight, beat, expire, leave, roll_call
from brokerkit.adapters.sqlite.places import Place
from brokerkit.adapters.sqlite.shares import is_uneven
from brokerkit.adapters.sqlite.transaction import Transaction
from brokerkit.adapters.sqlite.wake import Sender
from brokerkit.adapters.sqlite.writer import Writer
from brokerkit.clock import Clock

__all__ = ["Keeper", "Local", "life_file"]

T = TypeVar("T")

_LOOK = 0.05
"""Seconds between two looks at the file and the other members; what a lost hint costs."""

_BEATS = 3
"""Beats in one lease."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Local:
    """
    A member of this adapter.

    nudge: called in the event loop when there may be messages; balance: when its share of the slots may have
    changed; expect: with the wall time at which the next message is due; lost: when it was declared dead.
    leaving: its subscription is closed, but it could not be written yet that it leaves.
    """

    id: int
    place: Place
    life: FileLock
    nudge: Callable[[], None]
    balance: Callable[[], None]
    expect: Callable[[float], None]
    lost: Callable[[], None]
    leaving: bool = False


class Keeper:
    """The housekeeper of one adapter."""

    def __init__(self, writer: Writer, *, lease: float, clock: Clock) -> None:
        self.locals: dict[int, Local] = {}
        self._writer = writer
        self._database = writer.database
        self.lease = lease
        self._clock = clock
        self._sender = Sender()
        self._version: int | None = None
        self._dirty = False
        self._beat_at = 0.0
        self._looked_at = 0.0
        self._others: dict[int, FileLock | None] = {}
        self._sights: dict[int, tuple[Sight, float]] = {}

    def add(self, local: Local) -> None:
        """Keep a new member alive. For the writer thread."""
        self.locals[local.id] = local
        self._dirty = True
        self._writer.tick_soon()

    def remove(self, member: int) -> None:
        """Let go of a member that has left, and of its lock file. For the writer thread."""
        local = self.locals.pop(member, None)
        if local is not None:
            local.life.close()
            local.life.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of everything: the thread ends, or this is a forked child. Members that are left die with it."""
        for local in self.locals.values():
            local.life.close()
        for life in self._others.values():
            if life is not None:
                life.close()
        self._sender.close()

    forked = close

    def committed(self, tx: Transaction) -> None:
        """Wake the members, here and elsewhere, that a transaction gave work to."""
        # Our own commits do not show in data_version: whoever else of us could take what was sent looks at the next tick.
        shared = len(self.locals) > 1 and any(member in self.locals for member in tx.wakes)
        self._dirty = self._dirty or tx.delayed or shared
        for member, address in tx.wakes.items():
            local = self.locals.get(member)
            if local is not None:
                self._writer.post(local.nudge)
                self._writer.post(local.balance)
            elif address:
                self._sender.send(member, address)

    def tick(self) -> float | None:
        """Look around, and show signs of life when it is time."""
        if not self.locals:
            return None
        now = time.monotonic()
        if self._has_changed():
            self._look()
        self._probe()
        if now >= self._beat_at:
            self._beat()
            self._beat_at = now + self.lease / _BEATS
        return min(_LOOK, max(self._beat_at - time.monotonic(), 0.0))

    def _has_changed(self) -> bool:
        """Whether somebody else has committed since the last look, or one of us something that is due later."""
        (version,) = self._database.connection.execute("PRAGMA data_version").fetchone()
        changed = self._dirty or version != self._version
        self._version, self._dirty = version, False
        return changed

    def _look(self) -> None:
        tx = Transaction(self._database.connection, self._clock.time())
        self._meet(roll_call(tx))
        for local in self.locals.values():
            self._look_for(tx, local)

    def _look_for(self, tx: Transaction, local: Local) -> None:
        ready, due = peek(tx, local.place, local.id)
        if ready:
            self._writer.post(local.nudge)
        elif due is not None:
            self._writer.post(lambda: local.expect(due))
        if local.place.mode == "key" and is_uneven(tx, local.place.id, local.id):
            self._writer.post(local.balance)

    def _meet(self, sights: list[Sight]) -> None:
        """Open the lock files of members that are new to us, and forget those that are gone."""
        present = {sight.id for sight in sights} - self.locals.keys()
        for member in self._others.keys() - present:
            life = self._others.pop(member)
            if life is not None:
                life.close()
        for member in present - self._others.keys():
            try:
                self._others[member] = FileLock(life_file(self._database.path, member), create=False)
            except OSError:
                self._others[member] = None  # it cannot be seen from here; its beat can

    def _probe(self) -> None:
        for member, life in list(self._others.items()):
            if life is not None and life.try_acquire():
                self._bury(member, "its process has ended")

    def bury_dead(self, tx: Transaction) -> None:
        """
        Take out, in this transaction, the members whose process has ended.

        For a member that is about to join: without any living member nobody else would do it, and the dead would go on
        refusing, for example, another order.
        """
        for sight in roll_call(tx):
            if sight.id in self.locals:
                continue
            life = self._others.pop(sight.id, None)
            try:
                life = life or FileLock(life_file(self._database.path, sight.id), create=False)
            except OSError:
                continue
            if life.try_acquire():
                expire(tx, sight.id)
                tx.committed.append(partial(life.path.unlink, missing_ok=True))
            life.close()

    def _beat(self) -> None:
        """Renew all our leases with one statement each, and look who has not done so for a whole lease."""
        for local in [local for local in self.locals.values() if local.leaving]:
            self._now(partial(leave, place=local.place.id, member=local.id))
            self.remove(local.id)
        lost, sights = self._now(lambda tx: (beat(tx, list(self.locals)), roll_call(tx)))
        for member in lost:
            local = self.locals[member]
            self.remove(member)
            _log.warning("member %d of %s was declared dead; it joins again", member, self._database.path)
            self._writer.post(local.lost)
        self._watch(sights)

    def _watch(self, sights: list[Sight]) -> None:
        now = time.monotonic()
        # We were away ourselves: what stood still meanwhile may only have been waiting like us.
        away = now - self._looked_at > 2 * self.lease / _BEATS
        self._looked_at = now
        seen = {sight.id: (sight, now) for sight in sights if sight.id not in self.locals}
        for member, (sight, _) in seen.items():
            before = self._sights.get(member)
            if before is not None and before[0].beat == sight.beat and not away:
                seen[member] = before
        self._sights = seen
        for member, (sight, since) in list(seen.items()):
            patience = max(
                self.lease, sight.lease
            )  # a process with a longer lease beats more slowly, and lives
            if now - since >= patience:
                self._bury(member, f"it has shown no sign of life for {patience:g} s")

    def _now(self, work: Work[T]) -> T:
        job = self._writer.now(work)
        if job.error is not None:
            raise job.error
        return cast("T", job.result)

    def _bury(self, member: int, reason: str) -> None:
        self._now(partial(expire, member=member))
        _log.info(
            "member %d of %s is dead: %s; what it had goes to others", member, self._database.path, reason
        )
        self._sights.pop(member, None)
        life = self._others.pop(member, None)
        if life is not None:
            life.close()
            life.path.unlink(missing_ok=True)


def life_file(path: Path, member: int) -> Path:
    """Return the name of a member's lock file."""
    return path.with_name(f"{path.name}.member-{member}")
