"""
What an engine remembers of messages that wait for their retry, where the broker keeps no marks.

With `order="key"` nothing is copied, so the count of failed handlings has no place to travel in. A reconnect hands the
message out again as if it were new; this memory goes on counting. It ends with the process: then a message gets more tries
than configured, never fewer. Two messages of one event that wait at the same time share one count, for they are one event.
"""

from collections import OrderedDict

from brokerkit.adapter import Marks
from brokerkit.delivery import Delivery

__all__ = ["Recall"]

_MOST = 10_000


class Recall:
    """Marks by event and run, for subscriptions that keep none; bounded, the oldest goes first."""

    def __init__(self) -> None:
        self._marks: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()

    def keep(self, delivery: Delivery) -> None:
        """Remember the mark of a delivery until it ends."""
        if isinstance(delivery.subscription, Marks) or delivery.mark is None:
            return
        name = _name_of(delivery)
        self._marks[name] = delivery.mark
        self._marks.move_to_end(name)
        if len(self._marks) > _MOST:
            self._marks.popitem(last=False)

    def remind(self, delivery: Delivery) -> bool:
        """Give a delivery the mark that an earlier arrival of its event left; True if there was one."""
        if not self._marks or delivery.mark is not None:
            return False
        delivery.mark = self._marks.get(_name_of(delivery))
        return delivery.mark is not None

    def forget(self, delivery: Delivery) -> None:
        """Forget the event of a delivery that ends."""
        if self._marks:
            self._marks.pop(_name_of(delivery), None)


def _name_of(delivery: Delivery) -> tuple[str, str, int]:
    return (*delivery.event.identity, delivery.run)
