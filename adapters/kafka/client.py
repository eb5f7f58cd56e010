"""
The seam: all that this adapter asks of a Kafka client, in a few methods.

`aio.py` answers with aiokafka. A client for another group protocol, or confluent-kafka, takes its place by answering the
same; nothing else in the package imports a client. Errors are brokerkit's own (see `failure.py`), or the two below.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from brokerkit.adapters.kafka.wire import RawHeaders, Record

__all__ = [
    "BATCH",
    "Admin",
    "Client",
    "Committed",
    "Consumer",
    "Fenced",
    "Listener",
    "Place",
    "Producer",
    "TopicInfo",
    "TopicSpec",
    "Transient",
    "Unwritten",
]

BATCH = 64 * 1024
"""Bytes of a batch at the most, unless a topic takes less."""

Place = tuple[str, int]
"""A topic and the number of its partition."""


class Fenced(Exception):
    """The group has gone on without us: nothing was committed, and nothing that we hold is ours."""


class Transient(Exception):
    """The broker cannot be asked right now; the same call may succeed in a moment."""


class Unwritten(Exception):
    """A record was certainly not written, because one before it was not: send it again with another producer."""


class Committed(NamedTuple):
    """What is committed for a partition; offset -1 if nothing is."""

    offset: int
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic as it should be made: partitions (-1: the broker's default) and settings."""

    name: str
    partitions: int
    settings: Mapping[str, str]


class TopicInfo(NamedTuple):
    """A topic as it is."""

    partitions: int
    max_message: int
    append_time: bool
    retention: float


class Listener(Protocol):
    """Who is told of assignments. Neither is ever called by `Consumer.stop`."""

    async def revoked(self) -> None:
        """Finish with everything: it will be assigned anew. The client waits for this, heartbeats go on."""
        ...

    def assigned(self, places: Sequence[Place]) -> None:
        """Take note of what is ours now. Called before any record of it comes."""
        ...


class Consumer(Protocol):
    """One member of a group."""

    @property
    def generation(self) -> int:
        """The group's generation that we are in, or -1: then nothing is ours."""
        ...

    @property
    def contact(self) -> float:
        """When the group's coordinator last said that we are a member, by the loop's clock."""
        ...

    async def start(self, topics: Sequence[str], listener: Listener) -> None:
        """Connect and begin to join; the assignment comes later."""
        ...

    async def poll(self, limit: int, seconds: float) -> Mapping[Place, Sequence[Record]]:
        """Wait for records and return them in one step, so that each belongs to the present assignment. Safe to cancel."""
        ...

    def pause(self, places: Sequence[Place]) -> None:
        """Fetch nothing more of these."""
        ...

    def resume(self, places: Sequence[Place]) -> None:
        """Fetch again."""
        ...

    def seek(self, place: Place, offset: int) -> None:
        """Read on from here."""
        ...

    async def committed(self, places: Sequence[Place]) -> Mapping[Place, Committed]:
        """Return what is committed."""
        ...

    async def ends(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Return where these logs end."""
        ...

    async def position(self, place: Place) -> int:
        """Return where reading begins."""
        ...

    async def commit(self, offsets: Mapping[Place, Committed], generation: int) -> None:
        """
        Commit as a member of this generation, and of no other.

        Raises `Fenced` if the group does not know us, `Transient` if it cannot be asked now.
        """
        ...

    async def stop(self, seconds: float) -> None:
        """Leave the group; whatever the broker does, within so many seconds."""
        ...


class Producer(Protocol):
    """One idempotent producer session."""

    async def start(self) -> None:
        """Connect and get an id."""
        ...

    async def enqueue(
        self, topic: str, value: bytes, key: bytes | None, headers: RawHeaders
    ) -> "asyncio.Future[Any]":
        """
        Take a record and return its future, which never ends if this producer is torn down.

        Who waits may end it, or cancel it; the record is sent all the same.
        """
        ...

    def offer(
        self, topic: str, value: bytes, key: bytes | None, headers: RawHeaders
    ) -> "asyncio.Future[Any] | None":
        """Do the same at once; None, and nothing taken, where that would wait or fail."""
        ...

    def narrow(self, size: int) -> None:
        """Make no batch larger than so many bytes from now on; a single record that is larger makes one of its own."""
        ...

    def outcome(self, future: "asyncio.Future[Any]", topic: str) -> tuple[Exception | None, float | None]:
        """
        Read a future that is done: what went wrong, and when it was appended by the broker's clock.

        `Unwritten` says that the record is certainly not in the log.
        """
        ...

    async def stop(self, seconds: float) -> None:
        """Let what is under way settle for so long, then tear the session down; never hangs."""
        ...


class Admin(Protocol):
    """What is asked of the cluster outside a group."""

    async def start(self) -> None:
        """Connect. Raises `ConnectionLost`, `Unauthorised` or `ConfigurationError` that says which."""
        ...

    async def stop(self, seconds: float) -> None:
        """Disconnect within so many seconds."""
        ...

    async def partitions(self, topics: Sequence[str]) -> Mapping[str, int]:
        """Return the number of partitions of those that exist. Creates nothing."""
        ...

    async def describe(self, topics: Sequence[str]) -> Mapping[str, TopicInfo]:
        """Return what those are like that exist."""
        ...

    async def create(self, topics: Sequence[TopicSpec]) -> None:
        """Create topics with the broker's own replication factor; one that exists meanwhile is no error."""
        ...

    async def committed(self, group: str) -> Mapping[Place, Committed]:
        """Return what is committed for a group."""
        ...

    async def found(self, group: str, offsets: Mapping[Place, Committed]) -> bool:
        """Commit for a group without members; False if it has some."""
        ...

    async def groups(self) -> Sequence[str]:
        """Return the ids of all consumer groups."""
        ...

    async def ends(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Return where these logs end."""
        ...

    async def beginnings(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Return where these logs begin."""
        ...

    async def read(self, starts: Mapping[Place, int], limit: int) -> Mapping[Place, Sequence[Record]]:
        """Return up to so many records of each, from these offsets to the end, without a group."""
        ...


class Client(Protocol):
    """Makes the others."""

    def consumer(self, group: str) -> Consumer:
        """Return a member, not started."""
        ...

    def producer(self) -> Producer:
        """Return a producer session, not started."""
        ...

    def admin(self) -> Admin:
        """Return an administrator, not started."""
        ...
