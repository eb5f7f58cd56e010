"""A cluster that is a few dictionaries: what a test wants to happen between two steps is an event here."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brokerkit.adapter import Order
from brokerkit.adapters.kafka.client import (
    Admin,
    Committed,
    Consumer,
    Fenced,
    Listener,
    Producer,
    TopicInfo,
    TopicSpec,
)
from brokerkit.adapters.kafka.clock import BrokerClock
from brokerkit.adapters.kafka.notes import Note, decode
from brokerkit.adapters.kafka.options import read_options
from brokerkit.adapters.kafka.partition import Partition
from brokerkit.adapters.kafka.subscription import KafkaSubscription
from brokerkit.adapters.kafka.wire import RawHeaders, Record
from brokerkit.delivery import Delivery
from brokerkit.message import Address

__all__ = [
    "AT",
    "HERE",
    "FakeAdmin",
    "FakeClient",
    "FakeConsumer",
    "FakeProducer",
    "FakeRecord",
    "LoopClock",
    "Place",
    "Site",
]

Place = tuple[str, int]

AT = Address("c", "g", "inlet")
HERE = ("c", 0)


@dataclass
class FakeRecord:
    """A record as the client hands it out."""

    offset: int
    timestamp: int
    key: bytes | None = None
    value: bytes | None = b""
    headers: Sequence[tuple[str, bytes | None]] = ()


class LoopClock(BrokerClock):
    """A broker whose clock is the loop's, for virtual time."""

    def time(self) -> float:
        return asyncio.get_running_loop().time()


