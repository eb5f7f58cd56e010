"""Who should own what: even, steady, and the same for everybody who knows the same."""

from hypothesis import given
from hypothesis import strategies as st

from brokerkit.adapters.nats.shares import shares

MEMBERS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.sets(st.integers(0, 11), max_size=12), max_size=8
)
COUNTS = st.integers(1, 12)


@given(COUNTS, MEMBERS)
def test_every_partition_has_one_owner_and_shares_differ_by_one_at_most(
    count: int, owned: dict[str, set[int]]
) -> None:
    plan = shares(count, owned)
    if not owned:
        assert plan == {}
        return
    assert plan.keys() == set(range(count))
    sizes = [list(plan.values()).count(member) for member in owned]
    assert max(sizes) - min(sizes) <= 1


@given(COUNTS, MEMBERS)
def test_what_is_even_already_stays_as_it_is(count: int, owned: dict[str, set[int]]) -> None:
    plan = shares(count, owned)
    again = shares(
        count, {member: {part for part, owner in plan.items() if owner == member} for member in owned}
    )
    assert again == plan


@given(COUNTS, MEMBERS, st.text("xyz", min_size=1, max_size=2))
def test_who_joins_takes_from_others_and_moves_nothing_between_them(
    count: int, owned: dict[str, set[int]], joins: str
) -> None:
    before = shares(count, owned)
    held = {member: {part for part, owner in before.items() if owner == member} for member in owned}
    after = shares(count, {**held, joins: set()})
    for part, owner in before.items():
        assert after[part] in {owner, joins}


@given(COUNTS, MEMBERS)
def test_who_leaves_moves_only_what_it_had(count: int, owned: dict[str, set[int]]) -> None:
    before = shares(count, owned)
    for leaver in owned:
        held = {
            member: {part for part, owner in before.items() if owner == member}
            for member in owned
            if member != leaver
        }
        after = shares(count, held)
        for part, owner in after.items():
            assert owner == before[part] or before[part] == leaver
