"""
Members: one for each living subscription. They own slots and pending rows, and show signs of life.

Their numbers are never used again, so what a dead member owned can be told from everything else for ever.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from brokerkit.adapters.sqlite.log import wake_place
from brokerkit.adapters.sqlite.transaction import Transaction

__all__ = ["Sight", "beat", "expire", "join", "leave", "roll_call"]


@dataclass(frozen=True, slots=True)
class Sight:
    """A member as another one sees it; `lease` is its own, in seconds, by which it may be slow to show signs of life."""

    id: int
    place: int
    beat: int
    lease: float


def join(tx: Transaction, place: int, wake: str, lease: float) -> int:
    """Become a member that listens at the address `wake`, and return its number; the others make room."""
    member = tx.execute(
        "INSERT INTO member(place, beat, waiting, wake, lease) VALUES(?, 0, 0, ?, ?)", (place, wake, lease)
    ).lastrowid
    (mode,) = tx.execute("SELECT mode FROM place WHERE id = ?", (place,)).fetchone()
    if mode == "key":
        wake_place(tx, place, but=member or 0, idle_only=False)
    return member or 0


def leave(tx: Transaction, place: int, member: int) -> None:
    """Return politely what the member has, and forget it."""
    tx.execute(
        "UPDATE pending SET owner = 0, due = 0, returns = returns + 1 WHERE place = ? AND owner = ?",
        (place, member),
    )
    _forget(tx, place, member)


def expire(tx: Transaction, member: int) -> None:
    """Take away what a dead member has, and forget it. Its handling may have been what killed it: no return."""
    row = tx.execute("SELECT place FROM member WHERE id = ?", (member,)).fetchone()
    if row is not None:
        tx.execute("UPDATE pending SET owner = 0, due = 0 WHERE place = ? AND owner = ?", (row[0], member))
        _forget(tx, row[0], member)


def beat(tx: Transaction, members: Iterable[int]) -> list[int]:
    """Show a sign of life of these, which renews all that they hold, and return those that were declared dead."""
    statement = "UPDATE member SET beat = beat + 1 WHERE id = ?"
    return [member for member in members if tx.execute(statement, (member,)).rowcount == 0]


def roll_call(tx: Transaction) -> list[Sight]:
    """Return all members of the file."""
    return [Sight(*row) for row in tx.execute("SELECT id, place, beat, lease FROM member")]


def _forget(tx: Transaction, place: int, member: int) -> None:
    tx.execute("UPDATE slot SET owner = 0 WHERE place = ? AND owner = ?", (place, member))
    tx.execute("DELETE FROM member WHERE id = ?", (member,))
    wake_place(tx, place)
