"""
What one line's process is told, how it counts, and what it answers.
"""

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pydantic import BaseModel

__all__ = [
    "WINDOW",
    "Client",
    "Envelope",
    "Failed",
    "Figures",
    "Meter",
    "Order",
    "Task",
    "envelope_of",
    "orders",
]

WINDOW: Final = 512
"""Publishes that are unconfirmed at once, and messages that a consumer takes ahead."""

PATIENCE: Final = 300.0
"""Seconds after which a line that does not end has failed."""


class Order(BaseModel):
    """What every message carries: about 200 bytes of JSON."""

    id: str
    customer: str
    total: int
    lines: list[str]
    note: str


class Envelope(BaseModel):
    """What a program without brokerkit would make of `envelope_of`: the quickest way to the model there is."""

    id: str
    data: Order


class Failed(Exception):
    """A line that lost something, or did not end."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """
    What one process does.

    place: a name for channel, topic, queue or stream, the same in every round. messages: how many are measured, after
    `warm` that are not. waiting: delayed retries that wait meanwhile.
    """

    broker: str
    url: str
    client: str
    verb: str
    place: str
    round: int
    messages: int
    warm: int
    waiting: int = 0

    @property
    def total(self) -> int:
        """How many messages there are in all."""
        return self.warm + self.messages


@dataclass(frozen=True, kw_only=True)
class Figures:
    """
    What one process measured.

    messages: how many within the seconds. handled, twice: of all, the warm-up too. cpu: seconds of this process.
    """

    messages: int
    seconds: float
    cpu: float
    handled: int
    twice: int
    server: str = ""

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of this process's CPU time for each message."""
        return self.cpu / self.messages * 1e6


class Meter:
    """
    Counts what was handled; the clock runs from the end of the warm-up to `stop`.

    What is handled is kept and looked at when the clock has stopped, so that counting costs an append.
    """

    def __init__(self, total: int, warm: int) -> None:
        self.total: Final = total
        self.seen: Final[list[Any]] = []
        self.over: Final = asyncio.Event()
        self._warm = warm
        self._from = 0
        self._began = (0.0, 0.0)
        self._spent: tuple[float, float] | None = None

    def start(self, at: int) -> None:
        """Start the clock, with so many messages behind."""
        self._from = at
        self._began = (time.perf_counter(), time.process_time())

    def add(self, what: Any) -> None:
        """Count one that was handled."""
        self.seen.append(what)
        count = len(self.seen)
        if count == self._warm:
            self.start(count)
        elif count >= self.total:
            self.over.set()

    def add_all(self, what: Sequence[Any]) -> None:
        """Count some that were handled."""
        if self.count(what):
            self.over.set()

    def count(self, what: Sequence[Any]) -> bool:
        """Count some that were handled, in a thread under its lock; return whether that was all."""
        before = len(self.seen)
        self.seen.extend(what)
        count = len(self.seen)
        if before < self._warm <= count:
            self.start(count)
        return count >= self.total

    async def wait(self) -> None:
        """Wait until all were handled. Raises `Failed` with how many are missing."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.over.wait()
        except TimeoutError:
            message = f"{len(self.seen)} of {self.total} messages were handled within {PATIENCE:.0f} s"
            raise Failed(message) from None

    def stop(self) -> None:
        """Stop the clock: everything is handled, and the last settlement is out."""
        wall, cpu = self._began
        self._spent = time.perf_counter() - wall, time.process_time() - cpu

    def figures(self, messages: int | None = None) -> Figures:
        """Return what was measured. Raises `Failed` if the clock never ran."""
        counted = self.total - self._from if messages is None else messages
        if self._spent is None or counted <= 0:
            message = "the warm-up took all messages: measure more of them"
            raise Failed(message)
        seconds, cpu = self._spent
        return Figures(messages=counted, seconds=seconds, cpu=cpu, handled=0, twice=0)


class Client(ABC):
    """
    One way to talk to one broker.

    models: whether it publishes `Order` objects; else the bytes of an envelope. server: product and version, if it says so.
    """

    models: ClassVar[bool] = False

    def __init__(self, task: Task) -> None:
        self.task: Final = task
        self.server = ""

    @abstractmethod
    async def open(self) -> None:
        """Connect, and make the place if it is missing."""

    @abstractmethod
    async def publish(self, items: Sequence[Any]) -> None:
        """Publish, at most `WINDOW` unconfirmed at once; returns when all are confirmed, raises if one is not."""

    async def fill(self, items: Sequence[Any]) -> None:
        """Publish while no clock runs."""
        await self.publish(items)

    @abstractmethod
    async def consume(self, meter: Meter) -> None:
        """Handle and settle everything, tell the meter, and stop its clock when the last settlement is out."""

    @abstractmethod
    async def left(self) -> int:
        """Return how many messages the broker has that are not settled, those apart that wait on purpose."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the broker."""


def orders(task: Task) -> list[Order]:
    """Return the messages of a task; each has an id of its own over all rounds."""
    return [
        Order(
            id=f"{task.client}-{task.verb}-{task.round}-{number}",
            customer=f"acme-{number % 1000}",
            total=1999,
            lines=["two pairs of socks", "a left shoe"],
            note="Please ring twice; the bell of the neighbours is the louder one, they do not mind.",
        )
        for number in range(task.total)
    ]


def envelope_of(order: Order) -> bytes:
    """Return the bytes that brokerkit would publish for an order, so that raw clients move as much."""
    data = order.model_dump_json()
    return (
        f'{{"specversion":"1.0","id":"{order.id:0>36}","source":"bench","type":"order","time":'
        f'"2026-01-01T00:00:00.000000Z","datacontenttype":"application/json","data":{data}}}'
    ).encode()


def id_of(what: Any) -> str:
    """Return the id of an order that was handled: the id itself, a body, or the object that has one."""
    if isinstance(what, str) and not what.startswith("{"):
        return what
    read: dict[str, Any] = json.loads(what)
    return str(read.get("data", read)["id"])
