"""
A member in a process of its own, which tests freeze and kill.

Reads commands as JSON lines on stdin, answers each with one JSON line on stdout.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from brokerkit.adapters.sqlite import SqliteAdapter
from brokerkit.adapters.sqlite.subscription import SqliteSubscription
from brokerkit.delivery import Delivery
from brokerkit.message import Address
from brokerkit.settlement import ACK


class Member:
    def __init__(self) -> None:
        self.subscription: SqliteSubscription | None = None
        self.held: list[Delivery] = []
        self.lost: list[str] = []
        self.ended = asyncio.Event()

    async def on_lost(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        assert seconds == 0
        self.lost += [delivery.message.body.decode() for delivery in deliveries]

    async def open(self, url: str, order: Any) -> None:
        adapter = SqliteAdapter(url)
        await adapter.connect()
        self.subscription = await adapter.subscribe(
            Address("orders", "billing", "inlet"),
            order=order,
            start="earliest",
            prefetch=32,
            on_lost=self.on_lost,
        )

    async def do(self, command: dict[str, Any]) -> object:
        assert self.subscription is not None
        match command["do"]:
            case "take":
                self.held += await self.subscription.receive(command["limit"])
                return [time.monotonic(), [delivery.message.body.decode() for delivery in self.held]]
            case "ack":
                outcomes = await self.subscription.settle([(delivery, ACK) for delivery in self.held])
                self.held.clear()
                return [None if outcome is None else outcome.code for outcome in outcomes]
            case "lost":
                return self.lost
            case "work":
                self.worker = asyncio.create_task(self.work(command["ledger"]))
                return "working"
            case unknown:
                raise ValueError(unknown)

    async def work(self, ledger: str) -> None:
        assert self.subscription is not None
        file = os.open(ledger, os.O_WRONLY | os.O_APPEND)
        while True:
            for delivery in await self.subscription.receive(8):
                os.write(file, delivery.message.body + b"\n")
                await self.subscription.settle([(delivery, ACK)])


def answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def main() -> None:
    member = Member()
    await member.open(sys.argv[1], sys.argv[2])
    answer("ready")
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        answer(await member.do(json.loads(line)))


if __name__ == "__main__":
    asyncio.run(main())
