"""
brokerkit: a message-broker consumer toolkit that keeps the same promise on every broker.

    bus = Bus("memory://")

    @bus.subscriber("orders", group="billing", patterns=[dedupe(), retry(attempts=5)])
    async def charge(order: OrderPlaced) -> None: ...
"""

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
