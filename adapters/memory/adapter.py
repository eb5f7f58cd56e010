"""
The adapter: one process's connection to a broker in memory.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

from brokerkit.adapter import Capabilities, Measurement, OnLost, Order, Start, redacted
from brokerkit.adapters.memory.broker import Broker, Target, named
from brokerkit.adapters.memory.gate import Gate
from brokerkit.adapters.memory.subscription import MemorySubscription
from brokerkit.adapters.memory.unkind import Dice, Unkind
from brokerkit.delivery import Delivery
from brokerkit.errors import (
    Closed,
    ConfigurationError,
    ConnectionLost,
    DelayTooLong,
    PublishUnknown,
    SendError,
    TooLarge,
    Unsupported,
)
from brokerkit.message import Address, Message

__all__ = ["MemoryAdapter"]

_MAX_MESSAGE = 64 * 1024 * 1024
_MAX_DELAY = 12 * 3600.0


class MemoryAdapter:
    """
    One process's connection to a broker in memory; also `Browses`, `Measures` and `Provisions`.

    lease: seconds after which a subscription that does not renew (its loop is blocked or stopped, or `freeze`
        was called) loses what it holds; None for never. max_message: size limit in bytes. unkind: faults to
        play. Unknown options raise `ConfigurationError`.

    Its `broker` has the levers that play faults for everybody; `freeze`, `thaw` and `disconnect` concern this
    adapter alone.
    """

    def __init__(
        self,
        url: str = "memory://",
        *,
        lease: float | None = None,
        max_message: int = _MAX_MESSAGE,
        unkind: Unkind | None = None,
    ) -> None:
        name, given = _read(url)
        self.url = redacted(url)
        self.lease = given.get("lease", lease)
        self.broker: Broker = named(name)
        self.capabilities = Capabilities(
            order_key=True,
            durable=False,
            processes=False,
            counts_arrivals=True,
            marks=True,
            log=False,
            lease=self.lease,
            key_returns=True,
            max_delay=_MAX_DELAY,
            max_message=int(given.get("max_message", max_message)),
        )
        self.gentle = unkind is None
        self.dice = Dice(unkind or Unkind(seed=0))
        self.gate = Gate()
        self.subscriptions: dict[MemorySubscription, None] = {}
        self._open = False
        self._closed = False

    async def connect(self) -> None:
        """Connect; `ConnectionLost` while the broker is stopped, `Closed` after `close`."""
        await self.passed()
        if self._closed:
            raise self._not_open()
        self.broker.check()
        self.broker.adapters[self] = None
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
        Keep some messages and return one outcome for each; cancelled, it has kept nothing.

        Lets the event loop turn once. `after` is for an inlet only: anything else raises `Unsupported`.
        """
        delays = [after] * len(messages) if isinstance(after, int | float) else after
        if to.place != "inlet" and any(delay > 0 for delay in delays):
            message = f"after={after}: only what is sent to a group's inlet can be delayed, not {to}"
            raise Unsupported(message)
        await asyncio.sleep(0)
        await self.passed()
        try:
            self._check()
            with self.broker.lock:
                now = asyncio.get_running_loop().time()
                target = self.broker.target(to, now, must_route=must_route)
                pairs = zip(messages, delays, strict=True)
                return [self._send_one(target, message, now, delay) for message, delay in pairs]
        except SendError as error:
            return [error] * len(messages)

    async def subscribe(
        self, at: Address, *, order: Order, start: Start, prefetch: int, on_lost: OnLost
    ) -> MemorySubscription:
        """
        Join a group; made if it is missing. `prefetch` is the engine's own business here.

        Raises `ConfigurationError` if its other members use the other order mode.
        """
        del prefetch
        await self.passed()
        self._check()
        with self.broker.lock:
            now = asyncio.get_running_loop().time()
            place = self.broker.join(at, order, start, now)
            subscription = MemorySubscription(self, place, on_lost)
            subscription.start()
            self.subscriptions[subscription] = None
        return subscription

    async def close(self) -> None:
        """Close every subscription and the connection; works while the broker or this adapter is frozen."""
        self._closed = True
        for subscription in list(self.subscriptions):
            await subscription.close()
        self.broker.adapters.pop(self, None)

    async def measure(self, at: Address) -> Measurement:
        """Measure a group's inlet or dead place; `NotFound` for an unknown group."""
        await self.passed()
        self._check()
        with self.broker.lock:
            return self.broker.measure(at, asyncio.get_running_loop().time())

    async def browse(
        self, at: Address, *, cursor: str | None, limit: int
    ) -> tuple[Sequence[Delivery], str | None]:
        """Return a page of a channel or a dead place; the cursor is None when the page is empty."""
        await self.passed()
        self._check()
        with self.broker.lock:
            if cursor == "end":
                return [], str(self.broker.newest())
            stored = self.broker.stored(at)
        first = bisect_right(stored, int(cursor or 0), key=lambda each: each.seq)
        page = stored[first : first + limit]
        found = [Delivery(each.message, at, position=each.position) for each in page]
        return found, str(page[-1].seq) if page else None

    async def groups(self) -> Sequence[tuple[str, str]]:
        """Return the (channel, group) pairs that exist."""
        await self.passed()
        self._check()
        with self.broker.lock:
            return self.broker.groups()

    async def provision(
        self, places: Sequence[tuple[Address, Start, Order]], *, create: bool
    ) -> Sequence[str]:
        """Create what is missing, or only name it."""
        await self.passed()
        self._check()
        with self.broker.lock:
            now = asyncio.get_running_loop().time()
            missing = [place for place in places if self.broker.missing(place[0])]
            if create:
                for place in missing:
                    self.broker.make(*place, now)
        return [str(at) for at, _, _ in missing]

    async def passed(self) -> None:
        """Return when neither this adapter nor the broker is frozen."""
        while self.gate.shut or self.broker.gate.shut:
            await self.gate.passed()
            await self.broker.gate.passed()

    def freeze(self) -> None:
        """Play SIGSTOP for this adapter: it renews no lease and nothing of it goes on, until `thaw`."""
        self.gate.close()

    def thaw(self) -> None:
        """Play SIGCONT."""
        self.gate.open()

    def disconnect(self) -> None:
        """Cut this adapter's subscriptions off, as `Broker.disconnect` does for everybody."""
        for subscription in list(self.subscriptions):
            subscription.leave(polite=False)

    def _check(self) -> None:
        if self._closed or not self._open:
            raise self._not_open()
        self.broker.check()

    def _not_open(self) -> Closed:
        state = "closed" if self._closed else "not connected"
        return Closed(f"{self.url} is {state}")

    def _send_one(self, target: Target, message: Message, now: float, after: float) -> SendError | None:
        limit = self.capabilities.max_message
        if message.size > limit:
            return TooLarge(f"{message.size} bytes with headers; at most {limit}")
        if not after <= _MAX_DELAY:
            return DelayTooLong(f"after={after}: at most {_MAX_DELAY:.0f} seconds")
        refusal = self.broker.refusal() or (None if self.gentle else self._bad_luck())
        if refusal is not None and not refusal[1]:
            return refusal[0]
        self.broker.store(target, message, now, after)
        return None if refusal is None else refusal[0]

    def _bad_luck(self) -> tuple[SendError, bool] | None:
        if self.dice.hit("refuse_send"):
            return ConnectionLost("the connection broke before the message was sent"), False
        if self.dice.hit("unknown_send"):
            return PublishUnknown("the connection broke before the answer came"), self.dice.coin()
        return None


def _read(url: str) -> tuple[str, dict[str, float]]:
    """Return the broker's name and the options in a URL, or raise `ConfigurationError`."""
    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(given.keys() - {"lease", "max_message"})
    if parts.scheme != "memory" or unknown:
        what = f"options {unknown}" if unknown else f"scheme {parts.scheme!r}"
        message = f"{redacted(url)!r}: unknown {what}; use memory://name?lease=30&max_message=65536"
        raise ConfigurationError(message)
    return parts.netloc + parts.path.rstrip("/"), {
        name: _number(url, name, text) for name, text in given.items()
    }


def _number(url: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        message = f"{redacted(url)!r}: {name} is a number, not {text!r}"
        raise ConfigurationError(message) from error
    if not value > 0:
        message = f"{redacted(url)!r}: {name} is above 0, not {text!r}"
        raise ConfigurationError(message)
    return value
