"""Names: no two things of one kind share one, and every one is legal at the broker."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.adapters.rabbitmq import names
from brokerkit.errors import BadName
from brokerkit.message import Address
from brokerkit.names import check_name

WORDS = st.sampled_from(
    ["a", "b", "1", "p0", "p1", "strict", "unrouted", "kept", "split", "members", "amq", "x" * 20]
)
NAMES = st.lists(st.tuples(WORDS, st.sampled_from("-.")), min_size=1, max_size=3).map(
    lambda parts: "".join(word + joint for word, joint in parts)[:-1]
)
PAIR = st.tuples(NAMES.filter(lambda name: not name.startswith("amq.")), NAMES)


def queues(channel: str, group: str) -> dict[str, tuple[str, ...]]:
    """Return every queue of a group and of its channel, by what it is."""
    made: dict[str, tuple[str, ...]] = {
        names.queue(channel, group): ("queue", channel, group),
        names.inlet_queue(channel, group): ("inlet", channel, group),
        names.dead_queue(channel, group): ("dead", channel, group),
        names.unrouted_queue(channel): ("unrouted", channel),
    }
    made |= {names.part_queue(channel, group, part): ("part", channel, group, str(part)) for part in range(3)}
    made |= {
        names.rung_queue(channel, group, rung): ("rung", channel, group, str(rung)) for rung in names.RUNGS
    }
    assert len(made) == 4 + 3 + len(names.RUNGS)
    return made


def exchanges(channel: str, group: str) -> dict[str, tuple[str, ...]]:
    ours: list[Callable[[str, str], str]] = [
        names.return_exchange,
        names.split_exchange,
        names.members_exchange,
    ]
    made: dict[str, tuple[str, ...]] = {
        make(channel, group): (make.__name__, channel, group) for make in ours
    }
    made |= {
        make(channel): (make.__name__, channel)
        for make in (names.exchange, names.strict_exchange, names.unrouted)
    }
    assert len(made) == 6
    return made


@given(PAIR, PAIR)
def test_no_two_queues_and_no_two_exchanges_share_a_name(one: tuple[str, str], two: tuple[str, str]) -> None:
    for kind in (queues, exchanges):
        first, second = kind(*one), kind(*two)
        for name in first.keys() & second.keys():
            assert first[name] == second[name], name


@given(PAIR)
def test_every_name_is_short_enough_and_none_is_the_broker_s_own(pair: tuple[str, str]) -> None:
    check_name("channel", pair[0])
    for name in (*queues(*pair), *exchanges(*pair)):
        assert len(name.encode()) <= 255
        assert not name.startswith("amq.")


def test_a_group_called_unrouted_does_not_get_what_nobody_has_asked_for() -> None:
    assert names.queue("orders", "unrouted") != names.unrouted_queue("orders")


@pytest.mark.parametrize("channel", ["amq.direct", "amq.x", "A", "a--b", "retry", ""])
def test_a_bad_name_is_refused_before_anything_connects(channel: str) -> None:
    with pytest.raises(BadName):
        names.check_address(Address(channel))


def test_a_bad_group_is_refused() -> None:
    with pytest.raises(BadName):
        names.check_address(Address("orders", "dead", "inlet"))
