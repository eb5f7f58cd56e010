"""What channels and groups are called at the broker."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.adapters.kafka.names import RUNGS, Names
from brokerkit.errors import BadName, ConfigurationError
from brokerkit.message import Address
from brokerkit.names import RESERVED

WORDS = st.from_regex(r"[a-z0-9]{1,6}([-.][a-z0-9]{1,6}){0,3}", fullmatch=True).filter(
    lambda name: not RESERVED.intersection(re.split(r"[-.]", name))
)
LEGAL = re.compile(r"[A-Za-z0-9._-]{1,249}")


def places(channel: str, group: str) -> list[Address]:
    return [Address(channel), Address(channel, group, "inlet"), Address(channel, group, "dead")]


def topics(names: Names, channel: str, group: str) -> dict[str, object]:
    at = Address(channel, group, "inlet")
    found: dict[str, object] = {
        names.channel(channel): channel,
        names.inlet(at): (channel, group, "inlet"),
        names.dead(at): (channel, group, "dead"),
    }
    return found | {names.rung(at, seconds): (channel, group, seconds) for seconds in RUNGS}


@given(WORDS, WORDS, WORDS, WORDS)
def test_no_two_places_share_a_topic_and_no_two_groups_a_consumer_group(
    one: str, two: str, group: str, other: str
) -> None:
    names = Names()
    for channel, name in ((one, group), (two, other), (one, other), (two, group)):
        assert len(topics(names, channel, name)) == len(RUNGS) + 3
    first, second = topics(names, one, group), topics(names, two, other)
    assert all(first[topic] == second[topic] for topic in first.keys() & second.keys())
    pairs = {(one, group), (two, other), (one, other), (two, group)}
    ids = {names.group(at) for channel, name in pairs for at in places(channel, name)[1:]}
    assert len(ids) == 2 * len(pairs)


@given(WORDS, WORDS)
def test_every_topic_is_legal_and_a_group_is_read_back(channel: str, group: str) -> None:
    names = Names()
    assert all(LEGAL.fullmatch(topic) and "_" not in topic for topic in topics(names, channel, group))
    assert names.read_group(names.group(Address(channel, group, "inlet"))) == (channel, group)
    assert names.read_group(names.group(Address(channel, group, "dead"))) is None


def test_a_name_that_is_too_long_for_the_broker_is_refused() -> None:
    with pytest.raises(BadName, match="at most 249"):
        Names().inlet(Address("c" * 200, "g" * 80, "inlet"))


def test_adopted_names_are_used_and_what_stands_beside_them_is_called_after_ours() -> None:
    names = Names({"orders": "Legacy_Orders", "orders/billing": "old billing group"})
    at = Address("orders", "billing", "inlet")
    assert names.channel("orders") == "Legacy_Orders"
    assert names.group(at) == "old billing group"
    assert names.inlet(at) == "orders--billing--inlet"
    assert names.read_group("old billing group") == ("orders", "billing")
    assert names.adopted(at)
    assert not names.adopted(Address("other"))


@pytest.mark.parametrize("theirs", ["", "a b", "ü", "..", "x" * 250])
def test_an_adopted_topic_name_that_cannot_be_one_is_refused(theirs: str) -> None:
    with pytest.raises(ConfigurationError, match="native 'orders'"):
        Names({"orders": theirs})


def test_two_channels_cannot_be_one_topic() -> None:
    with pytest.raises(ConfigurationError, match="two channels"):
        Names({"a": "t", "b": "t"})
