"""
The adapter: one process's connections to a RabbitMQ broker.
"""

import asyncio
from collections.abc import Mapping, Sequence

from brokerkit.adapter import Capabilities, OnLost, Order, Start
from brokerkit.adapters.rabbitmq import names
from brokerkit.adapters.rabbitmq.client import Client
from brokerkit.adapters.rabbitmq.forwarder import Forwarder
from brokerkit.adapters.rabbitmq.hub import Hub
from brokerkit.adapters.rabbitmq.ladder import MAX_DELAY, in_milliseconds, step
from brokerkit.adapters.rabbitmq.link import Link
from brokerkit.adapters.rabbitmq.parcels import Parcel
from brokerkit.adapters.rabbitmq.places import Places
from brokerkit.adapters.rabbitmq.provisioner import Provisioner
from brokerkit.adapters.rabbitmq.publisher import Publisher
from brokerkit.adapters.rabbitmq.subscription import RabbitSubscription
from brokerkit.adapters.rabbitmq.topology import Topology
from brokerkit.adapters.rabbitmq.url import read_url
from brokerkit.adapters.rabbitmq.wire import table_of
from brokerkit.errors import (
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

__all__ = ["RabbitAdapter"]

_MOST_PREFETCH = 2000
"""What a quorum queue allows; more is cut in silence."""

_BEAT = 2.0
"""Seconds between two signs of life of a member of a group with partitions."""

_MAX_RETURN = 5.0
"""Seconds for which an uncounted return is held in memory."""


class RabbitAdapter:
    """
    One process's connections to a broker; also `Provisions`, `Describes` and `Identifies`.

    Belongs to the event loop that connected it. Options as in the URL, see `brokerkit.adapters.rabbitmq`. `native` adopts
    what is there: `{"orders": "their.exchange", "orders/billing": "their.queue"}`; it is used as it is, and never made,
    changed or removed.
    """

    def __init__(
        self, url: str, *, native: Mapping[str, str] | None = None, **options: str | float | bool
    ) -> None:
        self._options = read_url(url, options)
        self.capabilities = Capabilities(
            order_key=True,
            durable=True,
            processes=True,
            counts_arrivals=True,
            marks=False,
            log=False,
            lease=self._options.lease,
            max_delay=MAX_DELAY,
            max_message=self._options.max_message,
            max_return=_MAX_RETURN,
            key_returns=False,
            limits=frozenset({"no-replay", "returns-count-as-arrivals"}),
            tallies=True,
        )
        context = self._options.url.context()
        self._topology = Topology(dict(native or {}), max_unrouted=self._options.max_unrouted)
        self._publishing = Link(self._options, context, "brokerkit publishing")
        self._signs = Link(self._options, context, "brokerkit signs")
        self._hub = Hub(Link(self._options, context, "brokerkit consuming"), self._options.heartbeat)
        self._publisher = Publisher(self._publishing)
        provisioner = Provisioner(self._options, context)
        self._places = Places(self._options, self._topology, provisioner)
        self._forwarder = Forwarder(
            self._publisher,
            provisioner,
            self._topology,
            timeout=self._options.send_timeout,
            create=self._options.create,
        )
        self._subscriptions: set[RabbitSubscription] = set()
        self._server = ""
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def server(self) -> str:
        """Return product and version of the broker; known after `connect`."""
        return self._server

    async def connect(self) -> None:
        """
        Connect for publishing; the connection for consuming follows with the first subscription.

        Raises `ConnectionLost`, `Unauthorised`, and `ConfigurationError` for a certificate that is not trusted.
        """
        client = await self._publishing.client()
        self._server = client.product

    async def send(
        self,
        to: Address,
        messages: Sequence[Message],
        *,
        after: float | Sequence[float] = 0,
        must_route: bool = False,
    ) -> Sequence[SendError | None]:
        """
        Publish persistent messages and return one outcome for each when the broker has confirmed them.

        Ends within `send_timeout`; what has no confirmation by then is `PublishUnknown`. `after` is for an inlet only:
        anything else raises `Unsupported`. Cancelled, it may have stored them.
        """
        names.check_address(to)
        delays = [float(after)] * len(messages) if isinstance(after, int | float) else list(after)
        if to.place != "inlet" and any(delay > 0 for delay in delays):
            reason = f"after={after}: only what is sent to a group's inlet can be delayed, not {to}"
            raise Unsupported(reason)
        outcomes: list[SendError | None] = [None] * len(messages)
        parcels: list[Parcel] = []
        places: list[int] = []
        for index, (message, delay) in enumerate(zip(messages, delays, strict=True)):
            try:
                parcels.append(self._parcel(to, message, delay, must_route=must_route))
                places.append(index)
            except SendError as error:
                outcomes[index] = error
        if parcels:
            sent = await self._send(to, parcels, must_route=must_route)
            for index, outcome in zip(places, sent, strict=True):
                outcomes[index] = outcome
        return outcomes

    def _parcel(self, to: Address, message: Message, delay: float, *, must_route: bool) -> Parcel:
        if message.size > self._options.max_message:
            reason = f"{message.size} bytes with headers; at most {self._options.max_message}"
            raise TooLarge(reason)
        if not delay <= MAX_DELAY:
            reason = f"after={delay}: at most {MAX_DELAY:.0f} seconds"
            raise DelayTooLong(reason)
        if to.group is None:
            content_type, headers = table_of(message)
            exchange = self._topology.exchange(to.channel, strict=must_route)
            return Parcel(exchange, to.channel, message.body, content_type, headers, mandatory=must_route)
        back = names.return_exchange(to.channel, to.group)
        if to.place == "dead":
            content_type, headers = table_of(message)
            return Parcel(back, "dead", message.body, content_type, headers, mandatory=True)
        rung, remains = step(in_milliseconds(delay))
        content_type, headers = table_of(message, remains)
        key = "in" if rung is None else names.rung_key(rung)
        return Parcel(back, key, message.body, content_type, headers, mandatory=True)

    async def _send(
        self, to: Address, parcels: Sequence[Parcel], *, must_route: bool
    ) -> Sequence[SendError | None]:
        deadline = asyncio.get_running_loop().time() + self._options.send_timeout
        self._check_open()
        live = self._publishing.live
        if live is None or parcels[0].exchange not in live.known:
            refusal = await self._prepare(to, parcels[0].exchange, deadline)
            if refusal is not None:
                return [refusal] * len(parcels)
        outcomes = await self._forwarder.publish(to, parcels, deadline)
        if must_route and to.group is None:
            return [
                Unroutable(f"no group reads {to}") if isinstance(outcome, NotFound) else outcome
                for outcome in outcomes
            ]
        return outcomes

    async def _prepare(self, to: Address, exchange: str, deadline: float) -> SendError | None:
        """See that there is a connection, and the exchange; return what is in the way."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._places.ready_to_send(await self._client(), to, exchange)
        except TimeoutError:
            return ConnectionLost(f"{to}: the broker has not answered in time")
        except SendError as error:
            return error
        except BrokerkitError as error:
            refused = NotFound(str(error))
            refused.__cause__ = error
            return refused
        return None

    async def _client(self) -> Client:
        self._check_open()
        return await self._publisher.client()

    async def subscribe(
        self, at: Address, *, order: Order, start: Start, prefetch: int, on_lost: OnLost
    ) -> RabbitSubscription:
        """
        Join a group; what it needs is made if it is missing. `start` is always the group's creation: nothing is kept before.

        Raises `ConfigurationError` if the group exists with the other order mode or with other properties, `NotFound` with
        `provisioning=off` and something missing.
        """
        del start
        names.check_address(at)
        if at.group is None:
            message = f"name a group's inlet or dead place, not {at}"
            raise Unsupported(message)
        self._check_open()
        client, pulse = await self._hub.client()
        queues = await self._places.ready_to_consume(client, at, order)
        adopted = self._topology.adopted_queue(at) is not None
        subscription = RabbitSubscription(
            at, order, on_lost, self._forwarder, self._signs, prefetch=min(max(prefetch, 1), _MOST_PREFETCH)
        )
        try:
            shared = order == "key" and at.place == "inlet" and len(queues) > 1
            beat = min(_BEAT, self._options.heartbeat / 2) if shared and not adopted else None
            await subscription.open(client, pulse, queues, beat=beat)
        except BaseException:
            await subscription.close()
            raise
        self._subscriptions = {each for each in self._subscriptions if not each.closed} | {subscription}
        return subscription

    async def provision(
        self, places: Sequence[tuple[Address, Start, Order]], *, create: bool
    ) -> Sequence[str]:
        """
        Make what is missing, the whole retry ladder included, or only name it.

        Bindings cannot be asked for; with `create` they are made again.
        """
        for at, _, _ in places:
            names.check_address(at)
        client = await self._client()
        missing: list[str] = []
        for at, _, order in places:
            missing += await self._places.provision(client, at, order, create=create)
        return list(dict.fromkeys(missing))

    def commands(self, places: Sequence[tuple[Address, Start, Order]]) -> Sequence[str]:
        """Return the commands of `rabbitmqadmin` that make these places on a broker of 4.0 or later."""
        return self._places.commands(places)

    def _check_open(self) -> None:
        if self._closed:
            message = f"{self._options.url.text} is closed"
            raise Closed(message)

    async def close(self) -> None:
        """Close every subscription and the connections, within about 10 s even if the broker does not answer. Idempotent."""
        if self._closing is None:
            self._closed = True
            self._closing = asyncio.get_running_loop().create_task(self._leave())
        await asyncio.shield(self._closing)

    async def _leave(self) -> None:
        await asyncio.gather(*(subscription.close() for subscription in self._subscriptions))
        await asyncio.gather(self._hub.close(), self._publishing.close(), self._signs.close())
