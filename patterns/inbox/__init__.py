"""Record an event's id in the same database transaction as the handler's work."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

    from brokerkit.patterns.inbox.transaction import InboxPattern

__all__ = ["inbox"]


def inbox(
    engine: "AsyncEngine | None" = None,
    *,
    sessions: "async_sessionmaker[AsyncSession] | None" = None,
    table: str = "brokerkit_inbox",
    create: bool = False,
) -> "InboxPattern":
    """
    Run each attempt in one database transaction, together with the record that the event was handled.

    engine: where the handler's work goes. A handler parameter annotated with `AsyncConnection` gets the connection.
    sessions: instead, a maker of sessions; a parameter annotated with `AsyncSession` gets the session. The engine is then
        the one it is bound to, unless given.
    table: name of the table of records, with a schema and a dot before it if need be.
    create: make the table at start if it is missing.

    Raises `ConfigurationError` for a name that is not plain, for neither engine nor bound sessions, and for an engine whose
    one connection is shared by all. Needs the extra `sql`.

    Guarantees that what the handler does on this connection happens once for each event and group: record and work commit
    together, only if the attempt ends in `Ack`, and an event that is recorded is acked without the handler. A
    second process with the same event waits at the record (or, on SQLite, at the write lock) and then sees it. What a
    database undoes only because of others (serialisation, deadlock, a lock not to be had) is tried again in place, a few times,
    as part of the same attempt; while the database cannot be reached before the handler was called, the message is returned
    uncounted. A commit whose outcome is unknown fails the attempt: the next one finds the record, or does the work.

    It says nothing about effects outside this transaction: a call to another service may be made twice. The handler must
    not commit or roll back itself (it may use `begin_nested()`); that fails the message. The transaction is open for as long
    as the handler runs, and on SQLite it is the only writer of the file. Purge records only when no copy of their message
    can come back: `InboxPattern.purge`.
    """
    from brokerkit.patterns.inbox.transaction import InboxPattern  # noqa: PLC0415 - an extra: the rest works without

    return InboxPattern(engine, sessions=sessions, table=table, create=create)
