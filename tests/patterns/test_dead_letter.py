import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brokerkit.adapter import Adapter, Browses, OnLost, Order, Start, Subscription
from brokerkit.adapters.memory import MemoryAdapter
from brokerkit.copies import VERSION, dead_copy, read_delivery, retry_copy
from brokerkit.delivery import Delivery
from brokerkit.envelope import lay
from brokerkit.errors import BadName, PublishUnknown, SendError, TooLarge
from brokerkit.event import Event
from brokerkit.message import Address, Message
from brokerkit.patterns.dead_letter import DeadLetters, Letter, read_letter
from brokerkit.settlement import ACK
from tests.patterns.deliveries import delivery_of

DEAD = Address("orders", "billing", "dead")
INLET = Address("orders", "billing", "inlet")


class Plain:
    """A broker that cannot be browsed, and whose sends can be made to fail."""

    def __init__(self, inner: MemoryAdapter) -> None:
        self.inner = inner
        self.capabilities = inner.capabilities
        self.error: SendError | None = None
        self.sent: list[Message] = []
        self.blocked: asyncio.Event | None = None

    async def connect(self) -> None:
        await self.inner.connect()

    async def close(self) -> None:
        await self.inner.close()

    async def send(
        self,
        to: Address,
        messages: Sequence[Message],
        *,
        after: float | Sequence[float] = 0,
        must_route: bool = False,
    ) -> Sequence[SendError | None]:
        if self.blocked is not None:
            await self.blocked.wait()
        if self.error is not None:
            return [self.error] * len(messages)
        self.sent += messages
        return await self.inner.send(to, messages, after=after, must_route=must_route)

    async def subscribe(
        self, at: Address, *, order: Order, start: Start, prefetch: int, on_lost: OnLost
    ) -> Subscription:
        return await self.inner.subscribe(at, order=order, start=start, prefetch=prefetch, on_lost=on_lost)


class Browsable(Plain):
    async def browse(
        self, at: Address, *, cursor: str | None, limit: int
    ) -> tuple[Sequence[Delivery], str | None]:
        return await self.inner.browse(at, cursor=cursor, limit=limit)

    async def groups(self) -> Sequence[tuple[str, str]]:
        return await self.inner.groups()


@pytest.fixture(params=[Plain, Browsable])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Plain]:
    adapter: Plain = request.param(MemoryAdapter())
    await adapter.connect()
    places: list[tuple[Address, Start, Order]] = [(INLET, "earliest", "none")]
    await adapter.inner.provision(places, create=True)
    assert isinstance(adapter, Browses) is (request.param is Browsable)
    yield adapter
    await adapter.close()


def letters_of(adapter: Adapter) -> DeadLetters:
    return DeadLetters(adapter, "orders", "billing", idle=0.02)


def letter(name: str, *, run: int = 0, died: float = 5.0) -> Message:
    delivery = delivery_of(name, attempt=3)
    event: Event[bytes] = Event(id=name, source="/shop", type="order.placed", data=b'{"n":1}')
    delivery.message = lay(event, "structured", key=b"k-1", headers=(("tenant", "a"),))
    delivery.run = run
    delivery.event = event
    delivery.story = [
        {"n": 1, "at": 1000, "type": "ValueError", "message": "first"},
        {"n": 3, "at": 4000, "type": "shop.Sold", "message": "sold out", "trace": "Traceback"},
        {"dead": "exhausted", "detail": "attempt 3 of 3", "at": int(died * 1000), "n": 3},
    ]
    return dead_copy(delivery)


async def bury(broker: Plain, *messages: Message) -> None:
    assert list(await broker.inner.send(DEAD, messages)) == [None] * len(messages)


async def take(broker: Plain, at: Address) -> list[Delivery]:
    """Take everything out of a place for good."""

    async def on_lost(_: Sequence[Delivery], __: float) -> None: ...

    subscription = await broker.inner.subscribe(
        at, order="none", start="earliest", prefetch=100, on_lost=on_lost
    )
    found: list[Delivery] = []
    try:
        while True:
            async with asyncio.timeout(0.02):
                batch = await subscription.receive(100)
            await subscription.settle([(delivery, ACK) for delivery in batch])
            found += batch
    except TimeoutError:
        pass
    finally:
        await subscription.close()
    for delivery in found:
        delivery.channel, delivery.group = "orders", "billing"
        read_delivery(delivery, 1e9)
    return found


async def dead(broker: Plain) -> list[str]:
    found, _ = await letters_of(broker).list(1000)
    return sorted(each.id for each in found)


