"""
What channels, groups and places are called at the broker. Pure, and no two of ours ever share a name.
"""

import re
from collections.abc import Mapping

from brokerkit.errors import BadName, ConfigurationError
from brokerkit.message import Address

__all__ = ["RUNGS", "Names", "partition_name"]

RUNGS = (1, 5, 30, 120, 600, 3600, 21_600)
"""Seconds of the retry topics, whatever the policy; shorter waits are held in memory, others hop."""

_JOINT = "--"
_LONGEST = 249
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


def partition_name(topic: str, partition: int) -> str:
    """Return a partition as one word, as positions and logs show it."""
    return f"{topic}-{partition}"


class Names:
    """
    The broker's names of one deployment.

    native: adopted names, by `channel` (a topic) and `channel/group` (a consumer group). An adopted thing is never created
    or altered; retry topics and dead places beside it are called after our names.

    Channel and group names never hold the joint `--` (see `brokerkit.names`), so a derived name can be read in one way
    only. Raises `BadName` above the broker's 249 characters, and for an adopted name that is no topic's.
    """

    def __init__(self, native: Mapping[str, str] | None = None) -> None:
        self._native = dict(native or {})
        for ours, theirs in self._native.items():
            if "/" not in ours and (not _TOPIC.fullmatch(theirs) or theirs in {".", ".."}):
                message = f"native {ours!r}: {theirs!r} is no topic name: letters, digits, '.', '_', '-', at most 249"
                raise BadName(message)
            if not theirs:
                message = f"native {ours!r}: the name is empty"
                raise ConfigurationError(message)
        topics = [theirs for ours, theirs in self._native.items() if "/" not in ours]
        if len(set(topics)) != len(topics):
            message = "native: two channels cannot be one topic"
            raise ConfigurationError(message)

    def adopted(self, at: Address) -> bool:
        """Say whether the topic of a channel is somebody else's."""
        return at.channel in self._native

    def channel(self, channel: str) -> str:
        """Return the topic of a channel."""
        return self._native.get(channel) or _checked(channel)

    def inlet(self, at: Address) -> str:
        """Return the topic of what is sent to one group only, without a delay of a second or more."""
        return _checked(_JOINT.join((at.channel, at.group or "", "inlet")))

    def rung(self, at: Address, seconds: int) -> str:
        """Return the topic of a retry rung."""
        return _checked(_JOINT.join((at.channel, at.group or "", "retry", str(seconds))))

    def dead(self, at: Address) -> str:
        """Return the topic of a group's dead letters."""
        return _checked(_JOINT.join((at.channel, at.group or "", "dead")))

    def group(self, at: Address) -> str:
        """Return the consumer group of a group, or of its dead place."""
        if at.place == "dead":
            return _JOINT.join((at.channel, at.group or "", "dead"))
        adopted = self._native.get(f"{at.channel}/{at.group}")
        return adopted or _JOINT.join((at.channel, at.group or ""))

    def read_group(self, group_id: str) -> tuple[str, str] | None:
        """Return the (channel, group) that a consumer group stands for, or None if it is none of ours."""
        for ours, theirs in self._native.items():
            if theirs == group_id and "/" in ours:
                channel, _, group = ours.partition("/")
                return channel, group
        parts = group_id.split(_JOINT)
        return (parts[0], parts[1]) if len(parts) == len(("channel", "group")) and all(parts) else None


def _checked(name: str) -> str:
    if len(name) > _LONGEST:
        message = (
            f"the topic {name[:40]}... has {len(name)} characters; at most {_LONGEST}: shorten prefix or name"
        )
        raise BadName(message)
    return name
