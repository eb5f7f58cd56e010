"""Deliveries made by hand, for patterns around plain endpoints."""

from dataclasses import replace

from brokerkit.adapter import Capabilities, Order
from brokerkit.delivery import Delivery
from brokerkit.event import Event
from brokerkit.message import Address, Message
from brokerkit.pipeline import Place

CAPABILITIES = Capabilities(
    order_key=True,
    durable=True,
    processes=True,
    counts_arrivals=True,
    marks=True,
    log=False,
    lease=None,
    max_delay=12 * 3600.0,
    max_message=1 << 20,
)


class Intake:
    """A subscription's intake that keeps a record of what is asked of it."""

    def __init__(self) -> None:
        self.reasons: set[str] = set()
        self.log: list[tuple[str, str]] = []

    def hold(self, reason: str) -> None:
        self.reasons.add(reason)
        self.log.append(("hold", reason))

    def release(self, reason: str) -> None:
        self.reasons.discard(reason)
        self.log.append(("release", reason))


def delivery_of(
    event_id: str = "e-1",
    *,
    source: str = "/shop",
    channel: str = "orders",
    group: str = "billing",
    order: Order = "none",
    attempt: int = 1,
    first: float = 0.0,
    derived: bool = False,
    body: bytes = b"{}",
) -> Delivery:
    delivery = Delivery(Message(body=body), Address(channel))
    delivery.channel, delivery.group, delivery.order = channel, group, order
    delivery.attempt, delivery.run, delivery.hop, delivery.alone = attempt, 0, 0, 0
    delivery.first = first
    delivery.story = []
    delivery.event = Event(id=event_id, source=source, type="order.placed", data=body, derived=derived)
    delivery.control = Intake()
    return delivery


def place_of(
    *, order: Order = "none", max_hold: float = 300.0, blocking: bool = False, max_delay: float = 12 * 3600.0
) -> Place:
    return Place(
        channel="orders",
        group="billing",
        handler="shop.charge",
        order=order,
        max_hold=max_hold,
        concurrency=16,
        blocking=blocking,
        capabilities=replace(CAPABILITIES, max_delay=max_delay),
    )
