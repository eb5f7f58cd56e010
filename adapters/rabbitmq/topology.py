"""
What has to exist at the broker, as data: exchanges, queues and bindings of a channel, a group, a rung.

Everything is durable, every queue is a quorum queue. What is adopted (`native=`) is never in here.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from brokerkit.adapter import Order
from brokerkit.adapters.rabbitmq import names
from brokerkit.message import Address

__all__ = ["Binding", "Exchange", "Plan", "Queue", "Topology"]

_NONE: Mapping[str, Any] = MappingProxyType({})
_UNLIMITED = (4, 0)
"""From this version a quorum queue drops what has come back 20 times, unless it is told not to."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange."""

    name: str
    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)


@dataclass(frozen=True, slots=True)
class Queue:
    """A quorum queue."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)


@dataclass(frozen=True, slots=True)
class Binding:
    """A way from an exchange to a queue, or with `split` to another exchange."""

    source: str
    destination: str
    key: str
    split: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What belongs together. Bindings are made last: nothing arrives before everything is there."""

    exchanges: Sequence[Exchange] = ()
    queues: Sequence[Queue] = ()
    bindings: Sequence[Binding] = ()

    def __add__(self, other: "Plan") -> "Plan":
        return Plan(
            (*self.exchanges, *other.exchanges),
            (*self.queues, *other.queues),
            (*self.bindings, *other.bindings),
        )

    def commands(self) -> Sequence[str]:
        """Return the commands of `rabbitmqadmin` that make it."""
        return [
            *(
                _command("exchange", name=each.name, type=each.kind, arguments=each.arguments)
                for each in self.exchanges
            ),
            *(_command("queue", name=each.name, arguments=each.arguments) for each in self.queues),
            *(
                _command(
                    "binding",
                    source=each.source,
                    destination=each.destination,
                    destination_type="exchange" if each.split else "queue",
                    routing_key=each.key,
                )
                for each in self.bindings
            ),
        ]


