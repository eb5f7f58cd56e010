import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    event,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError, HandlerResultError, HandlerTimeout, Undone
from brokerkit.patterns import inbox, retry, timeout
from brokerkit.patterns.inbox.transaction import InboxPattern
from brokerkit.pipeline import Provides
from brokerkit.settlement import ACK, DeadLetter, Retry, Settle, Settlement
from tests.patterns.deliveries import delivery_of, place_of

METADATA = MetaData()
LEDGER = Table(
    "ledger", METADATA, Column("id", Integer, primary_key=True), Column("event", String(50), nullable=False)
)
UNIQUE = Table("unique_names", METADATA, Column("name", String(50), primary_key=True))


async def dispose(engine: AsyncEngine) -> None:
    """Close an engine and see its threads end: those of connections that were cut still speak to this loop."""
    await engine.dispose()
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    async with engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    yield engine
    await dispose(engine)


async def entries(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list((await connection.execute(select(LEDGER.c.event))).scalars())


async def recorded(pattern: InboxPattern, engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(select(func.count()).select_from(pattern.table)) or 0)


def given(delivery: Delivery, name: str = "connection") -> Any:
    assert delivery.extra is not None
    return delivery.extra[name]


async def enter(delivery: Delivery) -> None:
    await given(delivery).execute(insert(LEDGER).values(event=delivery.event.id))


async def made(engine: AsyncEngine, **options: Any) -> InboxPattern:
    pattern = inbox(engine, **options)
    await pattern.create()
    return pattern


async def test_work_and_record_are_there_together_and_a_second_copy_is_acked_without_the_handler(
    engine: AsyncEngine,
) -> None:
    pattern = await made(engine)
    calls: list[str] = []

    async def handler(delivery: Delivery) -> Settlement:
        calls.append(delivery.event.id)
        await enter(delivery)
        return ACK

    assert [await pattern(handler)(delivery_of()) for _ in range(3)] == [ACK, ACK, ACK]
    assert calls == ["e-1"]
    assert await entries(engine) == ["e-1"]
    assert await recorded(pattern, engine) == 1


@pytest.mark.parametrize(
    "end",
    [
        Retry(3),
        Retry(3, counts=False),
        DeadLetter(),
        ValueError("x"),
        Settle(Retry(3)),
        asyncio.CancelledError(),
    ],
)
async def test_whatever_is_not_an_ack_leaves_neither_work_nor_record(
    engine: AsyncEngine, end: Settlement | BaseException
) -> None:
    pattern = await made(engine)
    ends = [end, ACK]

    async def handler(delivery: Delivery) -> Settlement:
        await enter(delivery)
        now = ends.pop(0)
        if isinstance(now, BaseException):
            raise now
        return now

    delivery = delivery_of()
    if isinstance(end, BaseException) and not isinstance(end, Settle):
        with pytest.raises(type(end)):
            await pattern(handler)(delivery)
    else:
        assert isinstance(await pattern(handler)(delivery), Retry | DeadLetter)
    assert await entries(engine) == []
    assert await recorded(pattern, engine) == 0
    assert delivery.extra == {}
    assert await pattern(handler)(delivery_of()) is ACK
    assert await entries(engine) == ["e-1"]


async def test_a_raised_ack_commits(engine: AsyncEngine) -> None:
    async def handler(delivery: Delivery) -> Settlement:
        await enter(delivery)
        raise Settle(ACK)

    assert await (await made(engine))(handler)(delivery_of()) is ACK
    assert await entries(engine) == ["e-1"]


async def test_each_group_has_its_own_record(engine: AsyncEngine) -> None:
    pattern = await made(engine)

    async def handler(delivery: Delivery) -> Settlement:
        await enter(delivery)
        return ACK

    for group in ("billing", "shipping", "billing"):
        await pattern(handler)(delivery_of(group=group))
    assert await entries(engine) == ["e-1", "e-1"]


async def test_a_handler_of_sessions_gets_a_session_in_the_same_transaction(engine: AsyncEngine) -> None:
    pattern = await made(engine, sessions=async_sessionmaker(engine))
    assert isinstance(pattern, Provides)
    assert pattern.provides == {AsyncSession: "session"}
    outcomes: list[Settlement] = [Retry(3), ACK, ACK]

    async def handler(delivery: Delivery) -> Settlement:
        session = given(delivery, "session")
        assert isinstance(session, AsyncSession)
        await session.execute(insert(LEDGER).values(event=delivery.event.id))
        return outcomes.pop(0)

    assert await pattern(handler)(delivery_of()) == Retry(3)
    assert await entries(engine) == []
    assert await pattern(handler)(delivery_of()) is ACK
    assert await pattern(handler)(delivery_of()) is ACK
    assert await entries(engine) == ["e-1"]
    assert len(outcomes) == 1


async def test_sessions_alone_bring_their_engine(engine: AsyncEngine) -> None:
    pattern = inbox(sessions=async_sessionmaker(engine), create=True)
    await pattern.start()
    assert await recorded(pattern, engine) == 0


async def test_it_provides_a_connection(engine: AsyncEngine) -> None:
    assert inbox(engine).provides == {AsyncConnection: "connection"}


async def test_two_copies_at_once_run_the_handler_once(engine: AsyncEngine) -> None:
    pattern = await made(engine)
    inside = 0

    async def handler(delivery: Delivery) -> Settlement:
        nonlocal inside
        inside += 1
        assert inside == 1
        await enter(delivery)
        for _ in range(5):
            await asyncio.sleep(0)
        inside -= 1
        return ACK

    handle = pattern(handler)
    assert await asyncio.gather(*(handle(delivery_of()) for _ in range(8))) == [ACK] * 8
    assert await entries(engine) == ["e-1"]


@pytest.mark.parametrize("sessions", [False, True])
async def test_a_handler_that_commits_itself_fails_and_nothing_is_kept(
    engine: AsyncEngine, sessions: bool
) -> None:
    options = {"sessions": async_sessionmaker(engine)} if sessions else {}
    pattern = await made(engine, **options)
    name = "session" if sessions else "connection"

    async def loud(delivery: Delivery) -> Settlement:
        await given(delivery, name).execute(insert(LEDGER).values(event="early"))
        await given(delivery, name).commit()
        return ACK

    async def silent(delivery: Delivery) -> Settlement:
        with contextlib.suppress(HandlerResultError):
            await loud(delivery)
        return ACK

    for handler in (loud, silent):
        with pytest.raises(HandlerResultError):
            await pattern(handler)(delivery_of())
        assert await entries(engine) == []
        assert await recorded(pattern, engine) == 0
    assert not pattern._units


@pytest.mark.parametrize("sessions", [False, True])
async def test_a_handler_that_rolls_back_itself_fails(engine: AsyncEngine, sessions: bool) -> None:
    options = {"sessions": async_sessionmaker(engine)} if sessions else {}
    pattern = await made(engine, **options)
    name = "session" if sessions else "connection"

    async def handler(delivery: Delivery) -> Settlement:
        await given(delivery, name).rollback()
        await given(delivery, name).execute(insert(LEDGER).values(event="without a record"))
        return ACK

    with pytest.raises(HandlerResultError, match="begin_nested"):
        await pattern(handler)(delivery_of())
    assert await entries(engine) == []


async def test_a_savepoint_that_fails_spoils_nothing(engine: AsyncEngine) -> None:
    pattern = await made(engine)

    async def handler(delivery: Delivery) -> Settlement:
        connection = given(delivery)
        await connection.execute(insert(UNIQUE).values(name="a"))
        with pytest.raises(IntegrityError):
            async with connection.begin_nested():
                await connection.execute(insert(UNIQUE).values(name="a"))
        await enter(delivery)
        return ACK

    assert await pattern(handler)(delivery_of()) is ACK
    assert await entries(engine) == ["e-1"]
    assert await recorded(pattern, engine) == 1


async def test_a_transaction_that_the_database_undid_behind_the_handler_is_never_acked(
    engine: AsyncEngine,
) -> None:
    """As MySQL does at a deadlock, and PostgreSQL in effect after any error."""
    pattern = await made(engine)

    async def handler(delivery: Delivery) -> Settlement:
        connection = given(delivery)
        await connection.exec_driver_sql("ROLLBACK")
        with pytest.raises(OperationalError):
            await connection.exec_driver_sql("SELECT nothing FROM nowhere")
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
        await enter(delivery)
        return ACK

    with pytest.raises(Undone, match="undid"):
        await pattern(handler)(delivery_of())
    assert await entries(engine) == []


def locked() -> OperationalError:
    cause = sqlite3.OperationalError("database is locked")
    cause.sqlite_errorcode = 5
    return OperationalError("UPDATE", {}, cause)


async def test_what_was_undone_because_of_others_is_tried_again_in_place_and_costs_no_attempt(
    engine: AsyncEngine,
) -> None:
    pattern = await made(engine)
    calls: list[int] = []

    async def handler(delivery: Delivery) -> Settlement:
        calls.append(delivery.attempt)
        await enter(delivery)
        if len(calls) < 3:
            raise locked()
        return ACK

    delivery = delivery_of()
    assert await retry(attempts=1)(pattern(handler))(delivery) is ACK
    assert calls == [1, 1, 1]
    assert delivery.story == []
    assert await entries(engine) == ["e-1"]


async def test_it_is_not_tried_in_place_for_ever(engine: AsyncEngine) -> None:
    calls: list[int] = []

    async def handler(delivery: Delivery) -> Settlement:
        calls.append(delivery.attempt)
        raise locked()

    with pytest.raises(OperationalError):
        await (await made(engine))(handler)(delivery_of())
    assert len(calls) == 5


async def test_a_database_that_cannot_be_reached_returns_the_message_uncounted(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/missing/shop.db")
    calls: list[str] = []

    async def handler(delivery: Delivery) -> Settlement:
        calls.append(delivery.event.id)
        return ACK

    pattern = inbox(engine)
    await pattern.start()
    settlement = await pattern(handler)(delivery_of(attempt=99))
    assert isinstance(settlement, Retry)
    assert not settlement.counts
    assert 2.5 <= settlement.after <= 5
    assert calls == []
    await dispose(engine)


async def test_a_commit_that_fails_is_no_ack(engine: AsyncEngine) -> None:
    pattern = await made(engine)
    armed = [True]

    def fail(_: Any) -> None:
        if armed and not pattern._units:
            armed.clear()
            message = "the connection was cut"
            raise OSError(message)

    async def handler(delivery: Delivery) -> Settlement:
        await enter(delivery)
        return ACK

    event.listen(engine.sync_engine, "commit", fail)
    with pytest.raises(OSError, match="cut"):
        await pattern(handler)(delivery_of())
    assert await entries(engine) == []
    assert await pattern(handler)(delivery_of()) is ACK
    assert await entries(engine) == ["e-1"]


async def test_a_timeout_around_it_leaves_nothing_behind(engine: AsyncEngine) -> None:
    pattern = await made(engine)
    waits = [3600.0, 0.0]

    async def handler(delivery: Delivery) -> Settlement:
        await enter(delivery)
        await asyncio.sleep(waits.pop(0))
        return ACK

    with pytest.raises(HandlerTimeout):
        await timeout(0.05)(pattern(handler))(delivery_of())
    assert await entries(engine) == []
    assert await timeout(60)(pattern(handler))(delivery_of()) is ACK
    assert await entries(engine) == ["e-1"]


async def test_a_constraint_of_somebody_elses_is_not_taken_for_a_duplicate(engine: AsyncEngine) -> None:
    pattern = await made(engine)
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "CREATE TRIGGER picky BEFORE INSERT ON brokerkit_inbox "
                "BEGIN SELECT RAISE(ABORT, 'NOT NULL constraint failed'); END"
            )
        )
    calls: list[str] = []

    async def handler(delivery: Delivery) -> Settlement:
        calls.append(delivery.event.id)
        return ACK

    with pytest.raises(IntegrityError):
        await pattern(handler)(delivery_of())
    assert calls == []


