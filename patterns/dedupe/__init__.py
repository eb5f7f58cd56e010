"""Handle an event once: remember the ids of what finished."""

from typing import TYPE_CHECKING

from brokerkit.patterns.dedupe.memory import MemoryStore
from brokerkit.patterns.dedupe.pattern import DedupePattern, dedupe
from brokerkit.patterns.dedupe.store import DONE, Done, Scope, Store, Taken, Token

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from brokerkit.patterns.dedupe.sql import SqlStore

__all__ = [
    "DONE",
    "DedupePattern",
    "Done",
    "MemoryStore",
    "Scope",
    "Store",
    "Taken",
    "Token",
    "dedupe",
    "sql_store",
]


def sql_store(engine: "AsyncEngine", *, table: str = "brokerkit_dedupe", create: bool = False) -> "SqlStore":
    """
    Return a memory for `dedupe` in a database, shared by every process that uses the same table.

    engine: a SQLAlchemy engine; it stays the caller's to dispose of.
    table: name of the table, with a schema and a dot before it if need be.
    create: make the table at start if it is missing.

    Raises `ConfigurationError` for a name that is not plain, or an engine whose one connection is shared by all. Needs the
    extra `sql`.
    """
    from brokerkit.patterns.dedupe.sql import SqlStore  # noqa: PLC0415 - an extra: dedupe works without

    return SqlStore(engine, table=table, create=create)
