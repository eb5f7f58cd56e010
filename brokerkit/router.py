"""
Handlers, gathered: which function takes what of which channel, for which group, inside which patterns.

A router holds handlers without a broker; a bus is a router that has one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar

from brokerkit.adapter import Capabilities, Order, Start
from brokerkit.codec import Codec
from brokerkit.delivery import Delivery
from brokerkit.endpoint import Endpoint, Flush
from brokerkit.engine import Settings
from brokerkit.errors import ConfigurationError, Unsupported
from brokerkit.names import check_name
from brokerkit.pipeline import KINDS, Checks, Handler, Pattern, Place, check_chain, placed, with_default, wrap
from brokerkit.settlement import ACK, DeadLetter, Settlement

__all__ = ["Consumption", "Router", "Subscriber"]

F = TypeVar("F", bound=Callable[..., Any])
Unknown = Literal["dead_letter", "ack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscriber:
    """One decorated function and where it stands."""

    channel: str
    group: str
    endpoint: Endpoint
    patterns: tuple[Pattern, ...]
    type: str | None
    settings: Settings
    ignore: frozenset[str]
    unknown: Unknown
    codec: Codec | None

    @property
    def takes(self) -> str | None:
        """Return the event type that it takes: the explicit one, else the model's."""
        return self.type or self.endpoint.type_name

    def with_defaults(self, defaults: Sequence[Pattern]) -> "Subscriber":
        """Return it with a router's or bus's default patterns; its own of the same kind win."""
        return Subscriber(
            channel=self.channel,
            group=self.group,
            endpoint=self.endpoint,
            patterns=tuple(_merged(defaults, self.patterns)),
            type=self.type,
            settings=self.settings,
            ignore=self.ignore,
            unknown=self.unknown,
            codec=self.codec,
        )


class Router:
    """
    Holds handlers; `bus.include(router)` takes them over.

    patterns: default patterns of every handler here; a handler's own pattern of the same kind takes its place.
    """

    def __init__(self, *, patterns: Sequence[Pattern] = ()) -> None:
        check_chain(patterns, "(defaults of a router)")
        self.patterns = tuple(patterns)
        self.subscribers: list[Subscriber] = []

    def subscriber(
        self,
        channel: str,
        *,
        group: str,
        patterns: Sequence[Pattern] = (),
        type: str | None = None,  # noqa: A002 - the attribute's own name in CloudEvents
        order: Order = "none",
        start: Start = "earliest",
        concurrency: int = 16,
        prefetch: int | None = None,
        hold_limit: int = 1000,
        max_hold: float = 300.0,
        ignore: Iterable[str] = (),
        unknown: Unknown = "dead_letter",
        codec: Codec | None = None,
    ) -> Callable[[F], F]:
        """
        Make a function the handler of a channel for a group; returns the function unchanged.

        The only handler of a (channel, group), without `type`, takes every message of the channel. Several are told
        apart by event type: `type`, else the model's class name in dotted lower case. `ignore` lists types that the group
        leaves alone; `unknown="ack"` leaves alone everything that no handler takes, which loses messages if a deploy
        rolls out a handler late. `concurrency` handlers run at once in this process; `prefetch` (default twice that)
        messages are taken ahead. With `order="key"`, at most `hold_limit` messages wait behind a key's retry, and no
        single wait is longer than `max_hold` seconds.

        Raises, at once: `BadName`, `SignatureError`, `ChainError`, `ConfigurationError`.
        """
        check_name("channel", channel)
        check_name("group", group)
        settings = _settings(order, start, concurrency, prefetch, hold_limit, max_hold)
        if unknown not in ("dead_letter", "ack"):
            message = f"unknown={unknown!r}: use 'dead_letter' or 'ack'"
            raise ConfigurationError(message)

        def decorate(function: F) -> F:
            chain = _merged(self.patterns, patterns)
            endpoint = Endpoint.inspect(function, chain)
            check_chain(chain, endpoint.name)
            self._add(
                Subscriber(
                    channel=channel,
                    group=group,
                    endpoint=endpoint,
                    patterns=tuple(chain),
                    type=type,
                    settings=settings,
                    ignore=frozenset(ignore),
                    unknown=unknown,
                    codec=codec,
                )
            )
            return function

        return decorate

    def include(self, router: "Router") -> None:
        """Take over the handlers of another router; this one's default patterns go around those that lack the kind."""
        for subscriber in tuple(router.subscribers):
            added = subscriber.with_defaults(self.patterns)
            check_chain(added.patterns, added.endpoint.name)
            self._add(added)

    def _add(self, subscriber: Subscriber) -> None:
        self.subscribers.append(subscriber)

    def consumptions(self) -> "list[Consumption]":
        """Return one consumption for each (channel, group); raises `ConfigurationError` for handlers that conflict."""
        grouped: dict[tuple[str, str], list[Subscriber]] = {}
        for subscriber in self.subscribers:
            grouped.setdefault((subscriber.channel, subscriber.group), []).append(subscriber)
        return [Consumption.of(members) for members in grouped.values()]


