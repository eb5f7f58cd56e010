"""Names at SQS are legal, and no two of ours are one of theirs."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.adapters.sqs.names import (
    channel_prefix,
    group_queue,
    group_queues,
    queue_name,
    topic_name,
    unrouted_name,
)
from brokerkit.message import Address
from brokerkit.names import RESERVED

LEGAL = re.compile(r"[A-Za-z0-9_-]{1,75}(\.fifo|[A-Za-z0-9_-]{0,5})")

words = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=20).filter(
    lambda word: word not in RESERVED
)
names = (
    st.lists(words, min_size=1, max_size=8)
    .flatmap(
        lambda parts: st.lists(st.sampled_from(".-"), min_size=len(parts) - 1, max_size=len(parts) - 1).map(
            lambda joints: "".join(a + b for a, b in zip(parts, [*joints, ""], strict=True))
        )
    )
    .filter(lambda name: len(name) <= 80)
)


def all_of(channel: str, group: str) -> list[str]:
    """Return every queue name that a channel and a group may have."""
    places = [Address(channel, group, place) for place in ("inlet", "dead")]
    made = [queue_name(at, fifo=fifo) for at in places for fifo in (False, True)]
    return [
        *dict.fromkeys(made),
        group_queue(channel, group),
        group_queue(channel, group, fifo=True),
    ]


@given(names, names)
def test_every_name_is_one_that_sqs_takes(channel: str, group: str) -> None:
    for name in [*all_of(channel, group), unrouted_name(channel)]:
        assert LEGAL.fullmatch(name), name
        assert len(name) <= 80
    for fifo in (False, True):
        assert len(topic_name(channel, fifo=fifo)) <= 256


@given(names, names, names, names)
def test_no_two_places_have_one_queue(channel: str, group: str, other_channel: str, other_group: str) -> None:
    if (channel, group) == (other_channel, other_group):
        return
    mine, others = all_of(channel, group), all_of(other_channel, other_group)
    assert len(set(mine)) == len(mine)
    assert not set(mine) & set(others)
    assert unrouted_name(channel) not in {*mine, *others}


@given(names, names, names)
def test_a_listing_by_prefix_finds_the_groups_of_a_channel_and_no_others(
    channel: str, other: str, group: str
) -> None:
    listed = [*all_of(channel, group), *all_of(other, group), unrouted_name(channel)]
    found = group_queues(channel, [name for name in listed if name.startswith(channel_prefix(channel))])
    assert set(found) == {group_queue(channel, group), group_queue(channel, group, fifo=True)}


def test_short_names_can_be_read() -> None:
    at = Address("shop.orders-eu", "billing", "inlet")
    assert group_queue("shop.orders-eu", "billing") == "shop_orders-eu--billing"
    assert queue_name(at, fifo=False) == "shop_orders-eu--billing--inlet"
    assert queue_name(at, fifo=True) == "shop_orders-eu--billing--inlet.fifo"
    dead = Address("shop.orders-eu", "billing", "dead")
    assert queue_name(dead, fifo=True) == queue_name(dead, fifo=False) == "shop_orders-eu--billing--dead"


def test_a_channel_has_no_queue_of_its_own() -> None:
    with pytest.raises(ValueError, match="is a channel"):
        queue_name(Address("orders"), fifo=False)
