"""
What the patterns share that keep something in a database through SQLAlchemy; no part of the public face.
"""

import re
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Connection, StaticPool, event, literal_column
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.elements import quoted_name

from brokerkit.errors import ConfigurationError

__all__ = [
    "IMMEDIATE",
    "checked_table",
    "is_transient",
    "now_in",
    "prepare_sqlite",
    "refuse_shared_connection",
]

IMMEDIATE: Final = "brokerkit_immediate"
"""The execution option that asks `prepare_sqlite` for a transaction that takes the write lock at once."""

_BUSY_MS: Final = 10_000
_TABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,47}")
_STATES: Final = frozenset({"40001", "40P01", "55P03"})
_MYSQL: Final = frozenset({1205, 1213})
_SQLITE: Final = frozenset({5, 6})
_CLOCKS: Final = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
    "mysql": "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)",
    "mariadb": "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)",
    "mssql": "DATEDIFF_BIG(millisecond, '1970-01-01', SYSUTCDATETIME())",
}


def now_in(engine: AsyncEngine) -> ColumnElement[int] | None:
    """Return the database's own clock in milliseconds since 1970, or None where its SQL for that is not known here."""
    sql = _CLOCKS.get(engine.dialect.name)
    return None if sql is None else literal_column(sql, BigInteger)


def checked_table(name: object) -> tuple[quoted_name, str | None]:
    """Return (table, schema) of a table's name, to be quoted; `ConfigurationError` unless it is plain."""
    if not isinstance(name, str) or not _TABLE.fullmatch(name):
        message = (
            f"table name {name!r}: use letters, digits and '_', with a schema and a dot before it if need be"
        )
        raise ConfigurationError(message)
    schema, _, table = name.rpartition(".")
    return quoted_name(table, quote=True), quoted_name(schema, quote=True) if schema else None


def refuse_shared_connection(engine: AsyncEngine, who: str) -> None:
    """Refuse an engine whose one connection is shared by all: one transaction's rollback would undo another's work."""
    if isinstance(engine.sync_engine.pool, StaticPool):
        message = (
            f"{who}: this engine has one connection for everybody (sqlite in memory); use a database file"
        )
        raise ConfigurationError(message)


def is_transient(error: BaseException) -> bool:
    """Whether a database undid a transaction only because of others: serialisation, deadlock, a lock not to be had."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    orig: Any = error.orig
    state = getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)
    if state in _STATES:
        return True
    code = getattr(orig, "sqlite_errorcode", None)
    if code is not None:
        return (code & 0xFF) in _SQLITE
    return bool(orig.args) and orig.args[0] in _MYSQL


def prepare_sqlite(engine: AsyncEngine) -> None:
    """
    Make transactions of an engine real on SQLite; does nothing for another database. May be called again.

    Python's driver begins a transaction only before the first write, as a reader that then wants the write lock: two
    processes that do so refuse each other at once. From here on this engine's transactions begin when SQLAlchemy says
    so, those of brokerkit's patterns with the write lock (`BEGIN IMMEDIATE`), others as readers (`BEGIN`); who waits for a
    lock waits up to 10 seconds, and the file is in WAL mode, so that readers wait for nobody. The engine must not be made with
    the driver's `autocommit=` or with `isolation_level="AUTOCOMMIT"`.
    """
    if engine.dialect.name == "sqlite" and not event.contains(engine.sync_engine, "begin", _begin):
        event.listen(engine.sync_engine, "begin", _begin)


def _begin(connection: Connection) -> None:
    held = connection.connection
    if IMMEDIATE not in held.info:
        dbapi: Any = held.dbapi_connection
        dbapi.isolation_level = None
        cursor = held.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.close()
        held.info[IMMEDIATE] = True
    how = "BEGIN IMMEDIATE" if connection.get_execution_options().get(IMMEDIATE) else "BEGIN"
    connection.exec_driver_sql(how)
