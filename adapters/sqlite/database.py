"""
The connection, the process lock around every transaction, and what becomes of work that fails.

All of it is used by one thread.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from brokerkit.adapters.sqlite.failure import at_commit, meaning
from brokerkit.adapters.sqlite.fork import inherit, inherited, keep_open, watch
from brokerkit.adapters.sqlite.lock import FileLock
from brokerkit.adapters.sqlite.schema import open_database
from brokerkit.adapters.sqlite.transaction import Transaction
from brokerkit.clock import Clock
from brokerkit.errors import Closed, ConfigurationError, ConnectionLost

__all__ = ["Database", "Job", "Work"]

T = TypeVar("T")
Work = Callable[[Transaction], T]

_BUSY_AGAIN = 0.001
"""Seconds between two tries while a foreign program holds the file; brokerkit's own wait at the lock file."""


class Job(Generic[T]):
    """
    Some work with its outcome, which is a result or an error.

    synced: the transaction is on the disk before anybody hears of it.
    """

    __slots__ = ("error", "result", "synced", "work")

    def __init__(self, work: Work[T], *, synced: bool = False) -> None:
        self.work = work
        self.synced = synced
        self.result: T | None = None
        self.error: Exception | None = None

    def run(self, tx: Transaction) -> None:
        """Do the work in this transaction. Raises what it raises."""
        self.result = self.work(tx)


class Database:
    """
    The file.

    Before every transaction it takes the lock file: the kernel queues fairly, where SQLite's own waiting
    starves a neighbour for a second, and no two processes ever commit, checkpoint or close at the same instant.
    """

    def __init__(self, path: Path, *, timeout: float, clock: Clock) -> None:
        self.path = path
        self._timeout = timeout
        self._clock = clock
        self._lock: FileLock | None = None
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._full = True

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection. Raises `Closed` when there is none."""
        if self._connection is None:
            message = f"the file {self.path} is not open"
            raise Closed(message)
        return self._connection

    def open(self) -> None:
        """Open the file, creating what is missing. Raises an error of brokerkit's family."""
        if inherited(self._find()):
            message = (
                f"the file {self.path} was open in the parent when this process was forked, and SQLite forbids to use it "
                "here; connect in the parent only after the fork, or start the child by spawn or forkserver"
            )
            raise ConfigurationError(message)
        watch(self)
        try:
            self._lock = FileLock(self.path.with_name(self.path.name + ".lock"), create=True)
            with self._locked():
                self._connection = open_database(self.path)
                self._identity = self._find()
        except (sqlite3.Error, OSError) as error:
            raise meaning(error, self.path) from error

    def close(self) -> None:
        """Close the file, under the lock because SQLite may write a last checkpoint. Idempotent."""
        lock, self._lock = self._lock, None
        connection, self._connection = self._connection, None
        if lock is None:
            return
        lock.acquire()
        try:
            if connection is not None:
                connection.close()
        finally:
            lock.close()

    def forked(self) -> None:
        """Let go of lock and connection in a child process; the parent's go on."""
        if self._lock is not None:
            self._lock.close()
        if self._connection is not None:
            inherit(self._identity)
            keep_open(self._connection)

    def transact(self, gather: Callable[[], Sequence[Job[Any]]]) -> list[Transaction]:
        """
        Run jobs in one transaction, and return what was committed.

        `gather` is called with the lock in hand, so what came while waiting for it takes part. One job that fails
        harms only itself. Jobs that end without success have their `error` set.
        """
        try:
            with self._locked():
                return self._group(gather())
        except OSError as error:
            self._fail(gather(), error)
            return []

    def read(self, job: Job[Any]) -> None:
        """Run a job that only reads, on one state of the file, without waiting for other processes."""
        tx = Transaction(self.connection, self._clock.time())
        try:
            tx.execute("BEGIN")
            job.run(tx)
        except Exception as error:  # noqa: BLE001 - it is raised where the caller waits
            self._fail([job], error)
        finally:
            self._rollback([tx])

    def bare(self, job: Job[Any]) -> None:
        """Run a job under the lock and outside of any transaction."""
        with self._locked():
            try:
                job.run(Transaction(self.connection, self._clock.time()))
            except Exception as error:  # noqa: BLE001 - it is raised where the caller waits
                self._fail([job], error)

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        if self._lock is None:
            message = f"the file {self.path} is not open"
            raise Closed(message)
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def _find(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _begin(self, *, synced: bool) -> None:
        if self._find() != self._identity:
            # What we wrote would go into a file that nobody can open any more.
            message = f"the file {self.path} was removed or replaced; connect again"
            raise ConnectionLost(message)
        if synced != self._full:
            self.connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            self._full = synced
        until = time.monotonic() + self._timeout
        while True:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > until:
                    raise
                time.sleep(_BUSY_AGAIN)
            else:
                return

    def _group(self, jobs: Sequence[Job[Any]]) -> list[Transaction]:
        done: list[Transaction] = []
        if not jobs:
            return done
        try:
            self._begin(synced=any(job.synced for job in jobs))
            if not self._run_together(jobs, done):
                self._begin(synced=any(job.synced for job in jobs))
                self._run_apart(jobs, done)
            self._commit(jobs)
        except Exception as error:  # noqa: BLE001 - it is raised where the callers wait
            self._fail(jobs, error)
            self._rollback(done)
        for tx in done:
            _call(tx.committed)
        return done

    def _run_together(self, jobs: Sequence[Job[Any]], done: list[Transaction]) -> bool:
        """Run all, or roll back and return False if one fails: this costs a savepoint for none of them."""
        tx = Transaction(self.connection, self._clock.time())
        done.append(tx)
        try:
            for job in jobs:
                job.run(tx)
        except Exception:  # noqa: BLE001 - it happens again where it can be told whose it is
            self._rollback(done)
            return False
        return True

    def _run_apart(self, jobs: Sequence[Job[Any]], done: list[Transaction]) -> None:
        """Run each in a savepoint of its own."""
        for job in jobs:
            tx = Transaction(self.connection, self._clock.time())
            tx.execute("SAVEPOINT job")
            try:
                job.run(tx)
            except Exception as error:
                _call(tx.undone)
                if not self.connection.in_transaction:
                    raise  # a full disk, for example: SQLite has rolled back everything, the good ones as well
                self._fail([job], error)
                tx.execute("ROLLBACK TO job")
            else:
                done.append(tx)
            tx.execute("RELEASE job")

    def _commit(self, jobs: Sequence[Job[Any]]) -> None:
        try:
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            unsure = at_commit(error, self.path)
            for job in jobs:
                job.error = job.error or unsure
            raise

    def _rollback(self, undone: list[Transaction]) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        for tx in undone:
            _call(tx.undone)
        undone.clear()

    def _fail(self, jobs: Sequence[Job[Any]], error: Exception) -> None:
        for job in jobs:
            if job.error is None:
                job.error = meaning(error, self.path)


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _call(hooks: Sequence[Callable[[], None]]) -> None:
    for hook in hooks:
        hook()
