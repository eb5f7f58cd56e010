"""
One write transaction, as the statements of this package see it.
"""

import sqlite3
from collections.abc import Callable

__all__ = ["Transaction"]


class Transaction:
    """
    A connection inside BEGIN IMMEDIATE, and what to do when it ends.

    now: wall time in seconds, read once, so that all rows of one transaction agree. wakes: member ids with
    the addresses at which they listen, to be told after the commit that there is something for them.
    delayed: whether a due time was written, of which the members of the same process must hear.
    committed, undone: called after COMMIT or ROLLBACK, in the writer thread. Work may run twice (once in a
    transaction that fails and is rolled back), so it leaves every effect outside of the database to these.
    """

    __slots__ = ("committed", "connection", "delayed", "execute", "executemany", "now", "undone", "wakes")

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self.connection = connection
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.now = now
        self.wakes: dict[int, str] = {}
        self.delayed = False
        self.committed: list[Callable[[], None]] = []
        self.undone: list[Callable[[], None]] = []
