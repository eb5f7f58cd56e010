"""
The brokers of the fault tests: real servers of their own, under our control.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from brokerkit.bus import Bus
from brokerkit.sandbox import Server
from tests.servers import RealServer

LONG: Final = os.environ.get("FAULT_SCALE") == "1"
BROKERS: Final = os.environ.get("FAULT_BROKERS", "sqlite kafka rabbitmq nats sqs").split()
"""Which brokers these tests are about; a run in parts takes them one by one."""

SERVERS: Final = tuple(name for name in ("kafka", "rabbitmq", "nats", "sqs") if name in BROKERS)
RESTARTS: Final = LONG or os.environ.get("FAULT_RESTARTS") == "1"
"""Whether restarts and freezes under load are run: always in the long form, and in the short one if asked for."""

OUTAGE: Final = 5.0
"""Seconds."""

OPTIONS: Final[Mapping[str, str]] = {
    "kafka": "",
    "rabbitmq": "heartbeat=2",
    "nats": "",
    "sqs": "lease=10&poll=1",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Leave out what is about none of the brokers that were asked for, instead of skipping it.

    And, but for `make faults`, restarts and freezes under load: they take minutes, and the suites restart each broker too.
    """
    out = [item for item in items if "NOTSET" in item.name or ("test_r" in item.name and not RESTARTS)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


def scaled(full: int) -> int:
    """Return the size of a scenario: a tenth in every run, full with FAULT_SCALE=1."""
    return full if LONG else full // 10


@dataclass(eq=False)
class Broker:
    """One broker under test. `server` is None where there is none to stop."""

    name: str
    url: str
    server: Server | None
    prefix: str = field(default_factory=lambda: f"t{secrets.token_hex(4)}")
    buses: list[Bus] = field(default_factory=list[Bus])

    def bus(self, name: str = "faults", *, publish_timeout: float = 30.0, grace: float = 10.0) -> Bus:
        """Return a bus with an adapter of its own."""
        bus = Bus(self.url, name=name, prefix=self.prefix, publish_timeout=publish_timeout, grace=grace)
        self.buses.append(bus)
        return bus

    @property
    def machine(self) -> Server:
        """The server, where there is one."""
        assert self.server is not None
        return self.server

    async def close(self) -> None:
        """Close every bus."""
        for bus in self.buses:
            async with asyncio.timeout(30):
                await bus.close()

    async def restart(self, how: str) -> float:
        """
        Take it away by `SIGTERM` or `SIGKILL` and start it again, or by `SIGSTOP` for some seconds.

        Returns the loop's time at which it was back.
        """
        if how == "SIGSTOP":
            await asyncio.to_thread(self.machine.freeze)
            try:
                await asyncio.sleep(OUTAGE)
            finally:
                await asyncio.to_thread(self.machine.thaw)
            return asyncio.get_running_loop().time()
        await asyncio.to_thread(self.machine.kill if how == "SIGKILL" else self.machine.stop)
        await asyncio.to_thread(self.machine.start)
        return asyncio.get_running_loop().time()


def _url(server: RealServer) -> str:
    options = OPTIONS[server.name]
    return f"{server.url}?{options}" if options else server.url


@pytest.fixture(params=SERVERS)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    """Each real broker in turn, to be stopped, killed and frozen."""
    server: RealServer = request.getfixturevalue(f"{request.param}_server")
    broker = Broker(server.name, _url(server), server.control)
    try:
        yield broker
        await broker.close()
    finally:
        server.mend()
        server.control.thaw()


@pytest.fixture(params=[name for name in ("sqlite", *SERVERS) if name in BROKERS])
async def any_broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    """Every durable broker, the embedded one too."""
    if request.param == "sqlite":
        broker = Broker("sqlite", f"sqlite:///{tmp_path / 'broker.db'}", None)
    else:
        server: RealServer = request.getfixturevalue(f"{request.param}_server")
        broker = Broker(server.name, _url(server), server.own)
    yield broker
    await broker.close()
