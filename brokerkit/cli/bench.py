"""
`brokerkit bench`: what the engine costs per message, part by part.

Each round drains the same messages four times, on a queue filled before the clock starts: with the adapter alone, with the
engine around a bare handler, with the envelope, routing and a pydantic model added, and with the four patterns added. What a
part costs is the difference to the one before it in the same round; the median over the rounds is shown. The clock is the
process's CPU time, so a busy machine changes the figures less than it changes the rates.
"""

import asyncio
import gc
import json
import os
import platform
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from brokerkit.adapter import Adapter, open_adapter, redacted
from brokerkit.cli.commands import command
from brokerkit.cli.exits import Exit
from brokerkit.cli.settings import Settings as CliSettings
from brokerkit.cli.settings import pass_settings
from brokerkit.codec import JsonCodec
from brokerkit.delivery import Delivery
from brokerkit.engine import Engine, Settings
from brokerkit.envelope import STRUCTURED
from brokerkit.message import Address, Message
from brokerkit.pipeline import Handler, Keeps, Pattern
from brokerkit.publisher import flush_outputs
from brokerkit.router import Router
from brokerkit.settlement import ACK, Settlement

__all__ = ["Figures", "bench", "measure"]

SCHEMA = "brokerkit.bench/1"
_CHANNEL = "bench"
_BATCH = 500
_KEYS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Medians over the rounds, in microseconds of CPU per message; `rate` is messages a second with everything on."""

    adapter_us: float
    pump_us: float
    endpoint_us: float
    patterns_us: float
    total_us: float
    rate: float


@dataclass(frozen=True, slots=True)
class _Load:
    url: str
    messages: int
    concurrency: int
    prefetch: int


@dataclass(slots=True)
class _Countdown:
    """Ends the wait when so many deliveries have been acked."""

    left: int
    over: asyncio.Event

    def ended(self, count: int) -> None:
        self.left -= count
        if self.left <= 0:
            self.over.set()


async def measure(
    url: str, *, messages: int, rounds: int, concurrency: int = 16, prefetch: int = 500
) -> Figures:
    """
    Measure what each part adds, over so many rounds of so many messages.

    Uses a channel of its own, new for every part, and leaves its messages to the broker's retention.
    """
    load = _Load(url, messages, concurrency, prefetch)
    parts: Sequence[Callable[[], Awaitable[tuple[float, float]]]] = (
        lambda: _drain_alone(load),
        lambda: _drain_with(load, _bare, ()),
        lambda: _drain_with(load, _endpoint, ()),
        lambda: _drain_with(load, _endpoint, _patterns()),
    )
    table: list[list[float]] = []
    rates: list[float] = []
    for _ in range(rounds):
        measured = [await part() for part in parts]
        rates.append(messages / measured[-1][1])
        table.append([cpu / messages * 1e6 for cpu, _ in measured])
    return Figures(
        adapter_us=round(statistics.median(row[0] for row in table), 2),
        pump_us=round(_added(table, 1), 2),
        endpoint_us=round(_added(table, 2), 2),
        patterns_us=round(_added(table, 3), 2),
        total_us=round(statistics.median(row[3] for row in table), 2),
        rate=round(statistics.median(rates)),
    )


def _added(table: Sequence[Sequence[float]], column: int) -> float:
    return statistics.median(row[column] - row[column - 1] for row in table)


def _order_model() -> Any:
    from pydantic import BaseModel

    class OrderPlaced(BaseModel):
        id: str
        customer: str
        total: int
        lines: list[str]

    return OrderPlaced


def _messages(count: int) -> list[Message]:
    data = b'{"id":"o-17","customer":"acme","total":1999,"lines":["one","two"]}'
    head = b'{"specversion":"1.0","id":"%d","source":"bench","type":"order.placed","time":"2026-01-01T00:00:00Z",'
    tail = b'"datacontenttype":"application/json","data":' + data + b"}"
    return [
        Message(body=head % number + tail, content_type=STRUCTURED, key=b"k%d" % (number % _KEYS))
        for number in range(count)
    ]


async def _filled(load: _Load) -> tuple[Adapter, str]:
    adapter = open_adapter(load.url)
    await adapter.connect()
    channel = f"{_CHANNEL}-{uuid.uuid4().hex[:12]}"
    messages = _messages(load.messages)
    for at in range(0, len(messages), _BATCH):
        outcomes = await adapter.send(Address(channel), messages[at : at + _BATCH])
        for error in outcomes:
            if error is not None:
                raise error
    gc.collect()
    gc.freeze()
    return adapter, channel


async def _drain_alone(load: _Load) -> tuple[float, float]:
    adapter, channel = await _filled(load)
    subscription = await adapter.subscribe(
        Address(channel, "bench", "inlet"),
        order="none",
        start="earliest",
        prefetch=load.prefetch,
        on_lost=_nothing,
    )
    cpu, wall = time.process_time(), time.perf_counter()
    left = load.messages
    while left > 0:
        deliveries = await subscription.receive(load.prefetch)
        left -= len(deliveries)
        await subscription.settle([(delivery, ACK) for delivery in deliveries])
    spent = time.process_time() - cpu, time.perf_counter() - wall
    await adapter.close()
    gc.unfreeze()
    return spent


async def _nothing(deliveries: Sequence[Delivery], seconds: float) -> None:
    """Nobody else is in the group, so nothing is lost."""


async def _drain_with(
    load: _Load, make: Callable[[Sequence[Pattern]], Handler], patterns: Sequence[Pattern]
) -> tuple[float, float]:
    adapter, channel = await _filled(load)
    offered: Sequence[object] = patterns
    kept = [pattern for pattern in offered if isinstance(pattern, Keeps)]
    for pattern in kept:
        await pattern.start()
    settings = Settings(concurrency=load.concurrency, prefetch=load.prefetch)
    countdown = _Countdown(load.messages, asyncio.Event())
    engine = Engine(adapter, channel, "bench", make(patterns), settings, on_end=countdown.ended)
    cpu, wall = time.process_time(), time.perf_counter()
    await engine.start()
    await countdown.over.wait()
    spent = time.process_time() - cpu, time.perf_counter() - wall
    await engine.stop()
    for pattern in kept:
        await pattern.close()
    await adapter.close()
    gc.unfreeze()
    return spent


def _bare(_: Sequence[Pattern]) -> Handler:
    async def handler(_: Delivery) -> Settlement:
        return ACK

    return handler


def _endpoint(patterns: Sequence[Pattern]) -> Handler:
    router = Router()
    model = _order_model()

    async def charge(order: Any) -> None: ...

    charge.__annotations__["order"] = model
    router.subscriber("bench", group="bench", patterns=patterns)(charge)
    (consumption,) = router.consumptions()
    consumption.chains = dict.fromkeys(consumption.chains, tuple(patterns))
    return consumption.bind(JsonCodec(), _no_threads, {}, flush_outputs)


def _no_threads() -> Any:
    message = "the handler of the bench is no def"
    raise AssertionError(message)


def _patterns() -> Sequence[Pattern]:
    from brokerkit.patterns import bulkhead, dedupe, retry, timeout

    return (bulkhead("bench", 1000), dedupe(), retry(attempts=5), timeout(10))


@command(
    examples=(
        ("brokerkit bench", "the engine on memory://"),
        ("brokerkit bench --broker sqlite:///bench.db --messages 20000 -o json", "on a file, for a program"),
    )
)
@click.option("--messages", default=50_000, show_default=True, help="Messages in a round, for each part.")
@click.option("--rounds", default=5, show_default=True, help="Rounds; medians are shown.")
@pass_settings
def bench(settings: CliSettings, messages: int, rounds: int) -> int:
    """Measure what the engine costs per message, part by part."""
    url = settings.url or "memory://"
    figures = asyncio.run(measure(url, messages=messages, rounds=rounds))
    row = {name: getattr(figures, name) for name in Figures.__slots__}
    if settings.output == "table":
        for name, words in _WORDS.items():
            click.echo(f"{row[name]:>12,.2f}  {words}")
        return Exit.DONE
    head = {"schema": SCHEMA, "broker": redacted(url), "messages": messages, "rounds": rounds}
    click.echo(json.dumps({**head, "python": platform.python_version(), "cpus": os.cpu_count(), **row}))
    return Exit.DONE


_WORDS = {
    "adapter_us": "us a message: receive and settle, the adapter alone",
    "pump_us": "us added by the engine: lanes, workers, contexts, settler",
    "endpoint_us": "us added by envelope, routing, a pydantic model, the endpoint",
    "patterns_us": "us added by dedupe, retry, bulkhead and timeout",
    "total_us": "us in all",
    "rate": "messages a second with everything on, in this process",
}
