"""
What channels, groups and their places are called at the broker: pure, and no two alike.

A channel or group name becomes one token by writing `_` for `.`; a legal name holds no `_` and no double hyphen, so
the way back is unique and `--` stays free as the joint. Streams, durables and subjects are made of these tokens:

    orders                    stream of the channel; subjects orders.p0 ... orders.p7
    orders--inlet             stream of all inlets of the channel; subjects orders--inlet.<group>
    orders--dead              stream of all dead letters of the channel; subjects orders--dead.<group>
    billing                   durable of a group (on each of the three)
    billing--p0 ...           durables of a group with order by key, one for each partition
    orders--members.billing   subject, in no stream, by which the members of a group with order by key know each other
"""

import re
import zlib

from brokerkit.names import check_name

__all__ = [
    "check_token",
    "durable",
    "partition_of",
    "partitions_in",
    "plain",
    "stream",
    "subject",
    "token",
]

_TOKEN = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_TOKEN = 200


def token(name: str, kind: str = "channel") -> str:
    """Return the token of a channel or group; raises `BadName`."""
    return check_name(kind, name).replace(".", "_")


def plain(made: str) -> str:
    """Return the name that a token was made of."""
    return made.replace("_", ".")


def stream(channel: str, place: str | None = None) -> str:
    """Return the stream of a channel, of its inlets or of its dead letters."""
    return token(channel) if place is None else f"{token(channel)}--{place}"


def subject(channel: str, place: str, group: str) -> str:
    """Return the subject of a group's `inlet` or `dead`, or by which its `members` know each other."""
    return f"{token(channel)}--{place}.{token(group, 'group')}"


def partitions_in(channel: str, count: int) -> tuple[str, ...]:
    """Return the subjects of a channel, one for each partition."""
    return tuple(f"{token(channel)}.p{index}" for index in range(count))


def durable(group: str, partition: int | None = None) -> str:
    """Return the durable of a group, or of one of its partitions."""
    made = token(group, "group")
    return made if partition is None else f"{made}--p{partition}"


def partition_of(key: bytes, count: int) -> int:
    """Return the partition of a key: CRC-32 modulo the number of partitions, which any language can do."""
    return zlib.crc32(key) % count


def check_token(name: str) -> bool:
    """Say whether a name that is adopted can be a stream's or a durable's."""
    return bool(_TOKEN.fullmatch(name)) and len(name) <= _LONGEST_TOKEN