@dataclass
class FakeConsumer:
    """
    A member: the test assigns, takes away and delivers, and sees what was committed.

    on_commit: awaited inside a commit, before it counts; it may raise what a broker answers.
    """

    generation: int = -1
    contact: float = 0.0
    log: dict[Place, Committed] = field(default_factory=dict[Place, Committed])
    commits: list[Mapping[Place, Committed]] = field(default_factory=list[Mapping[Place, Committed]])
    last: dict[Place, int] = field(default_factory=dict[Place, int])
    sought: list[tuple[Place, int]] = field(default_factory=list[tuple[Place, int]])
    resumed: list[Place] = field(default_factory=list[Place])
    stopped: bool = False
    on_commit: Callable[[], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        self.batches: asyncio.Queue[Mapping[Place, Sequence[Record]]] = asyncio.Queue()
        self.listener: Listener | None = None

    async def start(self, topics: Sequence[str], listener: Listener) -> None:
        self.listener = listener

    def assign(self, *places: Place) -> None:
        """What the group's leader has decided."""
        assert self.listener is not None
        self.generation += 2
        self.contact = asyncio.get_running_loop().time()
        self.listener.assigned(places)

    async def revoke(self) -> None:
        assert self.listener is not None
        await self.listener.revoked()

    def deliver(self, *offsets: int, place: Place = HERE, **fields: Any) -> None:
        """Let the next poll bring these."""
        now = int(asyncio.get_running_loop().time() * 1000)
        self.batches.put_nowait({place: [FakeRecord(offset, now, **fields) for offset in offsets]})

    async def poll(self, limit: int, seconds: float) -> Mapping[Place, Sequence[Record]]:
        if seconds == 0:
            return {} if self.batches.empty() else self.batches.get_nowait()
        return await self.batches.get()

    def pause(self, places: Sequence[Place]) -> None:
        self.resumed = [place for place in self.resumed if place not in places]

    def resume(self, places: Sequence[Place]) -> None:
        self.resumed += places

    def seek(self, place: Place, offset: int) -> None:
        self.sought.append((place, offset))

    async def committed(self, places: Sequence[Place]) -> Mapping[Place, Committed]:
        return {place: self.log.get(place, Committed(-1, "")) for place in places}

    async def ends(self, places: Sequence[Place]) -> Mapping[Place, int]:
        return {place: self.last.get(place, 0) for place in places}

    async def position(self, place: Place) -> int:
        return 0

    async def commit(self, offsets: Mapping[Place, Committed], generation: int) -> None:
        if generation != self.generation:
            raise Fenced
        if self.on_commit is not None:
            await self.on_commit()
        self.contact = asyncio.get_running_loop().time()
        self.commits.append(offsets)
        self.log.update(offsets)

    async def stop(self, seconds: float) -> None:
        self.stopped = True

    def note(self, place: Place = HERE) -> Note:
        """What the last commit says."""
        offset, text = self.log[place]
        found = decode(text, offset)
        assert found is not None
        return found


@dataclass
class Site:
    """A subscription over a fake member, and what it asked of its surroundings."""

    consumer: FakeConsumer
    wait: int | None = None
    drain: float = 1.0
    hops: list[Delivery] = field(default_factory=list[Delivery])
    lost: list[tuple[Sequence[Delivery], float]] = field(
        default_factory=list[tuple[Sequence[Delivery], float]]
    )
    on_hop: Callable[[], Awaitable[None]] | None = None
    on_lost: Callable[[Sequence[Delivery]], Awaitable[None]] | None = None

    async def subscribe(self, *, order: Order = "none") -> KafkaSubscription:
        """Join; the first assignment is `HERE`."""
        subscription = KafkaSubscription(
            self.consumer,
            ["c"],
            lambda topic, index: Partition(topic, index, AT, wait=self.wait),
            name="c--g",
            order=order,
            durable=False,
            prefetch=10,
            on_lost=self._lost,
            hop=self._hop,
            clock=LoopClock(),
            options=read_options("kafka://h", {"drain": self.drain}),
            on_closed=lambda _: None,
        )
        asyncio.get_running_loop().call_soon(self.consumer.assign, HERE)
        await subscription.start()
        return subscription

    async def _hop(self, items: Sequence[tuple[Delivery, float]]) -> Sequence[object]:
        if self.on_hop is not None:
            await self.on_hop()
        self.hops += [delivery for delivery, _ in items]
        return [None] * len(items)

    async def _lost(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        self.lost.append((deliveries, seconds))
        if self.on_lost is not None:
            await self.on_lost(deliveries)


@dataclass
class FakeAdmin:
    """A cluster's topics and groups. silent: what it says to everything. broker_partitions: its default for topics."""

    topics: dict[str, int] = field(default_factory=dict[str, int])
    offsets: dict[str, dict[Place, Committed]] = field(default_factory=dict[str, dict[Place, Committed]])
    silent: Exception | None = None
    broker_partitions: int = 1
    on_look: Callable[[], Awaitable[None]] | None = None

    async def start(self) -> None:
        await asyncio.sleep(0)

    async def stop(self, seconds: float) -> None:
        await asyncio.sleep(0)

    async def partitions(self, topics: Sequence[str]) -> Mapping[str, int]:
        if self.silent is not None:
            raise self.silent
        return {topic: self.topics[topic] for topic in topics if topic in self.topics}

    async def describe(self, topics: Sequence[str]) -> Mapping[str, TopicInfo]:
        found = await self.partitions(topics)
        return {
            topic: TopicInfo(count, 1_000_000, append_time=True, retention=1e9)
            for topic, count in found.items()
        }

    async def create(self, topics: Sequence[TopicSpec]) -> None:
        self.topics |= {
            spec.name: spec.partitions if spec.partitions > 0 else self.broker_partitions for spec in topics
        }

    async def committed(self, group: str) -> Mapping[Place, Committed]:
        return dict(self.offsets.get(group, {}))

    async def found(self, group: str, offsets: Mapping[Place, Committed]) -> bool:
        self.offsets.setdefault(group, {}).update(offsets)
        return True

    async def groups(self) -> Sequence[str]:
        return list(self.offsets)

    async def ends(self, places: Sequence[Place]) -> Mapping[Place, int]:
        if self.on_look is not None:
            await self.on_look()
        return dict.fromkeys(places, 9)

    async def beginnings(self, places: Sequence[Place]) -> Mapping[Place, int]:
        if self.on_look is not None:
            await self.on_look()
        return dict.fromkeys(places, 0)

    async def read(self, starts: Mapping[Place, int], limit: int) -> Mapping[Place, Sequence[Record]]:
        return {place: [] for place in starts}


class FakeProducer:
    """A session that confirms what it gets; refuses says which topics it refuses, and how."""

    def __init__(self, refuses: Mapping[str, Exception]) -> None:
        self.refuses = refuses
        self.sent: list[tuple[str, bytes]] = []

    async def start(self) -> None:
        await asyncio.sleep(0)

    async def enqueue(
        self, topic: str, value: bytes, key: bytes | None, headers: RawHeaders
    ) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if topic in self.refuses:
            future.set_exception(self.refuses[topic])
        else:
            self.sent.append((topic, value))
            future.set_result(None)
        return future

    def narrow(self, size: int) -> None:
        self.batch = size

    def offer(
        self, topic: str, value: bytes, key: bytes | None, headers: RawHeaders
    ) -> "asyncio.Future[Any] | None":
        return None

    def outcome(self, future: "asyncio.Future[Any]", topic: str) -> tuple[Exception | None, float | None]:
        error = future.exception()
        assert error is None or isinstance(error, Exception)
        return error, None

    async def stop(self, seconds: float) -> None:
        await asyncio.sleep(0)


@dataclass
class FakeClient:
    """Makes the fakes; one administrator, one member, one producer."""

    the_admin: FakeAdmin = field(default_factory=FakeAdmin)
    the_consumer: FakeConsumer = field(default_factory=FakeConsumer)
    the_producer: FakeProducer = field(default_factory=lambda: FakeProducer({}))

    def admin(self) -> Admin:
        return self.the_admin

    def consumer(self, group: str) -> Consumer:
        return self.the_consumer

    def producer(self) -> Producer:
        return self.the_producer
