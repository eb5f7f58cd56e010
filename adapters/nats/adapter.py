"""
The adapter: one process's connection to a NATS server or cluster with JetStream.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from brokerkit.adapter import Capabilities, Measurement, OnLost, Order, Start
from brokerkit.adapters.nats.api import Api, Info
from brokerkit.adapters.nats.browsing import Browser
from brokerkit.adapters.nats.competing import CompetingSubscription
from brokerkit.adapters.nats.failure import ApiError, NoAnswer, meaning
from brokerkit.adapters.nats.keyed import KeyedSubscription
from brokerkit.adapters.nats.link import Link
from brokerkit.adapters.nats.member import Member, Site
from brokerkit.adapters.nats.options import read_options
from brokerkit.adapters.nats.places import Places
from brokerkit.adapters.nats.returns import Returns
from brokerkit.adapters.nats.sender import Sender
from brokerkit.adapters.nats.survey import Survey
from brokerkit.adapters.nats.tallies import Tallies
from brokerkit.adapters.nats.topology import commands_for, pin_timeout
from brokerkit.brokerurl import Option
from brokerkit.delivery import Delivery
from brokerkit.errors import Closed, SendError, Unsupported
from brokerkit.message import Address, Message

__all__ = ["NatsAdapter"]

_log = logging.getLogger("brokerkit.nats")

_MAX_DELAY = 12 * 3600.0
_PAYLOAD = 1024 * 1024
_ROOM = 16 * 1024
"""Bytes of `max_payload` that are kept for what the wire adds: ids, packed headers, frames."""

_OLDEST = (2, 10)
_CLOSE = 4.0
_LIMITS = frozenset({"returns-count-as-arrivals"})
"""The server counts deliveries and takes no note of why."""


class NatsAdapter:
    """
    One process's connection; also `Browses`, `Describes`, `Measures` and `Provisions`.

    The options are those of `brokerkit.adapters.nats.options.Options`, in the query or as keywords, a keyword wins; `native`
    adopts what is there: `{"orders": "shop.orders.v1", "orders/billing": "BILLING"}`. Raises `ConfigurationError` that names
    what is wrong, and touches nothing before `connect`.
    """

    def __init__(self, url: str, *, native: Mapping[str, str] | None = None, **options: Option) -> None:
        self.options = read_options(url, options, native)
        self.url = self.options.url.text
        self.capabilities = Capabilities(
            order_key=True,
            durable=True,
            processes=True,
            counts_arrivals=True,
            marks=False,
            log=False,
            lease=self.options.lease,
            max_delay=_MAX_DELAY,
            max_message=_PAYLOAD - _ROOM,
            key_returns=False,
            limits=_LIMITS,
            tallies=True,
        )
        self.link = Link(self.options)
        self.api = Api(self.link)
        self.places = Places(self.link, self.api, self.options)
        self._sender = Sender(self.link, self.places, timeout=self.options.send_timeout, max_delay=_MAX_DELAY)
        self._browser = Browser(self.api, self.places)
        self._survey = Survey(self.api, self.places, self.options)
        self._returns = Returns()
        self._members: dict[Member, None] = {}
        self._closed = False
        self._open = False

    async def connect(self) -> None:
        """
        Connect, one try at each host.

        Raises `ConnectionLost`, `Unauthorised`, `ConfigurationError` about a certificate, or `Unsupported` before server 2.10.
        """
        if self._closed:
            raise self._not_open()
        await self.link.connect()
        if (0, 0) < self.link.version < _OLDEST:  # what does not look like a version is not judged
            message = f"{self.url} is {self.server}; brokerkit needs 2.10 or later, and 2.11 for order='key' in several processes"
            await self.close()
            raise Unsupported(message)
        self._open = True
        self.capabilities = replace(
            self.capabilities,
            max_message=max(1, self.link.max_payload - _ROOM),
            limits=_LIMITS if self.places.pins else _LIMITS | {"order-in-one-process"},
        )

    @property
    def server(self) -> str:
        """Return product and version."""
        return f"NATS {self.link.server_version}"

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

        Only what goes to an inlet can wait: `after` anywhere else raises `Unsupported`.
        """
        delays = [float(after)] * len(messages) if isinstance(after, int | float) else list(after)
        if after != 0 and to.place != "inlet" and any(delay > 0 for delay in delays):
            message = f"after={after}: only what is sent to a group's inlet can be delayed, not {to}"
            raise Unsupported(message)
        if self._closed or not self._open:
            return [self._not_open()] * len(messages)
        most = self.capabilities.max_message
        return await self._sender.send(to, messages, delays, must_route=must_route, most=most)

    async def subscribe(
        self, at: Address, *, order: Order, start: Start, prefetch: int, on_lost: OnLost
    ) -> Member:
        """
        Join a group; what is missing is made first, unless `provisioning=off`.

        Waits for a connection as long as `connect_timeout`. Raises `ConfigurationError` if the group has the other order. Warns
        of a server that is too old to keep the order by key over several processes.
        """
        self._check()
        await self.link.ready(self.options.connect_timeout)
        if order == "key" and at.place == "inlet" and not self.places.pins:
            _log.warning(
                "%s is %s, which has no pinned consumers: order='key' of group %r holds while one process alone "
                "reads %r, one message of each partition at a time; use 2.11 or later for several processes",
                self.url,
                self.server,
                at.group,
                at.channel,
            )
        _, consumers = await self.places.group(at, order, start)
        lease = min(_wait(info) for _, info in consumers)
        site = Site(
            link=self.link,
            api=self.api,
            at=at,
            lease=lease,
            on_lost=on_lost,
            returns=self._returns,
            tallies=Tallies(self.link, self.api, at, self.options.replicas),
            forget=self._forget,
        )
        *main, own = [(stream, str(info["name"])) for stream, info in consumers]
        try:
            return await self._start(site, order, prefetch, main, own)
        except (ApiError, NoAnswer) as error:
            raise meaning(error, self.url) from error

    async def _start(
        self, site: Site, order: Order, prefetch: int, main: list[tuple[str, str]], own: tuple[str, str]
    ) -> Member:
        member: KeyedSubscription | CompetingSubscription
        if order == "key" and site.at.place == "inlet":
            member = KeyedSubscription(site, pin_timeout=pin_timeout(self.options), pins=self.places.pins)
        else:
            member = CompetingSubscription(site, prefetch)
        self._members[member] = None
        try:
            await member.start(main, own)
        except BaseException:
            await member.close()
            raise
        return member

    def _forget(self, member: Member) -> None:
        self._members.pop(member, None)

    async def close(self) -> None:
        """Close every subscription, giving back what they hold, and the connection; ends within seconds."""
        self._closed = True
        members = [asyncio.ensure_future(member.close()) for member in list(self._members)]
        if members:
            await asyncio.wait(members, timeout=_CLOSE)
        await self.link.close()

    async def measure(self, at: Address) -> Measurement:
        """Measure a group's inlet or its dead place; the delayed among more than 500 copies are an estimate."""
        self._check()
        return await self._survey.measure(at)

    async def browse(
        self, at: Address, *, cursor: str | None, limit: int
    ) -> tuple[Sequence[Delivery], str | None]:
        """Return a page of a channel or a dead place; the cursor is None when the page is empty."""
        self._check()
        return await self._browser.browse(at, cursor, limit)

    async def groups(self) -> Sequence[tuple[str, str]]:
        """Return the (channel, group) pairs that exist."""
        self._check()
        return await self._survey.groups()

    async def provision(
        self, places: Sequence[tuple[Address, Start, Order]], *, create: bool
    ) -> Sequence[str]:
        """Create what is missing, or only name it."""
        self._check()
        missing: list[str] = []
        for at, start, order in places:
            found = await self.places.missing(at, order)
            missing += [name for name in found if name not in missing]
            if create and found:
                await self.places.make(at, order, start)
        return missing

    def commands(self, places: Sequence[tuple[Address, Start, Order]]) -> Sequence[str]:
        """Return the commands of the `nats` tool that make what these places need."""
        return commands_for(self.options, places)

    def _check(self) -> None:
        if self._closed or not self._open:
            raise self._not_open()

    def _not_open(self) -> Closed:
        return Closed(f"{self.url} is {'closed' if self._closed else 'not connected'}")


def _wait(info: Info) -> float:
    return float(info["config"].get("ack_wait", 30_000_000_000)) / 1e9