async def test_a_letter_tells_what_it_was_and_why_it_died(broker: Plain) -> None:
    await bury(broker, letter("e-1", run=2))
    (found,), _ = await letters_of(broker).list()
    assert found == Letter(
        id="e-1",
        source="/shop",
        type="order.placed",
        time=None,
        channel="orders",
        group="billing",
        key=b"k-1",
        body=b'{"specversion":"1.0","id":"e-1","source":"/shop","type":"order.placed","data":{"n":1}}',
        content_type="application/cloudevents+json",
        headers=(("tenant", "a"),),
        reason="exhausted",
        detail="attempt 3 of 3",
        error_type="shop.Sold",
        message="sold out",
        trace="Traceback",
        history=(
            {"n": 1, "at": 1000, "type": "ValueError", "message": "first"},
            {"n": 3, "at": 4000, "type": "shop.Sold", "message": "sold out", "trace": "Traceback"},
        ),
        attempts=3,
        first_failure=1.0,
        last_failure=4.0,
        runs=2,
        position=found.position,
    )


async def test_reading_takes_nothing_away(broker: Plain) -> None:
    await bury(broker, *(letter(f"e-{n}") for n in range(5)))
    reader = letters_of(broker)
    shown = await reader.show("e-3")
    assert shown is not None
    assert shown.id == "e-3"
    assert await reader.show("e-9") is None
    assert await dead(broker) == await dead(broker) == [f"e-{n}" for n in range(5)]


async def test_pages_follow_each_other(broker: Plain) -> None:
    if not isinstance(broker, Browses):
        return
    await bury(broker, *(letter(f"e-{n}") for n in range(5)))
    reader, cursor = letters_of(broker), None
    seen: list[str] = []
    while True:
        page, cursor = await reader.list(2, cursor)
        seen += [each.id for each in page]
        if cursor is None:
            break
    assert seen == [f"e-{n}" for n in range(5)]


async def test_a_redrive_reaches_the_group_as_a_first_attempt_of_a_new_run_with_its_story(
    broker: Plain,
) -> None:
    await bury(broker, letter("e-1"), letter("e-2"))
    outcomes = await letters_of(broker).redrive()
    assert sorted((each.id, each.result, each.error) for each in outcomes) == [
        ("e-1", "redriven", ""),
        ("e-2", "redriven", ""),
    ]
    assert await dead(broker) == []
    again = await take(broker, INLET)
    assert [(each.event.id, each.attempt, each.run, len(each.story)) for each in again] == [
        ("e-1", 1, 1, 3),
        ("e-2", 1, 1, 3),
    ]
    assert again[0].message.body == letter("e-1").body
    assert again[0].message.key == b"k-1"


async def test_what_was_not_selected_stays(broker: Plain) -> None:
    await bury(broker, *(letter(f"e-{n}") for n in range(5)))
    outcomes = await letters_of(broker).redrive(["e-1", "e-3", "e-9", "e-1"])
    assert [(each.id, each.result) for each in outcomes] == [
        ("e-1", "redriven"),
        ("e-3", "redriven"),
        ("e-9", "not_found"),
    ]
    assert await dead(broker) == ["e-0", "e-2", "e-4"]
    assert [each.event.id for each in await take(broker, INLET)] == ["e-1", "e-3"]


async def test_nothing_selected_is_nothing_done(broker: Plain) -> None:
    await bury(broker, letter("e-1"))
    assert await letters_of(broker).redrive([]) == []
    assert await dead(broker) == ["e-1"]


async def test_a_dry_run_says_what_it_would_do_and_does_nothing(broker: Plain) -> None:
    await bury(broker, letter("e-1"), letter("e-2"))
    outcomes = await letters_of(broker).redrive(["e-1", "e-9"], dry_run=True)
    assert [(each.id, each.result) for each in outcomes] == [("e-1", "would_redrive"), ("e-9", "not_found")]
    assert await dead(broker) == ["e-1", "e-2"]
    assert broker.sent == []


@pytest.mark.parametrize(
    ("error", "result"), [(TooLarge("too big"), "failed"), (PublishUnknown("no answer"), "unknown")]
)
async def test_a_letter_whose_copy_is_not_confirmed_stays(
    broker: Plain, error: SendError, result: str
) -> None:
    await bury(broker, letter("e-1"), letter("e-2"))
    broker.error = error
    outcomes = await letters_of(broker).redrive()
    assert [(each.result, each.error) for each in outcomes] == [
        (result, f"{type(error).__name__}: {error}")
    ] * 2
    assert await dead(broker) == ["e-1", "e-2"]


async def test_a_letter_is_not_settled_before_its_copy_is_confirmed(broker: Plain) -> None:
    await bury(broker, letter("e-1"))
    broker.blocked = asyncio.Event()
    task = asyncio.ensure_future(letters_of(broker).redrive())
    await asyncio.wait([task], timeout=0.05)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await dead(broker) == ["e-1"]


