"""
The ledger that each service appends to, in the transaction of its work: what was handled, in the order of completion.

It has no key and no unique index, so that an effect that happens twice is there twice.
"""

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column, Float, Integer, MetaData, String, Table
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateTable

from brokerkit import Delivery

__all__ = ["create_tables", "entry", "make_ledger"]


def make_ledger(metadata: MetaData) -> Table:
    """Return the table of a service's ledger."""
    return Table(
        "ledger",
        metadata,
        Column("at", Float, nullable=False),
        Column("source", String, nullable=False),
        Column("event_id", String, nullable=False),
        Column("type", String, nullable=False),
        Column("repository", String),
        Column("sequence", Integer),
        Column("attempt", Integer, nullable=False),
        Column("run", Integer, nullable=False),
        Column("waited", Float, nullable=False),
    )


def entry(delivery: Delivery) -> Mapping[str, Any]:
    """
    Return the row for a delivery.

    attempt, run: how often its handling had failed before, and how often it was redriven. waited: seconds since it first
    arrived at the group, in this run.
    """
    event = delivery.event
    now = time.time()
    sequence = event.extensions.get("sequence")
    return {
        "at": now,
        "source": event.source,
        "event_id": event.id,
        "type": event.type,
        "repository": event.subject,
        "sequence": None if sequence is None else int(sequence),
        "attempt": delivery.attempt,
        "run": delivery.run,
        "waited": now - delivery.first,
    }


async def create_tables(connection: AsyncConnection, metadata: MetaData) -> None:
    """Create what is missing, as a migration would."""
    for table in metadata.sorted_tables:
        await connection.execute(CreateTable(table, if_not_exists=True))
