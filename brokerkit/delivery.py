"""
One arrival of a message at a group, as the engine, the patterns and a handler see it.
"""

import uuid
from typing import TYPE_CHECKING, Any

from brokerkit.envelope import open_event
from brokerkit.event import Event
from brokerkit.message import Address, Message

if TYPE_CHECKING:
    from brokerkit.adapter import Order, Subscription
    from brokerkit.pipeline import Control

__all__ = ["Delivery"]


class Delivery:
    """
    One arrival of a message at a group.

    The adapter fills the first eight fields; the core adds what it reads out of them before a handler
    sees it. Identity is the object: two arrivals of one message are two deliveries.

    message: what travelled, as the sender gave it.
    address: where it came in. A channel, or the group's own `inlet` or `dead`. **The proof of where
        our own headers may be believed**: position, not content.
    receipt: the adapter's own; nobody else looks inside.
    arrivals: how often the broker has handed out this copy, this time included, or None where it does not
        count. Raised by restarts and drops as well: a hint, never a verdict.
    returns: how many of those earlier arrivals ended in a return that the adapter knows to be polite.
    position: (partition, offset), where the stored message stands: the same at every arrival of this copy, and never that of
        another message of this address, because ids of strangers' messages are made of it. None rather than one that may
        repeat. On a log (`Capabilities.log`) it also orders the settlements.
    mark: bytes that an earlier owner left beside this delivery (`Marks`), or None.
    native: the client library's own object, or None.
    channel, group: names without a deployment's prefix.
    order: the order mode of the subscription.
    attempt: 1 + the handlings that failed and were settled so.
    run: how often the event was redriven from the dead letters.
    hop: how many copies of ours stand between the first publish and this one.
    first: wall time in seconds of the first arrival at this group, in this run.
    due: wall time in seconds before which an earlier owner wanted it not handled again, or 0.
    alone: crash marks that stand against it.
    story: the attempt history so far; `brokerkit.story` reads and writes it.
    event: the CloudEvents meaning, read on first use; `event.error` says why, if it could not be read.
    handling: whether a handler is at work on it right now, so that what it publishes can wait for its success.
    stopped: why the engine or a pattern has cancelled this handling, or None. An endpoint tells
        a cancellation of ours from a handler's own by it.
    """

    __slots__ = (
        "_event",
        "_origin",
        "address",
        "alone",
        "arrivals",
        "attempt",
        "channel",
        "control",
        "due",
        "extra",
        "first",
        "group",
        "handling",
        "hop",
        "mark",
        "message",
        "native",
        "order",
        "position",
        "receipt",
        "returns",
        "run",
        "stopped",
        "story",
        "subscription",
    )

    channel: str
    group: str
    order: "Order"
    attempt: int
    run: int
    hop: int
    first: float
    due: float
    alone: int
    story: "list[dict[str, Any]]"
    control: "Control"
    subscription: "Subscription"

    def __init__(
        self,
        message: Message,
        address: Address,
        receipt: object = None,
        *,
        arrivals: int | None = None,
        returns: int = 0,
        position: tuple[str, int] | None = None,
        mark: bytes | None = None,
        native: object = None,
    ) -> None:
        self.message = message
        self.address = address
        self.receipt = receipt
        self.arrivals = arrivals
        self.returns = returns
        self.position = position
        self.mark = mark
        self.native = native
        self.stopped: str | None = None
        self.handling = False
        self.extra: dict[str, Any] | None = None
        self._event: Event[bytes] | None = None
        self._origin: str | None = None

    @property
    def event(self) -> Event[bytes]:
        """Read the envelope, once; never raises."""
        event = self._event
        if event is None:
            event = self._event = open_event(self.message, self._identity)
        return event

    @event.setter
    def event(self, event: Event[bytes]) -> None:
        self._event = event

    def believe(self, origin: str | None) -> None:
        """Keep the id that an earlier copy of a message without an id was given."""
        self._origin = origin

    def _identity(self) -> tuple[str, str]:
        """Return the (source, id) of a message that brings none: where it stands at the broker, or first stood."""
        if self._origin is not None:
            identity = self._origin
        elif self.position is not None:
            identity = f"{self.address}#{self.position[0]}/{self.position[1]}"
        else:
            # never one id for all of them: copies and answers of two messages would be taken for one and thrown away
            identity = f"{self.address}#{uuid.uuid4()}#unknown"
        return f"/{self.channel}", identity

    @property
    def suspect(self) -> bool:
        """
        Whether this copy may be one that kills its process.

        True when it arrived at least twice more than its first arrival and its polite returns explain.
        """
        return self.arrivals is not None and self.arrivals - 1 - self.returns >= _SUSPICION

    @property
    def unusual(self) -> bool:
        """Whether anything speaks against simply handling it: it is cheap to ask, and mostly the answer is no."""
        return (
            self.stopped is not None
            or self.mark is not None
            or self.extra is not None
            or self.alone > 0
            or (self.arrivals is not None and self.arrivals > _SUSPICION)
        )

    def __repr__(self) -> str:
        attempt = getattr(self, "attempt", "?")
        return (
            f"<Delivery {self.address} attempt={attempt} arrivals={self.arrivals} position={self.position}>"
        )


_SUSPICION = 2
