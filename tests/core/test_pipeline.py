from collections.abc import Awaitable, Callable
from itertools import pairwise, permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.delivery import Delivery
from brokerkit.errors import ChainError
from brokerkit.pipeline import KINDS, Handler, Pattern, check_chain, placed, with_default, wrap
from brokerkit.settlement import ACK, Settlement
from tests.core.deliveries import arrival, examples


class Kind:
    """A pattern of some kind that notes when it is passed."""

    def __init__(self, kind: str | None, log: list[str] | None = None) -> None:
        self.kind = kind
        self.log = log if log is not None else []

    def __repr__(self) -> str:
        return str(self.kind)

    def __call__(self, handler: Handler) -> Handler:
        async def passing(delivery: Delivery) -> Settlement:
            self.log.append(str(self.kind))
            return await handler(delivery)

        return passing


def chain(*kinds: str | None) -> list[Pattern]:
    return [Kind(kind) for kind in kinds]


def bare(handler: Handler) -> Handler:
    return handler


REPEATABLE = {"bulkhead", "rate_limit"}


@given(st.lists(st.sampled_from([*KINDS, None, "mine"]), max_size=7))
@examples(150)
def test_a_chain_is_refused_just_where_it_leaves_the_default_order(kinds: list[str | None]) -> None:
    known = [kind for kind in kinds if kind in KINDS]
    allowed = all(
        KINDS.index(outer) < KINDS.index(inner) or (outer == inner and outer in REPEATABLE)
        for outer, inner in pairwise(known)
    )
    try:
        check_chain(chain(*kinds), "shop.charge")
    except ChainError:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize("pair", list(permutations(KINDS, 2)), ids="-".join)
def test_the_reason_names_both_and_the_handler(pair: tuple[str, str]) -> None:
    outer, inner = pair
    if KINDS.index(outer) < KINDS.index(inner):
        check_chain(chain(outer, inner), "shop.charge")
        return
    with pytest.raises(
        ChainError, match=rf"handler shop.charge: {inner} must stand outside \(before\) {outer}: \w+"
    ):
        check_chain(chain(outer, inner), "shop.charge")


@pytest.mark.parametrize(
    ("kinds", "because"),
    [
        (("dedupe", "rate_limit"), "waits for its turn must not hold a claim"),
        (("dedupe", "bulkhead"), "waits for a slot must not hold a claim"),
        (("timeout", "bulkhead"), "is not the handler's time"),
        (("retry", "dedupe"), "the claim covers all attempts"),
        (("timeout", "retry"), "the timeout is for one attempt"),
        (("breaker", "retry"), "sees attempts, not messages"),
        (("inbox", "retry"), "a transaction of its own"),
        (("inbox", "timeout"), "covers the commit"),
        (("inbox", "dedupe"), "must not open a transaction"),
        (("inbox", "trace"), "the order in which each keeps its promise"),
    ],
)
def test_a_stated_rule_says_why(kinds: tuple[str, str], because: str) -> None:
    with pytest.raises(ChainError, match=because):
        check_chain(chain(*kinds), "h")


@pytest.mark.parametrize("kind", KINDS)
def test_only_bulkheads_and_rate_limits_may_stand_twice(kind: str) -> None:
    if kind in REPEATABLE:
        check_chain(chain(kind, kind), "h")
        return
    with pytest.raises(ChainError, match=rf"handler h: {kind} stands twice"):
        check_chain(chain(kind, None, kind), "h")


@pytest.mark.parametrize(
    ("kinds", "kind", "result"),
    [
        ([], "retry", ["retry"]),
        (["trace"], "retry", ["trace", "retry"]),
        (["timeout"], "retry", ["retry", "timeout"]),
        (["dedupe", None, "inbox"], "retry", ["dedupe", None, "retry", "inbox"]),
        ([None], "retry", [None, "retry"]),
        (["retry"], "retry", ["retry"]),
        (["inbox"], "trace", ["trace", "inbox"]),
    ],
)
def test_a_default_is_put_where_it_belongs_unless_there_is_one(
    kinds: list[str | None], kind: str, result: list[str | None]
) -> None:
    made = with_default(chain(*kinds), kind, lambda: Kind(kind))

    assert [getattr(pattern, "kind", None) for pattern in made] == result


@given(st.lists(st.sampled_from(KINDS), unique=True), st.sampled_from(KINDS))
@examples(60)
def test_what_is_put_into_a_sound_chain_leaves_it_sound(kinds: list[str], kind: str) -> None:
    sound = chain(*sorted(kinds, key=KINDS.index))

    check_chain(with_default(sound, kind, lambda: Kind(kind)), "h")


def test_a_pattern_is_put_inside_those_of_its_own_kind() -> None:
    first, second = Kind("bulkhead"), Kind("bulkhead")

    assert placed([first, *chain("retry")], "bulkhead", second)[:2] == [first, second]


async def test_the_first_in_the_list_is_the_outermost() -> None:
    log: list[str] = []

    async def endpoint(_: Delivery) -> Settlement:
        log.append("endpoint")
        return ACK

    wrapped: Callable[[Delivery], Awaitable[Any]] = wrap(endpoint, [Kind("a", log), Kind("b", log), bare])

    assert await wrapped(arrival()) is ACK
    assert log == ["a", "b", "endpoint"]
    assert wrap(endpoint, []) is endpoint
