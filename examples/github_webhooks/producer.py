"""
The producer: what receives GitHub's deliveries and publishes them, with a row of its own for each that is confirmed.

Like GitHub it sends some deliveries twice, under the same id.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from sqlalchemy import Column, Float, Integer, MetaData, String, Table, insert

from brokerkit import Bus, Outgoing
from brokerkit.examples.github_webhooks import trouble
from brokerkit.examples.github_webhooks.events import GitHubEvent, generate
from brokerkit.examples.github_webhooks.ledger import create_tables
from brokerkit.examples.github_webhooks.settings import BROKER, CHANNEL, SEED, engine_for

__all__ = ["deliveries", "publish"]

_BATCH = 25
_REDELIVERED = 0.02
_LATER = 60

metadata = MetaData()
published = Table(
    "published",
    metadata,
    Column("at", Float, nullable=False),
    Column("source", String, nullable=False),
    Column("event_id", String, nullable=False),
    Column("type", String, nullable=False),
    Column("repository", String),
    Column("sequence", Integer),
    Column("poisoned", String, nullable=False),
)
"""One row for each confirmed publish. poisoned: the groups whose first release cannot handle the event."""

bus = Bus(BROKER, name="github")


def deliveries(events: int, seed: str) -> Iterator[GitHubEvent]:
    """Return the events in the order of their delivery: one in fifty comes a second time, a while later."""
    chance = Random(f"redeliveries {seed}")  # noqa: S311 - a load, not a secret
    again: list[GitHubEvent] = []
    for number, event in enumerate(generate(events, seed), 1):
        yield event
        if chance.random() < _REDELIVERED:
            again.append(event)
        if number % _LATER == 0:
            yield from again
            again.clear()
    yield from again


async def publish(events: int, rate: float) -> None:
    """Publish so many distinct events, at most `rate` a second."""
    engine = engine_for("producer")
    async with engine.begin() as connection:
        await create_tables(connection, metadata)
    started, sent = time.monotonic(), 0
    async with bus:
        for batch in _batches(deliveries(events, SEED)):
            outcomes = await bus.publish_many(CHANNEL, [_outgoing(event) for event in batch])
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
            async with engine.begin() as connection:
                await connection.execute(insert(published), [_row(event) for event in batch])
            sent += len(batch)
            await asyncio.sleep(max(0.0, sent / rate - (time.monotonic() - started)))
    await engine.dispose()


def _batches(events: Iterator[GitHubEvent]) -> Iterator[Sequence[GitHubEvent]]:
    batch: list[GitHubEvent] = []
    for event in events:
        batch.append(event)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _outgoing(event: GitHubEvent) -> Outgoing:
    return Outgoing(
        data=event.payload.data,
        id=event.id,
        type=event.payload.type,
        key=event.repository,
        subject=event.repository,
        extensions={} if event.sequence is None else {"sequence": str(event.sequence)},
    )


def _row(event: GitHubEvent) -> dict[str, Any]:
    return {
        "at": time.time(),
        "source": bus.name,
        "event_id": event.id,
        "type": event.payload.type,
        "repository": event.repository,
        "sequence": event.sequence,
        "poisoned": " ".join(trouble.poisoned_groups(event.payload.type, event.id)),
    }


def main() -> None:
    """Read the arguments and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", type=int, help="how many distinct events")
    parser.add_argument("--rate", type=float, default=1000.0, help="at most so many a second")
    arguments = parser.parse_args()
    asyncio.run(publish(arguments.events, arguments.rate))


if __name__ == "__main__":
    main()
