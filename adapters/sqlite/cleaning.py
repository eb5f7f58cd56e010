"""
Deleting what all groups are done with, or what is too old, in small steps.
"""

from brokerkit.adapters.sqlite.schema import SLOTS
from brokerkit.adapters.sqlite.transaction import Transaction

__all__ = ["channels", "delete_done", "delete_expired"]

_NEAR = 20_000
"""Sequence numbers that are looked through for slots without messages."""

_STEP = 1_000
"""Rows that one step looks at: about 15 ms at the worst."""


def channels(tx: Transaction) -> list[int]:
    """Return the numbers of all channels."""
    return [number for (number,) in tx.execute("SELECT id FROM channel")]


def delete_done(tx: Transaction, channel: int, start: int) -> int | None:
    """
    Delete what lies behind the cursors of all groups of a channel and is not pending; return where to go on.

    One stuck message does not hold the log: it stays alone. None when the cursors are reached.
    """
    floor = _floor(tx, channel)
    rows = tx.execute(
        "SELECT m.seq FROM message m INDEXED BY message_log WHERE m.channel = ? AND m.place = 0 AND m.seq >= ?"
        " AND m.seq < ? ORDER BY m.seq LIMIT ?",
        (channel, start, floor, _STEP),
    ).fetchall()
    if not rows:
        return None
    last = rows[-1][0]
    tx.execute(
        "DELETE FROM message WHERE seq IN (SELECT m.seq FROM message m INDEXED BY message_log WHERE m.channel = ?1"
        " AND m.place = 0 AND m.seq BETWEEN ?2 AND ?3 AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.seq = m.seq"
        " AND p.place IN (SELECT id FROM place WHERE channel = ?1 AND kind = 'inlet')))",
        (channel, start, last),
    )
    return int(last) + 1 if len(rows) == _STEP else None


def delete_expired(
    tx: Transaction, channel: int, before: float, dead_before: float
) -> tuple[int, dict[str, int]]:
    """
    Delete up to a step of messages that were stored before these wall times, except what somebody has in hand.

    Returns how many were deleted, and how many of them each group was not done with.
    """
    losses: dict[str, int] = {}
    places = tx.execute("SELECT id, grp, kind, mode FROM place WHERE channel = ?", (channel,)).fetchall()
    old = _oldest(
        tx,
        "SELECT seq, at FROM message INDEXED BY message_log WHERE channel = ? AND place = 0",
        channel,
        before,
    )
    for place, group, kind, mode in places:
        copies = _oldest(
            tx,
            "SELECT p.seq, m.at FROM pending p JOIN message m ON m.seq = p.seq WHERE p.place = ? AND p.copy = 1",
            place,
            before if kind == "inlet" else dead_before,
        )
        lost = _drop(tx, place, copies)
        if kind == "inlet":
            lost += _drop(tx, place, old) + _unread(tx, place, mode, old)
        if lost:
            losses[f"{group}/{kind}"] = lost
    deleted = sum(
        tx.execute(
            "DELETE FROM message WHERE seq = ? AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.seq = message.seq"
            " AND p.place IN (SELECT id FROM place WHERE channel = message.channel))",
            (seq,),
        ).rowcount
        for seq in old
    )
    return deleted + sum(losses.values()), losses


def _floor(tx: Transaction, channel: int) -> int:
    """Return the lowest cursor of a channel's groups; 0 if there is none."""
    _move_idle(tx, channel)
    (floor,) = tx.execute(
        "SELECT min(CASE p.mode WHEN 'key' THEN (SELECT min(s.next) FROM slot s WHERE s.place = p.id) ELSE p.next END)"
        " FROM place p WHERE p.channel = ? AND p.kind = 'inlet'",
        (channel,),
    ).fetchone()
    return int(floor or 0)


def _move_idle(tx: Transaction, channel: int) -> None:
    """
    Move the cursors of slots for which there is nothing up to the end: they would hold the log for ever.

    Claims do so too, but not for the last thousand. A long backlog is not looked through for it.
    """
    (last,) = tx.execute("SELECT last FROM counter").fetchone()
    places = tx.execute(
        "SELECT id FROM place WHERE channel = ? AND kind = 'inlet' AND mode = 'key'", (channel,)
    ).fetchall()
    for (place,) in places:
        (start,) = tx.execute("SELECT min(next) FROM slot WHERE place = ?", (place,)).fetchone()
        if last - start > _NEAR:
            continue
        waiting = tx.execute(
            "SELECT DISTINCT s.slot FROM message m INDEXED BY message_log CROSS JOIN slot s ON s.place = ?"
            " AND s.slot = m.slot AND s.next <= m.seq WHERE m.channel = ? AND m.place = 0 AND m.seq >= ?",
            (place, channel, start),
        ).fetchall()
        idle = set(range(SLOTS)) - {slot for (slot,) in waiting}
        tx.executemany(
            "UPDATE slot SET next = ? WHERE place = ? AND slot = ? AND next < ?",
            [(last + 1, place, slot, last + 1) for slot in idle],
        )


def _oldest(tx: Transaction, select: str, number: int, before: float) -> list[int]:
    rows = tx.execute(f"{select} ORDER BY 1 LIMIT {_STEP}", (number,)).fetchall()
    return [seq for seq, at in rows if at < before]


def _drop(tx: Transaction, place: int, seqs: list[int]) -> int:
    if not seqs:
        return 0
    dropped = 0
    for seq in seqs:
        dropped += tx.execute(
            "DELETE FROM pending WHERE place = ? AND seq = ? AND owner = 0", (place, seq)
        ).rowcount
        tx.execute(
            "DELETE FROM message WHERE seq = ? AND place = ? AND NOT EXISTS"
            " (SELECT 1 FROM pending p WHERE p.place = message.place AND p.seq = message.seq)",
            (seq, place),
        )
    return dropped


def _unread(tx: Transaction, place: int, mode: str, seqs: list[int]) -> int:
    if not seqs:
        return 0
    if mode == "key":
        count = "SELECT 1 FROM slot s JOIN message m ON m.slot = s.slot WHERE s.place = ? AND m.seq = ? AND s.next <= m.seq"
    else:
        count = "SELECT 1 FROM place WHERE id = ? AND next <= ?"
    return sum(tx.execute(count, (place, seq)).fetchone() is not None for seq in seqs)
