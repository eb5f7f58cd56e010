"""What goes wrong with the file, and what is said about it."""
# ruff: noqa: ASYNC240 - small files of a test block nobody

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from brokerkit.adapters.sqlite import SqliteAdapter, session
from brokerkit.adapters.sqlite.database import Database, Job
from brokerkit.adapters.sqlite.lock import FileLock
from brokerkit.adapters.sqlite.subscription import SqliteSubscription
from brokerkit.clock import SYSTEM
from brokerkit.errors import (
    Closed,
    ConfigurationError,
    ConnectionLost,
    DelayTooLong,
    PublishUnknown,
    SendError,
    TooLarge,
    Unavailable,
)
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK

CHANNEL = Address("orders")
INLET = Address("orders", "billing", "inlet")
Connect = Callable[..., Awaitable[SqliteAdapter]]


async def ignore(deliveries: object, seconds: float) -> None:
    """Lose nothing that matters to the test."""


async def subscribe(adapter: SqliteAdapter) -> SqliteSubscription:
    return await adapter.subscribe(INLET, order="none", start="earliest", prefetch=32, on_lost=ignore)


async def send(
    adapter: SqliteAdapter, body: bytes = b"1", to: Address = CHANNEL, after: float = 0
) -> SendError | None:
    (outcome,) = await adapter.send(to, [Message(body=body)], after=after)
    return outcome


@pytest.fixture
def lock(path: Path) -> Iterator[FileLock]:
    lock = FileLock(path.with_name(path.name + ".lock"), create=True)
    yield lock
    lock.close()