def _settings(
    order: Order, start: Start, concurrency: int, prefetch: int | None, hold_limit: int, max_hold: float
) -> Settings:
    if order not in ("none", "key") or start not in ("earliest", "latest"):
        message = f"order={order!r}, start={start!r}: use 'none' or 'key', and 'earliest' or 'latest'"
        raise ConfigurationError(message)
    prefetch = 2 * concurrency if prefetch is None else prefetch
    if concurrency < 1 or prefetch < 1 or hold_limit < 0 or not 0 < max_hold <= 12 * 3600:
        message = (
            f"concurrency={concurrency}, prefetch={prefetch}, hold_limit={hold_limit}, max_hold={max_hold}: "
            "concurrency and prefetch are at least 1, hold_limit at least 0, max_hold above 0 and at most 12 h"
        )
        raise ConfigurationError(message)
    return Settings(
        order=order,
        start=start,
        concurrency=concurrency,
        prefetch=prefetch,
        hold_limit=hold_limit,
        max_hold=max_hold,
    )


def _merged(defaults: Sequence[Pattern], own: Sequence[Pattern]) -> list[Pattern]:
    """Put defaults where they belong around a handler's own patterns; those without a kind go outermost."""
    chain = list(own)
    kinds = {getattr(pattern, "kind", None) for pattern in own}
    for pattern in defaults:
        kind = getattr(pattern, "kind", None)
        if kind in KINDS and kind not in kinds:
            chain = placed(chain, kind, pattern)
    outer = [pattern for pattern in defaults if getattr(pattern, "kind", None) not in KINDS]
    return [*outer, *chain]


def _default_retry() -> Pattern:
    """Return the retry that protects a handler which names none; found by entry point, for the core imports no pattern."""
    for entry in entry_points(group="brokerkit.patterns", name="retry"):
        pattern: Pattern = entry.load()()
        return pattern
    message = "the default retry pattern is not installed; install brokerkit-bus again"
    raise ConfigurationError(message)


@dataclass(slots=True, kw_only=True)
class Consumption:
    """Everything that one (channel, group) does in this process."""

    channel: str
    group: str
    subscribers: list[Subscriber]
    settings: Settings
    ignore: frozenset[str]
    unknown: Unknown
    chains: dict[str, tuple[Pattern, ...]] = field(default_factory=dict[str, tuple[Pattern, ...]])

    @classmethod
    def of(cls, members: list[Subscriber]) -> "Consumption":
        """Gather the handlers of one (channel, group); raises `ConfigurationError` where they do not fit together."""
        first = members[0]
        where = f"{first.channel}/{first.group}"
        for other in members[1:]:
            _check_same(where, first, other)
        _check_names(where, members)
        if len(members) > 1:
            _check_types(where, members)
        consumption = cls(
            channel=first.channel,
            group=first.group,
            subscribers=members,
            settings=_widest([member.settings for member in members]),
            ignore=frozenset[str]().union(*(member.ignore for member in members)),
            unknown=first.unknown,
        )
        for member in members:
            consumption.chains[member.endpoint.name] = tuple(
                with_default(member.patterns, "retry", _default_retry)
            )
        return consumption

    @property
    def patterns(self) -> list[Pattern]:
        """Return every pattern of every chain."""
        return [pattern for chain in self.chains.values() for pattern in chain]

    def check(self, capabilities: Capabilities) -> None:
        """Refuse at start what this broker or a pattern cannot keep; raises `ConfigurationError` that says why."""
        if self.settings.order == "key" and not capabilities.order_key:
            message = (
                f"{self.channel}/{self.group}: this broker has no order='key'; use 'none', or another broker"
            )
            raise Unsupported(message)
        for subscriber in self.subscribers:
            place = Place(
                channel=self.channel,
                group=self.group,
                handler=subscriber.endpoint.name,
                order=self.settings.order,
                max_hold=self.settings.max_hold,
                concurrency=self.settings.concurrency,
                blocking=subscriber.endpoint.blocking,
                capabilities=capabilities,
            )
            for pattern in self.chains[subscriber.endpoint.name]:
                if isinstance(pattern, Checks):
                    pattern.check(place)

    def bind(
        self, codec: Codec, executor: Callable[[], Executor], state: Mapping[str, Any], flush: Flush
    ) -> Handler:
        """Return the handler that routes a delivery to the chain that takes it."""
        bound: dict[str, Handler] = {}
        for subscriber in self.subscribers:
            endpoint = subscriber.endpoint.bind(subscriber.codec or codec, executor, state, flush)
            bound[subscriber.endpoint.name] = wrap(endpoint, self.chains[subscriber.endpoint.name])
        only = self.subscribers[0]
        if len(self.subscribers) == 1 and only.type is None:
            return _route_all(bound[only.endpoint.name], self.ignore)
        by_type = {str(each.takes): bound[each.endpoint.name] for each in self.subscribers}
        return _route_by_type(by_type, self.ignore, self.unknown)

    def describe(self) -> list[str]:
        """Return the lines of the start-up plan."""
        settings = self.settings
        head = (
            f"{self.channel} / {self.group}: order={settings.order} start={settings.start} "
            f"concurrency={settings.concurrency} prefetch={settings.prefetch} hold_limit={settings.hold_limit}"
        )
        lines = [head]
        alone = len(self.subscribers) == 1 and self.subscribers[0].type is None
        for subscriber in self.subscribers:
            chain = " > ".join(
                [*map(_name_of, self.chains[subscriber.endpoint.name]), subscriber.endpoint.name]
            )
            lines.append(f"  {'every type' if alone else subscriber.takes}: {chain}")
        if self.ignore:
            lines.append(f"  left alone: {', '.join(sorted(self.ignore))}")
        if not alone:
            lines.append(f"  any other type: {'acked' if self.unknown == 'ack' else 'dead-lettered'}")
        return lines


