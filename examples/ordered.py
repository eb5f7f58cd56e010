"""
`order="key"`: an account's bookings stay in order while one of them waits for its retry; other accounts flow meanwhile.

    python -m brokerkit.examples.ordered
"""

import asyncio

from tenacity import wait_fixed

from brokerkit import Bus, Delivery
from brokerkit.hooks import HookEvent, Settled
from brokerkit.patterns import retry


async def main() -> None:
    """Book four amounts on two accounts; the first one fails twice."""
    ended: asyncio.Queue[str] = asyncio.Queue()

    def hook(event: HookEvent) -> None:
        if isinstance(event, Settled):
            ended.put_nowait(event.outcome)

    bus = Bus("memory://", hooks=[hook])

    @bus.subscriber(
        "bookings", group="ledger", order="key", patterns=[retry(attempts=5, wait=wait_fixed(0.1))]
    )
    async def book(amount: int, delivery: Delivery) -> None:
        account = (delivery.message.key or b"").decode()
        if amount == 1 and delivery.attempt < 3:  # noqa: PLR2004 - the third try
            print(f"{account}: {amount} fails at attempt {delivery.attempt}")
            message = "the ledger is locked"
            raise ConnectionError(message)
        print(f"{account}: {amount} booked at attempt {delivery.attempt}")

    async with bus, bus.consuming():
        for account, amount in (("alice", 1), ("alice", 2), ("alice", 3), ("bob", 10)):
            await bus.publish("bookings", amount, type="amount.booked", key=account)
        acked = 0
        while acked < 4:  # noqa: PLR2004 - as many as were published
            acked += await ended.get() == "ack"


if __name__ == "__main__":
    asyncio.run(main())