async def test_a_message_without_any_identity_is_handled_and_not_recorded(engine: AsyncEngine) -> None:
    pattern = await made(engine)

    async def handler(delivery: Delivery) -> Settlement:
        await enter(delivery)
        return ACK

    for _ in range(2):
        assert await pattern(handler)(delivery_of("orders#unknown", derived=True)) is ACK
    assert len(await entries(engine)) == 2
    assert await recorded(pattern, engine) == 0


@pytest.mark.parametrize("odd", ["\x00", "\ud800", "x" * 10_000, "e-1 ", "E-1"])
async def test_odd_ids_are_ids_like_any_other(engine: AsyncEngine, odd: str) -> None:
    pattern = await made(engine)

    async def handler(delivery: Delivery) -> Settlement:
        await given(delivery).execute(insert(LEDGER).values(event="x"))
        return ACK

    for name in ("e-1", odd, odd, odd + "."):
        assert await pattern(handler)(delivery_of(name)) is ACK
    assert len(await entries(engine)) == 3


async def test_a_purge_takes_old_records_in_batches_and_leaves_young_ones(engine: AsyncEngine) -> None:
    pattern = await made(engine)

    async def handler(_: Delivery) -> Settlement:
        return ACK

    for number in range(25):
        await pattern(handler)(delivery_of(f"e-{number}"))
    async with engine.begin() as connection:
        await connection.execute(pattern.table.update().values(at_ms=pattern.table.c.at_ms - 100_000))
    for number in range(25, 30):
        await pattern(handler)(delivery_of(f"e-{number}"))
    assert await pattern.purge(50, batch=10) == 25
    assert await recorded(pattern, engine) == 5


