"""Headers packed and unpacked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.message import Header
from brokerkit.packing import NAME, pack, unpack

names = st.sampled_from(["a", "A", "b", "trace", "bk-packed", "BK-Packed", "x-y"])
headers = st.lists(st.tuples(names, st.one_of(st.text(), st.binary())), max_size=8).map(tuple)


def plain(name: str, value: str) -> bool:
    return value.isascii() and value.isprintable()


@given(headers)
def test_headers_come_back_with_order_repetition_and_bytes(given: tuple[Header, ...]) -> None:
    native, packed = pack(given, plain)
    assert unpack(native, packed) == given


@given(headers)
def test_what_travels_is_what_the_broker_carries_each_name_once_and_printable_ascii(
    given: tuple[Header, ...],
) -> None:
    native, packed = pack(given, plain)
    assert all(plain(name, value) for name, value in native)
    lowered = [name.lower() for name, _ in native]
    assert len(set(lowered)) == len(lowered)
    assert NAME not in lowered
    assert packed is None or (packed.isascii() and packed.isprintable())


def test_plain_headers_are_not_packed() -> None:
    assert pack((("a", "1"), ("b", "2")), plain) == ([("a", "1"), ("b", "2")], None)


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "x",
        "{}",
        "7",
        "[7]",
        "[[0]]",
        '[[-1,"a","b"]]',
        '[[true,"a","b"]]',
        '[[0,"a",7]]',
        '[[0,"a",{"b":"!"}]]',
        '[[0,"a",{"b":7}]]',
        "[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_a_stranger_has_put_under_our_name_stays_a_header(garbage: str | bytes) -> None:
    assert unpack([("a", "1")], garbage) == (("a", "1"), (NAME, garbage))


def test_an_index_behind_the_end_is_the_end() -> None:
    assert unpack([("a", "1")], '[[99,"b","2"]]') == (("a", "1"), ("b", "2"))
