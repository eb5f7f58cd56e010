"""
What things are called at the broker: pure functions, injective for each kind of thing.

`--` joins the parts: it cannot occur in a channel's or a group's name. Exchanges and queues live in two spaces of names.
"""

from brokerkit.errors import BadName
from brokerkit.message import Address
from brokerkit.names import check_name

__all__ = [
    "RUNGS",
    "check_address",
    "dead_queue",
    "exchange",
    "inlet_queue",
    "members_exchange",
    "part_queue",
    "queue",
    "return_exchange",
    "rung_key",
    "rung_queue",
    "split_exchange",
    "strict_exchange",
    "tally_queue",
    "unrouted",
    "unrouted_queue",
]

RUNGS = (1, 5, 30, 120, 600, 3600, 21_600)
"""Seconds of the retry ladder; each has a queue of its own in each group, whatever the policy."""


def check_address(at: Address) -> None:
    """Raise `BadName` for a channel or group that cannot be one here; `amq.` is the broker's own."""
    check_name("channel", at.channel)
    if at.channel.startswith("amq."):
        message = f"channel name {at.channel!r}: RabbitMQ keeps names that begin with 'amq.' for itself"
        raise BadName(message)
    if at.group is not None:
        check_name("group", at.group)


def exchange(channel: str) -> str:
    """Name the topic exchange to which a channel is published."""
    return channel


def strict_exchange(channel: str) -> str:
    """Name the exchange for `must_route`: without an alternate, so that what no group reads comes back."""
    return f"{channel}--strict"


def unrouted(channel: str) -> str:
    """Name the exchange that takes what no group has asked for."""
    return f"{channel}--unrouted"


def unrouted_queue(channel: str) -> str:
    """Name the queue behind it; three parts, because a group may be called `unrouted`."""
    return f"{channel}--unrouted--kept"


def queue(channel: str, group: str) -> str:
    """Name the queue of a group with `order="none"`."""
    return f"{channel}--{group}"


def part_queue(channel: str, group: str, part: int) -> str:
    """Name one partition of a group with `order="key"`."""
    return f"{channel}--{group}--p{part}"


def inlet_queue(channel: str, group: str) -> str:
    """Name the queue for the copies of a group whose own queue is adopted."""
    return f"{channel}--{group}--inlet"


def dead_queue(channel: str, group: str) -> str:
    """Name the queue of a group's dead letters."""
    return f"{channel}--{group}--dead"


def rung_queue(channel: str, group: str, seconds: int) -> str:
    """Name the queue in which copies wait for so many seconds."""
    return f"{channel}--{group}--retry--{seconds}"


def tally_queue(channel: str, group: str, name: str) -> str:
    """Name the queue whose length is a count of the group."""
    return f"{channel}--{group}--tally--{name}"


def return_exchange(channel: str, group: str) -> str:
    """Name the exchange by which copies reach a group: what came through it proves its headers."""
    return f"{channel}--{group}--return"


def split_exchange(channel: str, group: str) -> str:
    """Name the consistent-hash exchange before the partitions of a group."""
    return f"{channel}--{group}--split"


def members_exchange(channel: str, group: str) -> str:
    """Name the fanout exchange by which the members of a group know of each other."""
    return f"{channel}--{group}--members"


def rung_key(seconds: int) -> str:
    """Name the routing key of a rung at the return exchange."""
    return f"r{seconds}"
