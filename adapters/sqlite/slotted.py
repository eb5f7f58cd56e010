"""
Claims with order by key: from the slots that the member owns, each in the order of the log.

What was handed out before and came back goes first. A message that came back with a due time holds back the
later ones of its key, and of no other: they are parked as pending rows behind it, so that the cursor can go on.
Copies have no order: they come when they are due.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable

from brokerkit.adapters.sqlite.claims import FROM_LOG, FROM_PENDING, Claimed, Taker
from brokerkit.adapters.sqlite.places import Place
from brokerkit.adapters.sqlite.shares import is_uneven
from brokerkit.adapters.sqlite.statements import PENDING, insert
from brokerkit.adapters.sqlite.transaction import Transaction

__all__ = ["next_due", "peek", "take"]

_SCAN = 20_000
"""Sequence numbers that one claim looks through at the most, so that it cannot hold up the other members."""

_PARKED = 1_000
"""Messages parked in one slot from which on its cursor stands still."""

_LATE = 1_000
"""Sequence numbers that a cursor may stay behind the end of the log while there is nothing for it."""

_SOONEST = (
    "(SELECT p.due FROM pending p INDEXED BY pending_slot WHERE p.place = s.place AND p.owner = 0"
    " AND p.slot = s.slot AND p.copy = {copy} AND p.due > ?1 ORDER BY p.due LIMIT 1)"
)
_NEXT_DUE = (
    f"SELECT min(due) FROM (SELECT {_SOONEST.format(copy=0)} AS due FROM slot s WHERE s.place = ?2 AND s.owner = ?3"  # noqa: S608 - constants
    f" UNION ALL SELECT {_SOONEST.format(copy=1)} FROM slot s WHERE s.place = ?2 AND s.owner = ?3)"
)

_ONE = FROM_PENDING.format(hint="") + " WHERE p.place = ? AND p.seq = ?"


def take(taker: Taker, slots: Iterable[int]) -> bool:
    """Take from these slots, and return whether the end of the log was reached."""
    mine = set(slots)
    if not mine:
        return True
    held, crowded = _take_returned(taker, mine)
    if taker.room > 0:
        _take_copies(taker, mine)
    if taker.room > 0 and taker.place.follows and mine - crowded:
        return _take_new(taker, mine - crowded, held)
    return True


def next_due(tx: Transaction, place: Place, member: int) -> float | None:
    """Return the wall time at which the next row in the member's slots that is not due yet will be."""
    (due,) = tx.execute(_NEXT_DUE, (tx.now, place.id, member)).fetchone()
    return None if due is None else float(due)


def peek(tx: Transaction, place: Place, member: int) -> bool:
    """Return whether a claim may find messages, or slots to take or to release; may be wrongly true."""
    return (
        is_uneven(tx, place.id, member)
        or _is_due(tx, place, member)
        or (place.follows and _is_new(tx, place, member))
    )


def _is_due(tx: Transaction, place: Place, member: int) -> bool:
    found = tx.execute(
        "SELECT 1 FROM slot s CROSS JOIN pending p INDEXED BY pending_slot ON p.place = s.place AND p.slot = s.slot"
        " AND p.owner = 0 AND p.copy IN (0, 1) AND p.due <= ? WHERE s.place = ? AND s.owner = ? LIMIT 1",
        (tx.now, place.id, member),
    ).fetchone()
    return found is not None


def _is_new(tx: Transaction, place: Place, member: int) -> bool:
    (start,) = tx.execute(
        "SELECT min(next) FROM slot WHERE place = ? AND owner = ?", (place.id, member)
    ).fetchone()
    (last,) = tx.execute("SELECT last FROM counter").fetchone()
    if start is None or last - start > _SCAN:
        return start is not None
    found = tx.execute(
        "SELECT 1 FROM message m INDEXED BY message_log CROSS JOIN slot s ON s.place = ? AND s.slot = m.slot"
        " AND s.owner = ? AND s.next <= m.seq WHERE m.channel = ? AND m.place = 0 AND m.seq >= ? LIMIT 1",
        (place.id, member, place.channel, start),
    ).fetchone()
    return found is not None


