"""
The tables, and how a connection to them is opened.

`message` holds each message once: `place` 0 is the channel's own log, every other place holds copies.
`place` is a group's own place, with the cursor `next` into the log (NULL: nobody has subscribed yet).
`slot` holds that cursor and one owner for each slot of a place that keeps order by key.
`pending` has a row for everything that was handed out, returned or copied, and is not done; owner 0 is nobody.
`member` has a row for each living subscription; its id is the owner's, and is never used again.
`counter` is the last sequence number given; with one writer at a time it is the order of commits.
"""

import os
import sqlite3
import sys
from pathlib import Path

from brokerkit.errors import ConfigurationError

__all__ = ["SLOTS", "open_database"]

SLOTS = 64

_APPLICATION = 0x626B6974
_VERSION = 1
_WAL_LIMIT = 64 * 1024 * 1024
_STATEMENTS = 256

_TABLES = """
CREATE TABLE counter(last INTEGER NOT NULL);
INSERT INTO counter VALUES(0);
CREATE TABLE channel(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE place(
    id INTEGER PRIMARY KEY, channel INTEGER NOT NULL REFERENCES channel, grp TEXT NOT NULL, kind TEXT NOT NULL,
    mode TEXT NOT NULL, next INTEGER, UNIQUE(channel, grp, kind));
CREATE TABLE slot(
    place INTEGER NOT NULL, slot INTEGER NOT NULL, next INTEGER NOT NULL, owner INTEGER NOT NULL,
    PRIMARY KEY(place, slot)) WITHOUT ROWID;
CREATE TABLE message(
    seq INTEGER PRIMARY KEY, channel INTEGER NOT NULL, place INTEGER NOT NULL, slot INTEGER NOT NULL,
    at REAL NOT NULL, key BLOB, head TEXT, body BLOB NOT NULL);
CREATE INDEX message_log ON message(channel, seq, slot) WHERE place = 0;
CREATE TABLE pending(
    place INTEGER NOT NULL, seq INTEGER NOT NULL, slot INTEGER NOT NULL, copy INTEGER NOT NULL,
    owner INTEGER NOT NULL, due REAL NOT NULL, arrivals INTEGER NOT NULL, returns INTEGER NOT NULL, mark BLOB,
    PRIMARY KEY(place, seq)) WITHOUT ROWID;
CREATE INDEX pending_due ON pending(place, due) WHERE owner = 0;
CREATE INDEX pending_slot ON pending(place, slot, copy, due) WHERE owner = 0;
CREATE TABLE member(
    id INTEGER PRIMARY KEY AUTOINCREMENT, place INTEGER NOT NULL, beat INTEGER NOT NULL,
    waiting INTEGER NOT NULL, wake TEXT NOT NULL, lease REAL NOT NULL);
CREATE INDEX member_place ON member(place);
"""


def open_database(path: Path) -> sqlite3.Connection:
    """
    Open the file, creating file and tables if there are none, and return the connection.

    Call it with the process lock held. Raises `sqlite3.Error`, or `ConfigurationError` if the file belongs to
    another program or to a later version.
    """
    created = not path.exists()
    connection = sqlite3.connect(
        path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=_STATEMENTS
    )
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    if created:
        _sync_directory(path.parent)
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if tables and application != _APPLICATION:
        message = f"{path} is a database of another program; brokerkit needs a file of its own"
        raise ConfigurationError(message)
    if version > _VERSION:
        message = f"{path} was written by a later version of brokerkit (tables {version}, known {_VERSION})"
        raise ConfigurationError(message)
    if not tables:
        # Before journal_mode and the first table, else SQLite ignores it without a word.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA synchronous = FULL")
    if sys.platform == "darwin":
        connection.execute("PRAGMA fullfsync = 1")
    if not tables:
        _create(connection)


def _create(connection: sqlite3.Connection) -> None:
    script = f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_VERSION};"
    connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} {script} COMMIT;")


def _sync_directory(directory: Path) -> None:
    """Make the new file's name survive a power cut; SQLite syncs the directory for its WAL only."""
    if sys.platform == "win32":
        return
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
