import asyncio
from collections.abc import Sequence

import pytest

from brokerkit.adapter import Subscription
from brokerkit.adapters.memory import MemoryAdapter, Unkind
from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError, ConnectionLost, PublishUnknown, Stale, Unavailable
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK
from brokerkit.testing import run_virtual

CHANNEL = Address("orders")
INLET = Address("orders", "billing", "inlet")


async def forget(_deliveries: Sequence[Delivery], _seconds: float) -> None:
    pass


async def opened(unkind: Unkind) -> MemoryAdapter:
    adapter = MemoryAdapter("memory://", unkind=unkind)
    await adapter.connect()
    return adapter


async def joined(adapter: MemoryAdapter, order: str = "none") -> Subscription:
    return await adapter.subscribe(
        INLET, order="key" if order == "key" else "none", start="earliest", prefetch=100, on_lost=forget
    )


def messages(count: int, keys: int = 3) -> list[Message]:
    return [Message(body=str(number).encode(), key=b"k%d" % (number % keys)) for number in range(count)]


async def history(unkind: Unkind, order: str = "none") -> list[str]:
    """Consume a hundred messages whatever happens, and write down everything that did."""
    adapter = await opened(unkind)
    member = await joined(adapter, order)
    events: list[str] = []
    left = messages(100)
    while left:
        outcomes = await adapter.send(CHANNEL, left)
        events += [type(outcome).__name__ for outcome in outcomes]
        left = [message for message, outcome in zip(left, outcomes, strict=True) if outcome is not None]
    while (await adapter.measure(INLET)).oldest is not None:
        try:
            batch = await member.receive(10)
        except ConnectionLost:
            events.append("cut")
            member = await joined(adapter, order)
            continue
        while batch:
            outcomes_of = await member.settle([(delivery, ACK) for delivery in batch])
            for delivery, outcome in zip(batch, outcomes_of, strict=True):
                events.append(
                    f"{delivery.message.body.decode()}/{delivery.arrivals} {type(outcome).__name__}"
                )
            batch = [
                delivery
                for delivery, outcome in zip(batch, outcomes_of, strict=True)
                if isinstance(outcome, Unavailable)
            ]
    await adapter.close()
    return events


EVERYTHING = {
    "redeliver": 0.1,
    "reorder": 0.2,
    "lose_lease": 0.05,
    "refuse_settle": 0.1,
    "drop_connection": 0.1,
    "refuse_send": 0.05,
    "unknown_send": 0.05,
}


@pytest.mark.parametrize("order", ["none", "key"])
def test_one_seed_is_one_history_and_another_seed_another(order: str) -> None:
    first = run_virtual(history(Unkind(seed=7, **EVERYTHING), order))
    assert run_virtual(history(Unkind(seed=7, **EVERYTHING), order)) == first
    assert run_virtual(history(Unkind(seed=8, **EVERYTHING), order)) != first


@pytest.mark.parametrize("order", ["none", "key"])
@pytest.mark.parametrize("seed", range(5))
def test_unkindness_loses_nothing(order: str, seed: int) -> None:
    events = run_virtual(history(Unkind(seed=seed, **EVERYTHING), order))
    acked = {event.split("/")[0] for event in events if event.endswith(" NoneType")}
    assert acked == {str(number) for number in range(100)}


@pytest.mark.parametrize(
    ("fault", "sign"),
    [
        ("redeliver", "/2 NoneType"),
        ("lose_lease", " Stale"),
        ("refuse_settle", " Unavailable"),
        ("drop_connection", "cut"),
        ("refuse_send", "ConnectionLost"),
        ("unknown_send", "PublishUnknown"),
    ],
)
def test_each_fault_shows_and_brings_no_other(fault: str, sign: str) -> None:
    events = run_virtual(history(Unkind(seed=1, **{fault: 0.3})))
    assert any(event.endswith(sign) for event in events)
    plain = run_virtual(history(Unkind(seed=1)))
    assert not any(event.endswith(sign) for event in plain)


def test_reorder_changes_the_order_between_keys_and_never_within_one() -> None:
    async def main() -> list[int]:
        adapter = await opened(Unkind(seed=3, reorder=0.7))
        member = await joined(adapter, "key")
        await adapter.send(CHANNEL, messages(200, keys=5))
        return [int(delivery.message.body) for delivery in await member.receive(200)]

    taken = run_virtual(main())
    assert taken != sorted(taken)
    for key in range(5):
        mine = [number for number in taken if number % 5 == key]
        assert mine == sorted(mine)


def test_a_lost_lease_with_order_by_key_takes_the_whole_slot() -> None:
    async def main() -> None:
        adapter = await opened(Unkind(seed=1, lose_lease=1.0))
        lost: list[Delivery] = []

        async def on_lost(deliveries: Sequence[Delivery], _seconds: float) -> None:
            lost.extend(deliveries)

        member = await adapter.subscribe(INLET, order="key", start="earliest", prefetch=9, on_lost=on_lost)
        await adapter.send(CHANNEL, messages(6, keys=1))
        taken = await member.receive(4)
        outcomes = await member.settle([(taken[2], ACK), (taken[0], ACK)])
        assert [type(outcome) for outcome in outcomes] == [Stale, Stale]
        await asyncio.sleep(0)
        assert lost == list(taken)
        again = await member.receive(10)
        assert [delivery.message.body for delivery in again] == [b"0", b"1", b"2", b"3", b"4", b"5"]
        assert [delivery.arrivals for delivery in again] == [2, 2, 2, 2, 1, 1]

    run_virtual(main())


def test_every_second_unknown_send_is_stored() -> None:
    async def main() -> tuple[int, int]:
        adapter = await opened(Unkind(seed=1, unknown_send=1.0))
        await joined(adapter)
        outcomes = await adapter.send(CHANNEL, messages(100))
        assert {type(outcome) for outcome in outcomes} == {PublishUnknown}
        return (await adapter.measure(INLET)).waiting, len(outcomes)

    stored, sent = run_virtual(main())
    assert 30 < stored < 70 < sent


@pytest.mark.parametrize("chance", [-0.1, 1.1, float("nan")])
def test_a_chance_is_between_0_and_1(chance: float) -> None:
    with pytest.raises(ConfigurationError, match="reorder"):
        Unkind(seed=1, reorder=chance)
