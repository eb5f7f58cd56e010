import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from brokerkit import Bus, DeadLetter
from brokerkit.adapter import Browses, Measures
from brokerkit.message import Address

PASSWORD: Final = "hunter2"
TOKEN: Final = "s3cret-t0ken"

ADAPTERS: Final = '''
from brokerkit.adapters.memory import MemoryAdapter
from brokerkit.errors import ConnectionLost, Unauthorised


class Walled(MemoryAdapter):
    """Nothing listens where its URL points, and its error says too much."""

    def __init__(self, url, **options):
        super().__init__("memory://walled")
        self.where = url

    async def connect(self):
        raise ConnectionLost(f"nobody answers at {self.where}")


class Denied(Walled):
    async def connect(self):
        raise Unauthorised(f"{self.where} does not let us in")


class Made(Walled):
    """Its places are made by an operator, with these commands."""

    def commands(self, places):
        return [f"make {at} {start} {order}" for at, start, order in places]


class Taking:
    """A broker that hands a message out only by taking it: no browsing, no counting."""

    def __init__(self, url, **options):
        self.inner = MemoryAdapter("memory://taking")
        self.capabilities = self.inner.capabilities
        self.connect, self.send, self.subscribe, self.close = (
            self.inner.connect, self.inner.send, self.inner.subscribe, self.inner.close
        )
'''


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def items(self) -> list[dict[str, Any]]:
        """Return the items of `-o json`."""
        return list(json.loads(self.out)["items"])


Brokerkit = Callable[..., Result]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("BROKERKIT_")]:
        monkeypatch.delenv(name)
    for name in ("BROKERKIT_URL", "BROKERKIT_NAME", "BROKERKIT_PREFIX"):  # a command exports them
        monkeypatch.setenv(name, "")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'events.db'}"


@pytest.fixture
def brokerkit() -> Brokerkit:
    """Run a command in this process."""

    def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
        from brokerkit.cli.root import cli

        done = CliRunner().invoke(cli, arguments, input=stdin, prog_name="brokerkit")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        for name in ("BROKERKIT_URL", "BROKERKIT_NAME", "BROKERKIT_PREFIX"):
            os.environ[name] = ""
        return Result(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install adapters of a third party: walled://, denied://, taking:// and made://."""
    site = tmp_path / "site"
    info = site / "third_party-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "third_party_adapters.py").write_text(ADAPTERS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[brokerkit.adapters]\n"
        "walled = third_party_adapters:Walled\n"
        "denied = third_party_adapters:Denied\n"
        "taking = third_party_adapters:Taking\n"
        "made = third_party_adapters:Made\n"
    )
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    return site


class Process:
    """A `brokerkit run` in a process of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.log = Path(f"run-{time.monotonic_ns()}.log").absolute()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "brokerkit.cli", "run", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8")

    def wait_for(self, what: Callable[[], bool] | str, seconds: float = 30) -> None:
        """Wait until something is so, or was said."""
        deadline = time.monotonic() + seconds

        def so() -> bool:
            return what in self.said if isinstance(what, str) else what()

        while not so():
            assert time.monotonic() < deadline, f"waited {seconds} s in vain; it said:\n{self.said}"
            assert self._process.poll() is None or so(), f"it ended; it said:\n{self.said}"
            time.sleep(0.02)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def end(self, seconds: float = 30) -> int:
        """Wait for its end and return its exit code."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Start `brokerkit run` in processes; none outlives the test."""
    started: list[Process] = []

    def run(*arguments: str, **environment: str) -> Process:
        started.append(Process(*arguments, **environment))
        return started[-1]

    yield run
    for process in started:
        process.kill()


@pytest.fixture
def dead_letters(url: str) -> Callable[..., None]:
    """Make dead letters of orders/billing: one for each id."""

    def make(*ids: str, channel: str = "orders", group: str = "billing") -> None:
        asyncio.run(_make_dead(url, channel, group, ids))

    return make


async def _make_dead(url: str, channel: str, group: str, ids: tuple[str, ...]) -> None:
    bus = Bus(url, name="shop")

    @bus.subscriber(channel, group=group)
    async def refuse(data: bytes) -> DeadLetter:
        return DeadLetter("rejected", "the card is declined")

    async with bus, bus.consuming():
        assert isinstance(bus.adapter, Browses)
        assert isinstance(bus.adapter, Measures)
        dead = Address(channel, group, "dead")
        before = (await bus.adapter.measure(dead)).waiting
        for each in ids:
            await bus.publish(channel, {"order": each}, type="order.placed", id=each, key=each)
        while (await bus.adapter.measure(dead)).waiting < before + len(ids):  # noqa: ASYNC110 - the broker has no event for it
            await asyncio.sleep(0.01)