def _take_returned(taker: Taker, slots: set[int]) -> tuple[set[bytes], set[int]]:
    """Take what came back, in the order of the log; return the keys that are held back, and the crowded slots."""
    tx, place = taker.tx, taker.place
    found = tx.execute(
        "SELECT p.seq, p.slot, p.due, m.key FROM pending p INDEXED BY pending_slot JOIN message m ON m.seq = p.seq"  # noqa: S608 - numbers
        f" WHERE p.place = ? AND p.owner = 0 AND p.copy = 0 AND p.slot IN ({_listed(slots)}) ORDER BY p.seq",
        (place.id,),
    ).fetchall()
    held: set[bytes] = set()
    parked: Counter[int] = Counter()
    for seq, slot, due, key in found:
        if due > tx.now or key in held:
            parked[slot] += 1
            if key is not None:
                held.add(key)
        elif taker.room > 0:
            _take_one(taker, seq)
    return held, {slot for slot, number in parked.items() if number >= _PARKED}


def _take_copies(taker: Taker, slots: set[int]) -> None:
    tx, place = taker.tx, taker.place
    found = tx.execute(
        "SELECT p.seq FROM pending p INDEXED BY pending_slot WHERE p.place = ? AND p.owner = 0 AND p.copy = 1"  # noqa: S608 - numbers
        f" AND p.slot IN ({_listed(slots)}) AND p.due <= ? LIMIT ?",
        (place.id, tx.now, taker.room),
    ).fetchall()
    for (seq,) in found:
        if taker.room > 0:
            _take_one(taker, seq)


def _take_one(taker: Taker, seq: int) -> None:
    row = taker.tx.execute(_ONE, (taker.place.id, seq)).fetchone()
    taker.add(Claimed._make(row))
    taker.own((seq,))


def _take_new(taker: Taker, slots: set[int], held: set[bytes]) -> bool:
    """
    Go on from the cursors of these slots, in the order of the log over all of them.

    All the slots of one member are read together, so they move together, and those without messages as well.
    """
    tx, place = taker.tx, taker.place
    listed = _listed(slots)
    (start,) = tx.execute(
        f"SELECT min(next) FROM slot WHERE place = ? AND slot IN ({listed})",  # noqa: S608
        (place.id,),
    ).fetchone()
    (last,) = tx.execute("SELECT last FROM counter").fetchone()
    first = _first(tx, place, start)
    if first is None:
        if last - start > _LATE:
            _move(tx, place, listed, last + 1)
        return True
    horizon = min(last, first + _SCAN)
    found = tx.execute(
        FROM_LOG
        + " CROSS JOIN slot s ON s.place = ? AND s.slot = m.slot AND s.next <= m.seq"
        + f" WHERE m.channel = ? AND m.place = 0 AND m.seq BETWEEN ? AND ? AND m.slot IN ({listed}) ORDER BY m.seq",
        (place.id, place.channel, first, horizon),
    )
    reached, moved = _take_or_park(taker, found, held, horizon)
    if moved or reached - start > _LATE:
        _move(tx, place, listed, reached + 1)
    return reached >= int(last)


def _take_or_park(taker: Taker, found: sqlite3.Cursor, held: set[bytes], horizon: int) -> tuple[int, bool]:
    """Hand out what is free, park what is held back; return up to where, and whether there was anything."""
    new: list[tuple[object, ...]] = []
    reached = horizon
    for values in found:
        row = Claimed._make(values)
        if row.key in held:
            new.append((taker.place.id, row.seq, row.slot, 0, 0, 0, 0, 0, None))
        else:
            taker.add(row)
            new.append((taker.place.id, row.seq, row.slot, 0, taker.member, 0, 1, 0, None))
        if taker.room <= 0 or len(new) >= _PARKED:
            reached = row.seq
            break
    found.close()
    insert(taker.tx, PENDING, new)
    return reached, bool(new)


def _first(tx: Transaction, place: Place, start: int) -> int | None:
    row = tx.execute(
        "SELECT m.seq FROM message m INDEXED BY message_log WHERE m.channel = ? AND m.place = 0 AND m.seq >= ?"
        " ORDER BY m.seq LIMIT 1",
        (place.channel, start),
    ).fetchone()
    return None if row is None else int(row[0])


def _move(tx: Transaction, place: Place, listed: str, cursor: int) -> None:
    tx.execute(
        f"UPDATE slot SET next = ? WHERE place = ? AND slot IN ({listed}) AND next < ?",  # noqa: S608
        (cursor, place.id, cursor),
    )


def _listed(slots: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(slots)))
