"""
The inbox: one transaction for an attempt, with the record of the event in it.
"""

import asyncio
import logging
import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ExceptionContext,
    MetaData,
    String,
    Table,
    delete,
    event,
    insert,
    inspect,
    literal,
    select,
)
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from brokerkit.clock import SYSTEM
from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError, HandlerResultError, Undone
from brokerkit.patterns._identity import digest, scope_of
from brokerkit.patterns._sql import (
    IMMEDIATE,
    checked_table,
    is_transient,
    now_in,
    prepare_sqlite,
    refuse_shared_connection,
)
from brokerkit.pipeline import Handler, Place
from brokerkit.settlement import ACK, Ack, Retry, Settle, Settlement
from brokerkit.story import clean

__all__ = ["InboxPattern"]

_log = logging.getLogger("brokerkit.inbox")

_TRIES: Final = 5
_AWAY: Final = 5.0
_SHOWN: Final = 200


def _raise_if_timed_out(delivery: Delivery, error: asyncio.CancelledError) -> None:
    """A timeout that strikes while the database lets nobody in says nothing of the handler, which has not begun."""
    if delivery.stopped == "timeout":
        raise _NotOpenedError from error


class _NotOpenedError(Exception):
    """The database could not be used, and the handler was not called."""


class _Unit:
    """
    One transaction that is open for a handler.

    failed: the database has refused something in it, so it may be undone already although the handler goes on.
    """

    __slots__ = ("failed",)

    def __init__(self) -> None:
        self.failed = False


