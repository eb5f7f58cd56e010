"""
What the engine tells whoever wants to know: frozen records, one call.

A hook runs inside the loop and must not block. What it raises is logged and changes nothing.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brokerkit.delivery import Delivery
from brokerkit.settlement import Settlement

__all__ = ["Alarm", "Hook", "HookEvent", "Settled", "Started", "tell"]

_log = logging.getLogger("brokerkit")


@dataclass(frozen=True, slots=True)
class Started:
    """A handler is about to see a delivery."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Settled:
    """
    A delivery has ended, and the broker has confirmed it.

    outcome: `ack`, `retry`, `return`, `dead`, `held` (waits in its lane), `stale` (was no longer ours) or
    `abandoned` (still running when the grace was over).
    """

    delivery: Delivery
    settlement: Settlement | None
    outcome: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a person should know. `code` is a stable word, `text` says what to do."""

    code: str
    text: str
    delivery: Delivery | None = None


HookEvent = Started | Settled | Alarm
Hook = Callable[[HookEvent], None]


def tell(hooks: Sequence[Hook], event: HookEvent) -> None:
    """Call each hook; one that raises is logged and the others still hear it."""
    for hook in hooks:
        try:
            hook(event)
        except Exception:  # noqa: BLE001 - a hook changes nothing
            _log.exception("a hook raised on %s", type(event).__name__)
