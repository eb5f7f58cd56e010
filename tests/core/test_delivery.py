import pytest

from brokerkit.delivery import Delivery
from brokerkit.event import Event
from brokerkit.message import Address, Message
from tests.core.deliveries import arrival, message_of, ordered

PLAIN = Message(body=b"plain")


def test_the_event_is_read_once() -> None:
    delivery = arrival()

    assert delivery.event is delivery.event
    assert delivery.event.id == "e-1"


def test_the_event_can_be_put_in_its_place() -> None:
    delivery = arrival()
    event = Event(id="2", source="s", type="t", data=b"")
    delivery.event = event

    assert delivery.event is event


def test_b11_a_message_without_id_is_named_by_where_it_stands_at_every_arrival() -> None:
    ids = {arrival(PLAIN, position=("3", 42)).event.identity for _ in range(2)}

    assert ids == {("/orders", "orders#3/42")}


def test_one_that_stands_nowhere_is_never_taken_for_another() -> None:
    one, other = arrival(PLAIN), arrival(PLAIN)

    assert one.event.id != other.event.id
    assert one.event.id == one.event.id
    assert one.event.id.startswith("orders#")
    assert one.event.id.endswith("#unknown")


def test_a_copy_of_a_stranger_believes_the_id_it_was_first_given() -> None:
    delivery = arrival(PLAIN, position=("3", 42), read=False)
    delivery.believe("orders#1/1")

    assert delivery.event.id == "orders#1/1"


def test_an_unreadable_envelope_is_an_event_with_the_reason() -> None:
    delivery = arrival(Message(body=b"{", content_type="application/cloudevents+json"), position=("0", 1))

    assert delivery.event.error is not None
    assert delivery.event.id == "orders#0/1"


@pytest.mark.parametrize(
    ("arrivals", "returns", "suspect"),
    [
        (None, 0, False),
        (1, 0, False),
        (2, 0, False),
        (3, 0, True),
        (3, 1, False),
        (4, 1, True),
        (20, 19, False),
        (0, 0, False),
    ],
)
def test_a_copy_is_suspect_when_two_arrivals_are_unexplained(
    arrivals: int | None, returns: int, suspect: bool
) -> None:
    assert arrival(arrivals=arrivals, returns=returns).suspect is suspect


def test_it_can_be_shown_before_and_after_it_was_read() -> None:
    bare = Delivery(PLAIN, Address("orders"))

    assert repr(bare) == "<Delivery orders attempt=? arrivals=None position=None>"
    assert repr(arrival(arrivals=2)) == "<Delivery orders attempt=1 arrivals=2 position=None>"


def test_two_arrivals_of_one_message_are_two_deliveries() -> None:
    message = message_of(ordered())

    assert arrival(message) != arrival(message)
    assert len({arrival(message), arrival(message)}) == 2


def test_an_ordinary_delivery_has_nothing_unusual_and_one_that_was_stopped_has() -> None:
    delivery = arrival()
    assert not delivery.unusual

    delivery.stopped = "lost"
    assert delivery.unusual
