"""
Two groups see one order; billing fails at first and tries again.

    python -m brokerkit.examples.quickstart
"""

import asyncio

from pydantic import BaseModel
from tenacity import wait_fixed

from brokerkit import Bus, Delivery, Router
from brokerkit.hooks import HookEvent, Settled
from brokerkit.patterns import dedupe, retry

router = Router()


class OrderPlaced(BaseModel):
    """What the data of an `order.placed` has to be."""

    order: str
    total: int


@router.subscriber("orders", group="billing", patterns=[dedupe(), retry(attempts=5, wait=wait_fixed(0.1))])
async def charge(order: OrderPlaced, delivery: Delivery) -> None:
    """Charge the customer; the bank answers at the second try only."""
    if delivery.attempt == 1:
        message = "the bank does not answer"
        raise ConnectionError(message)
    print(f"billing: charged {order.total} for {order.order} at attempt {delivery.attempt}")


@router.subscriber("orders", group="shipping")
async def ship(order: OrderPlaced) -> None:
    """Pack the parcel."""
    print(f"shipping: packed {order.order}")


async def main() -> None:
    """Publish one order twice under one id, and see it charged once."""
    ended: asyncio.Queue[str] = asyncio.Queue()

    def hook(event: HookEvent) -> None:
        if isinstance(event, Settled):
            ended.put_nowait(event.outcome)

    bus = Bus("memory://", hooks=[hook])
    bus.include(router)
    async with bus, bus.consuming():
        for _ in range(2):
            await bus.publish("orders", OrderPlaced(order="o-17", total=90), key="o-17", id="order-17")
            print([await ended.get() for _ in ("billing", "shipping")])


if __name__ == "__main__":
    asyncio.run(main())
