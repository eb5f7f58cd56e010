"""
Taking over: what the last owners of some partitions have left behind.
"""

from collections.abc import Mapping, Sequence

from brokerkit.adapters.kafka.client import Consumer, Place
from brokerkit.adapters.kafka.notes import Note, decode
from brokerkit.adapters.kafka.partition import Partition

__all__ = ["adopt"]


async def adopt(consumer: Consumer, parts: Sequence[Partition], *, slack: int) -> None:
    """
    Read the notes beside the commits of these partitions, and let reading begin at the commits. Raises `Transient`.

    slack: how many a crashed owner may have handed out beyond its note.
    """
    if not parts:
        return
    committed = await consumer.committed([part.tp for part in parts])
    notes: dict[Partition, tuple[int, Note | None]] = {}
    for part in parts:
        offset, text = committed[part.tp]
        if offset < 0:
            offset = await consumer.position(part.tp)
        notes[part] = offset, decode(text, offset)
    telling = [part.tp for part, (offset, note) in notes.items() if note is not None and note.tells(offset)]
    ends: Mapping[Place, int] = await consumer.ends(telling) if telling else {}
    for part, (offset, note) in notes.items():
        part.adopt(offset, note, end=ends.get(part.tp, offset), slack=slack)
        consumer.seek(part.tp, offset)
