"""
The boundary to one broker, whole.

An adapter carries bytes. It knows no codec, no CloudEvents and no pattern, and it never decides to run
a handler again. Everything above it is written once, for every broker.
"""

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, Protocol, runtime_checkable

from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError, SendError, SettleError
from brokerkit.message import Address, Message
from brokerkit.settlement import Ack, Retry

__all__ = [
    "Adapter",
    "Browses",
    "Capabilities",
    "Describes",
    "Holds",
    "Identifies",
    "Marks",
    "Measurement",
    "Measures",
    "OnLost",
    "Order",
    "Provisions",
    "Start",
    "Subscription",
    "Tallies",
    "open_adapter",
    "redacted",
]

_HOSTS = re.compile(r"(\[[0-9a-fA-F:.]*\]|[^@:\[\]#]*)(:\d*)?(,(\[[0-9a-fA-F:.]*\]|[^@:\[\]#]*)(:\d*)?)*")

Order = Literal["none", "key"]
Start = Literal["earliest", "latest"]
Settled = tuple[Delivery, Ack | Retry]

OnLost = Callable[[Sequence[Delivery], float], Awaitable[None]]
"""
Tell the engine that these will belong to somebody else after so many seconds (0: already do).

The adapter names only what `receive` has handed out, once for each loss, never an empty list, and not from `close`. It
awaits the call, on the subscription's own loop, bounds the wait itself (the seconds and one more), and finishes its own
procedure even if the call raises. The engine drops what has not started, lets the rest finish and settle, and cancels what
still runs when the seconds are over; what is unsettled when the call returns is the next owner's, and settling it yields
`Stale`. A broken connection is told in this order: fence first (each settle from now on is `Stale`), then `on_lost(..., 0)`,
then `receive` raises `ConnectionLost`. Who has lost a lease on a living connection may do the same, or join again by itself
and go on. Where the server ends a consumer although the connection lives, `receive` raises without `on_lost`: what is out can
still be settled until the subscription is closed.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """
    What a broker does natively, as data; the engine and the conformance suite read the same object.

    order_key: has `order="key"`.
    durable: a confirmed message survives the death of every process.
    processes: several processes may share a group.
    counts_arrivals: `Delivery.arrivals` is a number.
    marks: its subscriptions are `Marks`. tallies: its subscriptions are `Tallies`, which need no marks.
    log: deliveries carry a position and settle as a prefix: at a hand-over the engine finishes what lies below the highest
        started offset of a partition. A stream that is acknowledged one by one is not a log in this sense.
    lease: seconds after which an unrenewed delivery goes to somebody else, or None. Renewing is the adapter's job.
    max_delay: longest `after` of a send, in seconds.
    max_message: size limit in bytes with headers; publishing refuses above this less 16 KiB.
    max_return: longest uncounted return in seconds that a subscription without order takes gladly; a longer one the settler
        makes by a copy to the inlet, with the same attempt. What must not be copied still comes as a longer `Retry` (30 s for
        a copy of a later version, any time for a message whose copy would be too large): seldom, and to be held too.
    key_returns: with `order="key"` a `Retry` holds its key at the boundary too. The engine never sends one there (the lane
        holds it): leave it False unless it is free.
    attributes: what stands before the names of CloudEvents attributes in headers, in the broker's binary mode.
    limits: what this broker, in this version, falls short of: names out of `brokerkit.testing.conformance.LIMITS`, a closed
        list. May be known only after `connect`.
    """

    order_key: bool
    durable: bool
    processes: bool
    counts_arrivals: bool
    marks: bool
    log: bool
    lease: float | None
    max_delay: float
    max_message: int
    max_return: float = math.inf
    key_returns: bool = False
    attributes: Literal["ce-", "ce_"] = "ce-"
    limits: frozenset[str] = frozenset()
    tallies: bool = False


class Subscription(Protocol):
    """A place in one channel for one group."""

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """
        Wait until there is something and return at most `limit` deliveries.

        Returns an empty sequence only when `close` was called, and then at once; raises `ConnectionLost` when the broker is
        gone, and nothing else. Cancelled, it loses nothing: nothing is awaited between taking and returning. Called by one
        task at a time. Not calling it is back-pressure: staying
        in the group and renewing leases meanwhile is the adapter's job. What was sent with `after` is not
        handed out earlier.
        """
        ...

    async def settle(self, settled: Sequence[Settled]) -> Sequence[SettleError | None]:
        """
        End some deliveries, one outcome for each, in the order given.

        `Ack` removes it for this group; `Retry` is the *uncounted return* after so many seconds. A failure harms
        only its own delivery: `Stale` if it is no longer ours (nothing was changed at the broker), `Unavailable`
        if it may be tried again. None means accepted, in order; on a log the commit may follow. After a `Retry` the
        message comes back as a new `Delivery`; where it stands among newer ones is not promised without order. An ack
        never overtakes an earlier one of its subscription. Safe to cancel: what was not confirmed counts as not settled.
        """
        ...

    async def close(self) -> None:
        """
        Leave. What is unsettled goes back to the group as a polite return, with `order="key"` in order.

        Idempotent; ends within some seconds, also when the broker is gone. Settling afterwards is `Stale` and calls nobody.
        """
        ...


class Adapter(Protocol):
    """
    One broker. Made from a URL; nothing is touched before `connect`.

    capabilities: set by the constructor; `connect` may replace them by what only the server knows (`limits`,
        `max_message`). Constant from then on.
    """

    capabilities: Capabilities

    async def connect(self) -> None:
        """
        Connect, or raise `ConnectionLost`, `Unauthorised`, `ConfigurationError` or (after `close`) `Closed`.

        One try; the bus backs off and tries again until one has succeeded. Nobody calls it after that: when the connection
        breaks, `send` and `subscribe` connect again by themselves or answer `ConnectionLost`. Cancelled, it leaves
        nothing open.
        """
        ...

    async def send(
        self,
        to: Address,
        messages: Sequence[Message],
        *,
        after: float | Sequence[float] = 0,
        must_route: bool = False,
    ) -> Sequence[SendError | None]:
        """
        Store some messages and return one outcome for each, in order.

        None means confirmed: as durable as the broker is. To a channel, every group sees it; to a group's
        `inlet`, that group only, not before `after` seconds (one number for all, or one for each message). With
        `must_route`, a channel that no group reads yields `Unroutable`; without, it is kept as far as the broker can.
        `PublishUnknown` is honest: the message may be there. Exactly above the limits of the capabilities it is `TooLarge` or
        `DelayTooLong`; for a place of an unknown group `NotFound`, or kept for it. `after` to anything but an inlet raises
        `Unsupported`. A `SendError` that is raised counts for each message; nothing else is raised. Cancelled, it may have
        stored them, and harms no other call. `Message.copy_id` is for the broker's own deduplication and is not carried.
        """
        ...

    async def subscribe(
        self, at: Address, *, order: Order, start: Start, prefetch: int, on_lost: OnLost
    ) -> Subscription:
        """
        Join a group.

        `at` is its inlet (which stands for the channel as the group sees it, the inlet included) or its dead place.

        The group exists from here on; `start` says where a *new* group begins. `prefetch` is what the engine
        will hold at the most. Raises `ConnectionLost`, `Unauthorised`, `Closed`; `NotFound` for what may not be made;
        `ConfigurationError` if the other members keep the other order; `Unsupported` for a bare channel or an order that the
        broker cannot keep. Opening the dead place never touches the order of the inlet.
        """
        ...

    async def close(self) -> None:
        """Close every subscription and the connection. Idempotent; ends within its own deadline."""
        ...


@runtime_checkable
class Marks(Protocol):
    """Optional, on a subscription: keeps a few bytes beside an unsettled delivery for its next owner."""

    async def mark(self, marks: Sequence[tuple[Delivery, bytes | None]]) -> Sequence[SettleError | None]:
        """
        Write (or with None erase) the bytes, durably before it returns; `Stale` for what is no longer ours.

        It is also how the settler asks whether a delivery is still ours before it sends a copy, with the value that is
        there already: never answered from memory alone.
        """
        ...


@runtime_checkable
class Holds(Protocol):
    """Optional, on a subscription that keeps no marks: says whether deliveries are still ours."""

    async def hold(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        """
        Renew what is ours, confirmed by the broker before it returns; `Stale` for what is no longer ours.

        The settler asks before it sends a copy: a handler that fails after its lease must not put what
        another has handled into the dead letters.
        """
        ...


@runtime_checkable
class Tallies(Protocol):
    """
    Optional, on a subscription that keeps no marks: a few durable counts for the group, by name.

    The engine counts there how often a message that may kill its process was begun and not ended. Asked for suspects only,
    a handful in a bad week; a count that nobody has touched for some days may be forgotten.
    """

    async def tally(self, changes: Sequence[tuple[str, int]]) -> Sequence[int | SettleError]:
        """
        Change some counts and return the new ones, durably before it returns; a change of 0 only looks.

        Names are 32 hexadecimal digits. A count never goes below zero, and one that was never changed is zero. A name is
        changed by one member at a time: by who holds its message. `Unavailable` for what could not be done.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """
    How much waits at an address.

    waiting: messages that could be handed out now. delayed: not due yet. in_flight: handed out, unsettled.
    oldest: age in seconds of the oldest unsettled one, or None.
    """

    waiting: int
    delayed: int
    in_flight: int
    oldest: float | None


