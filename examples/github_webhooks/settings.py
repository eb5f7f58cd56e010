"""
What the three services, the chat service and the producer read from their environment, and nothing else does.
"""

import os
from pathlib import Path
from typing import Final

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

__all__ = [
    "BROKER",
    "CALLS_AT_ONCE",
    "CHANNEL",
    "CHAT",
    "FIXED",
    "FOLDER",
    "SEED",
    "WITHOUT",
    "WITNESS",
    "database",
    "engine_for",
]

CHANNEL: Final = "github"

FOLDER: Final = Path(os.environ.get("GITHUB_WEBHOOKS_FOLDER", "."))
"""Where each program keeps its own database."""

BROKER: Final = os.environ.get("BROKERKIT_URL") or f"sqlite:///{FOLDER / 'broker.db'}"

CHAT: Final = os.environ.get("GITHUB_WEBHOOKS_CHAT", "127.0.0.1:8787")
"""Host and port of the chat service that the notifier calls."""

CALLS_AT_ONCE: Final = 8
"""How many calls one process of the notifier makes at a time."""

SEED: Final = os.environ.get("GITHUB_WEBHOOKS_SEED", "1")
"""Chooses which events meet trouble, and the made-up repositories."""

FIXED: Final = os.environ.get("GITHUB_WEBHOOKS_FIXED") == "1"
"""Whether the release is deployed that mends what makes some events dead letters."""

WITHOUT: Final = os.environ.get("GITHUB_WEBHOOKS_WITHOUT", "")
"""`inbox`, `order` or `dedupe`: the protection that is taken away to see what it was good for."""

WITNESS: Final = os.environ.get("GITHUB_WEBHOOKS_WITNESS", "")
"""A file of this process's own, for `witness`; without it nothing is noted."""


def database(name: str) -> Path:
    """Return the file of one program's own database."""
    return FOLDER / f"{name}.db"


def engine_for(name: str) -> AsyncEngine:
    """
    Return the engine of one service's own database.

    One connection for each process: SQLite has one writer at a time anyhow, and waiting in the pool's queue is
    fairer and cheaper than waiting at the file's lock. Every transaction here ends by itself, so that a connection needs no
    rollback on its way back to the pool.
    """
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{database(name)}",
        pool_size=1,
        max_overflow=0,
        pool_timeout=120,
        pool_reset_on_return=None,
    )
    event.listen(engine.sync_engine, "connect", _relax)
    return engine


def _relax(connection: DBAPIConnection, _: object) -> None:
    """Sync at checkpoints only: what is committed survives the death of a process, which is what happens here."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()
