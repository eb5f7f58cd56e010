"""
When to clean: behind the work, in steps that let the work through.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from brokerkit.adapters.sqlite.cleaning import channels, delete_done, delete_expired
from brokerkit.adapters.sqlite.transaction import Transaction
from brokerkit.adapters.sqlite.writer import Writer
from brokerkit.errors import BrokerkitError

__all__ = ["Cleaner"]

_AFTER = 1_000
"""Settlements after which the log is cleaned."""

_EVERY = 30.0
"""Seconds after which it is cleaned in any case, and looked at for what is too old."""

_PAUSE = 0.01
"""Seconds between two steps."""

_FREE_PAGES = 1_000
_VACUUM_PAGES = 500
_LONG_WAL = 64 * 1024 * 1024

_log = logging.getLogger(__name__)


class Cleaner:
    """Deletes in the background what nobody needs. One for each adapter; they do not hurt each other."""

    def __init__(self, writer: Writer, *, retention: float, dead_retention: float) -> None:
        self._writer = writer
        self._retention = retention
        self._dead_retention = dead_retention
        self._settled = 0
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to clean."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def note(self, settled: int) -> None:
        """Note that messages were settled."""
        self._settled += settled
        if self._settled >= _AFTER:
            self._wanted.set()

    async def close(self) -> None:
        """Stop; a step that has begun is finished by the writer thread. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def clean(self, *, thoroughly: bool) -> None:
        """Delete what is done; thoroughly, also what is too old, and give pages back to the file system."""
        self._settled = 0
        for channel in await self._writer.read(channels):
            await self._clean_done(channel)
            if thoroughly:
                await self._clean_expired(channel)
        if thoroughly:
            await self._shrink()

    async def _run(self) -> None:
        thorough_at = time.monotonic() + _EVERY
        while True:
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(thorough_at - time.monotonic(), 0.0)):
                    await self._wanted.wait()
            thoroughly = time.monotonic() >= thorough_at
            if thoroughly:
                thorough_at = time.monotonic() + _EVERY
            try:
                await self.clean(thoroughly=thoroughly)
            except BrokerkitError as error:
                _log.warning("cleaning %s failed and is tried again: %r", self._writer.database.path, error)
                await asyncio.sleep(1.0)

    async def _clean_done(self, channel: int) -> None:
        start: int | None = 0
        while start is not None:
            start = await self._writer.write(_done(channel, start))
            await asyncio.sleep(_PAUSE)

    async def _clean_expired(self, channel: int) -> None:
        def work(tx: Transaction) -> tuple[int, dict[str, int]]:
            dead = tx.now - self._dead_retention if self._dead_retention else float("-inf")
            return delete_expired(tx, channel, tx.now - self._retention, dead)

        deleted = 1
        while deleted:
            deleted, lost = await self._writer.write(work)
            for group, number in lost.items():
                _log.warning(
                    "%d messages of %s were too old and are deleted before it was done", number, group
                )
            await asyncio.sleep(_PAUSE)

    async def _shrink(self) -> None:
        while await self._writer.read(_free_pages) > _FREE_PAGES:
            await self._writer.bare(_vacuum)
            await asyncio.sleep(_PAUSE)
        wal = self._writer.database.path.with_name(self._writer.database.path.name + "-wal")
        with contextlib.suppress(FileNotFoundError):
            if wal.stat().st_size > _LONG_WAL:
                await self._writer.bare(_truncate)


def _done(channel: int, start: int) -> Callable[[Transaction], int | None]:
    return lambda tx: delete_done(tx, channel, start)


def _free_pages(tx: Transaction) -> int:
    (pages,) = tx.execute("PRAGMA freelist_count").fetchone()
    return int(pages)


def _vacuum(tx: Transaction) -> None:
    # As a script: with `execute` Python frees one page a call.
    tx.connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")


def _truncate(tx: Transaction) -> None:
    tx.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
