"""
What a forked child must not keep: the parent's locks, and its connection.

A child shares the parent's open files. Were a lock file left open in it, the lock would outlive the parent.
"""

import ctypes
import os
import sqlite3
import weakref
from typing import Protocol

__all__ = ["keep_open", "watch"]


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


def _in_child() -> None:
    for thing in list(_watched):
        thing.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
