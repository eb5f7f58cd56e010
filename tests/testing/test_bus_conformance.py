"""The suite of the bus, tested: its names, its golden files, its log."""

import asyncio
import json

import pytest

from brokerkit.adapters.memory import MemoryAdapter
from brokerkit.copies import dead_copy, read_delivery, redrive_copy, retry_copy
from brokerkit.delivery import Delivery
from brokerkit.errors import ConnectionLost
from brokerkit.message import Address, Message
from brokerkit.testing.conformance import BusConformance, switched_off
from brokerkit.testing.conformance.bus_ordering import inversions
from brokerkit.testing.conformance.bus_versions import golden
from brokerkit.testing.conformance.gate import all_tests
from brokerkit.testing.conformance.log import Log, Note
from brokerkit.testing.conformance.through import through
from tests.testing.test_conformance import Claims

WRITERS = {"retry": retry_copy, "redrive": redrive_copy, "dead": dead_copy}


def original(kind: str) -> Delivery:
    """Return the delivery of which the golden copy was made."""
    headers = (
        ("x-mine", "1"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    )
    body = golden(1)[kind][1].body
    message = Message(body=body, content_type="application/cloudevents+json", key=b"k", headers=headers)
    delivery = Delivery(message, Address("orders", "billing", "inlet"))
    read_delivery(delivery, 1764072000.25)
    delivery.channel, delivery.group = "orders", "billing"
    delivery.attempt, delivery.run, delivery.hop = 2, 1, 4
    delivery.alone = int(kind == "retry")
    refused = {"type": "ConnectionError", "message": "refused"}
    last = {"n": 2, "at": 1764072003500, **refused, "message": "refused \u20ac", "trace": "Traceback ...\n"}
    delivery.story = [{"n": 1, "at": 1764072001000, **refused}, last]
    if kind == "dead":
        detail = "attempt 2 of 2: ConnectionError: refused"
        delivery.story.append({"dead": "exhausted", "n": 2, "at": 1764072003501, "detail": detail})
    return delivery


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_today_is_the_golden_copy_to_the_byte(kind: str) -> None:
    assert WRITERS[kind](original(kind)).replace(copy_id=None) == golden(1)[kind][1]


def test_the_golden_copies_of_version_two_differ_in_what_a_later_version_may_change() -> None:
    for kind, (place, message) in golden(2).items():
        assert place == golden(1)[kind][0]
        assert (message.header("bk-v"), message.header("bk-attempt")) == ("2", None)
        assert json.loads(message.body)["id"] == f"{kind}-v2"


def test_the_names_of_the_tests_are_sentences() -> None:
    assert all(name.count("_") >= 6 for name, _ in all_tests(BusConformance))


def test_without_a_lease_nobody_can_die() -> None:
    off = switched_off(BusConformance, MemoryAdapter("memory://"), Claims())
    killed = "test_who_takes_over_after_a_kill_between_two_tries_goes_on_counting"
    assert "lease is None" in off[killed]
    assert not switched_off(BusConformance, MemoryAdapter("memory://?lease=1&max_message=200000"), Claims())


def note(name: str, at: float, key: str = "k") -> Note:
    return Note("end", "who", name, key, 1, 0, at)


def test_an_inversion_is_an_earlier_event_of_a_key_completed_after_a_later_one() -> None:
    assert inversions([note("1", 1), note("2", 2), note("1", 3), note("2", 4), note("0", 5, "other")]) == []
    assert inversions([note("2", 1), note("1", 2), note("3", 3)]) == [("k", 2, 1)]


async def test_a_wait_ends_in_time_however_many_notes_come() -> None:
    log = Log(patience=0.05)
    with pytest.raises(AssertionError, match="not within"):
        await log.count(1, "end")

    async def chatter() -> None:
        while True:
            log.add(Note("begin", "who", "1", None, 1, 0, 0.0))
            await asyncio.sleep(0)

    chattering = asyncio.create_task(chatter())
    with pytest.raises(AssertionError, match=r"never; {'begin'"):
        await log.until(lambda: False, "never")
    chattering.cancel()


async def test_the_glass_refuses_what_it_is_told_and_lets_the_rest_through() -> None:
    adapter = MemoryAdapter("memory://")
    await adapter.connect()
    glass = through(adapter)
    glass.refused.add(None)
    (refused,) = await glass.send(Address("c"), [Message(body=b"1")])
    assert isinstance(refused, ConnectionLost)
    glass.refused.clear()
    assert await glass.send(Address("c"), [Message(body=b"1")]) == [None]
    await glass.close()
