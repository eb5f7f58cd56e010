"""
The adapter: one process's connection to a Kafka cluster.
"""

import asyncio
from collections.abc import Mapping, Sequence

from brokerkit.adapter import Capabilities, Measurement, OnLost, Order, Start
from brokerkit.adapters.kafka.aio import AioClient
from brokerkit.adapters.kafka.client import Client, Committed
from brokerkit.adapters.kafka.clock import BrokerClock
from brokerkit.adapters.kafka.looks import Looks
from brokerkit.adapters.kafka.names import RUNGS, Names
from brokerkit.adapters.kafka.notes import Note, encode
from brokerkit.adapters.kafka.options import read_options
from brokerkit.adapters.kafka.partition import Partition
from brokerkit.adapters.kafka.plan import Plan
from brokerkit.adapters.kafka.subscription import KafkaSubscription
from brokerkit.adapters.kafka.topics import Topics
from brokerkit.adapters.kafka.wire import Raw, size_of, write
from brokerkit.adapters.kafka.writer import Writer
from brokerkit.delivery import Delivery
from brokerkit.errors import (
    BadHeader,
    BrokerkitError,
    Closed,
    ConnectionLost,
    DelayTooLong,
    NotFound,
    SendError,
    TooLarge,
    Unroutable,
    Unsupported,
)
from brokerkit.message import Address, Message

__all__ = ["KafkaAdapter"]

_CLOSE = 2.0
_HOLD = {None: 1000, 0: 500, 1: 500, 5: 500}
_HOLD_LONG = 50
_MAX_RETURN = 5.0
_ROUTED = 30.0


