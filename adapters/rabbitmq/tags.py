"""
Which deliveries of one channel are finished, and which acks say so to the broker.
"""

from collections.abc import Sequence

__all__ = ["Tags"]


class Tags:
    """
    The delivery tags of one channel: 1, 2, 3 and so on, finished in any order.

    One ack with `multiple` stands for the prefix in which nothing is unfinished any more, and its tag is one that the broker
    still waits for: with any other the broker takes everything for acked and then closes the channel. What is finished
    behind a gap is acked one by one.
    """

    def __init__(self) -> None:
        self._floor = 0
        self._finished: set[int] = set()

    def finish(self, tags: Sequence[int]) -> Sequence[tuple[int, bool]]:
        """Return the acks to write, each a tag and whether it is `multiple`, for tags that were not finished before."""
        finished, floor = self._finished, self._floor
        finished.update(tags)
        while floor + 1 in finished:
            floor += 1
            finished.discard(floor)
        self._floor = floor
        prefix = [tag for tag in tags if tag <= floor]
        acks = [(max(prefix), True)] if prefix else []
        return [*acks, *((tag, False) for tag in sorted(tags) if tag > floor)]
