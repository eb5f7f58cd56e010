"""
Claiming and settling: who has which message, and how that ends.

Everything that is handed out has a row in `pending` and the cursor moves behind it in one transaction, so no
crash can lose it; every ending names the owner it expects, so nobody can end what belongs to another.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from brokerkit.adapters.sqlite import competing, slotted
from brokerkit.adapters.sqlite.claims import Claim, Taker
from brokerkit.adapters.sqlite.log import wake_for
from brokerkit.adapters.sqlite.places import Place
from brokerkit.adapters.sqlite.shares import balance
from brokerkit.adapters.sqlite.transaction import Transaction

__all__ = ["Ending", "Receipt", "claim", "mark", "peek", "rebalance", "settle"]


class Receipt(NamedTuple):
    """What a settlement needs to know: the row, the member it was handed to and which time that was."""

    seq: int
    owner: int
    arrivals: int
    slot: int
    copy: bool


_MINE = "WHERE place = ? AND seq = ? AND owner = ? AND arrivals = ?"
_DONE = f"DELETE FROM pending {_MINE}"  # noqa: S608 - constants, as the next two
_RETURNED = f"UPDATE pending SET owner = 0, due = ?, returns = returns + 1 {_MINE}"  # noqa: S608
_MARKED = f"UPDATE pending SET mark = ? {_MINE}"  # noqa: S608

Ending = tuple[Receipt, float | None]
"""How one delivery ends: done (None), or returned and not handed out again for so many seconds."""


def claim(tx: Transaction, place: Place, member: int, limit: int) -> Claim:
    """
    Hand out at most `limit` messages of a place to a member.

    With order by key, only from the member's slots, and in each of them in the order of the log. If there is
    nothing, the member is noted as waiting in the same transaction, so no later commit can miss it.
    """
    row = tx.execute("SELECT waiting FROM member WHERE id = ?", (member,)).fetchone()
    if row is None:
        return Claim(gone=True)
    found = _claim(tx, place, member, limit)
    waits = not found.rows and not found.again
    if waits != bool(row[0]):
        tx.execute("UPDATE member SET waiting = ? WHERE id = ?", (int(waits), member))
    if waits:
        found.due = _next_due(tx, place, member)
    return found


def peek(tx: Transaction, place: Place, member: int) -> tuple[bool, float | None]:
    """Return whether a claim may find something (it may be wrong in that only), and the next due time."""
    ready = slotted.peek(tx, place, member) if place.mode == "key" else competing.peek(tx, place)
    return ready, _next_due(tx, place, member)


def settle(tx: Transaction, place: int, endings: Sequence[Ending]) -> list[bool]:
    """End some deliveries in the order given; False for each that is not its owner's any more, and unchanged."""
    tx.execute("SAVEPOINT endings")
    if _end(tx, place, endings):
        outcomes = [True] * len(endings)
    else:
        # Some were not ours, and a batch does not say which: undo it, and look one by one.
        tx.execute("ROLLBACK TO endings")
        outcomes = [_end(tx, place, (ending,)) for ending in endings]
    tx.execute("RELEASE endings")
    wake_for(tx, place, [(receipt.slot, after) for receipt, after in endings if after is not None])
    return outcomes


def mark(tx: Transaction, place: int, marks: Iterable[tuple[Receipt, bytes | None]]) -> list[bool]:
    """Write bytes beside unsettled deliveries, or erase them; False for each that is not its owner's any more."""
    return [tx.execute(_MARKED, (blob, place, *receipt[:3])).rowcount == 1 for receipt, blob in marks]


def rebalance(tx: Transaction, place: Place, member: int) -> bool:
    """Take or release slots if the member still exists, and return whether some wait to be released."""
    if tx.execute("SELECT 1 FROM member WHERE id = ?", (member,)).fetchone() is None:
        return False
    return bool(balance(tx, place.id, member).surplus)


def _claim(tx: Transaction, place: Place, member: int, limit: int) -> Claim:
    taker = Taker(tx, place, member, limit)
    if place.mode == "key":
        share = balance(tx, place.id, member)
        ended = slotted.take(taker, share.active)
        return Claim(taker.rows, again=not ended and not taker.rows, surplus=bool(share.surplus))
    competing.take(taker)
    if taker.room <= 0:
        # There may be more, and whoever was woken for it may have been us.
        wake_for(tx, place.id, ((0, 0.0),))
    return Claim(taker.rows)


def _next_due(tx: Transaction, place: Place, member: int) -> float | None:
    return slotted.next_due(tx, place, member) if place.mode == "key" else competing.next_due(tx, place)


def _end(tx: Transaction, place: int, endings: Sequence[Ending]) -> bool:
    """End all of these, or return False as soon as one was not its owner's (some may be ended by then)."""
    done = [(place, *receipt[:3]) for receipt, after in endings if after is None]
    returned = [
        (tx.now + max(after, 0.0), place, *receipt[:3]) for receipt, after in endings if after is not None
    ]
    copies = [(receipt.seq, place) for receipt, after in endings if after is None and receipt.copy]
    return (
        _changes(tx, _DONE, done)
        and _changes(tx, _RETURNED, returned)
        and _changes(tx, "DELETE FROM message WHERE seq = ? AND place = ?", copies)
    )


def _changes(tx: Transaction, statement: str, rows: Sequence[tuple[object, ...]]) -> bool:
    return not rows or tx.executemany(statement, rows).rowcount == len(rows)
