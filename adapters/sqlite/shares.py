"""
Who owns which slots of a place that keeps order by key.

A share is ceil(slots / members). A member below it takes free slots; a member above it stops claiming from the
surplus and releases a slot when nothing of it is out, so a key is never active in two members at once.
"""

from collections import Counter
from dataclasses import dataclass

from brokerkit.adapters.sqlite.log import wake_place
from brokerkit.adapters.sqlite.schema import SLOTS
from brokerkit.adapters.sqlite.transaction import Transaction

__all__ = ["Share", "balance", "is_uneven"]


@dataclass(frozen=True, slots=True)
class Share:
    """The slots to claim from, and those owned that are only to be finished."""

    active: tuple[int, ...]
    surplus: tuple[int, ...] = ()


def balance(tx: Transaction, place: int, member: int) -> Share:
    """Take or release slots so that this member comes nearer to its share, and return what it has."""
    rows = tx.execute("SELECT slot, owner FROM slot WHERE place = ?", (place,)).fetchall()
    owned = [slot for slot, owner in rows if owner == member]
    share = _share(tx, place)
    if len(owned) > share:
        return _release(tx, place, member, owned, len(owned) - share)
    taken = [slot for slot, owner in rows if owner == 0][: share - len(owned)]
    if taken:
        tx.executemany(
            "UPDATE slot SET owner = ? WHERE place = ? AND slot = ?",
            [(member, place, slot) for slot in taken],
        )
    return Share(tuple(sorted(owned + taken)))


def is_uneven(tx: Transaction, place: int, member: int) -> bool:
    """Return whether `balance` would change something, or would as soon as what is out is finished."""
    owners = Counter(owner for (owner,) in tx.execute("SELECT owner FROM slot WHERE place = ?", (place,)))
    share = _share(tx, place)
    return owners[member] > share or (owners[member] < share and owners[0] > 0)


def _share(tx: Transaction, place: int) -> int:
    (members,) = tx.execute("SELECT count(*) FROM member WHERE place = ?", (place,)).fetchone()
    return -(-SLOTS // max(int(members), 1))


def _release(tx: Transaction, place: int, member: int, owned: list[int], excess: int) -> Share:
    # Always the highest, busy or not: idle ones first would leave the newcomer with slots that have no traffic,
    # and the choice has to stand while they are being finished.
    kept, surplus = sorted(owned)[:-excess], sorted(owned)[-excess:]
    # Out of the table, not out of memory: a row that is claimed but not yet known to the event loop counts too.
    out = tx.execute("SELECT DISTINCT slot FROM pending WHERE place = ? AND owner = ?", (place, member))
    busy = {slot for (slot,) in out}
    released = [slot for slot in surplus if slot not in busy]
    if released:
        tx.executemany(
            "UPDATE slot SET owner = 0 WHERE place = ? AND slot = ?", [(place, slot) for slot in released]
        )
        wake_place(tx, place, but=member)
    return Share(tuple(kept), tuple(slot for slot in surplus if slot in busy))