def _name_of(pattern: Pattern) -> str:
    return getattr(pattern, "__name__", None) or repr(pattern)


def _check_same(where: str, first: Subscriber, other: Subscriber) -> None:
    if (first.settings.order, first.settings.start, first.unknown) != (
        other.settings.order,
        other.settings.start,
        other.unknown,
    ):
        message = f"{where}: {first.endpoint.name} and {other.endpoint.name} differ in order, start or unknown; make them equal"
        raise ConfigurationError(message)


def _check_names(where: str, members: Sequence[Subscriber]) -> None:
    """Refuse two handlers of one name: chains are kept by it, and one would get the other's messages."""
    seen: set[str] = set()
    for member in members:
        name = member.endpoint.name
        if name in seen:
            message = (
                f"{where}: {name} is registered twice; for another handler made by the same function, "
                "give it a __qualname__ of its own"
            )
            raise ConfigurationError(message)
        seen.add(name)


def _widest(settings: Sequence[Settings]) -> Settings:
    """Return what holds for a group of several handlers: of each figure the largest that one of them asks for."""
    return replace(
        settings[0],
        concurrency=max(each.concurrency for each in settings),
        prefetch=max(each.prefetch for each in settings),
        hold_limit=max(each.hold_limit for each in settings),
        max_hold=max(each.max_hold for each in settings),
    )


def _check_types(where: str, members: Sequence[Subscriber]) -> None:
    taken: dict[str, str] = {}
    for member in members:
        name = member.takes
        if name is None:
            message = (
                f"{where}: {member.endpoint.name} needs type=..., because the group has several handlers"
            )
            raise ConfigurationError(message)
        if name in taken:
            message = f"{where}: {taken[name]} and {member.endpoint.name} both take the type {name!r}"
            raise ConfigurationError(message)
        taken[name] = member.endpoint.name


def _route_all(chain: Handler, ignore: frozenset[str]) -> Handler:
    async def route(delivery: Delivery) -> Settlement:
        event = delivery.event
        if event.error is not None:
            return DeadLetter("decode_error", event.error)
        if event.type in ignore:
            return ACK
        return await chain(delivery)

    return route


def _route_by_type(chains: Mapping[str, Handler], ignore: frozenset[str], unknown: Unknown) -> Handler:
    async def route(delivery: Delivery) -> Settlement:
        event = delivery.event
        if event.error is not None:
            return DeadLetter("decode_error", event.error)
        chain = chains.get(event.type)
        if chain is not None:
            return await chain(delivery)
        if event.type in ignore or unknown == "ack":
            return ACK
        return DeadLetter("unknown_type", f"no handler takes the type {event.type!r}")

    return route
