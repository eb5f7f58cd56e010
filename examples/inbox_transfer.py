"""
Money moves between two accounts exactly once, although every transfer is published twice and one handling fails.

Work and the record that it was done commit together; broker and accounts are two SQLite files in a temporary folder.

    python -m brokerkit.examples.inbox_transfer
"""

import asyncio
import tempfile
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from tenacity import wait_fixed

from brokerkit import Bus, Delivery
from brokerkit.hooks import HookEvent, Settled
from brokerkit.patterns import inbox, retry, timeout

metadata = MetaData()
accounts = Table(
    "accounts", metadata, Column("name", String, primary_key=True), Column("balance", Integer, nullable=False)
)


class Transfer(BaseModel):
    """So much from one account to another."""

    source: str
    target: str
    amount: int


async def transfers(folder: Path, engine: AsyncEngine) -> None:
    """Publish ten transfers, each twice, and wait until all twenty messages are done."""
    ended: asyncio.Queue[str] = asyncio.Queue()

    def hook(event: HookEvent) -> None:
        if isinstance(event, Settled):
            ended.put_nowait(event.outcome)

    bus = Bus(f"sqlite:///{folder / 'broker.db'}", name="bank", hooks=[hook])

    @bus.subscriber(
        "transfers",
        group="ledger",
        patterns=[retry(attempts=5, wait=wait_fixed(0.05)), timeout(10), inbox(engine, create=True)],
    )
    async def book(transfer: Transfer, delivery: Delivery, connection: AsyncConnection) -> None:
        await add(connection, transfer.source, -transfer.amount)
        if transfer.amount == 5 and delivery.attempt == 1:  # noqa: PLR2004 - one of the ten
            message = "half done; the transaction takes it back"
            raise ConnectionError(message)
        await add(connection, transfer.target, transfer.amount)

    async with bus, bus.consuming():
        for amount in range(1, 11):
            for _ in range(2):
                transfer = Transfer(source="alice", target="bob", amount=amount)
                await bus.publish("transfers", transfer, key="alice", id=f"transfer-{amount}")
        acked = 0
        while acked < 20:  # noqa: PLR2004 - as many as were published
            acked += await ended.get() == "ack"


async def add(connection: AsyncConnection, name: str, amount: int) -> None:
    """Change one balance."""
    change = update(accounts).where(accounts.c.name == name)
    await connection.execute(change.values(balance=accounts.c.balance + amount))


async def main() -> None:
    """Open two accounts, run the transfers, and look."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = create_async_engine(f"sqlite+aiosqlite:///{folder / 'accounts.db'}")
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
            await connection.execute(
                insert(accounts), [{"name": "alice", "balance": 100}, {"name": "bob", "balance": 0}]
            )
        await transfers(folder, engine)
        async with engine.connect() as connection:
            found = await connection.execute(select(accounts).order_by(accounts.c.name))
            print(*(f"{row.name} has {row.balance}" for row in found), sep="\n")
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
