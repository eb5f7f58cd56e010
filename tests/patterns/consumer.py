"""
A process that handles the same events as others do, and may be killed at any moment.

Usage: consumer.py FOLDER PATTERN COUNT SEED. It says when it is ready. At a line on its standard
input it begins to handle the events 0 ... COUNT-1
in an order of its own, again and again until each was acked, and writes rows into the ledger for every effect. The ledger
has no unique key: it counts what happened.
"""

import asyncio
import random
import sys

from sqlalchemy import Column, Integer, MetaData, String, Table, insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from brokerkit.delivery import Delivery
from brokerkit.patterns import dedupe, inbox, retry, sql_store
from brokerkit.pipeline import Handler, wrap
from brokerkit.settlement import ACK, Ack, Retry, Settlement
from tests.patterns.deliveries import delivery_of

LEDGER = Table(
    "ledger",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("event", String(20), nullable=False),
    Column("what", String(20), nullable=False),
)


def inboxed(engine: AsyncEngine, chance: random.Random) -> Handler:
    async def handler(delivery: Delivery) -> Settlement:
        assert delivery.extra is not None
        connection = delivery.extra["connection"]
        await connection.execute(insert(LEDGER).values(event=delivery.event.id, what="first"))
        sys.stdout.write("inside\n")
        sys.stdout.flush()
        await asyncio.sleep(chance.uniform(0, 0.01))
        await connection.execute(insert(LEDGER).values(event=delivery.event.id, what="second"))
        if chance.random() < 0.05:
            message = "bad luck"
            raise RuntimeError(message)
        return ACK

    return wrap(handler, [retry(attempts=1_000, in_place=0), inbox(engine)])


def deduped(engine: AsyncEngine, chance: random.Random) -> Handler:
    async def handler(delivery: Delivery) -> Settlement:
        async with engine.begin() as connection:
            await connection.execute(insert(LEDGER).values(event=delivery.event.id, what="begun"))
        sys.stdout.write("inside\n")
        sys.stdout.flush()
        await asyncio.sleep(chance.uniform(0, 0.01))
        async with engine.begin() as connection:
            await connection.execute(insert(LEDGER).values(event=delivery.event.id, what="ended"))
        return ACK

    return wrap(handler, [dedupe(sql_store(engine), lease=1, window=3600), retry(attempts=1_000, in_place=0)])


async def main(folder: str, pattern: str, count: int, seed: int) -> None:
    chance = random.Random(seed)
    engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/shop.db")
    handler = {"inbox": inboxed, "dedupe": deduped}[pattern](engine, chance)
    open_events = [f"e-{number}" for number in range(count)]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    while open_events:
        await asyncio.sleep(chance.uniform(0, 0.05))  # SQLite's lock is not fair: let others have it
        chance.shuffle(open_events)
        batch = open_events[:4]
        settled = await asyncio.gather(*(handler(delivery_of(name)) for name in batch))
        for name, settlement in zip(batch, settled, strict=True):
            if isinstance(settlement, Ack):
                open_events.remove(name)
            elif not isinstance(settlement, Retry):
                message = f"{name} ended in {settlement}"
                raise TypeError(message)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
