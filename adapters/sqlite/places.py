"""
Channels and the places of groups: names to row numbers, and the two order modes of a place.

A place is the group's inlet, which stands for the channel as the group sees it, or its dead letters.
"""

from dataclasses import dataclass, replace

from brokerkit.adapter import Order, Start
from brokerkit.adapters.sqlite.schema import SLOTS
from brokerkit.adapters.sqlite.transaction import Transaction
from brokerkit.errors import ConfigurationError
from brokerkit.message import Address

__all__ = ["Place", "channel_of", "find_place", "make_place", "open_place"]


@dataclass(frozen=True, slots=True)
class Place:
    """
    A row of `place`: its number, its channel's number, its order mode.

    follows: whether it reads the channel's log, as an inlet does. begun: whether somebody has subscribed.
    """

    id: int
    channel: int
    mode: str
    follows: bool
    begun: bool


def channel_of(tx: Transaction, name: str) -> int:
    """Return the number of a channel, creating it."""
    row = tx.execute("SELECT id FROM channel WHERE name = ?", (name,)).fetchone()
    if row is None:
        row = (tx.execute("INSERT INTO channel(name) VALUES(?)", (name,)).lastrowid,)
    return int(row[0])


def find_place(tx: Transaction, at: Address) -> Place | None:
    """Return the place at an address, or None."""
    row = tx.execute(
        "SELECT p.id, p.channel, p.mode, p.next IS NOT NULL FROM place p JOIN channel c ON c.id = p.channel"
        " WHERE c.name = ? AND p.grp = ? AND p.kind = ?",
        (at.channel, at.group, at.place),
    ).fetchone()
    return None if row is None else Place(row[0], row[1], row[2], at.place == "inlet", bool(row[3]))


def make_place(tx: Transaction, at: Address) -> Place:
    """Return the place at an address, creating it without a cursor: copies can wait in it for a first member."""
    found = find_place(tx, at)
    if found is not None:
        return found
    channel = channel_of(tx, at.channel)
    number = tx.execute(
        "INSERT INTO place(channel, grp, kind, mode, next) VALUES(?, ?, ?, 'none', NULL)",
        (channel, at.group, at.place),
    ).lastrowid
    return Place(number or 0, channel, "none", at.place == "inlet", begun=False)


def open_place(tx: Transaction, at: Address, start: Start, order: Order) -> Place:
    """
    Return the place at an address in that order mode; a new group begins at `start`.

    Raises `ConfigurationError` if living members use the other order mode: their claims follow other rules, and
    a mixture would keep no order at all.
    """
    place = make_place(tx, at)
    if not place.begun:
        _begin(tx, place, at, start)
    if place.mode != order:
        _change_mode(tx, place, at, order)
    return replace(place, mode=order, begun=True)


def _begin(tx: Transaction, place: Place, at: Address, start: Start) -> None:
    (last,) = tx.execute("SELECT last FROM counter").fetchone()
    first = 0 if at.place == "inlet" and start == "earliest" else last + 1
    tx.execute("UPDATE place SET next = ? WHERE id = ?", (first, place.id))


def _change_mode(tx: Transaction, place: Place, at: Address, order: Order) -> None:
    (members,) = tx.execute("SELECT count(*) FROM member WHERE place = ?", (place.id,)).fetchone()
    if members:
        message = (
            f"{at} is in use with order={place.mode!r} by {members} members; stop them before one starts with "
            f"order={order!r}"
        )
        raise ConfigurationError(message)
    if order == "key":
        _to_slots(tx, place)
    else:
        _to_cursor(tx, place)
    tx.execute("UPDATE place SET mode = ? WHERE id = ?", (order, place.id))


def _to_slots(tx: Transaction, place: Place) -> None:
    (cursor,) = tx.execute("SELECT next FROM place WHERE id = ?", (place.id,)).fetchone()
    rows = [(place.id, slot, cursor) for slot in range(SLOTS)]
    tx.executemany("INSERT INTO slot(place, slot, next, owner) VALUES(?, ?, ?, 0)", rows)


def _to_cursor(tx: Transaction, place: Place) -> None:
    """
    Go back to one cursor, at the furthest slot's.

    What slower slots have not handed out lies behind it and becomes pending rows, so nothing is lost or doubled.
    """
    tx.execute(
        "INSERT INTO pending(place, seq, slot, copy, owner, due, arrivals, returns, mark)"
        " SELECT s.place, m.seq, m.slot, 0, 0, 0, 0, 0, NULL FROM slot s JOIN message m ON m.channel = ?"
        " AND m.place = 0 AND m.slot = s.slot AND m.seq >= s.next"
        " WHERE s.place = ? AND m.seq < (SELECT max(next) FROM slot WHERE place = ?)",
        (place.channel, place.id, place.id),
    )
    tx.execute("UPDATE place SET next = (SELECT max(next) FROM slot WHERE place = id) WHERE id = ?", (place.id,))
    tx.execute("DELETE FROM slot WHERE place = ?", (place.id,))