async def test_a_file_that_is_no_database_is_a_configuration_error_and_stays_as_it_is(
    connect: Connect, path: Path
) -> None:
    path.write_bytes(b"this is a letter, not a database\n" * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        await connect()
    assert path.read_bytes().startswith(b"this is a letter")


async def test_a_database_of_another_program_is_a_configuration_error(connect: Connect, path: Path) -> None:
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE cake(name TEXT)")
    foreign.close()
    with pytest.raises(ConfigurationError, match="another program"):
        await connect()


async def test_a_database_of_a_later_version_is_a_configuration_error(connect: Connect, path: Path) -> None:
    await (await connect()).close()
    with sqlite3.connect(path) as later:
        later.execute("PRAGMA user_version = 99")
    later.close()
    with pytest.raises(ConfigurationError, match="later version"):
        await connect()


async def test_an_adapter_that_could_not_connect_can_try_again(
    connect: Connect, path: Path, lock: FileLock
) -> None:
    adapter = SqliteAdapter(f"sqlite:///{path}?lock_timeout=1")
    lock.acquire()
    with pytest.raises(ConnectionLost, match="locked"):
        await adapter.connect()
    lock.release()
    await adapter.connect()
    assert await send(adapter) is None
    await adapter.close()


async def test_before_connecting_everything_is_closed(path: Path) -> None:
    adapter = SqliteAdapter(f"sqlite:///{path}")
    assert isinstance(await send(adapter), Closed)
    with pytest.raises(Closed, match="not connected"):
        await adapter.groups()
    await adapter.close()
    assert not path.exists()


async def test_a_call_that_waited_too_long_is_not_done_later(connect: Connect, lock: FileLock) -> None:
    adapter = await connect(lock_timeout=1.0)
    subscription = await subscribe(adapter)
    await send(adapter)
    (delivery,) = await subscription.receive(1)
    lock.acquire()
    sending, settling = await asyncio.gather(send(adapter, b"lost"), subscription.settle([(delivery, ACK)]))
    assert isinstance(sending, ConnectionLost)
    assert isinstance(settling[0], Unavailable)
    assert settling[0].retryable
    lock.release()
    assert list(await subscription.settle([(delivery, ACK)])) == [None]
    assert len((await adapter.browse(CHANNEL, cursor=None, limit=10))[0]) == 1


async def test_receive_tells_once_that_the_file_is_locked_and_works_again_afterwards(
    connect: Connect, lock: FileLock
) -> None:
    adapter = await connect(lock_timeout=1.0)
    subscription = await subscribe(adapter)
    lock.acquire()
    with pytest.raises(ConnectionLost):
        await subscription.receive(1)
    lock.release()
    await send(adapter)
    assert len(await subscription.receive(1)) == 1


async def test_a_foreign_writer_is_waited_for_and_then_reported(connect: Connect, path: Path) -> None:
    adapter = await connect(lock_timeout=1.0)
    foreign = sqlite3.connect(path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    sending = asyncio.create_task(send(adapter, b"patient"))
    await asyncio.sleep(0.05)
    foreign.execute("COMMIT")
    assert await sending is None
    foreign.execute("BEGIN IMMEDIATE")
    assert isinstance(await send(adapter, b"too late"), ConnectionLost)
    foreign.execute("ROLLBACK")
    foreign.close()
    assert await send(adapter, b"again") is None


async def test_a_full_disk_stores_nothing_and_passes(connect: Connect) -> None:
    adapter = await connect()
    writer = adapter._session.writer  # type: ignore[union-attr]
    await writer.bare(lambda tx: tx.execute("PRAGMA max_page_count = 60").fetchall())
    outcomes = await asyncio.gather(send(adapter, b"x" * 1_000_000), send(adapter, b"x" * 1_000_000))
    assert all(isinstance(outcome, ConnectionLost) for outcome in outcomes)
    assert await send(adapter, b"small") is None
    await writer.bare(lambda tx: tx.execute("PRAGMA max_page_count = 1000000").fetchall())
    assert await send(adapter, b"x" * 1_000_000) is None
    assert len((await adapter.browse(CHANNEL, cursor=None, limit=10))[0]) == 2


async def test_a_removed_file_is_reported_and_not_written_to(connect: Connect, path: Path) -> None:
    adapter = await connect()
    assert await send(adapter) is None
    path.rename(path.with_name("moved.db"))
    assert isinstance(await send(adapter), ConnectionLost)


async def test_one_failing_message_harms_only_itself(connect: Connect) -> None:
    adapter = await connect(max_message=100)
    subscription = await subscribe(adapter)
    messages = [Message(body=b"1"), Message(body=b"x" * 101), Message(body=b"x" * 100)]
    outcomes = await adapter.send(CHANNEL, messages)
    assert [type(outcome) for outcome in outcomes] == [type(None), TooLarge, type(None)]
    outcomes = await adapter.send(INLET, messages[:2] + messages[:1], after=[0, 0, 12 * 3600 + 1])
    assert [type(outcome) for outcome in outcomes] == [type(None), TooLarge, DelayTooLong]
    assert isinstance(await send(adapter, to=INLET, after=float("nan")), DelayTooLong)
    assert len(await subscription.receive(10)) == 3


async def test_closing_ends_in_time_although_the_file_is_locked(
    connect: Connect, lock: FileLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brokerkit.adapters.sqlite.subscription._CLOSE", 0.2)
    monkeypatch.setattr(session, "_CLOSE", 0.2)
    adapter = await connect()
    subscription = await subscribe(adapter)
    await send(adapter)
    await subscription.receive(1)
    lock.acquire()
    start = time.monotonic()
    await adapter.close()
    assert time.monotonic() - start < 2
    lock.release()
    other = await connect()
    async with asyncio.timeout(5):
        assert len(await (await subscribe(other)).receive(1)) == 1


async def test_a_member_that_could_not_leave_leaves_as_soon_as_it_can(
    connect: Connect, lock: FileLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brokerkit.adapters.sqlite.subscription._CLOSE", 0.1)
    adapter = await connect(lock_timeout=1.0, lease=0.6)
    subscription = await subscribe(adapter)
    await send(adapter)
    await subscription.receive(1)
    lock.acquire()
    await subscription.close()
    await asyncio.sleep(1.2)  # until the leaving is given up
    lock.release()
    async with asyncio.timeout(5):
        (delivery,) = await (await subscribe(adapter)).receive(1)
    assert (delivery.arrivals, delivery.returns) == (2, 1)


def test_a_commit_that_fails_with_an_input_error_leaves_the_outcome_unknown(path: Path) -> None:
    database = Database(path, timeout=1.0, clock=SYSTEM)
    database.open()
    real, database._connection = database.connection, _Broken(database.connection)  # type: ignore[assignment]
    job = Job(lambda tx: tx.execute("UPDATE counter SET last = 5"), synced=True)
    assert database.transact(lambda: [job]) == []
    assert isinstance(job.error, PublishUnknown)
    database._connection = real
    assert real.execute("SELECT last FROM counter").fetchone() == (0,)
    database.close()


class _Broken:
    """A connection whose COMMIT fails."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def execute(self, statement: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        if statement == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return self._real.execute(statement, values)


def test_a_job_that_fails_harms_no_neighbour_in_its_transaction(path: Path) -> None:
    database = Database(path, timeout=1.0, clock=SYSTEM)
    database.open()

    def insert(name: str, hooks: list[str], *, fail: bool = False) -> Job[None]:
        def work(tx: object) -> None:
            tx.committed.append(lambda: hooks.append(f"{name} committed"))  # type: ignore[attr-defined]
            tx.undone.append(lambda: hooks.append(f"{name} undone"))  # type: ignore[attr-defined]
            tx.execute("INSERT INTO channel(name) VALUES(?)", (name,))  # type: ignore[attr-defined]
            if fail:
                raise ValueError(name)

        return Job(work)

    hooks: list[str] = []
    jobs = [insert("a", hooks), insert("b", hooks, fail=True), insert("c", hooks)]
    database.transact(lambda: jobs)
    assert [type(job.error) for job in jobs] == [type(None), ValueError, type(None)]
    assert [name for (name,) in database.connection.execute("SELECT name FROM channel ORDER BY 1")] == [
        "a",
        "c",
    ]
    assert [hook for hook in hooks if "committed" in hook] == ["a committed", "c committed"]
    assert hooks.count("b undone") == 2
    database.close()


async def test_a_send_and_a_mark_are_on_the_disk_before_they_are_confirmed(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[int] = []
    commit = Database._commit

    def record(self: Database, jobs: list[Job[object]]) -> None:
        levels.extend(self.connection.execute("PRAGMA synchronous").fetchone())
        commit(self, jobs)

    adapter = await connect()
    subscription = await subscribe(adapter)
    monkeypatch.setattr(Database, "_commit", record)
    full, normal = 2, 1
    await send(adapter)
    await send(adapter, to=INLET)
    assert levels == [full, full]
    taken = await subscription.receive(2)
    await subscription.settle([(taken[0], ACK)])
    assert levels[2:] == [normal, normal]
    await subscription.mark([(taken[1], b"x")])
    assert levels[4:] == [full]