async def test_a_letter_that_dies_again_meanwhile_is_not_swept_along(broker: Plain) -> None:
    """The clock of the one who buries it is an hour behind ours."""
    await bury(broker, letter("e-1"))
    inner_send = broker.inner.send

    async def send_and_die(to: Address, messages: Sequence[Message], **options: Any) -> Any:
        outcomes = await inner_send(to, messages, **options)
        if to == INLET:
            await inner_send(DEAD, [letter("e-1", run=1)])
        return outcomes

    broker.inner.send = send_and_die  # type: ignore[method-assign]
    outcomes = await letters_of(broker).redrive()
    assert [each.result for each in outcomes] == ["redriven"]
    assert await dead(broker) == ["e-1"]
    assert len(broker.sent) == 1


async def test_a_letter_that_died_after_the_call_began_is_not_swept_along(broker: Plain) -> None:
    if isinstance(broker, Browses):
        return

    class Early:
        def time(self) -> float:
            return 4.0

    await bury(broker, letter("old", died=3.0), letter("new", died=5.0))
    outcomes = await DeadLetters(broker, "orders", "billing", idle=0.02, clock=Early()).redrive()
    assert [each.id for each in outcomes] == ["old"]
    assert await dead(broker) == ["new"]


async def test_two_letters_of_one_event_are_both_sent(broker: Plain) -> None:
    await bury(broker, letter("e-1"), letter("e-1"))
    outcomes = await letters_of(broker).redrive(["e-1"])
    assert [each.result for each in outcomes] == ["redriven", "redriven"]
    assert await dead(broker) == []


async def test_what_is_discarded_is_gone_and_reaches_nobody(broker: Plain) -> None:
    await bury(broker, letter("e-1"), letter("e-2"))
    outcomes = await letters_of(broker).discard(["e-1", "e-9"])
    assert [(each.id, each.result) for each in outcomes] == [("e-1", "discarded"), ("e-9", "not_found")]
    assert await dead(broker) == ["e-2"]
    assert await take(broker, INLET) == []


async def test_a_letter_of_a_later_version_is_left_alone(broker: Plain) -> None:
    strange = letter("e-2")
    headers = tuple(
        (name, str(VERSION + 1)) if name == "bk-v" else (name, value) for name, value in strange.headers
    )
    await bury(broker, letter("e-1"), strange.replace(headers=headers))
    assert [each.id for each in await letters_of(broker).redrive()] == ["e-1"]
    left = await broker.inner.browse(DEAD, cursor=None, limit=10)
    assert len(left[0]) == 1


async def test_no_more_letters_are_held_than_allowed(broker: Plain) -> None:
    await bury(broker, *(letter(f"e-{n}") for n in range(10)))
    few = DeadLetters(broker, "orders", "billing", idle=0.02, hold=4)
    assert [each.result for each in await few.redrive(["e-9"])] == ["not_found"]
    assert len(await dead(broker)) == 10


def test_a_name_that_is_not_legal_is_refused() -> None:
    with pytest.raises(BadName):
        DeadLetters(MemoryAdapter(), "Orders", "billing")


anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)
entries = st.dictionaries(
    st.sampled_from(["n", "at", "type", "message", "trace", "dead", "detail", "cut"]), anything
)


@settings(deadline=None)
@given(st.lists(entries, max_size=5))
def test_a_damaged_story_never_costs_a_letter(story: list[dict[str, Any]]) -> None:
    delivery = delivery_of()
    delivery.story = story
    found = read_letter(delivery)
    assert found.id == "e-1"
    assert all(isinstance(text, str) for text in (found.reason, found.detail, found.error_type, found.trace))


def test_a_second_death_shows_the_last_verdict_and_keeps_the_first_in_the_history() -> None:
    delivery = delivery_of(attempt=1)
    delivery.story = [
        {"n": 1, "at": 1000, "type": "A", "message": "a"},
        {"dead": "exhausted", "at": 2000, "n": 1},
        {"n": 1, "at": 3000, "type": "B", "message": "b"},
        {"dead": "unrecoverable", "at": 4000, "n": 1},
    ]
    found = read_letter(delivery)
    assert (found.reason, found.error_type, len(found.history)) == ("unrecoverable", "B", 3)
    assert (found.first_failure, found.last_failure) == (1.0, 3.0)


def test_a_retry_copy_is_no_letter_but_can_be_read() -> None:
    delivery = delivery_of()
    retry_copy(delivery)
    assert read_letter(delivery).reason == ""
