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
SCALE = 10 if os.environ.get("FAULT_SCALE") == "1" else 1
COUNT = 200
KILLS = 6


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
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def begin(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def run_with_kills(folder: Path, pattern: str, seed: int) -> int:
    """Let a steady process and one that is killed inside handlers do the work; return how many kills there were."""
    chance = random.Random(seed)
    steady, last, *victims = (consumer(folder, pattern, 100 * seed + n) for n in range(KILLS + 2))
    killed = 0
    try:
        for process in (steady, last, *victims):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        begin(steady)
        for victim in victims:
            begin(victim)
            assert victim.stdout is not None
            lines = [victim.stdout.readline() for _ in range(chance.randint(1, 8))]
            victim.kill()
            victim.communicate()
            killed += lines[-1] != ""
        begin(last)
        for process in (steady, last):
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in (steady, last, *victims):
            process.kill()
            process.communicate()
    return killed


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(SCALE))
def test_an_inbox_loses_nothing_and_doubles_nothing_over_processes_and_kills(
    tmp_path: Path, seed: int
) -> None:
    with_engine(tmp_path, make_tables)
    killed = run_with_kills(tmp_path, "inbox", seed)
    ledger = with_engine(tmp_path, read_ledger)
    assert killed == KILLS
    assert Counter(ledger) == Counter((f"e-{n}", what) for n in range(COUNT) for what in ("first", "second"))


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(SCALE))
def test_dedupe_loses_nothing_and_doubles_only_what_a_kill_interrupted(tmp_path: Path, seed: int) -> None:
    with_engine(tmp_path, make_tables)
    killed = run_with_kills(tmp_path, "dedupe", seed)
    ledger = with_engine(tmp_path, read_ledger)
    ended = Counter(event for event, what in ledger if what == "ended")
    begun = Counter(event for event, what in ledger if what == "begun")
    assert killed == KILLS
    assert set(ended) == {f"e-{n}" for n in range(COUNT)}
    # A batch holds four: a kill can interrupt that many handlings, and only these may run a second time
    assert sum(begun.values()) - COUNT <= 4 * KILLS
    assert all(count == 1 for event, count in ended.items() if begun[event] == 1)
