"""
Lanes: one message of a key at a time, keys side by side.

Pure bookkeeping, without time and without tasks, so that it can be tested by machine. A lane exists while one message
of its key is active (ready, running, or waiting for its retry); the others of that key wait in it, in order.
Messages without a key have no lane.
"""

from collections import deque
from collections.abc import Iterable

from brokerkit.delivery import Delivery

__all__ = ["Lanes"]


class Lanes:
    """
    The lanes of one group in one process.

    They outlive a subscription: after a reconnect a redelivery of a key waits for the handler that still runs.
    waiting: how many deliveries wait behind an active one.
    """

    def __init__(self) -> None:
        self._lanes: dict[bytes, deque[Delivery] | None] = {}
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._lanes)

    def enter(self, delivery: Delivery) -> bool:
        """Put a delivery into its lane; True if it is at the head and may start."""
        key = delivery.message.key
        if key is None:
            return True
        lanes = self._lanes
        if key not in lanes:
            lanes[key] = None
            return True
        behind = lanes[key]
        if behind is None:
            behind = lanes[key] = deque()
        behind.append(delivery)
        self.waiting += 1
        return False

    def leave(self, delivery: Delivery) -> Delivery | None:
        """Take the active delivery out of its lane and return the next one, which is active from now on."""
        key = delivery.message.key
        if key is None:
            return None
        behind = self._lanes[key]
        if not behind:
            del self._lanes[key]
            return None
        self.waiting -= 1
        return behind.popleft()

    def drop(self, lost: Iterable[Delivery]) -> list[Delivery]:
        """Forget deliveries that wait behind others and return those that were found; active ones are left alone."""
        gone = set(map(id, lost))
        dropped: list[Delivery] = []
        for key, behind in self._lanes.items():
            if behind and any(id(delivery) in gone for delivery in behind):
                dropped += [delivery for delivery in behind if id(delivery) in gone]
                self._lanes[key] = deque(delivery for delivery in behind if id(delivery) not in gone)
        self.waiting -= len(dropped)
        return dropped

    def all_waiting(self) -> list[Delivery]:
        """Return every delivery that waits behind another one."""
        return [delivery for behind in self._lanes.values() for delivery in behind or ()]

    def drop_all(self) -> list[Delivery]:
        """Forget every delivery that waits behind another one and return them."""
        return self.drop(self.all_waiting())
