"""
One message as the broker keeps it.
"""

from brokerkit.message import Message

__all__ = ["Stored"]


class Stored:
    """
    A message, kept until nobody needs it.

    seq: its place among all messages of the broker; `position` is the same as a coordinate. at: when it came, by
    the loop's clock. home: where it is kept and is removed from when `pending`, the number of groups that are not
    done with it, falls to 0. gone: kept too long; the queues drop it.
    """

    __slots__ = ("at", "gone", "home", "message", "pending", "position", "seq")

    def __init__(
        self, seq: int, message: Message, at: float, home: "dict[int, Stored]", pending: int
    ) -> None:
        self.seq = seq
        self.position = ("0", seq)
        self.message = message
        self.at = at
        self.home = home
        self.pending = pending
        self.gone = False