class Topology:
    """
    Makes the plans.

    adopted: broker names under `channel` (an exchange) and `channel/group` (a queue).
    """

    def __init__(self, adopted: Mapping[str, str], *, max_unrouted: int) -> None:
        self._adopted = adopted
        self._max_unrouted = max_unrouted

    def exchange(self, channel: str, *, strict: bool = False) -> str:
        """Name the exchange for publishing to a channel."""
        own = names.strict_exchange(channel) if strict else names.exchange(channel)
        return self._adopted.get(channel, own)

    def adopted_queue(self, at: Address) -> str | None:
        """Name the queue that a group has adopted."""
        return self._adopted.get(f"{at.channel}/{at.group}")

    def is_adopted(self, channel: str) -> bool:
        """Say whether a channel's exchange is somebody else's."""
        return channel in self._adopted

    def inlets(self, at: Address, order: Order, parts: int) -> Sequence[str]:
        """Name the queues that a member of a group consumes."""
        channel, group = at.channel, _group(at)
        if (adopted := self.adopted_queue(at)) is not None:
            return [adopted, names.inlet_queue(channel, group)]
        if order == "none":
            return [names.queue(channel, group)]
        return [names.part_queue(channel, group, part) for part in range(parts)]

    def channel(self, channel: str, version: tuple[int, int]) -> Plan:
        """Plan what publishing to a channel needs."""
        if self.is_adopted(channel):
            return Plan()
        unrouted, kept = names.unrouted(channel), names.unrouted_queue(channel)
        arguments = {"x-max-length": self._max_unrouted, "x-overflow": "reject-publish"}
        return Plan(
            [
                Exchange(unrouted, "fanout"),
                Exchange(names.strict_exchange(channel), "topic"),
                Exchange(names.exchange(channel), "topic", {"alternate-exchange": unrouted}),
            ],
            [Queue(kept, _quorum(version, arguments))],
            [Binding(unrouted, kept, "")],
        )

    def inlet(self, at: Address, order: Order, parts: int, version: tuple[int, int], *, split: bool) -> Plan:
        """Plan a group's own queue or partitions; `split` says that the consistent-hash exchange is to be had."""
        channel, group = at.channel, _group(at)
        back = names.return_exchange(channel, group)
        single: dict[str, Any] = {"x-single-active-consumer": True} if order == "key" else {}
        exchanges = [Exchange(back, "direct")]
        if self.adopted_queue(at) is not None:
            own = names.inlet_queue(channel, group)
            return Plan(exchanges, [Queue(own, _quorum(version, single))], [Binding(back, own, "in")])
        queues = [Queue(name, _quorum(version, single)) for name in self.inlets(at, order, parts)]
        targets = [queue.name for queue in queues]
        bindings: list[Binding] = []
        if order == "key":
            exchanges.append(Exchange(names.members_exchange(channel, group), "fanout"))
        if order == "key" and split:
            middle = names.split_exchange(channel, group)
            exchanges.append(Exchange(middle, "x-consistent-hash", {"hash-header": "bk-key"}))
            bindings += [Binding(middle, target, "1") for target in targets]
            targets = [middle]
        for target in targets:
            # to `strict` first: whoever must route gets an error until the group gets everything
            bindings += [Binding(back, target, "in", split=target not in {queue.name for queue in queues})]
            bindings += [
                Binding(source, target, "#", split=target not in {queue.name for queue in queues})
                for source in self._sources(channel)
            ]
        return Plan(exchanges, queues, bindings)

    def dead(self, at: Address, version: tuple[int, int]) -> Plan:
        """Plan a group's dead place."""
        channel, group = at.channel, _group(at)
        back, dead = names.return_exchange(channel, group), names.dead_queue(channel, group)
        return Plan(
            [Exchange(back, "direct")], [Queue(dead, _quorum(version))], [Binding(back, dead, "dead")]
        )

    def rung(self, at: Address, seconds: int, version: tuple[int, int]) -> Plan:
        """
        Plan one rung of a group's ladder.

        At least once: an expired copy leaves the rung when the group's queue has confirmed it, not before.
        """
        channel, group = at.channel, _group(at)
        back, rung = names.return_exchange(channel, group), names.rung_queue(channel, group, seconds)
        arguments = {
            "x-message-ttl": seconds * 1000,
            "x-dead-letter-exchange": back,
            "x-dead-letter-routing-key": "in",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        return Plan(
            [Exchange(back, "direct")],
            [Queue(rung, _quorum(version, arguments))],
            [Binding(back, rung, names.rung_key(seconds))],
        )

    def ladder(self, at: Address, version: tuple[int, int]) -> Plan:
        """Plan all rungs of a group."""
        plan = Plan()
        for seconds in names.RUNGS:
            rung = self.rung(at, seconds, version)
            plan += Plan((), rung.queues, rung.bindings)
        return plan

    def _sources(self, channel: str) -> Sequence[str]:
        if self.is_adopted(channel):
            return [self.exchange(channel)]
        return [names.strict_exchange(channel), names.exchange(channel)]


def _quorum(version: tuple[int, int], arguments: Mapping[str, Any] = _NONE) -> dict[str, Any]:
    """
    Return the arguments of a quorum queue without a limit on how often a message may come back.

    From 4.0 such a limit is there unless -1 is given; 3.10 takes -1 for one delivery and drops the message (tried).
    """
    unlimited = {"x-delivery-limit": -1} if version >= _UNLIMITED else {}
    return {"x-queue-type": "quorum", **unlimited, **arguments}


def _group(at: Address) -> str:
    assert at.group is not None  # noqa: S101 - callers have checked it
    return at.group


def _command(kind: str, *, arguments: Mapping[str, Any] = _NONE, **fields: str) -> str:
    words = ["rabbitmqadmin", "declare", kind, *(f"{name}={value}" for name, value in fields.items())]
    if arguments:
        words.append(f"arguments={json.dumps(dict(arguments), separators=(',', ':'))}")
    if kind != "binding":
        words.insert(4, "durable=true")
    return shlex.join(words)
