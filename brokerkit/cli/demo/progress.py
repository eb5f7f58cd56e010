"""
How far the programs of a run are, read from their databases: for the killer, for the wait, and for people.
"""

import contextlib
import sqlite3
from pathlib import Path

from brokerkit.cli.demo.plan import GROUPS, Plan

__all__ = ["Ledgers", "rows"]


class Ledgers:
    """Counts the rows of the ledgers; a database that is not there yet has none."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def done(self, group: str) -> int:
        """Return how many rows a group's ledger has."""
        return rows(self._plan.database(group), "ledger")

    def published(self) -> int:
        """Return how many publishes the producer has noted."""
        return rows(self._plan.database("producer"), "published")

    def all(self) -> dict[str, int]:
        """Return the counts of the producer and of all groups."""
        return {"published": self.published(), **{group: self.done(group) for group in GROUPS}}


def rows(database: Path, table: str) -> int:
    """Return how many rows were ever appended to a table; reads one page."""
    if not database.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            (last,) = connection.execute(f"SELECT max(rowid) FROM {table}").fetchone()  # noqa: S608 - ours
    except sqlite3.OperationalError:
        return 0
    return int(last or 0)
