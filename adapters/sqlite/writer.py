"""
The one thread that uses the connection, and the way of a call from the event loop to it and back.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Protocol, TypeVar

from brokerkit.adapters.sqlite.database import Database, Job, Work
from brokerkit.adapters.sqlite.fork import watch
from brokerkit.adapters.sqlite.transaction import Transaction
from brokerkit.errors import Closed, ConnectionLost

__all__ = ["Housekeeper", "Writer"]

T = TypeVar("T")
Kind = Literal["write", "read", "bare", "stop"]

_BATCH = 64
"""Calls that one transaction takes at the most."""

_log = logging.getLogger(__name__)


class Housekeeper(Protocol):
    """What the writer thread does beside the calls."""

    def tick(self) -> float | None:
        """Do what is due and return the seconds to the next time, or None if there is nothing to come back for."""
        ...

    def committed(self, tx: Transaction) -> None:
        """Tell others of a transaction that has been committed."""
        ...

    def close(self) -> None:
        """Let go of everything; the thread ends."""
        ...


class _Call(Job[T]):
    """A job on its way: it can be given up as long as the thread has not begun it."""

    __slots__ = ("abandoned", "begun", "future", "kind", "timer")

    def __init__(self, work: Work[T], kind: Kind, future: "asyncio.Future[T]", *, synced: bool) -> None:
        super().__init__(work, synced=synced)
        self.kind: Final = kind
        self.future = future
        self.timer: asyncio.TimerHandle | None = None
        self.begun = False
        self.abandoned = False

    def arrive(self) -> None:
        """Bring the outcome to the future. In the event loop only."""
        if self.timer is not None:
            self.timer.cancel()
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)  # type: ignore[arg-type] # what the work returned, None as well


class Writer:
    """
    Runs work on the database in the order of the calls; what queues up meanwhile shares one transaction.

    A call that has waited `timeout` seconds for the file fails with `ConnectionLost`, and is then not done later
    either. Errors of SQLite arrive as brokerkit's own.
    """

    def __init__(self, database: Database, *, timeout: float) -> None:
        self.database = database
        self._timeout = timeout
        self._housekeeper: Housekeeper | None = None
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[_Call[Any]] = queue.SimpleQueue()
        self._next: _Call[Any] | None = None
        self._mutex = threading.Lock()
        self._ended = False
        self._forked = False
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._posts: list[Callable[[], None]] = []
        self._tick_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"brokerkit {database.path.name}", daemon=True)

    async def open(self, housekeeper: Housekeeper) -> None:
        """Start the thread and open the file. Raises what `Database.open` raises, or `ConnectionLost`."""
        self._housekeeper = housekeeper
        watch(self)
        opened = self._submit(lambda _: None, "bare", synced=False)
        self._thread.start()
        try:
            await opened
        except BaseException:
            self._stop()
            raise

    def write(self, work: Work[T], *, synced: bool = False) -> "asyncio.Future[T]":
        """Run work in a transaction; with `synced` it is on the disk before the future is done."""
        return self._submit(work, "write", synced=synced)

    def read(self, work: Work[T]) -> "asyncio.Future[T]":
        """Run work that reads one state of the database, without waiting for other processes."""
        return self._submit(work, "read", synced=False)

    def bare(self, work: Work[T]) -> "asyncio.Future[T]":
        """Run work under the process lock but outside of any transaction."""
        return self._submit(work, "bare", synced=False)

    async def close(self, deadline: float) -> bool:
        """
        Finish what has been called, close the file, and return whether that was possible within `deadline` seconds.

        If another process holds the file, the thread finishes by itself as soon as it gets it.
        """
        if self._forked:
            return True
        self._stop()
        done, _ = await asyncio.wait([self._closed], timeout=deadline)
        return bool(done)

    def now(self, work: Work[T]) -> Job[T]:
        """Run work in a transaction at once and return its outcome. For the housekeeper, in the writer thread."""
        job = Job(work)
        self._transact(lambda: [job])
        return job

    def post(self, callback: Callable[[], None]) -> None:
        """Call this in the event loop, soon. For the writer thread only."""
        self._posts.append(callback)

    def tick_soon(self) -> None:
        """Let the housekeeper have its turn. For the writer thread only."""
        self._tick_at = 0.0

    def forked(self) -> None:
        """Refuse all further calls in a child process: its copy of this object has no thread."""
        self._forked = True

    def _submit(self, work: Work[T], kind: Kind, *, synced: bool) -> "asyncio.Future[T]":
        self._check()
        call = _Call(work, kind, self._loop.create_future(), synced=synced)
        call.timer = self._loop.call_later(self._timeout, self._give_up, call)
        self._calls.put(call)
        return call.future

    def _check(self) -> None:
        if self._forked:
            message = (
                "this adapter was connected in the parent process; connect in the parent only after the fork, or start the "
                "child by spawn or forkserver"
            )
        elif asyncio.get_running_loop() is not self._loop:
            message = "this adapter belongs to another event loop; connect one in each"
        elif self._ended:
            message = "the adapter is closed"
        else:
            return
        raise Closed(message)

    def _stop(self) -> None:
        if not self._ended:
            self._ended = True
            self._calls.put(_Call(lambda _: None, "stop", self._closed, synced=False))

    def _give_up(self, call: _Call[Any]) -> None:
        with self._mutex:
            if call.begun:
                return
            call.abandoned = True
        if not call.future.done():
            message = f"the file {self.database.path} was locked for {self._timeout:g} s"
            call.future.set_exception(ConnectionLost(message))

    def _run(self) -> None:
        try:
            self.database.open()
        except Exception as error:  # noqa: BLE001 - it is raised where `open` waits
            self._refuse(error)
        else:
            self._work()
        if self._housekeeper is not None:
            self._housekeeper.close()
        self.database.close()
        self._posts.append(self._end)
        self._flush()

    def _end(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    def _refuse(self, error: Exception) -> None:
        """Fail the first call, which waits for the opening, and wait for the end."""
        while (call := self._calls.get()).kind != "stop":
            call.error = error
            self._posts.append(call.arrive)
            self._flush()

    def _work(self) -> None:
        # A loop that was closed without the adapter can settle nothing any more: leave, so that others take over.
        while not self._loop.is_closed():
            call = self._take()
            if call is not None:
                if call.kind == "stop":
                    return
                self._serve(call)
            if self._tick_at is not None and time.monotonic() >= self._tick_at:
                self._tick()
            self._flush()

    def _take(self) -> _Call[Any] | None:
        """Wait for the next call, or return None when it is the housekeeper's turn."""
        if self._next is not None:
            call, self._next = self._next, None
            return call
        wait = None if self._tick_at is None else max(self._tick_at - time.monotonic(), 0.0)
        try:
            return self._calls.get(timeout=wait)
        except queue.Empty:
            return None

    def _serve(self, first: _Call[Any]) -> None:
        if first.kind == "write":
            calls: list[_Call[Any]] = []

            def gather() -> Sequence[_Call[Any]]:
                calls.extend(self._gather(first))
                return calls

            self._transact(gather)
        else:
            calls = self._begin([first])
            for call in calls:
                (self.database.read if call.kind == "read" else self.database.bare)(call)
        self._posts.extend(call.arrive for call in calls)

    def _gather(self, first: _Call[Any]) -> list[_Call[Any]]:
        calls = [first]
        with contextlib.suppress(queue.Empty):
            while len(calls) < _BATCH:
                call = self._calls.get_nowait()
                if call.kind != "write":
                    self._next = call
                    break
                calls.append(call)
        return self._begin(calls)

    def _begin(self, calls: Sequence[_Call[Any]]) -> list[_Call[Any]]:
        with self._mutex:
            for call in calls:
                call.begun = not call.abandoned
        return [call for call in calls if call.begun]

    def _transact(self, gather: Callable[[], Sequence[Job[Any]]]) -> None:
        for tx in self.database.transact(gather):
            if self._housekeeper is not None:
                self._housekeeper.committed(tx)

    def _tick(self) -> None:
        wait: float | None = 1.0
        try:
            wait = None if self._housekeeper is None else self._housekeeper.tick()
        except Exception:  # noqa: BLE001 - logged, and the thread has to live
            # Claims and settlements meet the same trouble and report it; the members' lives depend on going on.
            _log.exception("housekeeping of %s failed; it is tried again", self.database.path)
        self._tick_at = None if wait is None else time.monotonic() + wait

    def _flush(self) -> None:
        if not self._posts:
            return
        posts, self._posts = self._posts, []
        # The loop may be closed by now: then nobody waits for an outcome.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_call_all, posts)


def _call_all(callbacks: Sequence[Callable[[], object]]) -> None:
    for callback in callbacks:
        callback()