async def test_a_missing_table_is_an_error_at_start_that_says_what_to_do(engine: AsyncEngine) -> None:
    with pytest.raises(ConfigurationError, match="create=True"):
        await inbox(engine).start()
    pattern = inbox(engine, table="inbox_2", create=True)
    await pattern.start()
    await pattern.close()
    await inbox(engine, table="inbox_2").start()


async def test_a_def_handler_is_refused_by_name(engine: AsyncEngine) -> None:
    with pytest.raises(ConfigurationError, match=r"shop\.charge.*async def"):
        inbox(engine).check(place_of(blocking=True))
    inbox(engine).check(place_of())


async def test_what_is_neither_engine_nor_sessions_is_refused(engine: AsyncEngine) -> None:
    makers: list[Any] = [async_sessionmaker(), "sqlite://"]
    for sessions in makers:
        with pytest.raises(ConfigurationError):
            inbox(sessions=sessions)
    with pytest.raises(ConfigurationError):
        inbox()
    with pytest.raises(ConfigurationError):
        inbox(engine.sync_engine)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="table name"):
        inbox(engine, table="x; drop table y")
    shared = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ConfigurationError, match="one connection"):
        inbox(shared)
    await shared.dispose()


async def test_it_prints_without_a_password() -> None:
    engine = create_async_engine("sqlite+aiosqlite:///x.db", hide_parameters=True)
    assert repr(inbox(engine)) == "inbox(sqlite+aiosqlite:///x.db, connections, table=brokerkit_inbox)"
    await engine.dispose()


