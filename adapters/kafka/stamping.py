"""
From records to deliveries: each belongs to the partition that is current when it is read.
"""

import logging
from collections.abc import Sequence

from brokerkit.adapters.kafka.partition import Partition
from brokerkit.adapters.kafka.shelf import Shelf
from brokerkit.adapters.kafka.wire import Record, read, read_waiting
from brokerkit.delivery import Delivery

__all__ = ["stamp", "stamp_one_by_one"]

_log = logging.getLogger("brokerkit.kafka")


def stamp(part: Partition, records: Sequence[Record], fresh: list[Delivery], *, native: bool) -> None:
    """
    Make deliveries of records of which nothing is known: the usual case, and the hot path.

    fresh: takes what may be handed out. native: whether the client's record is kept beside it.
    """
    name, address, opened = part.name, part.address, part.open
    for record in records:
        offset = record.offset
        delivery = Delivery(read(record), address, part, arrivals=1, position=(name, offset))
        if native:
            delivery.native = record
        opened[offset] = delivery
        fresh.append(delivery)
    part.next = records[-1].offset + 1


def stamp_one_by_one(
    part: Partition, records: Sequence[Record], fresh: list[Delivery], shelf: Shelf, *, native: bool
) -> None:
    """The same where the last owner has left a note, or where something waits: that goes on the shelf."""
    if records[0].offset < part.next:
        _log.warning("the log of %s was cut; it is read from %d on", part.name, records[0].offset)
        part.forget_notes()
    for record in records:
        offset = record.offset
        known = part.known(offset)
        if known is None:
            continue
        message, seconds = (read(record), 0.0) if part.wait is None else read_waiting(record)
        delivery = Delivery(
            message,
            part.address,
            part,
            arrivals=known[0],
            returns=known[1],
            position=(part.name, offset),
            mark=part.marks.get(offset),
            native=record if native else None,
        )
        part.open[offset] = delivery
        if part.wait or seconds:
            shelf.wait(part, delivery, record.timestamp, seconds)
        else:
            fresh.append(delivery)
    part.read_upto(records[-1].offset + 1)
