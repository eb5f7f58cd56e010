"""
A memory for dedupe in one table of any database that SQLAlchemy reaches.
"""

import asyncio
import logging
import random
import time
from asyncio import CancelledError, Task
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, ParamSpec, TypeVar
from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    MetaData,
    String,
    Table,
    delete,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from brokerkit.patterns._identity import digest
from brokerkit.patterns._sql import (
    IMMEDIATE,
    checked_table,
    is_transient,
    now_in,
    prepare_sqlite,
    refuse_shared_connection,
)
from brokerkit.patterns.dedupe.store import DONE, Done, Scope, Taken, Token

__all__ = ["SqlStore"]

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("brokerkit.dedupe")

_PURGE_EVERY: Final = 60.0
_BATCH: Final = 1000
_TRIES: Final = 5
_CLAIMED, _FINISHED = 0, 1


class SqlStore:
    """
    Remember events in a table, one row of about 110 bytes for each, for every process that shares it.

    Every call is one or two short transactions of its own. The token is the fence: each change names it, so who lost a claim
    changes nothing. Time is the database's where its SQL for it is known (SQLite, PostgreSQL, MySQL, MariaDB,
    SQL Server), else this machine's. On SQLite a handler that holds the write lock of the same file for longer than
    a lease keeps its own claim from being renewed: give dedupe a file of its own.

    clock: seconds since 1970, instead of the database's clock.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        table: str = "brokerkit_dedupe",
        create: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        name, schema = checked_table(table)
        refuse_shared_connection(engine, "sql_store(...)")
        prepare_sqlite(engine)
        self.metadata = MetaData()
        self.table = Table(
            name,
            self.metadata,
            Column("id", String(64), primary_key=True),
            Column("token", String(32), nullable=False),
            Column("finished", BigInteger, nullable=False),
            Column("until_ms", BigInteger, nullable=False, index=True),
            schema=schema,
        )
        self._engine = engine.execution_options(**{IMMEDIATE: True})
        self._create = create
        self._clock = clock
        self._database_now = now_in(engine) if clock is None else None
        self._purging: Task[None] | None = None
        self._leaving: set[Task[Any]] = set()

    def __repr__(self) -> str:
        return f"SqlStore({self.table.fullname})"

    async def create(self) -> None:
        """Create the table and its index if they are missing."""
        async with self._engine.begin() as connection:
            await connection.run_sync(self.metadata.create_all)

    async def start(self) -> None:
        """Create the table if asked to, and begin to purge every minute or so."""
        if self._create:
            await self.create()
        if self._purging is None:
            self._purging = asyncio.create_task(self._purge_for_ever())

    async def close(self) -> None:
        """Stop purging. The engine stays open: it is the caller's."""
        if self._purging is not None:
            self._purging.cancel()
            await asyncio.wait([self._purging])
            self._purging = None
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=5)

    async def claim(self, scope: Scope, lease: float) -> Token | Taken | Done:
        """See `Store.claim`."""
        token = Token(scope, uuid4().hex)
        try:
            while True:
                answer = await self._tried(self._claim, token, lease)
                if answer is not None:
                    return answer
        except CancelledError:
            # Whether the claim was made is not known; left alone it would hold the redelivery for a whole lease
            task = asyncio.create_task(self.release(token))
            self._leaving.add(task)
            task.add_done_callback(self._left)
            raise

    async def done(self, token: Token, window: float) -> bool:
        """See `Store.done`."""
        return await self._tried(self._change, token, {"finished": _FINISHED, "until_ms": self._in(window)})

    async def release(self, token: Token) -> bool:
        """See `Store.release`."""
        return await self._tried(self._forget, token)

    async def renew(self, tokens: Sequence[Token], lease: float) -> Sequence[bool]:
        """See `Store.renew`."""
        return await self._tried(self._renew, tokens, lease)

    async def purge(self, batch: int = _BATCH) -> int:
        """Delete what is no longer remembered, in transactions of at most `batch` rows; return how many there were."""
        total = 0
        while True:
            async with self._engine.begin() as connection:
                old = select(self.table.c.id).where(self.table.c.until_ms <= self._now()).limit(batch)
                found = list((await connection.execute(old)).scalars())
                if found:
                    # Checked again: it may have been claimed anew since it was read
                    gone = delete(self.table).where(
                        self.table.c.id.in_(found), self.table.c.until_ms <= self._now()
                    )
                    await connection.execute(gone)
            total += len(found)
            if len(found) < batch:
                return total

    async def _claim(self, token: Token, lease: float) -> Token | Taken | Done | None:
        table, row = self.table, digest(token.scope)
        until = self._in(lease)
        try:
            async with self._engine.begin() as connection:
                values = {"id": row, "token": token.value, "finished": _CLAIMED, "until_ms": until}
                await connection.execute(insert(table).values(values))
        except IntegrityError:
            pass
        else:
            return token
        async with self._engine.begin() as connection:
            over = (table.c.id == row, table.c.until_ms <= self._now())
            taken = update(table).where(*over).values(token=token.value, finished=_CLAIMED, until_ms=until)
            if (await connection.execute(taken)).rowcount:
                return token
            left = table.c.until_ms - self._now()
            found = (
                await connection.execute(select(table.c.finished, left).where(table.c.id == row))
            ).first()
        if found is None:
            return None  # released or purged between the two: try again
        return DONE if found[0] == _FINISHED else Taken(max(int(found[1]), 1) / 1000)

    async def _change(self, token: Token, values: dict[str, Any]) -> bool:
        async with self._engine.begin() as connection:
            changed = await connection.execute(update(self.table).where(*self._mine(token)).values(values))
            return bool(changed.rowcount)

    async def _forget(self, token: Token) -> bool:
        async with self._engine.begin() as connection:
            return bool((await connection.execute(delete(self.table).where(*self._mine(token)))).rowcount)

    async def _renew(self, tokens: Sequence[Token], lease: float) -> list[bool]:
        async with self._engine.begin() as connection:
            changes = [
                await connection.execute(
                    update(self.table).where(*self._mine(token)).values(until_ms=self._in(lease))
                )
                for token in tokens
            ]
            return [bool(change.rowcount) for change in changes]

    def _mine(self, token: Token) -> tuple[ColumnElement[bool], ...]:
        table = self.table.c
        return (table.id == digest(token.scope), table.token == token.value, table.finished == _CLAIMED)

    def _now(self) -> ColumnElement[int]:
        if self._database_now is not None:
            return self._database_now
        return literal(int((self._clock or time.time)() * 1000), BigInteger)

    def _in(self, seconds: float) -> ColumnElement[int]:
        return self._now() + int(seconds * 1000)

    async def _tried(self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Repeat what a database undid only because of others."""
        for tried in range(_TRIES):
            try:
                return await call(*args, **kwargs)
            except Exception as error:
                if tried == _TRIES - 1 or not is_transient(error):
                    raise
            await asyncio.sleep(random.uniform(0, 0.05 * 2**tried))  # noqa: S311 - jitter
        raise AssertionError

    async def _purge_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_PURGE_EVERY * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            try:
                await self.purge()
            except Exception as error:  # noqa: BLE001 - the next one may do
                _log.warning("%r could not be purged: %s: %s", self, type(error).__name__, error)

    def _left(self, task: "Task[bool]") -> None:
        self._leaving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("a claim ends with its lease: %s: %s", type(error).__name__, error)
