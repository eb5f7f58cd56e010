"""A real server for the tests of `sqs://`, and adapters that are closed in the end."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from brokerkit.adapter import Order
from brokerkit.adapters.sqs import SqsAdapter
from brokerkit.adapters.sqs.calls import Answer, Arguments
from brokerkit.adapters.sqs.http import HttpTransport
from brokerkit.message import Address
from brokerkit.testing.conformance.member import Member, join
from tests.servers import RealServer

OPTIONS = "lease=10&poll=0&groups_age=0.05"
"""A busy machine has time enough, and nothing waits for the end of a poll; a test that is about one of these says so."""

PATIENCE = 60.0

Connect = Callable[..., Awaitable[SqsAdapter]]


@pytest.fixture
def channel() -> str:
    """Return a channel that no other test uses."""
    return f"c-{secrets.token_hex(4)}"


@pytest.fixture
def url(sqs_server: RealServer) -> str:
    """Return the URL of a server that runs, with short times."""
    return f"{sqs_server.url}?{OPTIONS}"


@pytest.fixture
async def connect(url: str) -> AsyncIterator[Connect]:
    """Return what makes connected adapters."""
    made: list[SqsAdapter] = []

    async def make(at: str = url, **options: Any) -> SqsAdapter:
        adapter = SqsAdapter(at, **options)
        await adapter.connect()
        made.append(adapter)
        return adapter

    yield make
    for adapter in made:
        await adapter.close()


async def member(
    adapter: SqsAdapter, channel: str, group: str = "g", *, place: str = "inlet", order: Order = "none"
) -> Member:
    """Join a group."""
    return await join(adapter, Address(channel, group, place), PATIENCE, order)


Meddle = Callable[[str, Arguments, Callable[[Arguments], Awaitable[Answer]]], Awaitable[Answer]]


@pytest.fixture
def meddle(monkeypatch: pytest.MonkeyPatch) -> Callable[[Meddle], None]:
    """Return what puts a function between the adapter and the wire."""
    real = HttpTransport.call

    def install(between: Meddle) -> None:
        async def call(
            self: HttpTransport, operation: str, arguments: Arguments, *, timeout: float
        ) -> Answer:
            async def go(sent: Arguments) -> Answer:
                return await real(self, operation, sent, timeout=timeout)

            return await between(operation, arguments, go)

        monkeypatch.setattr(HttpTransport, "call", call)

    return install


def refused(entries: Sequence[dict[str, Any]], code: str, *, fault: bool) -> list[dict[str, Any]]:
    """Return the `Failed` of an answer for these entries."""
    return [{"Id": each["Id"], "Code": code, "SenderFault": fault, "Message": "a test"} for each in entries]