@runtime_checkable
class Measures(Protocol):
    """Optional: depth, lag, age."""

    async def measure(self, at: Address) -> Measurement:
        """Measure a group's inlet (the channel as it sees it) or its dead place."""
        ...


@runtime_checkable
class Browses(Protocol):
    """Optional: read without taking."""

    async def browse(
        self, at: Address, *, cursor: str | None, limit: int
    ) -> tuple[Sequence[Delivery], str | None]:
        """
        Return a page of what is stored at a channel or a dead place, oldest first, and the next cursor.

        A page with something in it always comes with a cursor; None comes with an empty page only: the end is reached
        *now*, and to follow a channel ask again with the last cursor given. `cursor="end"` starts behind what is stored.
        Its deliveries have message, address and the position that `receive` would give; the rest only where the broker tells it.
        """
        ...

    async def groups(self) -> Sequence[tuple[str, str]]:
        """Return the (channel, group) pairs that exist."""
        ...


@runtime_checkable
class Provisions(Protocol):
    """Optional: create or verify what a list of addresses needs."""

    async def provision(
        self, places: Sequence[tuple[Address, Start, Order]], *, create: bool
    ) -> Sequence[str]:
        """Create what is missing, or with `create=False` only name it. Returns the names that were missing."""
        ...


@runtime_checkable
class Describes(Protocol):
    """Optional: say what an operator would run."""

    def commands(self, places: Sequence[tuple[Address, Start, Order]]) -> Sequence[str]:
        """Return the shell commands that make what a list of addresses needs; nothing is connected to."""
        ...


