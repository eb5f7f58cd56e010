"""
Writing messages: into a channel's log, or as copies into one group's place.
"""

import random
from collections.abc import Iterable, Sequence
from itertools import count

from brokerkit.adapters.sqlite.places import channel_of, place_of
from brokerkit.adapters.sqlite.row import Row, slot_of
from brokerkit.adapters.sqlite.statements import PENDING, insert
from brokerkit.adapters.sqlite.transaction import Transaction
from brokerkit.message import Address

__all__ = ["publish", "put_copies", "wake_for", "wake_place"]

_SOON = 0.1
"""Seconds: a due time that is nearer than this is told at once; a later one is found by looking every 50 ms."""


def publish(tx: Transaction, channel: str, rows: Sequence[Row], *, must_route: bool) -> bool:
    """Store messages in a channel's log, one row each whatever the number of groups; False if none may be."""
    number = channel_of(tx, channel)
    if must_route and not _has_groups(tx, number):
        return False
    stored = _store(tx, number, 0, rows)
    waiting = tx.execute(
        "SELECT m.id, m.wake, p.id, p.mode FROM place p JOIN member m ON m.place = p.id"
        " WHERE p.channel = ? AND p.kind = 'inlet' AND m.waiting = 1",
        (number,),
    ).fetchall()
    for place in {row[2] for row in waiting}:
        members = [(row[0], row[1]) for row in waiting if row[2] == place]
        mode = next(row[3] for row in waiting if row[2] == place)
        _choose(tx, place, mode, members, [slot for _, slot in stored])
    return True


def put_copies(tx: Transaction, to: Address, rows: Sequence[Row], after: Sequence[float]) -> None:
    """
    Store messages in one group's place, each to be handed out so many seconds from now at the earliest.

    Raises `NotFound` if there is no such group.
    """
    place = place_of(tx, to)
    stored = _store(tx, place.channel, place.id, rows)
    values = [
        (place.id, seq, slot, 1, 0, tx.now + wait, 0, 0, None)
        for (seq, slot), wait in zip(stored, after, strict=True)
    ]
    insert(tx, PENDING, values)
    wake_for(tx, place.id, [(slot, wait) for (_, slot), wait in zip(stored, after, strict=True)])


def wake_for(tx: Transaction, place: int, rows: Iterable[tuple[int, float]]) -> None:
    """After the commit, wake as many waiting members of a place as these rows (slot, seconds to wait) need."""
    soon: list[int] = []
    for slot, after in rows:
        tx.delayed = tx.delayed or after > 0
        if after <= _SOON:
            soon.append(slot)
    if not soon:
        return
    waiting = tx.execute("SELECT id, wake FROM member WHERE place = ? AND waiting = 1", (place,)).fetchall()
    if waiting:
        (mode,) = tx.execute("SELECT mode FROM place WHERE id = ?", (place,)).fetchone()
        _choose(tx, place, mode, waiting, soon)


def wake_place(tx: Transaction, place: int, *, but: int = 0, idle_only: bool = True) -> None:
    """After the commit, wake all members of a place: those that wait, or also those that are busy."""
    which = " AND waiting = 1" if idle_only else ""
    rows = tx.execute(f"SELECT id, wake FROM member WHERE place = ? AND id <> ?{which}", (place, but))  # noqa: S608
    tx.wakes.update(rows.fetchall())


def _has_groups(tx: Transaction, channel: int) -> bool:
    found = tx.execute(
        "SELECT 1 FROM place WHERE channel = ? AND kind = 'inlet' LIMIT 1", (channel,)
    ).fetchone()
    return found is not None


def _store(tx: Transaction, channel: int, place: int, rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Store rows and return their (seq, slot). One writer at a time makes `seq` the order of commits."""
    (last,) = tx.execute("SELECT last FROM counter").fetchone()
    stored = [(seq, slot_of(row[0], seq)) for seq, row in zip(count(last + 1), rows, strict=False)]
    tx.execute("UPDATE counter SET last = ?", (last + len(rows),))
    values = [
        (seq, channel, place, slot, tx.now, *row) for (seq, slot), row in zip(stored, rows, strict=True)
    ]
    insert(tx, "message(seq, channel, place, slot, at, key, head, body)", values)
    return stored


def _choose(
    tx: Transaction, place: int, mode: str, waiting: Sequence[tuple[int, str]], slots: Sequence[int]
) -> None:
    if mode == "key" and len(waiting) > 1:
        owners = _owners(tx, place, set(slots))
        tx.wakes.update(member for member in waiting if member[0] in owners)
    else:
        # No more members than messages: the others would come for nothing.
        tx.wakes.update(random.sample(waiting, min(len(slots), len(waiting))))


def _owners(tx: Transaction, place: int, slots: Iterable[int]) -> set[int]:
    wanted = set(slots)
    rows = tx.execute("SELECT slot, owner FROM slot WHERE place = ?", (place,)).fetchall()
    return {owner for slot, owner in rows if slot in wanted}
