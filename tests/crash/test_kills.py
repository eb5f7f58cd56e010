"""Consumers that are killed in mid-handler, and consumers that are asked to leave."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.consumer import prepare
from tests.crash.field import (
    Consumer,
    dead_letters,
    kill_one,
    logs_of,
    one_at_work,
    portions,
    publish,
    rows,
    scaled,
    until_drained,
)

KILLS = scaled(50, 8)
MESSAGES = scaled(20_000, 3_000)
RESTARTS = scaled(100, 12)

pytestmark = pytest.mark.faults


def crash(folder: Path, how: str) -> tuple[Counter[str], int]:
    """Let two consumers work while one after the other is killed in mid-handler."""
    asyncio.run(prepare(str(folder / "ledger.db")))
    consumers = [Consumer(folder, number, how) for number in range(2)]
    killed = 0
    try:
        for numbers in portions(MESSAGES, KILLS):
            asyncio.run(publish(folder, numbers))
            at = kill_one(consumers)
            killed += 1
            consumers[at] = Consumer(folder, killed + 1, how)
        until_drained(folder, 300)
    finally:
        for consumer in consumers:
            consumer.process.kill()
            consumer.process.wait()
    return Counter(event for event, _ in rows(folder)), killed


def test_with_the_inbox_kills_in_mid_handler_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    effects, killed = crash(tmp_path, "inbox")
    lost = MESSAGES - len(effects)
    doubled = sum(count - 1 for count in effects.values())
    print(f"messages={MESSAGES} kills={killed} lost={lost} doubled={doubled}")
    assert killed == KILLS
    assert lost == 0
    assert doubled == 0
    assert asyncio.run(dead_letters(tmp_path)) == 0


def test_without_the_inbox_kills_in_mid_handler_lose_nothing_but_double_effects(tmp_path: Path) -> None:
    effects, killed = crash(tmp_path, "bare")
    lost = MESSAGES - len(effects)
    doubled = sum(count - 1 for count in effects.values())
    print(f"messages={MESSAGES} kills={killed} lost={lost} doubled={doubled}")
    assert killed == KILLS
    assert lost == 0
    assert doubled > 0
    assert asyncio.run(dead_letters(tmp_path)) == 0


def test_polite_restarts_under_load_cost_no_attempt_and_repeat_nothing(tmp_path: Path) -> None:
    count = scaled(20_000, 3_000)
    asyncio.run(prepare(str(tmp_path / "ledger.db")))
    consumers = [Consumer(tmp_path, number, "bare") for number in range(2)]
    codes: list[int] = []
    try:
        for restart, numbers in enumerate(portions(count, RESTARTS)):
            asyncio.run(publish(tmp_path, numbers))
            at = one_at_work(consumers)
            codes.append(consumers[at].stop())
            consumers[at] = Consumer(tmp_path, restart + 2, "bare")
        until_drained(tmp_path, 300)
    finally:
        for consumer in consumers:
            consumer.process.kill()
            consumer.process.wait()
    handled = rows(tmp_path)
    effects = Counter(event for event, _ in handled)
    print(
        f"messages={count} restarts={RESTARTS} rows={len(handled)} highest attempt={max(a for _, a in handled)}"
    )
    assert set(codes) == {0}
    assert len(effects) == count
    assert max(effects.values()) == 1
    assert max(attempt for _, attempt in handled) == 1, logs_of(tmp_path)
    assert asyncio.run(dead_letters(tmp_path)) == 0
