"""
Names of channels and groups: one rule for every broker, checked before anything connects.
"""

import re

from brokerkit.errors import BadName

__all__ = ["RESERVED", "check_name", "with_prefix"]

_SHAPE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)*")
_LONGEST = 80
RESERVED = frozenset({"retry", "dead", "inlet", "return"})


def check_name(kind: str, name: object) -> str:
    """
    Return `name` if it is a legal channel or group name, else raise `BadName` that says why.

    Legal is lower-case ASCII words joined by single hyphens and dots (`orders`, `shop.orders-eu`), at
    most 80 characters, with no word out of `retry`, `dead`, `inlet`, `return`: what is legal on one
    broker is then legal on all, and the double hyphen stays free as the joint of derived names.
    """
    if not isinstance(name, str):
        message = f"{kind} name must be text, not {type(name).__name__}"
        raise BadName(message)
    if len(name) > _LONGEST:
        message = f"{kind} name {name[:20]!r}... has {len(name)} characters; at most {_LONGEST}"
        raise BadName(message)
    if not _SHAPE.fullmatch(name):
        message = (
            f"{kind} name {name!r}: use lower-case letters and digits, words joined by single '-' or '.', "
            "for example 'orders' or 'shop.orders-eu'"
        )
        raise BadName(message)
    if words := RESERVED.intersection(re.split(r"[-.]", name)):
        message = f"{kind} name {name!r}: the word {min(words)!r} is reserved for places of brokerkit's own"
        raise BadName(message)
    return name


def with_prefix(prefix: str, channel: str) -> str:
    """Put a deployment's prefix before a channel name."""
    return f"{prefix}.{channel}" if prefix else channel
