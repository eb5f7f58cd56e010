"""
The notifier: tells people about every event, through a chat service that refuses, stalls and is slow.

No transaction spans a call to somebody else's service, so a process that dies between the call and its record calls
again. `dedupe` keeps everything else from being a second call, and the idempotency key makes the rest harmless.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import MetaData, insert
from tenacity import wait_fixed

from brokerkit import Bus, Delivery, Event, Pattern
from brokerkit.examples.github_webhooks import trouble
from brokerkit.examples.github_webhooks.chat import Chat, ChatUnavailable
from brokerkit.examples.github_webhooks.ledger import create_tables, entry, make_ledger
from brokerkit.examples.github_webhooks.settings import (
    BROKER,
    CALLS_AT_ONCE,
    CHANNEL,
    CHAT,
    FIXED,
    WITHOUT,
    engine_for,
)
from brokerkit.examples.github_webhooks.witness import Witness
from brokerkit.patterns import bulkhead, dedupe, retry, sql_store, timeout

__all__ = ["bus", "prepare"]

metadata = MetaData()
ledger = make_ledger(metadata)
engine = engine_for("notifier")
store = sql_store(engine)
witness = Witness()
chat = Chat(CHAT, connections=CALLS_AT_ONCE)
memory: list[Pattern] = [] if WITHOUT == "dedupe" else [dedupe(store, lease=6)]


@asynccontextmanager
async def lifespan(_: Bus) -> AsyncGenerator[None]:
    """Close the connections at the end."""
    yield
    await chat.close()
    await engine.dispose()


bus = Bus(BROKER, name="notifier", lifespan=lifespan, hooks=[witness.hook], patterns=[witness])


@bus.subscriber(
    CHANNEL,
    group="notifier",
    patterns=[
        bulkhead("chat", CALLS_AT_ONCE),
        *memory,
        retry(attempts=10, on=(ChatUnavailable, OSError), wait=wait_fixed(2)),
        timeout(5),
    ],
)
async def notify(event: Event[dict[str, Any]], delivery: Delivery) -> None:
    """Post one message."""
    if not FIXED and trouble.is_poison("notifier", event.id):
        message = f"{event.type}: this release cannot put it into words"
        raise ValueError(message)
    who = event.data.get("sender", {}).get("login", "somebody")
    text = f"{who}: {event.type} in {event.subject or 'no repository'}"
    await chat.post(text, event_id=event.id, idempotency_key=f"{event.source}/{event.id}")
    witness.wrote(delivery)
    async with engine.begin() as connection:
        await connection.execute(insert(ledger), entry(delivery))


async def prepare() -> None:
    """Create the tables."""
    await store.create()
    async with engine.begin() as connection:
        await create_tables(connection, metadata)
    await engine.dispose()