class KafkaAdapter:
    """
    One process's connection to a Kafka cluster; also `Browses`, `Measures`, `Provisions` and `Describes`.

    url: `kafka://host:port,...` or `kafka+tls://...`. native: adopted names, see `names.Names`. The options are those of
    `options.Options`; a keyword wins over the query.
    """

    def __init__(
        self,
        url: str = "kafka://localhost:9092",
        *,
        native: Mapping[str, str] | None = None,
        client: Client | None = None,
        **options: str | float | bool,
    ) -> None:
        self._options = read_options(url, options)
        self._names = Names(native)
        self._plan = Plan(self._names, self._options)
        self._client = client or AioClient(self._options)
        self.url = self._options.url.text
        self.capabilities = Capabilities(
            order_key=True,
            durable=True,
            processes=True,
            counts_arrivals=True,
            marks=True,
            log=True,
            lease=self._options.session,
            max_delay=self._options.max_delay,
            max_message=self._options.max_message,
            max_return=_MAX_RETURN,
            key_returns=False,
            attributes="ce_",
        )
        self._clock = BrokerClock()
        self._subscriptions: dict[KafkaSubscription, None] = {}
        self._routed: dict[str, float] = {}
        self._closed = False
        self._open = False

    @property
    def server(self) -> str:
        """Return the product; Kafka's protocol does not tell its version."""
        return "Kafka"

    async def connect(self) -> None:
        """Connect; `ConnectionLost`, `Unauthorised`, or `ConfigurationError` for a certificate that is not trusted."""
        if self._closed:
            raise self._not_open()
        admin = self._client.admin()
        try:
            await admin.start()
        except BaseException:
            await admin.stop(_CLOSE)
            raise
        self._admin = admin
        self._topics = Topics(admin, self._plan, create=self._options.provisioning)
        self._looks = Looks(admin, self._names, self._plan)
        self._writer = Writer(
            self._client.producer, self._clock, seconds=self._options.send_timeout, where=self.url
        )
        self._open = True

    async def send(
        self,
        to: Address,
        messages: Sequence[Message],
        *,
        after: float | Sequence[float] = 0,
        must_route: bool = False,
    ) -> Sequence[SendError | None]:
        """
        Append some messages and return one outcome for each, within the time of a send.

        None means written to all in-sync replicas. A delay goes to the largest rung that fits.
        """
        delays = [float(after)] * len(messages) if isinstance(after, int | float) else list(after)
        if to.place != "inlet" and max(delays, default=0) > 0:
            message = f"after={after}: only what is sent to a group's inlet can be delayed, not {to}"
            raise Unsupported(message)
        if not messages:
            return []
        try:
            self._check()
            if must_route and to.place is None and not await self._has_reader(to.channel):
                return [Unroutable(f"no group reads {to}") for _ in messages]
            return await self._post(to, messages, delays)
        except SendError as error:
            return [error] * len(messages)

    async def subscribe(
        self, at: Address, *, order: Order, start: Start, prefetch: int, on_lost: OnLost
    ) -> KafkaSubscription:
        """Join a group; made, with its topics, if it is missing."""
        self._check()
        place = Address(at.channel, at.group, at.place or "inlet")
        await self._topics.ensure(place)
        if place.place == "inlet":
            await self._topics.check_ladder(place)
        await self._found(place, start)
        name = self._names.group(place)
        subscription = KafkaSubscription(
            self._client.consumer(name),
            self._plan.of(place),
            lambda topic, index: self._partition(place, topic, index),
            name=name,
            order=order,
            durable=place.place == "dead",
            prefetch=prefetch,
            on_lost=on_lost,
            hop=lambda items: self._hop(place, items),
            clock=self._clock,
            options=self._options,
            on_closed=self._forget,
        )
        self._subscriptions[subscription] = None
        try:
            await subscription.start()
        except BaseException:
            await subscription.close()
            raise
        return subscription

    async def close(self) -> None:
        """Close every subscription and the connections, at once and side by side; ends within some seconds."""
        self._closed = True
        await asyncio.gather(*(each.close() for each in list(self._subscriptions)), return_exceptions=True)
        if self._open:
            self._open = False
            await asyncio.gather(self._writer.close(_CLOSE), self._admin.stop(_CLOSE))

    async def provision(
        self, places: Sequence[tuple[Address, Start, Order]], *, create: bool
    ) -> Sequence[str]:
        """Create the topics and groups that are missing, or only name them."""
        self._check()
        found: list[str] = []
        for at, start, _ in places:
            missing = await self._topics.missing(at)
            if create and missing:
                await self._topics.make(at)
            group = self._names.group(at) if at.group is not None else None
            if group is not None and not missing and await self._admin.committed(group):
                group = None
            if create and group is not None:
                await self._found(at, start)
            found += [f"topic {topic}" for topic in missing]
            found += [f"consumer group {group}"] if group is not None else []
        return list(dict.fromkeys(found))

    def commands(self, places: Sequence[tuple[Address, Start, Order]]) -> Sequence[str]:
        """Return the shell commands that make what these places need; without a connection."""
        return self._plan.commands(at for at, _, _ in places)

    async def measure(self, at: Address) -> Measurement:
        """Measure a group's inlet or dead place; `NotFound` for an unknown group."""
        self._check()
        return await self._looks.measure(at)

    async def browse(
        self, at: Address, *, cursor: str | None, limit: int
    ) -> tuple[Sequence[Delivery], str | None]:
        """Return a page of a channel or a dead place, oldest first as far as partitions have a common order."""
        self._check()
        return await self._looks.browse(at, cursor=cursor, limit=limit)

    async def groups(self) -> Sequence[tuple[str, str]]:
        """Return the (channel, group) pairs that exist."""
        self._check()
        return await self._looks.groups()

    def _partition(self, at: Address, topic: str, index: int) -> Partition:
        """Make what a member knows of a partition: where what comes of it came in, and how long it waits there."""
        wait: int | None = None
        address = at
        if at.place != "dead":
            rungs = {self._names.rung(at, seconds): seconds for seconds in RUNGS}
            wait = rungs.get(topic, 0)
            if topic == self._names.channel(at.channel):
                wait, address = None, Address(at.channel)
        return Partition(topic, index, address, wait=wait, hold=_HOLD.get(wait, _HOLD_LONG))

    async def _post(
        self, to: Address, messages: Sequence[Message], delays: Sequence[float]
    ) -> list[SendError | None]:
        """Encode, check and sort by topic, then send each topic's share in order."""
        if not self._topics.ready(to):
            await self._topics.ensure(to)
        if len(messages) == 1:
            return [await self._post_one(to, messages[0], delays[0])]
        outcomes: list[SendError | None] = [None] * len(messages)
        shares: dict[str, list[tuple[int, Raw]]] = {}
        for index, (message, delay) in enumerate(zip(messages, delays, strict=True)):
            try:
                topic, raw = self._encode(to, message, delay)
            except SendError as error:
                outcomes[index] = error
                continue
            outcomes[index] = await self._too_large(topic, raw)
            if outcomes[index] is None:
                shares.setdefault(topic, []).append((index, raw))
        self._fit_batches()
        if len(shares) == 1:
            await self._send_share(*next(iter(shares.items())), outcomes)
        elif shares:
            await asyncio.gather(*(self._send_share(*share, outcomes) for share in shares.items()))
        return outcomes

    async def _post_one(self, to: Address, message: Message, delay: float) -> SendError | None:
        topic, raw = self._encode(to, message, delay)
        info = self._topics.at_hand(topic)
        if info is None or size_of(raw) > info.max_message:
            large = await self._too_large(topic, raw)
            if large is not None:
                return large
        self._fit_batches()
        outcome = await self._writer.send_one(topic, raw)
        if isinstance(outcome, NotFound) and await self._may_exist(topic):
            return ConnectionLost(f"{topic} cannot be reached")
        return outcome

    def _fit_batches(self) -> None:
        """Make no batch that the topic with the smallest limit refuses: with it, it would refuse what is small enough."""
        smallest = self._topics.smallest
        if smallest is not None and smallest < self._writer.batch:
            self._writer.narrow(smallest)

    async def _too_large(self, topic: str, raw: Raw) -> TooLarge | None:
        """Ask for the topic's own limit once; what cannot be asked for raises before anything is sent."""
        limit = (self._topics.at_hand(topic) or await self._topics.info(topic)).max_message
        size = size_of(raw)
        return TooLarge(f"{size} bytes; the topic {topic} takes {limit}") if size > limit else None

    def _encode(self, to: Address, message: Message, delay: float) -> tuple[str, Raw]:
        limit = self.capabilities.max_message
        if message.size > limit:
            error = f"{message.size} bytes with headers; at most {limit}"
            raise TooLarge(error)
        if not 0 <= delay <= self.capabilities.max_delay:
            error = f"after={delay}: at most {self.capabilities.max_delay:.0f} seconds"
            raise DelayTooLong(error)
        if message.headers and not all(name for name, _ in message.headers):
            error = "a header without a name"
            raise BadHeader(error)
        if to.place != "inlet":
            return self._plan.of(to)[0], write(message, None)
        rung = max((seconds for seconds in RUNGS if seconds <= delay), default=0)
        topic = self._names.rung(to, rung) if rung else self._names.inlet(to)
        return topic, write(message, delay - rung)

    async def _send_share(
        self, topic: str, share: Sequence[tuple[int, Raw]], outcomes: list[SendError | None]
    ) -> None:
        results = await self._writer.send(topic, [raw for _, raw in share])
        for (index, _), result in zip(share, results, strict=True):
            outcomes[index] = result
        if any(isinstance(result, NotFound) for result in results) and await self._may_exist(topic):
            for index, _ in share:
                if isinstance(outcomes[index], NotFound):
                    outcomes[index] = ConnectionLost(f"{topic} cannot be reached")

    async def _may_exist(self, topic: str) -> bool:
        """
        Say whether a topic that was not found exists, or cannot be asked for: then it is unreachable, not unknown.

        aiokafka says that it does not exist of a broker that does not answer, too: it counts only when the cluster says it.
        """
        self._topics.forget(topic)
        try:
            return bool((await self._admin.partitions([topic])).get(topic))
        except BrokerkitError:
            return True

    async def _hop(self, at: Address, items: Sequence[tuple[Delivery, float]]) -> Sequence[SendError | None]:
        """Send what waits to the next rung."""
        return await self._post(at, [delivery.message for delivery, _ in items], [left for _, left in items])

    async def _found(self, at: Address, start: Start) -> None:
        """
        Make a group exist: write down where it begins, before anybody reads.

        The broker refuses this while the group has members; then one of them has done it. One that has come and gone meanwhile
        has done it as well, so it is asked again just before: what it has written must not be overwritten.
        """
        group = self._names.group(at)
        topic = self._plan.of(at)[-1]
        if await self._is_founded(group, topic):
            return
        places = [(topic, index) for index in range(self._topics.partitions(topic))]
        latest = start == "latest" and at.place != "dead"
        offsets: dict[tuple[str, int], int] = {}
        if latest or not self._topics.fresh(topic):
            offsets.update(await (self._admin.ends if latest else self._admin.beginnings)(places))
            if await self._is_founded(group, topic):
                return
        for made in filter(self._topics.fresh, self._plan.of(at)):
            for index in range(self._topics.partitions(made)):
                offsets.setdefault((made, index), 0)
        await self._admin.found(
            group,
            {
                place: Committed(offset, encode(Note(drained=True, upto=offset), offset)[0])
                for place, offset in offsets.items()
            },
        )

    async def _is_founded(self, group: str, topic: str) -> bool:
        return any(place[0] == topic for place in await self._admin.committed(group))

    async def _has_reader(self, channel: str) -> bool:
        """Say whether some group of ours, or any that was adopted, reads a channel; remembered for a while."""
        now = asyncio.get_running_loop().time()
        if now - self._routed.get(channel, -_ROUTED) < _ROUTED:
            return True
        if any(found == channel for found, _ in await self._looks.groups()):
            self._routed[channel] = now
            return True
        return False

    def _forget(self, subscription: KafkaSubscription) -> None:
        self._subscriptions.pop(subscription, None)

    def _check(self) -> None:
        if self._closed or not self._open:
            raise self._not_open()

    def _not_open(self) -> Closed:
        return Closed(f"{self.url} is {'closed' if self._closed else 'not connected'}")
