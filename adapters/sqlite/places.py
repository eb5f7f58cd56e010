"""
Channels and the places of groups: names to row numbers, and the two order modes of a place.

A place is the group's inlet, which stands for the channel as the group sees it, or its dead letters.
"""

from dataclasses import dataclass, replace

from brokerkit.adapter import Order, Start
from brokerkit.adapters.sqlite.schema import SLOTS
from brokerkit.adapters.sqlite.transaction import Transaction
from brokerkit.errors import ConfigurationError, NotFound
from brokerkit.message import Address

__all__ = ["Place", "channel_of", "find_channel", "find_place", "open_place", "place_of"]


@dataclass(frozen=True, slots=True)
class Place:
    """
    A row of `place`: its number, its channel's number, its order mode.

    follows: whether it reads the channel's log, as an inlet does.
    """

    id: int
    channel: int
    mode: str
    follows: bool


def find_channel(tx: Transaction, name: str) -> int | None:
    """Return the number of a channel, or None."""
    row = tx.execute("SELECT id FROM channel WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def channel_of(tx: Transaction, name: str) -> int:
    """Return the number of a channel, creating it."""
    found = find_channel(tx, name)
    if found is None:
        found = tx.execute("INSERT INTO channel(name) VALUES(?)", (name,)).lastrowid or 0
    return found


def find_place(tx: Transaction, at: Address) -> Place | None:
    """Return the place at an address, or None."""
    row = tx.execute(
        "SELECT p.id, p.channel, p.mode FROM place p JOIN channel c ON c.id = p.channel"
        " WHERE c.name = ? AND p.grp = ? AND p.kind = ?",
        (at.channel, at.group, at.place),
    ).fetchone()
    return None if row is None else Place(row[0], row[1], row[2], follows=at.place == "inlet")


def place_of(tx: Transaction, at: Address) -> Place:
    """Return the place at an address. Raises `NotFound` if there is no such group."""
    found = find_place(tx, at)
    if found is None:
        message = f"there is no group {at.group!r} on {at.channel!r}; subscribe or provision it first"
        raise NotFound(message)
    return found


def open_place(tx: Transaction, at: Address, start: Start, order: Order) -> Place:
    """
    Return the place at an address in that order mode; a new group begins at `start`, and has a dead place.

    Raises `ConfigurationError` if living members use the other order mode: their claims follow other rules, and
    a mixture would keep no order at all.
    """
    place = find_place(tx, at)
    if place is None:
        place = _make(tx, at, start)
        dead = Address(at.channel, at.group, "dead")
        if find_place(tx, dead) is None:
            _make(tx, dead, start)
    if place.mode != order:
        _change_mode(tx, place, at, order)
    return replace(place, mode=order)


def _make(tx: Transaction, at: Address, start: Start) -> Place:
    channel = channel_of(tx, at.channel)
    (last,) = tx.execute("SELECT last FROM counter").fetchone()
    number = tx.execute(
        "INSERT INTO place(channel, grp, kind, mode, next) VALUES(?, ?, ?, 'none', ?)",
        (channel, at.group, at.place, 0 if start == "earliest" else last + 1),
    ).lastrowid
    return Place(number or 0, channel, "none", follows=at.place == "inlet")


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
    if place.follows:
        tx.execute(
            "INSERT INTO pending(place, seq, slot, copy, owner, due, arrivals, returns, mark)"
            " SELECT s.place, m.seq, m.slot, 0, 0, 0, 0, 0, NULL FROM slot s JOIN message m ON m.channel = ?"
            " AND m.place = 0 AND m.slot = s.slot AND m.seq >= s.next"
            " WHERE s.place = ? AND m.seq < (SELECT max(next) FROM slot WHERE place = ?)",
            (place.channel, place.id, place.id),
        )
    tx.execute(
        "UPDATE place SET next = (SELECT max(s.next) FROM slot s WHERE s.place = place.id) WHERE id = ?",
        (place.id,),
    )
    tx.execute("DELETE FROM slot WHERE place = ?", (place.id,))
