"""
The adapter: one process's way to a region's queues.
"""

import asyncio
import json
import shlex
from collections.abc import Mapping, Sequence

from brokerkit.adapter import Capabilities, Measurement, OnLost, Order, Start
from brokerkit.adapters.sqs.calls import CallFailed, Transport
from brokerkit.adapters.sqs.desk import Desk
from brokerkit.adapters.sqs.failure import lost
from brokerkit.adapters.sqs.fanout import RESERVE, Fanout
from brokerkit.adapters.sqs.groups import Groups
from brokerkit.adapters.sqs.held import Source
from brokerkit.adapters.sqs.http import HttpTransport
from brokerkit.adapters.sqs.names import group_queue, queue_name, topic_name
from brokerkit.adapters.sqs.queues import Queues, attributes_of
from brokerkit.adapters.sqs.routes import Routes
from brokerkit.adapters.sqs.session import AwsSession
from brokerkit.adapters.sqs.subscription import SqsSubscription
from brokerkit.adapters.sqs.tallies import Tallies
from brokerkit.adapters.sqs.topics import Topics
from brokerkit.adapters.sqs.url import read_url
from brokerkit.errors import (
    Closed,
    DelayTooLong,
    SendError,
    Unsupported,
)
from brokerkit.message import Address, Message
from brokerkit.names import check_name

__all__ = ["SqsAdapter"]

_MAX_DELAY = 12 * 3600.0
_MAX_RETURN = 6 * 3600.0
_PROBE = "brokerkit-probe"
_LIMITS = frozenset({"no-replay", "returns-count-as-arrivals"})


