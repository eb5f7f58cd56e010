"""A message survives its row."""

from hypothesis import given
from hypothesis import strategies as st

from brokerkit.adapters.sqlite.row import message_of, row_of, slot_of
from brokerkit.message import Message

NAMES = st.text(min_size=1, max_size=8)
VALUES = st.one_of(st.text(max_size=20), st.binary(max_size=20))


@given(
    body=st.binary(max_size=50),
    key=st.none() | st.binary(max_size=10),
    content_type=st.none() | st.text(max_size=20),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=6),
)
def test_body_key_type_and_headers_come_back_as_they_were(
    body: bytes, key: bytes | None, content_type: str | None, headers: list[tuple[str, str | bytes]]
) -> None:
    message = Message(body=body, key=key, content_type=content_type, headers=tuple(headers))
    assert message_of(*row_of(message)) == message


def test_a_lone_surrogate_survives() -> None:
    message = Message(body=b"", headers=(("x", "\ud800"),))
    assert message_of(*row_of(message)) == message


def test_the_slot_of_a_key_never_changes() -> None:
    assert [slot_of(b"order-17", 5), slot_of(b"order-17", 6), slot_of(b"", 1)] == [20, 20, 0]


def test_messages_without_a_key_are_spread() -> None:
    assert {slot_of(None, seq) for seq in range(64)} == set(range(64))
