"""Two processes over one database file, and one that is killed again and again in the middle of its work."""

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from brokerkit.patterns import inbox, sql_store
from tests.patterns.consumer import LEDGER

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
COUNT = 150
KILLS = 12


def with_engine(folder: Path, work: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    async def run() -> T:
        engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/shop.db")
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    return asyncio.run(run())


async def make_tables(engine: AsyncEngine) -> None:
    await inbox(engine).create()
    store = sql_store(engine)
    await store.create()
    async with engine.begin() as connection:
        await connection.run_sync(LEDGER.metadata.create_all)


async def read_ledger(engine: AsyncEngine) -> list[tuple[str, str]]:
    async with engine.connect() as connection:
        found = await connection.execute(select(LEDGER.c.event, LEDGER.c.what).order_by(LEDGER.c.id))
        return [(event, what) for event, what in found]


def consumer(folder: Path, pattern: str, seed: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.patterns.consumer", str(folder), pattern, str(COUNT), str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_with_kills(folder: Path, pattern: str) -> int:
    """Let a steady process and one that is killed inside handlers do the work; return how many kills there were."""
    chance = random.Random(1)
    steady = consumer(folder, pattern, 0)
    killed = 0
    for kill in range(1, KILLS + 1):
        victim = consumer(folder, pattern, kill)
        assert victim.stdout is not None
        for _ in range(chance.randint(1, 8)):
            if not victim.stdout.readline():
                break
        else:
            killed += 1
        victim.kill()
        victim.communicate()
    for process in (steady, consumer(folder, pattern, 99)):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return killed


@pytest.mark.faults
def test_an_inbox_loses_nothing_and_doubles_nothing_over_processes_and_kills(tmp_path: Path) -> None:
    with_engine(tmp_path, make_tables)
    killed = run_with_kills(tmp_path, "inbox")
    ledger = with_engine(tmp_path, read_ledger)
    assert killed > KILLS // 2
    assert Counter(ledger) == Counter((f"e-{n}", what) for n in range(COUNT) for what in ("first", "second"))


@pytest.mark.faults
def test_dedupe_loses_nothing_and_doubles_only_what_a_kill_interrupted(tmp_path: Path) -> None:
    with_engine(tmp_path, make_tables)
    killed = run_with_kills(tmp_path, "dedupe")
    ledger = with_engine(tmp_path, read_ledger)
    ended = Counter(event for event, what in ledger if what == "ended")
    begun = Counter(event for event, what in ledger if what == "begun")
    assert killed > KILLS // 2
    assert set(ended) == {f"e-{n}" for n in range(COUNT)}
    # A batch holds four: a kill can interrupt that many handlings, and only these may run a second time
    assert sum(begun.values()) - COUNT <= 4 * KILLS
    assert all(count == 1 for event, count in ended.items() if begun[event] == 1)
