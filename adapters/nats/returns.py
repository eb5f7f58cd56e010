"""
Which returns were polite, as far as this process knows.
"""

from collections import OrderedDict

from brokerkit.adapters.nats.held import Identity

__all__ = ["Returns"]

_MOST = 50_000


class Returns:
    """
    How often each message was given back from here on purpose.

    The server counts deliveries and nothing else, and a return cannot carry a note; so what another process returned is not
    known here. The oldest are forgotten when there are too many.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._counts: OrderedDict[tuple[str, str, Identity], int] = OrderedDict()

    def add(self, stream: str, consumer: str, identity: Identity) -> None:
        """Note one more."""
        key = (stream, consumer, identity)
        self._counts[key] = self._counts.pop(key, 0) + 1
        if len(self._counts) > self._most:
            self._counts.popitem(last=False)

    def take_back(self, stream: str, consumer: str, identity: Identity) -> None:
        """Take back what was noted last: nothing was returned."""
        key = (stream, consumer, identity)
        if self._counts.get(key, 0) > 1:
            self._counts[key] -= 1
        else:
            self._counts.pop(key, None)

    def count(self, stream: str, consumer: str, identity: Identity) -> int:
        """Return how many are known."""
        return self._counts.get((stream, consumer, identity), 0)

    def forget(self, stream: str, consumer: str, identity: Identity) -> None:
        """Drop what is settled for good."""
        if self._counts:
            self._counts.pop((stream, consumer, identity), None)
