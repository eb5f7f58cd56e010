"""
What SQLite's errors mean in brokerkit's own family.
"""

import sqlite3

from brokerkit.errors import BrokerkitError, ConfigurationError, ConnectionLost, PublishUnknown, Unauthorised

__all__ = ["at_commit", "meaning"]

_OURS = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
"""What only a mistake in this package can cause."""

_PRIMARY = 0xFF  # an extended code has its primary code in the low byte


def meaning(error: Exception, path: object) -> Exception:
    """
    Return the error to raise, with the client's own as its cause.

    `ConfigurationError` for a file that is no database of ours or is damaged, `Unauthorised` where rights are
    missing, else `ConnectionLost`: full disk, input or output errors, a file that is locked for too long. What
    is no trouble with the file, or is a mistake of our own, is returned unchanged.
    """
    if not isinstance(error, sqlite3.Error | OSError) or isinstance(error, _OURS):
        return error
    found = _classify(error)
    found.add_note(f"database file: {path}")
    found.__cause__ = error
    return found


def at_commit(error: sqlite3.Error, path: object) -> Exception:
    """
    Return the error to raise when COMMIT itself failed.

    `PublishUnknown` after an input or output error: the frames may have reached the disk, and a recovery after
    a crash could find them.
    """
    if _code(error) != sqlite3.SQLITE_IOERR:
        return meaning(error, path)
    unknown = PublishUnknown(f"the commit failed half way and its outcome is unknown: {error}")
    unknown.add_note(f"database file: {path}")
    unknown.__cause__ = error
    return unknown


def _classify(error: sqlite3.Error | OSError) -> BrokerkitError:
    if isinstance(error, PermissionError):
        return Unauthorised(f"no right to use the file: {error.strerror}")
    if isinstance(error, OSError):
        return ConnectionLost(f"the file cannot be used: {error.strerror}")
    code = _code(error)
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return ConfigurationError(
            f"the file is not a database, or is damaged ({error}); give brokerkit a new one"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return Unauthorised(f"the file cannot be written: {error}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ConnectionLost(f"another program holds the file locked: {error}")
    return ConnectionLost(f"the file cannot be used: {error}")


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & _PRIMARY
