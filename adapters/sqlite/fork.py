"""
What a forked child must not keep: the parent's locks, and its connection.

A child shares the parent's open files. Were a lock file left open in it, the lock would outlive the parent.
"""

import ctypes
import os
import sqlite3
import weakref
from typing import Protocol

__all__ = ["inherit", "inherited", "keep_open", "watch"]


class Forked(Protocol):
    """Something that has to let go in a forked child."""

    def forked(self) -> None:
        """Let go; called in the child, whose only thread this is."""
        ...


_watched: "weakref.WeakSet[Forked]" = weakref.WeakSet()


def watch(thing: Forked) -> None:
    """Call `thing.forked()` in every child that is forked from now on, as long as the thing lives."""
    _watched.add(thing)


def keep_open(connection: sqlite3.Connection) -> None:
    """
    Never close this connection, not even when the interpreter ends.

    Closing it in a child could write a checkpoint under the parent's feet: SQLite forbids any use after a fork.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


_inherited: set[tuple[int, int]] = set()


def inherit(identity: tuple[int, int] | None) -> None:
    """Remember, in a child, a file (device, inode) that was open when it was forked."""
    if identity is not None:
        _inherited.add(identity)


def inherited(identity: tuple[int, int] | None) -> bool:
    """
    Say whether a file was open in a parent when this process was forked.

    SQLite keeps what it knows of locks on a file once for the whole process. A child inherits it and believes to hold
    locks that only the parent holds; when the parent closes, it deletes the log that the child goes on writing into, and
    all that was confirmed since is gone (tried). So such a file is never opened again in that child.
    """
    return identity in _inherited


def _in_child() -> None:
    for thing in list(_watched):
        thing.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
