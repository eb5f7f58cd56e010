"""Names at the broker: no two alike, and all of them legal there."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.adapters.nats import names
from brokerkit.errors import BadName
from brokerkit.names import RESERVED

WORD = st.from_regex(r"[a-z0-9]{1,6}", fullmatch=True).filter(lambda word: word not in RESERVED)
NAME = st.lists(st.tuples(st.sampled_from("-."), WORD), min_size=1, max_size=4).map(
    lambda parts: "".join(joint + word for joint, word in parts)[1:]
)
LEGAL = re.compile(r"[A-Za-z0-9_-]{1,255}")
SUBJECT = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")


@given(NAME, NAME)
def test_two_names_have_two_tokens_and_the_way_back_is_known(one: str, two: str) -> None:
    assert (names.token(one) == names.token(two)) == (one == two)
    assert names.plain(names.token(one)) == one


@given(NAME, NAME, NAME, NAME)
def test_no_two_places_share_a_stream_a_subject_or_a_durable(a: str, b: str, c: str, d: str) -> None:
    streams = {names.stream(channel, place) for channel in {a, b} for place in (None, "inlet", "dead")}
    assert len(streams) == 3 * len({a, b})
    subjects = [
        names.subject(channel, place, group)
        for channel in {a, b}
        for place in ("inlet", "dead", "members")
        for group in {c, d}
    ]
    subjects += [subject for channel in {a, b} for subject in names.partitions_in(channel, 3)]
    assert len(set(subjects)) == len(subjects)
    durables = [names.durable(group, part) for group in {c, d} for part in (None, 0, 1, 11)]
    assert len(set(durables)) == len(durables)
    assert all(LEGAL.fullmatch(name) for name in [*streams, *durables])
    assert all(SUBJECT.fullmatch(subject) for subject in subjects)


@given(NAME, NAME)
def test_no_stream_takes_a_subject_of_another_place(channel: str, group: str) -> None:
    inlets = f"{names.token(channel)}--inlet."
    for place in ("dead", "members"):
        assert not names.subject(channel, place, group).startswith(inlets)
    assert names.subject(channel, "members", group) not in names.partitions_in(channel, 300)


@pytest.mark.parametrize(
    "name", ["", "A", "a b", "a*", ">", "a..b", "a--b", "dead", "x-inlet", "é", "a\r\nPUB x 0", "x" * 81]
)
def test_what_could_mean_something_to_the_server_is_no_name(name: str) -> None:
    with pytest.raises(BadName):
        names.stream(name)
    with pytest.raises(BadName):
        names.subject("orders", "inlet", name)


@given(st.binary(max_size=64), st.integers(1, 256))
def test_a_key_has_one_partition(key: bytes, count: int) -> None:
    assert names.partition_of(key, count) == names.partition_of(key, count) < count


def test_keys_are_spread_over_the_partitions() -> None:
    counts = [0] * 8
    for number in range(2000):
        counts[names.partition_of(f"order-{number}".encode(), 8)] += 1
    assert min(counts) > 200
    assert max(counts) < 300
