"""The memory and the table, against one small model of what a store is."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from brokerkit.errors import ConfigurationError
from brokerkit.patterns.dedupe import DONE, MemoryStore, Scope, Store, Taken, Token, sql_store
from brokerkit.patterns.dedupe.sql import SqlStore

LEASE, WINDOW = 30.0, 300.0

SCOPES: list[Scope] = [
    ("orders", "billing", "/shop", "e-1"),
    ("orders", "billing", "/shop", "E-1"),
    ("orders", "mail", "/shop", "e-1"),
]


class Machine(RuleBasedStateMachine):
    """
    A store beside a model of it.

    The model knows for each scope who holds it and until when, or until when it is remembered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000.0
        self.runner = asyncio.Runner()
        self.store: Store = self.make(lambda: self.now)
        self.held: dict[Scope, tuple[Token, float]] = {}
        self.finished: dict[Scope, float] = {}
        self.tokens: list[Token] = []

    def make(self, clock: Callable[[], float]) -> Store:
        return MemoryStore(clock=clock)

    def ask(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(call)

    def teardown(self) -> None:
        self.runner.close()

    def owns(self, token: Token) -> bool:
        held = self.held.get(token.scope)
        return held is not None and held[0] is token

    @rule(scope=st.sampled_from(SCOPES))
    def claim(self, scope: Scope) -> None:
        answer = self.ask(self.store.claim(scope, LEASE))
        if self.finished.get(scope, 0) > self.now:
            assert answer == DONE
        elif scope in self.held and self.held[scope][1] > self.now:
            assert isinstance(answer, Taken)
            assert answer.remaining == pytest.approx(self.held[scope][1] - self.now)
        else:
            assert isinstance(answer, Token)
            self.held[scope] = (answer, self.now + LEASE)
            self.finished.pop(scope, None)
            self.tokens.append(answer)

    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        if self.tokens:
            token = data.draw(st.sampled_from(self.tokens))
            assert self.ask(self.store.done(token, WINDOW)) is self.owns(token)
            if self.owns(token):
                del self.held[token.scope]
                self.finished[token.scope] = self.now + WINDOW

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.tokens:
            token = data.draw(st.sampled_from(self.tokens))
            assert self.ask(self.store.release(token)) is self.owns(token)
            if self.owns(token):
                del self.held[token.scope]

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        if self.tokens:
            tokens = data.draw(st.lists(st.sampled_from(self.tokens), unique_by=id))
            assert self.ask(self.store.renew(tokens, LEASE)) == [self.owns(token) for token in tokens]
            for token in tokens:
                if self.owns(token):
                    self.held[token.scope] = (token, self.now + LEASE)

    @rule(seconds=st.sampled_from([0.5, LEASE - 1, LEASE, LEASE + 1, WINDOW]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nobody_both_holds_and_has_finished(self) -> None:
        assert not {scope for scope in self.held if self.finished.get(scope, 0) > self.now}


class SqlMachine(Machine):
    def make(self, clock: Callable[[], float]) -> Store:
        self.folder = TemporaryDirectory()
        self.engine = create_async_engine(f"sqlite+aiosqlite:///{self.folder.name}/dedupe.db")
        store = SqlStore(self.engine, clock=clock)
        self.ask(store.create())
        return store

    @rule()
    def purge(self) -> None:
        assert isinstance(self.store, SqlStore)
        self.ask(self.store.purge())
        self.held = {scope: held for scope, held in self.held.items() if held[1] > self.now}

    def teardown(self) -> None:
        self.ask(self.engine.dispose())
        super().teardown()
        self.folder.cleanup()


TestMemory = Machine.TestCase
TestMemory.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestTable = SqlMachine.TestCase
TestTable.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/dedupe.db")
    yield engine
    await engine.dispose()


async def test_of_many_claims_at_once_one_wins(engine: AsyncEngine) -> None:
    stores = [sql_store(engine, create=True) for _ in range(4)]
    await stores[0].create()
    answers = await asyncio.gather(*(store.claim(SCOPES[0], LEASE) for store in stores for _ in range(5)))
    assert sum(isinstance(answer, Token) for answer in answers) == 1
    assert all(0 < answer.remaining <= LEASE for answer in answers if isinstance(answer, Taken))


async def test_who_lost_a_claim_can_neither_finish_nor_release_nor_renew_it(engine: AsyncEngine) -> None:
    now = 1000.0
    table = SqlStore(engine, clock=lambda: now)
    await table.create()
    stores: list[Store] = [table, MemoryStore(clock=lambda: now)]
    for store in stores:
        stale = await store.claim(SCOPES[0], LEASE)
        now += LEASE
        token = await store.claim(SCOPES[0], LEASE)
        assert isinstance(stale, Token)
        assert isinstance(token, Token)
        assert not await store.done(stale, WINDOW)
        assert not await store.release(stale)
        assert list(await store.renew([stale, token], LEASE)) == [False, True]
        assert await store.done(token, WINDOW)
        assert not await store.done(token, WINDOW)


async def test_the_databases_own_clock_measures_the_lease(engine: AsyncEngine) -> None:
    store = SqlStore(engine)
    await store.create()
    assert isinstance(await store.claim(SCOPES[0], LEASE), Token)
    taken = await store.claim(SCOPES[0], LEASE)
    assert isinstance(taken, Taken)
    assert LEASE - 10 < taken.remaining <= LEASE
    assert isinstance(await store.claim(SCOPES[1], 0.001), Token)
    while isinstance(again := await store.claim(SCOPES[1], LEASE), Taken):
        assert again.remaining <= 0.002
    assert isinstance(again, Token)


async def test_a_purge_takes_what_is_over_in_batches_and_nothing_else(engine: AsyncEngine) -> None:
    now = 1000.0
    store = SqlStore(engine, clock=lambda: now)
    await store.create()
    tokens = [await store.claim(("orders", "billing", "/shop", str(n)), LEASE) for n in range(25)]
    for token in tokens[:20]:
        assert isinstance(token, Token)
        await store.done(token, WINDOW)
    now += WINDOW
    alive = await store.claim(("orders", "billing", "/shop", "new"), LEASE)
    assert isinstance(alive, Token)
    assert await store.purge(batch=7) == 25
    async with engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(store.table)) == 1
    assert await store.done(alive, WINDOW)


async def test_a_claim_that_was_cancelled_does_not_stay(engine: AsyncEngine) -> None:
    store = SqlStore(engine)
    await store.create()
    for turns in range(40):
        scope = ("orders", "billing", "/shop", f"e-{turns}")
        task = asyncio.ensure_future(store.claim(scope, LEASE))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await store.close()
        if task.cancelled():
            assert isinstance(await store.claim(scope, LEASE), Token)


async def test_start_makes_the_table_and_close_leaves_the_engine_open(engine: AsyncEngine) -> None:
    store = sql_store(engine, table="dedupe_2", create=True)
    await store.start()
    await store.start()
    assert isinstance(await store.claim(SCOPES[0], LEASE), Token)
    await store.close()
    await store.close()
    assert isinstance(await store.claim(SCOPES[0], LEASE), Taken)


@pytest.mark.parametrize("odd", ["\x00", "\ud800", "x" * 100_000, "'; drop table brokerkit_dedupe; --", " "])
async def test_odd_ids_are_ids_like_any_other(engine: AsyncEngine, odd: str) -> None:
    store = SqlStore(engine)
    await store.create()
    token = await store.claim(("orders", "billing", "/shop", odd), LEASE)
    assert isinstance(token, Token)
    assert await store.done(token, WINDOW)
    assert await store.claim(("orders", "billing", "/shop", odd), LEASE) == DONE
    assert isinstance(await store.claim(("orders", "billing", "/shop", odd + " "), LEASE), Token)


@pytest.mark.parametrize("table", ["", "a-b", 'x"; drop table y', "a.b.c", "1a", "x" * 49])
async def test_a_table_name_that_is_not_plain_is_refused(engine: AsyncEngine, table: str) -> None:
    with pytest.raises(ConfigurationError, match="table name"):
        sql_store(engine, table=table)


async def test_an_engine_with_one_connection_for_everybody_is_refused() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ConfigurationError, match="use a database file"):
        sql_store(engine)
    await engine.dispose()


async def test_a_database_without_the_table_raises(engine: AsyncEngine) -> None:
    with pytest.raises(Exception, match="no such table"):
        await sql_store(engine).claim(SCOPES[0], LEASE)
