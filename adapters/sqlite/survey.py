"""
Looking without taking: how much waits, what is stored, which groups there are.
"""

from brokerkit.adapter import Measurement
from brokerkit.adapters.sqlite.places import Place, find_channel, place_of
from brokerkit.adapters.sqlite.row import message_of
from brokerkit.adapters.sqlite.transaction import Transaction
from brokerkit.delivery import Delivery
from brokerkit.errors import NotFound
from brokerkit.message import Address

__all__ = ["browse", "groups", "last", "measure"]


def groups(tx: Transaction) -> list[tuple[str, str]]:
    """Return the (channel, group) pairs that exist."""
    return tx.execute(
        "SELECT c.name, p.grp FROM place p JOIN channel c ON c.id = p.channel WHERE p.kind = 'inlet' ORDER BY 1, 2"
    ).fetchall()


def last(tx: Transaction) -> int:
    """Return the last sequence number given."""
    (number,) = tx.execute("SELECT last FROM counter").fetchone()
    return int(number)


def measure(tx: Transaction, at: Address) -> Measurement:
    """Count what waits at a place. Raises `NotFound` if there is no such group."""
    place = place_of(tx, at)
    due, delayed, out, first = tx.execute(
        "SELECT ifnull(sum(owner = 0 AND due <= ?1), 0), ifnull(sum(owner = 0 AND due > ?1), 0),"
        " ifnull(sum(owner <> 0), 0), min(seq) FROM pending WHERE place = ?2",
        (tx.now, place.id),
    ).fetchone()
    new, next_one = _new(tx, place)
    firsts = [seq for seq in (first, next_one) if seq is not None]
    oldest = None
    if firsts:
        (at_time,) = tx.execute("SELECT at FROM message WHERE seq = ?", (min(firsts),)).fetchone()
        oldest = max(tx.now - at_time, 0.0)
    return Measurement(waiting=due + new, delayed=delayed, in_flight=out, oldest=oldest)


def browse(tx: Transaction, at: Address, after: int, limit: int) -> tuple[list[Delivery], int | None]:
    """
    Return what is stored at an address behind a sequence number, and the number of the last one on the page.

    Raises `NotFound` if there is no such channel or group.
    """
    rows = _log(tx, at, after, limit) if at.group is None else _copies(tx, at, after, limit)
    page = [
        Delivery(
            message_of(key, head, body),
            at,
            position=("0", seq),
            arrivals=arrivals,
            returns=returns,
            mark=mark,
        )
        for seq, key, head, body, arrivals, returns, mark in rows
    ]
    return page, rows[-1][0] if rows else None


def _log(
    tx: Transaction, at: Address, after: int, limit: int
) -> list[tuple[int, bytes | None, str | None, bytes, int | None, int, bytes | None]]:
    channel = find_channel(tx, at.channel)
    if channel is None:
        message = f"there is no channel {at.channel!r}"
        raise NotFound(message)
    return tx.execute(
        "SELECT seq, key, head, body, NULL, 0, NULL FROM message INDEXED BY message_log"
        " WHERE channel = ? AND place = 0 AND seq > ? ORDER BY seq LIMIT ?",
        (channel, after, limit),
    ).fetchall()


def _copies(
    tx: Transaction, at: Address, after: int, limit: int
) -> list[tuple[int, bytes | None, str | None, bytes, int | None, int, bytes | None]]:
    return tx.execute(
        "SELECT p.seq, m.key, m.head, m.body, p.arrivals, p.returns, p.mark FROM pending p"
        " JOIN message m ON m.seq = p.seq WHERE p.place = ? AND p.seq > ? AND p.copy = 1 ORDER BY p.seq LIMIT ?",
        (place_of(tx, at).id, after, limit),
    ).fetchall()


def _new(tx: Transaction, place: Place) -> tuple[int, int | None]:
    """Count what lies before the cursors, and return the first of it."""
    if not place.follows:
        return 0, None
    if place.mode == "key":
        (start,) = tx.execute("SELECT min(next) FROM slot WHERE place = ?", (place.id,)).fetchone()
        row = tx.execute(
            "SELECT count(*), min(m.seq) FROM message m INDEXED BY message_log CROSS JOIN slot s ON s.place = ?"
            " AND s.slot = m.slot AND s.next <= m.seq WHERE m.channel = ? AND m.place = 0 AND m.seq >= ?",
            (place.id, place.channel, start),
        ).fetchone()
    else:
        row = tx.execute(
            "SELECT count(*), min(seq) FROM message INDEXED BY message_log WHERE channel = ? AND place = 0"
            " AND seq >= (SELECT next FROM place WHERE id = ?)",
            (place.channel, place.id),
        ).fetchone()
    return row[0], row[1]