class InboxPattern:
    """
    What `inbox(...)` returns.

    metadata: the table of records, for a migration tool.
    """

    kind = "inbox"

    def __init__(
        self,
        engine: AsyncEngine | None,
        *,
        sessions: async_sessionmaker[AsyncSession] | None,
        table: str,
        create: bool,
    ) -> None:
        engine = _engine_of(engine, sessions)
        name, schema = checked_table(table)
        refuse_shared_connection(engine, "inbox(...)")
        prepare_sqlite(engine)
        self.metadata = MetaData()
        # The digest alone tells events apart. The rest is for a reader, cut and cleaned
        self.table = Table(
            name,
            self.metadata,
            Column("id", String(64), primary_key=True),
            Column("channel", String(_SHOWN), nullable=False),
            Column("consumer_group", String(_SHOWN), nullable=False),
            Column("event_source", String(_SHOWN), nullable=False),
            Column("event_id", String(_SHOWN), nullable=False),
            Column("at_ms", BigInteger, nullable=False, index=True),
            schema=schema,
        )
        self.provides: Mapping[type[Any], str] = (
            {AsyncConnection: "connection"} if sessions is None else {AsyncSession: "session"}
        )
        self._name = "connection" if sessions is None else "session"
        self._engine = engine.execution_options(**{IMMEDIATE: True})
        self._sessions = sessions
        self._create = create
        self._database_now = now_in(engine)
        self._units: dict[Connection, _Unit] = {}
        event.listen(engine.sync_engine, "commit", self._refuse_commit)
        event.listen(engine.sync_engine, "handle_error", self._note_error)

    def __repr__(self) -> str:
        return f"inbox({self._engine.url!r}, {self._name}s, table={self.table.fullname})"

    def __call__(self, handler: Handler) -> Handler:
        """Return the handler with a transaction around each attempt."""

        async def once(delivery: Delivery) -> Settlement:
            row = self._row(delivery)
            for tried in range(1, _TRIES + 1):
                try:
                    return await self._attempt(handler, delivery, row)
                except _NotOpenedError as error:
                    if tried == _TRIES or not is_transient(error.__cause__ or error):
                        return _away(delivery, error)
                except DBAPIError as error:
                    if tried == _TRIES or not is_transient(error):
                        raise
                await asyncio.sleep(random.uniform(0, 0.05 * 2**tried))  # noqa: S311 - jitter
            raise AssertionError

        return once

    def check(self, place: Place) -> None:
        """Refuse a `def` handler: it runs in a thread, where a connection of the event loop's cannot be used."""
        if place.blocking:
            message = (
                f"handler {place.handler} ({place.channel}/{place.group}): inbox needs an `async def` handler, for its "
                f"{self._name} belongs to the event loop"
            )
            raise ConfigurationError(message)

    async def create(self) -> None:
        """Create the table and its index if they are missing."""
        async with self._engine.begin() as connection:
            await connection.run_sync(self.metadata.create_all)

    async def start(self) -> None:
        """Create the table if asked to; raise `ConfigurationError` if it is missing. An unreachable database is no error yet."""
        try:
            if self._create:
                await self.create()
            async with self._engine.connect() as connection:
                found = await connection.run_sync(self._exists)
        except (DBAPIError, PoolTimeoutError, OSError) as error:
            _log.warning("%r cannot be reached yet: %s: %s", self, type(error).__name__, error)
            return
        if not found:
            message = f"{self!r}: the table is missing; call create(), give create=True, or migrate with its metadata"
            raise ConfigurationError(message)

    async def close(self) -> None:
        """Do nothing: the engine is the caller's."""

    async def purge(self, older_than: float, *, batch: int = 1000) -> int:
        """
        Delete the records older than so many seconds, in transactions of at most `batch` rows; return how many.

        A message whose record is gone is handled again if a copy of it comes back: keep records longer than all retries,
        the retention of the dead letters and the time until a person redrives one.
        """
        total = 0
        while True:
            async with self._engine.begin() as connection:
                old = select(self.table.c.id).where(self.table.c.at_ms < self._now() - int(older_than * 1000))
                found = list((await connection.execute(old.limit(batch))).scalars())
                if found:
                    await connection.execute(delete(self.table).where(self.table.c.id.in_(found)))
            total += len(found)
            if len(found) < batch:
                return total

    async def _attempt(self, handler: Handler, delivery: Delivery, row: dict[str, Any] | None) -> Settlement:
        async with AsyncExitStack() as stack:
            try:
                given, connection = await self._open(stack)
            except asyncio.CancelledError as error:
                _raise_if_timed_out(delivery, error)
                raise
            except (DataError, IntegrityError, ProgrammingError):
                raise
            except (DBAPIError, PoolTimeoutError, OSError) as error:
                raise _NotOpenedError from error
            try:
                if row is not None:
                    await connection.execute(insert(self.table).values({**row, "at_ms": self._now()}))
            except IntegrityError:
                await given.rollback()
                if connection.closed:  # a session gives it back
                    connection = await stack.enter_async_context(self._engine.connect())
                # Asked again, for a constraint of somebody else's on this table must not ack a message
                if row is not None and await self._known(connection, row):
                    return ACK
                raise
            except asyncio.CancelledError as error:
                _raise_if_timed_out(delivery, error)
                raise
            except (ProgrammingError, DataError):
                raise
            except (DBAPIError, PoolTimeoutError, OSError) as error:
                raise _NotOpenedError from error
            settlement = await self._handled(handler, delivery, given, connection, row)
            if type(settlement) is Ack:
                await self._commit(given, connection)
            else:
                await given.rollback()
            return settlement

    async def _open(self, stack: AsyncExitStack) -> tuple[AsyncConnection | AsyncSession, AsyncConnection]:
        if self._sessions is None:
            connection = await stack.enter_async_context(self._engine.connect())
            _begun = await connection.begin()
            return connection, connection
        session = await stack.enter_async_context(self._sessions())
        return session, await session.connection(execution_options={IMMEDIATE: True})

    async def _handled(
        self,
        handler: Handler,
        delivery: Delivery,
        given: AsyncConnection | AsyncSession,
        connection: AsyncConnection,
        row: dict[str, Any] | None,
    ) -> Settlement:
        sync = connection.sync_connection
        assert sync is not None  # noqa: S101 - for the type checker: it was opened above
        whole = sync.get_transaction()
        unit = self._units[sync] = _Unit()
        extra = delivery.extra
        if extra is None:
            extra = delivery.extra = {}
        extra[self._name] = given
        try:
            settlement = await handler(delivery)
            if isinstance(given, AsyncSession) and type(settlement) is Ack:
                await given.flush()
        except Settle as settled:
            settlement = settled.settlement
        finally:
            del self._units[sync]
            extra.pop(self._name, None)
        if type(settlement) is Ack:
            if whole is None or not whole.is_active:
                message = "the handler ended the inbox's transaction; leave that to the inbox and use begin_nested()"
                raise HandlerResultError(message)
            if unit.failed:
                await self._prove(connection, row)
        return settlement

    async def _commit(self, given: AsyncConnection | AsyncSession, connection: AsyncConnection) -> None:
        try:
            await given.commit()
        except BaseException:
            # SQLAlchemy takes the transaction for ended and would put it, open and with its locks, back into the pool
            if not connection.closed:
                await connection.invalidate()
            raise

    async def _prove(self, connection: AsyncConnection, row: dict[str, Any] | None) -> None:
        """
        Make sure that a transaction in which something failed can still commit.

        PostgreSQL answers COMMIT of an aborted transaction with a silent rollback, and MySQL drops the whole transaction at a
        deadlock: a handler that went on after such an error would be acked with nothing done. The first raises here.
        """
        if row is None:
            await connection.execute(select(literal(1)))
        elif not await self._known(connection, row):
            message = "the database undid the transaction while the handler went on; let its errors pass"
            raise Undone(message)

    async def _known(self, connection: AsyncConnection, row: dict[str, Any]) -> bool:
        found = await connection.execute(select(self.table.c.id).where(self.table.c.id == row["id"]))
        return found.first() is not None

    def _row(self, delivery: Delivery) -> dict[str, Any] | None:
        scope = scope_of(delivery)
        if scope is None:
            return None
        channel, group, source, event_id = (clean(part)[:_SHOWN] for part in scope)
        return {
            "id": digest(scope),
            "channel": channel,
            "consumer_group": group,
            "event_source": source,
            "event_id": event_id,
        }

    def _now(self) -> Any:
        return (
            literal(int(SYSTEM.time() * 1000), BigInteger)
            if self._database_now is None
            else self._database_now
        )

    def _exists(self, connection: Connection) -> bool:
        return inspect(connection).has_table(self.table.name, schema=self.table.schema)

    def _refuse_commit(self, connection: Connection) -> None:
        if connection in self._units:
            connection.invalidate()  # what was refused must not go back into the pool with its transaction open
            message = "a handler behind an inbox must not commit: its work and the record of its event commit together"
            raise HandlerResultError(message)

    def _note_error(self, context: ExceptionContext) -> None:
        if context.connection is not None and (unit := self._units.get(context.connection)) is not None:
            unit.failed = True


def _engine_of(engine: object, sessions: object) -> AsyncEngine:
    if sessions is not None and not isinstance(sessions, async_sessionmaker):
        message = f"inbox(sessions=...): give an async_sessionmaker, not {type(sessions).__name__}"
        raise ConfigurationError(message)
    if engine is None and sessions is not None:
        engine = sessions.kw.get("bind")
    if not isinstance(engine, AsyncEngine):
        message = (
            "inbox(...): give an AsyncEngine, or sessions=async_sessionmaker(engine); "
            f"{type(engine).__name__} is neither"
        )
        raise ConfigurationError(message)
    return engine


def _away(delivery: Delivery, error: _NotOpenedError) -> Retry:
    cause = error.__cause__ or error
    _log.warning(
        "the inbox's database cannot be used, %s is returned uncounted: %s: %s",
        delivery,
        type(cause).__name__,
        cause,
    )
    after = _AWAY * random.uniform(0.5, 1)  # noqa: S311 - jitter
    return Retry(after=after, reason=f"inbox: {type(cause).__name__}", counts=False)
