"""The field on which consumers are started, frozen, killed and counted."""

import asyncio
import mmap
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from brokerkit import Bus, Outgoing
from brokerkit.adapter import Measures, open_adapter
from brokerkit.message import Address
from tests.crash.consumer import CHANNEL, GROUP

ROOT = Path(__file__).parents[2]


def scaled(full: int, short: int) -> int:
    """Return the size of a scenario: short in every run, full with FAULT_SCALE=1."""
    return full if os.environ.get("FAULT_SCALE") == "1" else short


class Consumer:
    """One consumer process."""

    def __init__(self, folder: Path, number: int, how: str) -> None:
        self.witness = folder / f"witness-{number}"
        self.witness.write_bytes(b"\0")
        with self.witness.open("r+b") as file:
            self._byte = mmap.mmap(file.fileno(), 1)
        command = [
            sys.executable,
            *("-m", "tests.crash.consumer"),
            *(broker_of(folder), str(folder / "ledger.db"), str(self.witness), how),
        ]
        with (folder / f"consumer-{number}.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    @property
    def in_handler(self) -> bool:
        return self._byte[0] > 0

    def killed_in_handler(self) -> bool:
        """Kill it if a handler stands between its first write and its return; frozen to look, so it is a fact."""
        self.process.send_signal(signal.SIGSTOP)
        if not self.in_handler:
            self.process.send_signal(signal.SIGCONT)
            return False
        self.process.kill()
        self.process.wait()
        return True

    def stop(self, patience: float = 40.0) -> int:
        self.process.terminate()
        return self.process.wait(patience)


def one_at_work(consumers: Sequence[Consumer], patience: float = 60.0) -> int:
    """Wait until a consumer stands in the middle of a handling; return its index."""
    end = time.monotonic() + patience
    while True:
        for index, consumer in enumerate(consumers):
            assert consumer.process.poll() is None, "a consumer has ended by itself"
            if consumer.in_handler:
                return index
        assert time.monotonic() < end, "no consumer has begun to work"
        time.sleep(0.002)


def kill_one(consumers: Sequence[Consumer]) -> int:
    """Kill a consumer in mid-handler; return its index."""
    while True:
        index = one_at_work(consumers)
        if consumers[index].killed_in_handler():
            return index


def logs_of(folder: Path) -> str:
    """Return what the consumers said, retries with their reasons among it."""
    return "\n".join(log.read_text("utf-8") for log in sorted(folder.glob("consumer-*.log")))


def broker_of(folder: Path) -> str:
    return f"sqlite:///{folder}/broker.db"


async def publish(folder: Path, numbers: range) -> None:
    """Publish numbered events and return when all are confirmed."""
    async with Bus(broker_of(folder), name="bank") as bus:
        outcomes = await bus.publish_many(
            CHANNEL,
            [Outgoing(data={"n": n}, type="transfer", id=f"t-{n}", key=f"k{n % 97}") for n in numbers],
        )
        assert all(outcome.error is None for outcome in outcomes)


def portions(count: int, number: int) -> Iterator[range]:
    """Cut so many messages into so many portions, so that the load lasts as long as the faults do."""
    for at in range(number):
        yield range(count * at // number, count * (at + 1) // number)


async def left_over(folder: Path) -> int:
    """Return how many messages the group has not ended yet."""
    adapter = open_adapter(broker_of(folder))
    await adapter.connect()
    assert isinstance(adapter, Measures)
    measured = await adapter.measure(Address(CHANNEL, GROUP, "inlet"))
    await adapter.close()
    return measured.waiting + measured.delayed + measured.in_flight


async def dead_letters(folder: Path) -> int:
    adapter = open_adapter(broker_of(folder))
    await adapter.connect()
    assert isinstance(adapter, Measures)
    measured = await adapter.measure(Address(CHANNEL, GROUP, "dead"))
    await adapter.close()
    return measured.waiting + measured.in_flight


def until_drained(folder: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while (left := asyncio.run(left_over(folder))) > 0:
        assert time.monotonic() < end, f"{left} messages are left after {patience:.0f} s"
        time.sleep(0.05)


def rows(folder: Path) -> list[tuple[str, int]]:
    """Return (event, attempt) of every row that a handler has committed."""
    with sqlite3.connect(folder / "ledger.db") as database:
        return list(database.execute("SELECT event, attempt FROM effects ORDER BY row"))
