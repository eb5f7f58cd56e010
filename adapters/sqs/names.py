"""
What things are called at SQS and SNS: one pure function for each, and the way back from a listing.

SQS allows letters, digits, hyphens and underscores, 80 in all with the `.fifo` that a FIFO queue has to end with. A dot
becomes an underscore (our names have none), `--` joins the parts (our names have none either), and a part above 33
characters is cut to 15, two underscores and 80 bits of its hash: then everything fits, and what a channel's queues begin
with depends on the channel alone, so that they can be listed.
"""

import base64
import hashlib
from collections.abc import Iterable

from brokerkit.message import Address

__all__ = [
    "FIFO",
    "channel_prefix",
    "group_queue",
    "group_queues",
    "queue_name",
    "topic_name",
    "unrouted_name",
]

FIFO = ".fifo"
_JOINT = "--"
_LONGEST = 33
_KEPT = 15
_HASH_BYTES = 10
_UNROUTED = f"return{_JOINT}unrouted"  # `return` is no name that a group may have


def queue_name(at: Address, *, fifo: bool) -> str:
    """
    Return the name of the queue of one of a group's own places, inlet or dead.

    A dead place is a standard queue in either case. Raises `ValueError` for a channel: it has no queue of its own.
    """
    if at.group is None:
        message = f"{at} is a channel: its messages lie in the queues of its groups"
        raise ValueError(message)
    name = f"{group_queue(at.channel, at.group)}{_JOINT}{at.place}"
    return name + FIFO if fifo and at.place != "dead" else name


def group_queue(channel: str, group: str, *, fifo: bool = False) -> str:
    """Return the name of the queue into which a channel's messages go for one group."""
    return f"{channel_prefix(channel)}{_part(group)}{FIFO if fifo else ''}"


def unrouted_name(channel: str) -> str:
    """Return the name of the queue for what no group has asked for."""
    return f"{channel_prefix(channel)}{_UNROUTED}"


def topic_name(channel: str, *, fifo: bool) -> str:
    """Return the name of a channel's SNS topic."""
    return f"{_part(channel)}{FIFO if fifo else ''}"


def channel_prefix(channel: str) -> str:
    """Return what the names of all queues of a channel, and of no other, begin with."""
    return _part(channel) + _JOINT


def group_queues(channel: str, names: Iterable[str]) -> list[str]:
    """Return those names out of a listing that are a group's queue of this channel, not one of the places beside it."""
    prefix = channel_prefix(channel)
    return [name for name in names if name.startswith(prefix) and _JOINT not in name[len(prefix) :]]


def _part(name: str) -> str:
    plain = name.replace(".", "_")
    if len(plain) <= _LONGEST:
        return plain
    digest = hashlib.blake2b(name.encode(), digest_size=_HASH_BYTES).digest()
    # two underscores: no name has two dots in a row, so what was cut is never what was not
    return f"{plain[:_KEPT]}__{base64.b32encode(digest).decode().lower()}"