@runtime_checkable
class Identifies(Protocol):
    """Optional: say which product and version answers."""

    @property
    def server(self) -> str:
        """
        Return product and version, such as `RabbitMQ 3.10.8`; empty before `connect`, and never an exception.

        On Python 3.11 `isinstance` with this protocol reads it.
        """
        ...


def open_adapter(url: str, **options: object) -> Adapter:
    """
    Make the adapter that a URL's scheme names, without touching the broker.

    Adapters are found through the entry-point group `brokerkit.adapters`, so a third party can add one.
    Raises `ConfigurationError` that lists the known schemes, or names the extra that is not installed; never the URL's
    password.
    """
    scheme = url.partition(":")[0].lower()
    found = entry_points(group="brokerkit.adapters")
    for entry in found:
        if entry.name == scheme:
            return _made(_factory(entry, scheme), url, options)
    known = ", ".join(sorted(entry.name + "://" for entry in found)) or "none are installed"
    message = f"no adapter for {redacted(url)!r}: known are {known}"
    raise ConfigurationError(message)


def _factory(entry: EntryPoint, scheme: str) -> Callable[..., Adapter]:
    try:
        factory: Callable[..., Adapter] = entry.load()
    except ImportError as error:
        owner = entry.dist.name if entry.dist is not None else "brokerkit-bus"
        what = (
            f"brokerkit-bus[{_extra(entry)}]"
            if owner == "brokerkit-bus"
            else f"what the package {owner} needs"
        )
        message = f"the adapter for {scheme}:// cannot be imported ({error}); install {what}"
        raise ConfigurationError(message) from error
    return factory


def _extra(entry: EntryPoint) -> str:
    """Return the extra of an adapter of ours: the name of its folder."""
    return entry.module.rpartition(".")[2]


def _made(factory: Callable[..., Adapter], url: str, options: dict[str, object]) -> Adapter:
    try:
        inspect.signature(factory).bind(url, **options)
    except TypeError as error:
        message = f"{redacted(url)}: {error}; options given: {', '.join(sorted(options)) or 'none'}"
        raise ConfigurationError(message) from error
    return factory(url, **options)


def redacted(url: str) -> str:
    """
    Return the URL with its user information and query values masked; safe in a log or an error.

    Made for what people type: a password may hold `/`, `?`, `#` or `[`, unescaped, and the scheme may be missing. In
    doubt more is masked than need be.
    """
    scheme, slashes, rest = url.partition("://") if "://" in url else ("", "", url)
    place, _, query = rest.partition("?")
    if "@" in query and "@" not in place and not _HOSTS.fullmatch(place.lstrip("/").partition("/")[0]):
        place, _, query = f"@{rest.rpartition('@')[2]}".partition("?")
    if "@" in place:
        place = f"***@{place.rpartition('@')[2]}"
    masked = "&".join(f"{pair.partition('=')[0]}=***" for pair in query.split("&"))
    if "@" in query and "@" not in place:  # perhaps the end of a password: the names are part of it then
        masked = "***"
    return f"{scheme}{slashes}{place.partition('#')[0]}" + (f"?{masked}" if query else "")
