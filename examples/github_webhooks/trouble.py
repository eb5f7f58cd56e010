"""
What goes wrong on purpose: which events a service cannot handle, and which it can only handle later.

A pure function of the event's id, so that every process agrees, run after run, and the producer's rows can say
beforehand which dead letters are to be expected.
"""

import hashlib
from typing import Final

from brokerkit.examples.github_webhooks.settings import SEED

__all__ = ["crashes_audit", "is_early", "is_poison", "poisoned_groups", "refusals", "stalls"]

_POISON: Final = {"audit": 0.009, "projection": 0.002, "notifier": 0.009}
"""For each group the share of the events that its first release cannot handle."""

_EARLY: Final = 0.07
_REFUSED_ONCE: Final = 0.07
_REFUSED_TWICE: Final = 0.01
_STALLED: Final = 0.003
_CRASH_TYPE: Final = "github.repository_import"
_CRASH_REPEAT: Final = "-2"


def is_poison(group: str, event_id: str) -> bool:
    """Whether a group's first release fails on this event, every time."""
    return _draw(f"poison {group}", event_id) < _POISON[group]


def crashes_audit(event_type: str, event_id: str) -> bool:
    """Whether this event ends the process of the audit's first release: one does, the second of a rare type."""
    return event_type == _CRASH_TYPE and event_id.endswith(_CRASH_REPEAT)


def poisoned_groups(event_type: str, event_id: str) -> list[str]:
    """Return the groups whose first release makes a dead letter of this event."""
    groups = [group for group in _POISON if is_poison(group, event_id)]
    if crashes_audit(event_type, event_id) and "audit" not in groups:
        groups.append("audit")
    return groups


def is_early(event_id: str) -> bool:
    """Whether GitHub's API does not know yet, at the first look, what this event tells of."""
    return _draw("early", event_id) < _EARLY


def refusals(event_id: str) -> int:
    """Return how many calls about this event the chat service refuses before it takes one."""
    drawn = _draw("refused", event_id)
    return 2 if drawn < _REFUSED_TWICE else 1 if drawn < _REFUSED_TWICE + _REFUSED_ONCE else 0


def stalls(event_id: str) -> bool:
    """Whether the chat service leaves the first call about this event without an answer."""
    return _draw("stalled", event_id) < _STALLED


def _draw(purpose: str, event_id: str) -> float:
    """Return a number in [0, 1) that looks like chance."""
    digest = hashlib.sha256(f"{SEED} {purpose} {event_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)
