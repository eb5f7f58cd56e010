"""Slots: how they are shared, and that none moves while something of it is out."""

from collections.abc import Callable, Sequence

import pytest

from brokerkit.adapters.sqlite.claims import Claimed
from tests.adapters.sqlite.store import Store, bodies

OpenStore = Callable[..., Store]


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store("key")


def sizes(store: Store, members: Sequence[int]) -> list[int]:
    return [len(store.slots(member)) for member in members]


def test_a_share_is_the_slots_by_the_members_rounded_up(store: Store) -> None:
    members = [store.join() for _ in range(3)]
    for _ in range(2):
        for member in members:
            store.balance(member)
    assert sizes(store, members) == [22, 22, 20]


def test_a_member_that_joins_gets_its_share_when_the_others_have_finished(store: Store) -> None:
    old = store.join()
    store.publish(*((f"k{number}", str(number)) for number in range(200)))
    rows = store.claim(old, 200)
    new = store.join()
    assert store.balance(old), "nothing can be released yet"
    store.balance(new)
    assert sizes(store, [old, new]) == [64, 0]
    store.end(old, rows)
    assert not store.balance(old)
    store.balance(new)
    assert sizes(store, [old, new]) == [32, 32]


def test_nothing_new_is_claimed_from_a_slot_that_is_to_be_released(store: Store) -> None:
    old = store.join()
    store.publish(*((f"k{number}", "1") for number in range(200)))
    out = store.claim(old, 200)
    store.join()
    store.publish(*((f"k{number}", "2") for number in range(200)))
    more = store.claim(old, 400)
    surplus = {row.slot for row in out} - {row.slot for row in more}
    assert len({row.slot for row in more}) <= 32
    assert surplus


def test_a_key_is_never_out_at_two_members(store: Store) -> None:
    old = store.join()
    keys = [f"k{number}" for number in range(100)]
    store.publish(*((key, "1") for key in keys))
    out = store.claim(old, 100)
    new = store.join()
    store.publish(*((key, "2") for key in keys))
    for step in range(0, 100, 10):
        store.end(old, out[step : step + 10])
        held = {row.key for row in out[step + 10 :]}
        assert held.isdisjoint(row.key for row in store.claim(new, 100))
        store.balance(old)


def test_a_free_slot_is_taken_by_whoever_is_below_the_share(store: Store) -> None:
    dead, alive = store.join(), store.join()
    store.balance(dead)
    store.balance(alive)
    assert sizes(store, [dead, alive]) == [32, 32]
    store.expire(dead)
    store.claim(alive)
    assert sizes(store, [alive]) == [64]


def test_a_declared_dead_member_takes_no_slots(store: Store) -> None:
    dead = store.join()
    store.expire(dead)
    assert not store.balance(dead)
    assert sizes(store, [dead]) == [0]


def test_a_slot_changes_hands_without_an_inversion(store: Store) -> None:
    members = [store.join()]
    seen: dict[bytes | None, list[int]] = {}
    numbers = {f"k{key}": 0 for key in range(80)}
    held: dict[int, list[Claimed]] = {}
    for round_ in range(40):
        for key in numbers:
            numbers[key] += 1
        store.publish(*((key, str(number)) for key, number in numbers.items()))
        if round_ % 8 == 3 and len(members) < 4:
            members.append(store.join())
        if round_ % 8 == 7:
            gone = members.pop(0)
            store.leave(gone) if round_ % 16 == 7 else store.expire(gone)
            held.pop(gone, None)
            members.append(store.join())
        for member in members:
            out = held.pop(member, [])
            for row in out:
                seen.setdefault(row.key, []).append(int(row.body))
            assert all(store.end(member, out))
            store.balance(member)
            held[member] = store.claim(member, 60)
    for member in members:
        store.end(member, held[member])
        for row in held[member]:
            seen.setdefault(row.key, []).append(int(row.body))
        store.leave(member)
    last = store.join()
    while rows := store.claim(last, 1000):
        store.end(last, rows)
        for row in rows:
            seen.setdefault(row.key, []).append(int(row.body))
    assert all(order == list(range(1, 41)) for order in seen.values())
    assert len(seen) == 80
    assert bodies(store.claim(last)) == []
