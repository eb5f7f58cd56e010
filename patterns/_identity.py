"""
What tells one event of one group from every other, for the patterns that remember events.
"""

import hashlib
import logging

from brokerkit.delivery import Delivery

__all__ = ["Scope", "digest", "scope_of"]

Scope = tuple[str, str, str, str]
"""Channel, group, source and id of an event."""

_log = logging.getLogger("brokerkit")


def scope_of(delivery: Delivery) -> Scope | None:
    """
    Return the identity of a delivery's event in its group, or None if it has none that could be told from another's.

    The run is no part of it: what finished stays finished, and what became a dead letter was never remembered.
    """
    event = delivery.event
    if event.derived and event.id.endswith("#unknown"):
        _log.warning(
            "a plain message at %s has neither id nor coordinates: it cannot be recognised again",
            delivery.address,
        )
        return None
    return (delivery.channel, delivery.group, event.source, event.id)


def digest(scope: Scope) -> str:
    """
    Return a scope as 64 hexadecimal digits, for a column.

    Short, of one length, and safe from what databases do to text: collations that ignore case or trailing space (two
    ids would become one, and a message would be lost), limits of an index, NUL and lone surrogates.
    """
    told = hashlib.blake2b(digest_size=32)
    for part in scope:
        raw = part.encode("utf-8", "surrogatepass")
        told.update(len(raw).to_bytes(8, "big"))
        told.update(raw)
    return told.hexdigest()