class SqsAdapter:
    """
    One process's way to a region's queues; also `Provisions`, `Measures`, `Describes` and `Identifies`.

    Belongs to the event loop that connected it. `native` adopts what exists: `"channel"` names the queue (or SNS topic ARN)
    that a channel is published to, `"channel/group"` the queue that a group reads; by name, URL or ARN.
    """

    def __init__(
        self,
        url: str,
        *,
        native: Mapping[str, str] | None = None,
        **options: str | int | float | bool | None,  # noqa: PYI041
    ) -> None:
        self._options = read_url(url, options)
        self._native = dict(native or {})
        self.capabilities = Capabilities(
            order_key=True,
            durable=True,
            processes=True,
            counts_arrivals=True,
            marks=False,
            log=False,
            lease=float(self._options.lease),
            max_delay=_MAX_DELAY,
            max_message=self._largest() - RESERVE,
            max_return=_MAX_RETURN,
            key_returns=False,
            limits=_LIMITS if self._options.near else _LIMITS | {"acked-may-return"},
            tallies=True,
        )
        self._session: AwsSession | None = None
        self._transport: Transport | None = None
        self._fanout: Fanout | None = None
        self._groups: Groups | None = None
        self._desk: Desk | None = None
        self._queues: Queues | None = None
        self._subscriptions: set[SqsSubscription] = set()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def server(self) -> str:
        """Return which service this is; known after `connect`."""
        return "" if self._session is None else f"SQS at {self._session.endpoint}"

    async def connect(self) -> None:
        """
        Find endpoint and credentials, and make one call.

        Raises `Unauthorised` without valid credentials, `ConnectionLost` if the endpoint does not answer,
        `ConfigurationError` for an untrusted certificate and a wrong configuration, and `Closed` once `close` was called.
        A missing right to list queues is no failure here: who only reads needs none.
        """
        if self._closed:
            raise self._not_open()
        if self._session is not None:
            return
        session = AwsSession(self._options)
        try:
            await session.open()
            await self._probe(session)
            self._build(session)
        except BaseException:
            session.close()
            raise
        self._session = session

    async def send(
        self,
        to: Address,
        messages: Sequence[Message],
        *,
        after: float | Sequence[float] = 0,
        must_route: bool = False,
    ) -> Sequence[SendError | None]:
        """
        Store some messages and return one outcome for each; ends within `send_timeout`.

        To a channel, confirmed means: stored in the queue of every group (or by its SNS topic). What some groups have and
        others may not is `PublishUnknown`: publish it again with the same event id. `after` is for an inlet only: anything
        else raises `Unsupported`. A place of an unknown group yields `NotFound`.
        """
        _check_names(to)
        delays = [float(after)] * len(messages) if isinstance(after, int | float) else list(after)
        if to.place != "inlet" and any(delay > 0 for delay in delays):
            reason = f"after={after}: only what is sent to a group's inlet can be delayed, not {to}"
            raise Unsupported(reason)
        if self._fanout is None or self._closed:
            return [self._not_open() for _ in messages]
        outcomes: list[SendError | None] = [_too_long(delay) for delay in delays]
        good = [index for index, outcome in enumerate(outcomes) if outcome is None]
        if good:
            chosen = [messages[index] for index in good]
            waits = [delays[index] for index in good]
            sent = await self._fanout.send(to, chosen, waits, must_route=must_route)
            for index, outcome in zip(good, sent, strict=True):
                outcomes[index] = outcome
        return outcomes

    async def subscribe(
        self, at: Address, *, order: Order, start: Start, prefetch: int, on_lost: OnLost
    ) -> SqsSubscription:
        """
        Join a group; made if it is missing, and then this returns after `groups_age`, when every publisher knows it.

        `start` changes nothing: a group begins with its queue (limit `no-replay`). Raises `ConfigurationError` if the group
        exists with the other order mode: a queue is FIFO or it is not, for good.
        """
        del start, prefetch
        _check_place(at)
        desk, groups = self._opened()
        sources = [Source(queue, place) for queue, place in await groups.join(at, order)]
        if self._closed:
            raise self._not_open()
        assert self._queues is not None  # noqa: S101 - opened
        tallies = Tallies(self._queues, sources[-1].queue)
        subscription = SqsSubscription(desk, at, sources, on_lost, tallies)
        subscription.start()
        self._subscriptions = {each for each in self._subscriptions if not each.closed} | {subscription}
        return subscription

    async def close(self) -> None:
        """Close every subscription, then the connections. Idempotent; takes as long as a poll waits, and some seconds at most."""
        self._closed = True
        if self._session is None:
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(self._session))
        await asyncio.shield(self._closing)

    async def measure(self, at: Address) -> Measurement:
        """
        Measure a group's inlet (its queue and its inlet together) or its dead place; `NotFound` for an unknown group.

        What is parked for a long delay counts as in flight: SQS does not tell them apart. `oldest` is None: SQS tells ages
        to CloudWatch only.
        """
        _check_place(at)
        _, groups = self._opened()
        return await groups.measure(at)

    async def provision(
        self, places: Sequence[tuple[Address, Start, Order]], *, create: bool
    ) -> Sequence[str]:
        """Create the queues (and with SNS topics and subscriptions) that are missing, or only name them."""
        for at, _, _ in places:
            _check_names(at)
        _, groups = self._opened()
        return await groups.provision([(at, order) for at, _, order in places], create=create)

    def commands(self, places: Sequence[tuple[Address, Start, Order]]) -> Sequence[str]:
        """Return the `aws` commands that make what these addresses need. With SNS, subscriptions are left to `provision`."""
        lines: list[str] = []
        for at, _, order in places:
            _check_names(at)
            if self._options.sns != "off":
                topic = topic_name(at.channel, fifo=self._options.sns == "fifo")
                kind = " --attributes FifoTopic=true" if self._options.sns == "fifo" else ""
                lines.append(f"aws sns create-topic --name {topic}{kind}")
            lines.extend(
                _create_command(name, self._options.lease) for name in _names(at, order, self._native)
            )
        return list(dict.fromkeys(lines))

    async def _probe(self, session: AwsSession) -> None:
        """See that endpoint and credentials are good."""
        arguments = {"QueueNamePrefix": _PROBE, "MaxResults": 1}
        try:
            await session.control("ListQueues", arguments, timeout=self._options.send_timeout)
        except CallFailed as error:
            if error.code in {"AccessDenied", "AccessDeniedException"}:
                return
            raise lost(error, self._options.text) from error

    def _build(self, session: AwsSession) -> None:
        if self._closed:
            raise self._not_open()
        options = self._options
        plain = session.endpoint.count("/") <= 2  # noqa: PLR2004 - scheme://host, without a path: all that our signature covers
        if options.transport == "aiohttp" and plain:
            transport: Transport = HttpTransport(
                session.endpoint, session.region, session.keys, tls=session.tls()
            )
        else:
            transport = session.transport()
        queues = Queues(session, options)
        routes = Routes(queues, options, self._native)
        topics = Topics(session, queues, options) if options.sns != "off" else None
        self._transport = transport
        self._queues = queues
        self._groups = Groups(queues, routes, topics, options, self._native)
        self._fanout = Fanout(queues, routes, topics, transport, options, self._native)
        self._desk = Desk(transport, queues, options)

    async def _close(self, session: AwsSession) -> None:
        await asyncio.gather(*(each.close() for each in self._subscriptions), return_exceptions=True)
        if self._fanout is not None:
            self._fanout.close(self._not_open())
        if self._transport is not None:
            await self._transport.close()
        session.close()

    def _largest(self) -> int:
        """Return how many bytes may travel: SNS takes less than SQS."""
        most = self._options.max_message
        return most if self._options.sns == "off" else min(most, Topics.limit)

    def _opened(self) -> tuple[Desk, Groups]:
        if self._closed or self._desk is None or self._groups is None:
            raise self._not_open()
        return self._desk, self._groups

    def _not_open(self) -> Closed:
        return Closed(f"{self._options.text} is {'closed' if self._closed else 'not connected'}")


def _too_long(delay: float) -> DelayTooLong | None:
    if delay <= _MAX_DELAY:
        return None
    return DelayTooLong(f"after={delay}: at most {_MAX_DELAY:.0f} seconds")


def _check_names(at: Address) -> None:
    check_name("channel", at.channel)
    if at.group is not None:
        check_name("group", at.group)


def _check_place(at: Address) -> None:
    _check_names(at)
    if at.group is None:
        message = f"name a group's inlet or dead place, not {at}"
        raise Unsupported(message)


def _names(at: Address, order: Order, native: Mapping[str, str]) -> list[str]:
    if at.group is None:
        return []
    fifo = order == "key"
    if at.place == "dead":
        return [queue_name(at, fifo=False)]
    names = [queue_name(at, fifo=fifo), queue_name(Address(at.channel, at.group, "dead"), fifo=False)]
    if f"{at.channel}/{at.group}" not in native:
        names.insert(0, group_queue(at.channel, at.group, fifo=fifo))
    return names


def _create_command(name: str, lease: int) -> str:
    attributes = json.dumps(attributes_of(name, lease), separators=(",", ":"))
    return f"aws sqs create-queue --queue-name {name} --attributes {shlex.quote(attributes)}"