async def test_readers_of_the_engine_do_not_wait_for_the_write_lock(engine: AsyncEngine) -> None:
    pattern = await made(engine)

    async def handler(delivery: Delivery) -> Settlement:
        await enter(delivery)
        async with engine.connect() as other:
            assert await other.scalar(select(func.count()).select_from(LEDGER)) == 0
        return ACK

    assert await pattern(handler)(delivery_of()) is ACK


async def test_a_timeout_while_the_database_lets_nobody_in_is_no_failed_handling(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    pattern = await made(engine)
    calls: list[int] = []

    async def handler(delivery: Delivery) -> Settlement:
        calls.append(delivery.attempt)
        await enter(delivery)
        return ACK

    chain = retry(attempts=1)(timeout(0.1)(pattern(handler)))
    foreign = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    delivery = delivery_of()
    returned = await chain(delivery)
    foreign.execute("ROLLBACK")
    foreign.close()

    assert isinstance(returned, Retry)
    assert not returned.counts
    assert not calls
    assert not delivery.story
    assert delivery.stopped is None
    assert await chain(delivery) is ACK
    assert await entries(engine) == ["e-1"]


async def test_a_timeout_inside_the_handler_is_a_failed_handling_still(engine: AsyncEngine) -> None:
    async def handler(delivery: Delivery) -> Settlement:
        await enter(delivery)
        await asyncio.Event().wait()
        return ACK

    chain = timeout(0.1)((await made(engine))(handler))
    with pytest.raises(HandlerTimeout):
        await chain(delivery_of())
    assert await entries(engine) == []
