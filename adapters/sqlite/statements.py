"""
Statements over many rows at once.

Python gives up its global lock around every step of a statement and has to win it back from the event loop's
thread. One statement over fifty rows does that once, `executemany` fifty times.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeVar

from brokerkit.adapters.sqlite.transaction import Transaction

__all__ = ["PENDING", "change", "insert"]

T = TypeVar("T")

PENDING = "pending(place, seq, slot, copy, owner, due, arrivals, returns, mark)"

_ROWS = 100
"""Rows in one statement: SQLite before 3.32 takes 999 values."""


def insert(tx: Transaction, into: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert rows into a table, given with its columns."""
    for part in _parts(rows):
        holes = ", ".join(["(" + ", ".join("?" * len(part[0])) + ")"] * len(part))
        tx.execute(f"INSERT INTO {into} VALUES {holes}", tuple(chain.from_iterable(part)))  # noqa: S608


def change(tx: Transaction, statement: str, values: Sequence[object], seqs: Sequence[int]) -> int:
    """Run a statement that ends in `seq IN` for these sequence numbers, and return how many rows it changed."""
    changed = 0
    for part in _parts(seqs):
        holes = ", ".join("?" * len(part))
        changed += tx.execute(f"{statement} ({holes})", (*values, *part)).rowcount
    return changed


def _parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))
