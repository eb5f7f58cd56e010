"""What a commit says beside its offset."""

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brokerkit.adapters.kafka.notes import LIMIT, Note, Run, decode, encode, fits

HEADS = st.integers(0, 1 << 40)


@st.composite
def notes(draw: st.DrawFn) -> tuple[Note, int]:
    head = draw(HEADS)
    at = head
    runs: list[Run] = []
    for gap, length, arrivals, returns in draw(
        st.lists(
            st.tuples(st.integers(0, 500), st.integers(1, 500), st.integers(0, 300), st.integers(0, 300)),
            max_size=12,
        )
    ):
        runs.append(Run(at + gap, length, arrivals, returns))
        at += gap + length
    marks = {
        head + offset: mark
        for offset, mark in draw(
            st.dictionaries(st.integers(0, 5000), st.binary(max_size=40), max_size=4)
        ).items()
    }
    upto = at + draw(st.integers(0, 500))
    note = Note(
        drained=draw(st.booleans()), upto=upto, runs=runs, handed=draw(st.integers(0, 2000)), marks=marks
    )
    return note, head


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(notes())
def test_a_note_comes_back_as_it_was_written(made: tuple[Note, int]) -> None:
    note, head = made
    text, upto = encode(note, head)
    assert len(text) <= LIMIT
    assert upto == note.upto
    found = decode(text, head)
    assert found is not None
    assert replace(found, runs=list(found.runs)) == note


@given(st.text(max_size=60))
def test_what_a_stranger_has_committed_says_nothing(text: str) -> None:
    found = decode(text, 5)
    assert found is None or found.upto >= 5


@pytest.mark.parametrize("text", ["", "bk1", "bk2 open", "bk1 closed", "bk1 open !!!", "bk1 open abc", "{}"])
def test_what_cannot_be_read_is_unknown_and_never_a_crash(text: str) -> None:
    assert decode(text, 0) is None


def test_a_map_that_does_not_fit_is_cut_from_its_end_and_no_mark_is_lost() -> None:
    chance = random.Random(5)
    runs = [Run(10 * number + chance.randrange(8), 1, 1, 0) for number in range(20_000)]
    note = Note(drained=True, upto=200_000, runs=runs, marks={3: b"m" * 1000})
    text, upto = encode(note, 0)
    assert len(text) <= LIMIT
    assert 0 < upto < 200_000
    found = decode(text, 0)
    assert found is not None
    assert found.marks == note.marks
    assert found.upto == upto
    assert list(found.runs) == runs[: len(found.runs)]
    assert found.runs[-1].first + found.runs[-1].length == upto


def test_a_thousand_that_are_open_among_ten_thousand_done_ones_fit() -> None:
    runs = [Run(number * 10 + number * number % 7, 1, 1, 0) for number in range(1000)]
    text, upto = encode(Note(drained=False, upto=10_000, runs=runs), 0)
    assert (len(text) <= LIMIT, upto) == (True, 10_000)


def test_marks_leave_room_for_the_map() -> None:
    assert fits({1: bytes(range(256)) * 4}, 0)
    assert not fits({1: bytes(range(256)) * 9, 2: b"".join(bytes([n % 251, n % 7]) for n in range(2500))}, 0)
