"""
brokerkit: a message-broker consumer toolkit that keeps the same promise on every broker.

    bus = Bus("memory://")

    @bus.subscriber("orders", group="billing", patterns=[dedupe(), retry(attempts=5)])
    async def charge(order: OrderPlaced) -> None: ...
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brokerkit.adapter import Adapter, Capabilities, Subscription
    from brokerkit.bus import Bus
    from brokerkit.context import current
    from brokerkit.delivery import Delivery
    from brokerkit.endpoint import State
    from brokerkit.errors import (
        BrokerkitError,
        ConfigurationError,
        ConnectionLost,
        PublishUnknown,
        SendError,
        Stale,
    )
    from brokerkit.event import Event
    from brokerkit.message import Address, Message
    from brokerkit.pipeline import Handler, Pattern
    from brokerkit.publisher import Outcome, Outgoing
    from brokerkit.router import Router
    from brokerkit.settlement import Ack, DeadLetter, Retry, Settle, Settlement

__all__ = [
    "Ack",
    "Adapter",
    "Address",
    "BrokerkitError",
    "Bus",
    "Capabilities",
    "ConfigurationError",
    "ConnectionLost",
    "DeadLetter",
    "Delivery",
    "Event",
    "Handler",
    "Message",
    "Outcome",
    "Outgoing",
    "Pattern",
    "PublishUnknown",
    "Retry",
    "Router",
    "SendError",
    "Settle",
    "Settlement",
    "Stale",
    "State",
    "Subscription",
    "current",
]

_HOME = {
    "Ack": "brokerkit.settlement",
    "Adapter": "brokerkit.adapter",
    "Address": "brokerkit.message",
    "BrokerkitError": "brokerkit.errors",
    "Bus": "brokerkit.bus",
    "Capabilities": "brokerkit.adapter",
    "ConfigurationError": "brokerkit.errors",
    "ConnectionLost": "brokerkit.errors",
    "DeadLetter": "brokerkit.settlement",
    "Delivery": "brokerkit.delivery",
    "Event": "brokerkit.event",
    "Handler": "brokerkit.pipeline",
    "Message": "brokerkit.message",
    "Outcome": "brokerkit.publisher",
    "Outgoing": "brokerkit.publisher",
    "Pattern": "brokerkit.pipeline",
    "PublishUnknown": "brokerkit.errors",
    "Retry": "brokerkit.settlement",
    "Router": "brokerkit.router",
    "SendError": "brokerkit.errors",
    "Settle": "brokerkit.settlement",
    "Settlement": "brokerkit.settlement",
    "Stale": "brokerkit.errors",
    "State": "brokerkit.endpoint",
    "Subscription": "brokerkit.adapter",
    "current": "brokerkit.context",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, so that the command line's help need not pay for the core."""
    if name not in _HOME:
        message = f"module 'brokerkit' has no attribute {name!r}"
        raise AttributeError(message)
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
