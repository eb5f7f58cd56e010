"""
Claims without order: one cursor for the group, whoever asks takes what comes next.
"""

import sqlite3

from brokerkit.adapters.sqlite.claims import FROM_LOG, FROM_PENDING, Claimed, Taker
from brokerkit.adapters.sqlite.places import Place
from brokerkit.adapters.sqlite.transaction import Transaction

__all__ = ["next_due", "peek", "take"]

_FREE = (
    FROM_PENDING.format(hint="INDEXED BY pending_due")
    + " WHERE p.place = ? AND p.owner = 0 AND p.due <= ? ORDER BY p.due LIMIT ?"
)
_NEW = FROM_LOG + " WHERE m.channel = ? AND m.place = 0 AND m.seq >= ? ORDER BY m.seq LIMIT ?"


def take(taker: Taker) -> None:
    """Take what was returned or copied and has come due, then what is new."""
    _take_free(taker)
    if taker.room > 0 and taker.place.follows:
        _take_new(taker)


def next_due(tx: Transaction, place: Place) -> float | None:
    """Return the wall time at which the next row that is not due yet will be."""
    (due,) = tx.execute(
        "SELECT min(due) FROM pending INDEXED BY pending_due WHERE place = ? AND owner = 0 AND due > ?",
        (place.id, tx.now),
    ).fetchone()
    return None if due is None else float(due)


def peek(tx: Transaction, place: Place) -> bool:
    """Return whether `take` would find something."""
    free = tx.execute(
        "SELECT 1 FROM pending INDEXED BY pending_due WHERE place = ? AND owner = 0 AND due <= ? LIMIT 1",
        (place.id, tx.now),
    ).fetchone()
    if free is not None or not place.follows:
        return free is not None
    new = tx.execute(
        "SELECT 1 FROM message m INDEXED BY message_log WHERE m.channel = ? AND m.place = 0"
        " AND m.seq >= (SELECT next FROM place WHERE id = ?) LIMIT 1",
        (place.channel, place.id),
    ).fetchone()
    return new is not None


def _take_free(taker: Taker) -> None:
    found = taker.tx.execute(_FREE, (taker.place.id, taker.tx.now, taker.room))
    taken = _take(taker, found)
    if taken:
        taker.own([row.seq for row in taken])


def _take_new(taker: Taker) -> None:
    tx, place = taker.tx, taker.place
    (start,) = tx.execute("SELECT next FROM place WHERE id = ?", (place.id,)).fetchone()
    taken = _take(taker, tx.execute(_NEW, (place.channel, start, taker.room)))
    if not taken:
        return
    last = taken[-1].seq
    # The range holds exactly what was taken: there is one cursor, and what lies behind it has been handed out.
    tx.execute(
        "INSERT INTO pending(place, seq, slot, copy, owner, due, arrivals, returns, mark)"
        " SELECT ?, m.seq, m.slot, 0, ?, 0, 1, 0, NULL FROM message m INDEXED BY message_log"
        " WHERE m.channel = ? AND m.place = 0 AND m.seq BETWEEN ? AND ?",
        (place.id, taker.member, place.channel, taken[0].seq, last),
    )
    tx.execute("UPDATE place SET next = ? WHERE id = ?", (last + 1, place.id))


def _take(taker: Taker, found: sqlite3.Cursor) -> list[Claimed]:
    taken: list[Claimed] = []
    for values in found:
        row = Claimed._make(values)
        taker.add(row)
        taken.append(row)
        if taker.room <= 0:
            break
    found.close()
    return taken
