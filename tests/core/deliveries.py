"""Deliveries made by hand, as the engine hands them to what is tested here."""

from typing import Any

from hypothesis import HealthCheck, settings

from brokerkit.copies import read_delivery
from brokerkit.delivery import Delivery
from brokerkit.envelope import STRUCTURED, lay
from brokerkit.event import Event
from brokerkit.message import Address, Header, Message

NOW = 1_767_225_600.125
CHANNEL = Address("orders")
INLET = Address("orders", "billing", "inlet")
DEAD = Address("orders", "billing", "dead")


def ordered(
    data: bytes = b'{"n":1}', *, identity: str = "e-1", source: str = "shop", **more: Any
) -> Event[bytes]:
    """Return an event as brokerkit's own publisher makes it, without a time."""
    return Event(
        id=identity,
        source=source,
        type=more.pop("type", "order.placed"),
        data=data,
        datacontenttype=more.pop("datacontenttype", "application/json"),
        **more,
    )


def message_of(event: Event[bytes], *, key: bytes | None = None, headers: tuple[Header, ...] = ()) -> Message:
    """Return the structured message of an event."""
    return lay(event, "structured", key=key, headers=headers)


def arrival(
    message: Message | None = None,
    at: Address = CHANNEL,
    *,
    channel: str = "orders",
    group: str = "billing",
    now: float = NOW,
    read: bool = True,
    **how: Any,
) -> Delivery:
    """Return a delivery as the engine admits it."""
    delivery = Delivery(message or message_of(ordered()), at, **how)
    delivery.channel, delivery.group, delivery.order = channel, group, "none"
    if read:
        read_delivery(delivery, now)
    return delivery


def copy_with(*headers: Header, body: bytes = b"", content_type: str | None = None) -> Message:
    """Return a message with these headers and an event of its own."""
    plain = message_of(ordered())
    return Message(body=body or plain.body, content_type=content_type or STRUCTURED, headers=headers)


def examples(count: int) -> settings:
    """
    Return how long to look for a counter-example.

    Without a deadline, for the machine may be busy; and test classes hold nothing, so it is no harm that mutmut runs
    them more than once in a process.
    """
    return settings(
        max_examples=count, deadline=None, suppress_health_check=[HealthCheck.differing_executors]
    )


def case(_: object) -> str:
    """Name a case by its number: its value may hold what no test id can."""
    return "case"
