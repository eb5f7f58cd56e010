"""
What a claim is made of: the messages taken so far, and how much more may be taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from brokerkit.adapters.sqlite.places import Place
from brokerkit.adapters.sqlite.statements import change
from brokerkit.adapters.sqlite.transaction import Transaction

__all__ = ["FROM_LOG", "FROM_PENDING", "Claim", "Claimed", "Taker"]

FROM_PENDING = (
    "SELECT p.seq, p.slot, p.copy, p.arrivals + 1, p.returns, p.mark, m.key, m.head, m.body"
    " FROM pending p {hint} JOIN message m ON m.seq = p.seq"
)
FROM_LOG = "SELECT m.seq, m.slot, 0, 1, 0, NULL, m.key, m.head, m.body FROM message m INDEXED BY message_log"

_BYTES = 16 * 1024 * 1024
"""Bytes of bodies after which a claim takes no further message."""


class Claimed(NamedTuple):
    """One message handed out; `arrivals` counts this time."""

    seq: int
    slot: int
    copy: bool
    arrivals: int
    returns: int
    mark: bytes | None
    key: bytes | None
    head: str | None
    body: bytes


@dataclass(slots=True)
class Claim:
    """
    The outcome of a claim.

    gone: the member does not exist any more, nothing was claimed. again: nothing was found so far, but the end
    was not reached. due: wall time at which the next returned or delayed one may be handed out. surplus:
    whether slots wait to be released.
    """

    rows: list[Claimed] = field(default_factory=list[Claimed])
    gone: bool = False
    again: bool = False
    due: float | None = None
    surplus: bool = False


class Taker:
    """Takes messages for one member until it has its limit."""

    def __init__(self, tx: Transaction, place: Place, member: int, limit: int) -> None:
        self.tx = tx
        self.place = place
        self.member = member
        self.rows: list[Claimed] = []
        self._limit = limit
        self._bytes = 0

    @property
    def room(self) -> int:
        """How many more may be taken."""
        return 0 if self._bytes >= _BYTES else self._limit - len(self.rows)

    def add(self, row: Claimed) -> None:
        """Note a message as taken; the caller has written, or writes next, who owns it."""
        self.rows.append(row)
        self._bytes += len(row.body)

    def own(self, seqs: Sequence[int]) -> None:
        """Make this member the owner of pending rows."""
        change(
            self.tx,
            "UPDATE pending SET owner = ?, arrivals = arrivals + 1 WHERE place = ? AND seq IN",
            (self.member, self.place.id),
            seqs,
        )
