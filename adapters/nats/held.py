"""
What a member has of the broker's: one arrival, from the wire until it is settled or lost.
"""

from typing import TYPE_CHECKING

from brokerkit.delivery import Delivery

if TYPE_CHECKING:
    from brokerkit.adapters.nats.source import Source

__all__ = ["Held", "Identity"]

Identity = tuple[int, int]
"""Sequence and time of storing: together they name a message also when a stream was deleted and made again."""


class Held:
    """
    One arrival.

    source: the consumer it came from. seq: the stream's number. key: both of them. reply: where its settlement goes.
    until: by our clock, when the server gives it to somebody else unless it was renewed. part: the partition of its key, with
    order by key. out: it has been handed out. returned: it is being given back, so the next arrival is a new one.
    """

    __slots__ = (
        "deliveries",
        "delivery",
        "identity",
        "key",
        "out",
        "part",
        "reply",
        "returned",
        "seq",
        "source",
        "until",
    )

    def __init__(
        self,
        source: "Source",
        reply: str,
        identity: Identity,
        deliveries: int,
        until: float,
        delivery: Delivery,
    ) -> None:
        self.source = source
        self.reply = reply
        self.identity = identity
        self.seq = identity[0]
        self.key = (source, self.seq)
        self.deliveries = deliveries
        self.until = until
        self.delivery = delivery
        self.part: int | None = None
        self.out = False
        self.returned = False
