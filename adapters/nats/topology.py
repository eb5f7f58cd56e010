"""
What must exist at the server for a channel and its groups, as data: pure, nothing is connected to.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brokerkit.adapter import Order, Start
from brokerkit.adapters.nats import names
from brokerkit.adapters.nats.api import notes_of
from brokerkit.adapters.nats.options import Options
from brokerkit.message import Address

__all__ = ["BUDGET", "GROUP", "Channel", "commands_for", "consumer_configs", "order_of", "stream_config"]

GROUP = "own"
"""The priority group of a partition's consumer; there is one."""

BUDGET = 1024
"""How many messages of one partition may be with its owner."""

_KEYED_WAIT = 30.0
_LONGEST_PIN = 10.0
_VERSION = "1"
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Channel:
    """
    A channel as it is at the server.

    stream: where it is kept. subjects: one for each partition. adopted: not ours to change.
    """

    name: str
    stream: str
    subjects: tuple[str, ...]
    adopted: bool

    @property
    def filter(self) -> str | None:
        """Return what a consumer of the whole channel has to select, or None for everything in the stream."""
        return self.subjects[0] if self.adopted else None


def stream_config(options: Options, channel: str, place: str | None) -> dict[str, Any]:
    """Return the configuration of a channel's stream (place None), or of its inlets' or its dead letters'."""
    config: dict[str, Any] = {
        "name": names.stream(channel, place),
        "storage": "file",
        "num_replicas": options.replicas,
        "duplicate_window": int(options.dedupe_window * _NS),
        "max_msgs": -1,
        "max_bytes": -1,
        "metadata": {"bk.v": _VERSION, "bk.channel": channel},
    }
    if place is None:
        config |= {
            "subjects": list(names.partitions_in(channel, options.partitions)),
            "retention": "limits",
            "discard": "old",
            "max_age": int(options.retention * _NS),
        }
        config["metadata"] |= {"bk.partitions": str(options.partitions)}
        return config
    config |= {
        "subjects": [f"{names.token(channel)}--{place}.*"],
        "retention": "workqueue" if place == "inlet" else "limits",
        "discard": "new",
        "max_age": int(options.dead_retention * _NS) if place == "dead" else 0,
    }
    return config


def consumer_configs(
    options: Options, channel: Channel, at: Address, order: Order, first: int | None, *, pins: bool
) -> list[tuple[str, dict[str, Any]]]:
    """
    Return (stream, configuration) of each durable that a subscription at an inlet or a dead place needs.

    first: the stream sequence at which a new group begins, None for the earliest. pins: the server can give a partition to
    one owner; where it cannot, one message of a partition is out at a time.
    """
    assert at.group is not None  # noqa: S101 - an inlet or a dead place
    assert at.place is not None  # noqa: S101
    base = {
        "ack_policy": "explicit",
        "ack_wait": int(options.lease * _NS),
        "max_deliver": -1,
        "max_ack_pending": -1,
        "replay_policy": "instant",
        "metadata": {"bk.v": _VERSION, "bk.channel": at.channel, "bk.group": at.group, "bk.order": order},
    }
    own = {
        **base,
        "durable_name": names.durable(at.group),
        "filter_subject": names.subject(at.channel, at.place, at.group),
        "deliver_policy": "all",
    }
    places = [(names.stream(at.channel, at.place), own)]
    if at.place == "dead":
        return places
    start: dict[str, Any] = {"deliver_policy": "all"}
    if first is not None:
        start = {"deliver_policy": "by_start_sequence", "opt_start_seq": first}
    if order == "none":
        native = options.native.get(f"{at.channel}/{at.group}")
        main = {**base, **start, "durable_name": native or names.durable(at.group)}
        if channel.filter is not None:
            main["filter_subject"] = channel.filter
        return [(channel.stream, main), *places]
    keyed = {**base, **start, "ack_wait": int(max(_KEYED_WAIT, options.lease) * _NS)}
    if pins:
        keyed |= {
            "max_ack_pending": BUDGET,
            "priority_groups": [GROUP],
            "priority_policy": "pinned_client",
            "priority_timeout": int(pin_timeout(options) * _NS),
        }
    else:
        keyed |= {"max_ack_pending": 1, "ack_wait": int(options.lease * _NS)}
    parts = [
        (channel.stream, {**keyed, "durable_name": names.durable(at.group, index), "filter_subject": subject})
        for index, subject in enumerate(channel.subjects)
    ]
    return [*parts, *places]


def pin_timeout(options: Options) -> float:
    """Return the seconds after which a silent owner loses a partition."""
    return min(options.lease, _LONGEST_PIN)


def order_of(config: Mapping[str, Any]) -> Order:
    """Return the order mode that a durable was made for."""
    return "key" if notes_of(config).get("bk.order") == "key" else "none"


def commands_for(options: Options, places: Sequence[tuple[Address, Start, Order]]) -> list[str]:
    """Return the commands of the `nats` tool that make what these places need; what is adopted is left out."""
    found: dict[str, None] = {}
    for at, start, order in places:
        adopted = at.channel in options.native
        if not adopted:
            found.setdefault(_stream_command(stream_config(options, at.channel, None)))
        if at.place is not None:
            found.setdefault(_stream_command(stream_config(options, at.channel, at.place)))
            for stream, config in _consumers(options, at, start, order):
                if not (
                    order == "none"
                    and config["durable_name"] == options.native.get(f"{at.channel}/{at.group}")
                ):
                    found.setdefault(_consumer_command(stream, config))
    return list(found)


def _consumers(options: Options, at: Address, start: Start, order: Order) -> list[tuple[str, dict[str, Any]]]:
    native = options.native.get(at.channel)
    subjects = names.partitions_in(at.channel, options.partitions) if native is None else (native,)
    stream = names.stream(at.channel) if native is None else "STREAM"
    channel = Channel(at.channel, stream, subjects, native is not None)
    made = consumer_configs(options, channel, at, order, None, pins=True)
    if start == "latest":
        for stream_name, config in made:
            if stream_name == channel.stream:
                config["deliver_policy"] = "new"
    return made


def _stream_command(config: Mapping[str, Any]) -> str:
    return f"echo {shlex.quote(json.dumps(config))} | nats stream add --config /dev/stdin {config['name']}"


def _consumer_command(stream: str, config: Mapping[str, Any]) -> str:
    return (
        f"echo {shlex.quote(json.dumps(config))} | nats consumer add {stream} {config['durable_name']} "
        "--config /dev/stdin"
    )
