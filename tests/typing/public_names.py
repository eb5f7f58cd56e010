"""
Checked by mypy and pyright, never run: what the public names promise to a type checker.

A line that must fail carries the one error it expects: mypy reports an ignore that nothing needs.
"""

from collections.abc import Awaitable, Callable
from typing import Any, assert_type

import pydantic

from brokerkit import (
    Ack,
    Bus,
    DeadLetter,
    Delivery,
    Event,
    Handler,
    Message,
    Outcome,
    Outgoing,
    Pattern,
    Retry,
    Router,
    SendError,
    Settle,
    Settlement,
    State,
    current,
)
from brokerkit.bus import SyncBus


class OrderPlaced(pydantic.BaseModel):
    number: str


class Database: ...


bus = Bus("memory://", name="shop")
router = Router()


@bus.subscriber("orders", group="billing")
async def charge(order: OrderPlaced, db: State[Database]) -> None:
    assert_type(order.number, str)
    assert_type(db, Database)


@router.subscriber("orders", group="mail")
async def mail(event: Event[OrderPlaced], delivery: Delivery) -> Settlement:
    assert_type(event.data, OrderPlaced)
    assert_type(event.with_data(7), Event[int])
    assert_type(event.with_data(7).data, int)
    assert_type(event.identity, tuple[str, str])
    assert_type(delivery.event, Event[bytes])
    assert_type(delivery.event.data, bytes)
    assert_type(delivery.message, Message)
    assert_type(delivery.attempt, int)
    assert_type(delivery.stopped, str | None)
    if event.subject is None:
        raise Settle(Retry(after=5))
    return Ack()


@router.subscriber("orders", group="print")
def print_out(order: OrderPlaced) -> None:
    assert_type(order, OrderPlaced)


async def decorated() -> None:
    """A subscriber hands the function back as it was."""
    assert_type(await charge(OrderPlaced(number="o-17"), Database()), None)
    assert_type(
        await mail(Event(id="1", source="s", type="t", data=OrderPlaced(number="1")), a_delivery()),
        Settlement,
    )
    print_out(OrderPlaced(number="o-17"))
    await charge("o-17", Database())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await charge(OrderPlaced(number="o-17"))  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def a_delivery() -> Delivery:
    found = current()
    assert_type(found, Delivery | None)
    assert found is not None
    return found


async def published() -> None:
    assert_type(await bus.publish("orders", OrderPlaced(number="o-17"), key="o-17"), Event[bytes])
    assert_type(await bus.publish_many("orders", [Outgoing(data=1, type="t"), 2]), list[Outcome])
    (outcome,) = await bus.publish_many("orders", [1])
    assert_type(outcome.error, SendError | None)
    assert_type(outcome.event, Event[bytes])
    assert_type(bus.sync, SyncBus)
    assert_type(bus.sync.publish("orders", 1, type="t"), Event[bytes])
    await bus.publish("orders", 1, key=b"k")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await bus.publish("orders", 1, envelope="xml")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def entered() -> None:
    async with bus as same:
        assert_type(same, Bus)
        async with bus.consuming() as consuming:
            assert_type(consuming, Bus)


def settlements(settlement: Settlement) -> None:
    """The set is closed, and only its members can be raised."""
    match settlement:
        case Ack():
            pass
        case Retry(after=after):
            assert_type(after, float)
        case DeadLetter(reason=reason):
            assert_type(reason, str)
    Settle("ack")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def patterns() -> None:
    async def endpoint(delivery: Delivery) -> Settlement:
        return Ack()

    def timed(handler: Handler) -> Handler:
        return handler

    def wrong(handler: Callable[[int], Awaitable[Any]]) -> Handler:
        return endpoint

    pattern: Pattern = timed
    assert_type(pattern(endpoint), Callable[[Delivery], Awaitable[Settlement]])
    Router(patterns=[timed])
    Router(patterns=[wrong])  # type: ignore[list-item] # pyright: ignore[reportArgumentType]
    router.subscriber("orders", group="x", order="fifo")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    router.subscriber("orders")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
