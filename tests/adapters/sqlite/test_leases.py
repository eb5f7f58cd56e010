"""Who has which message: claims, endings and deaths on the synchronous core."""

from collections.abc import Callable

import pytest

from brokerkit.adapter import Order
from brokerkit.adapters.sqlite import leases
from brokerkit.adapters.sqlite.leases import Receipt
from brokerkit.adapters.sqlite.transaction import Transaction
from brokerkit.errors import ConfigurationError
from tests.adapters.sqlite.store import Store, bodies, receipt

OpenStore = Callable[..., Store]
BOTH: tuple[Order, Order] = ("none", "key")


@pytest.mark.parametrize("order", BOTH)
def test_what_one_member_has_nobody_else_gets(open_store: OpenStore, order: Order) -> None:
    store = open_store(order)
    first = store.join()
    store.publish(("a", "1"), ("b", "2"))
    assert bodies(store.claim(first)) == ["1", "2"]
    assert store.claim(store.join()) == []


@pytest.mark.parametrize("order", BOTH)
def test_a_dead_members_messages_come_first_and_count_as_arrivals_but_not_as_returns(
    open_store: OpenStore, order: Order
) -> None:
    store = open_store(order)
    dead = store.join()
    store.publish(("a", "1"), ("a", "2"))
    store.claim(dead)
    store.publish(("a", "3"))
    store.expire(dead)
    rows = store.claim(store.join())
    assert bodies(rows) == ["1", "2", "3"]
    assert [(row.arrivals, row.returns) for row in rows] == [(2, 0), (2, 0), (1, 0)]


@pytest.mark.parametrize("order", BOTH)
def test_a_polite_leaver_returns_everything_in_order_as_returns(open_store: OpenStore, order: Order) -> None:
    store = open_store(order)
    leaver = store.join()
    store.publish(("a", "1"), ("a", "2"))
    store.claim(leaver)
    store.publish(("a", "3"))
    store.leave(leaver)
    rows = store.claim(store.join())
    assert [(row.body, row.arrivals, row.returns) for row in rows] == [
        (b"1", 2, 1),
        (b"2", 2, 1),
        (b"3", 1, 0),
    ]


@pytest.mark.parametrize("order", BOTH)
def test_a_declared_dead_member_can_end_nothing_any_more(open_store: OpenStore, order: Order) -> None:
    store = open_store(order)
    frozen = store.join()
    store.publish(("a", "1"), ("a", "2"))
    old = store.claim(frozen)
    store.expire(frozen)
    other = store.join()
    new = store.claim(other)
    assert store.end(frozen, old[:1]) == [False]
    assert store.end(frozen, old[1:], after=0) == [False]
    assert store.end(other, new) == [True, True]


def test_a_declared_dead_member_can_claim_nothing_any_more(open_store: OpenStore) -> None:
    store = open_store()
    frozen = store.join()
    store.publish(("a", "1"))
    store.expire(frozen)
    assert store.do(lambda tx: leases.claim(tx, store.place, frozen, 1)).gone
    assert bodies(store.claim(store.join())) == ["1"]


def test_an_ending_of_an_earlier_arrival_does_not_end_the_later_one(open_store: OpenStore) -> None:
    store = open_store()
    member = store.join()
    store.publish(("a", "1"))
    old = store.claim(member)
    assert store.end(member, old, after=0) == [True]
    new = store.claim(member)
    assert store.end(member, old) == [False]
    assert store.end(member, new) == [True]


def test_one_stale_delivery_in_a_batch_harms_only_itself(open_store: OpenStore) -> None:
    store = open_store()
    member = store.join()
    store.publish(("a", "1"), ("a", "2"), ("a", "3"))
    rows = store.claim(member)
    store.end(member, rows[1:2])
    assert store.end(member, rows) == [True, False, True]
    store.expire(member)
    assert store.claim(store.join()) == []


def test_two_endings_of_one_delivery_in_a_batch_are_one_success(open_store: OpenStore) -> None:
    store = open_store()
    member = store.join()
    store.publish(("a", "1"))
    (row,) = store.claim(member)
    mine = receipt(member, row)
    outcomes = store.do(lambda tx: leases.settle(tx, store.place.id, [(mine, 0.0), (mine, None)]))
    assert outcomes == [True, False]
    assert bodies(store.claim(member)) == ["1"]


def test_member_numbers_are_never_used_again(open_store: OpenStore) -> None:
    store = open_store()
    first = store.join()
    store.leave(first)
    second = store.join()
    store.expire(second)
    assert len({first, second, store.join()}) == 3


@pytest.mark.parametrize("order", BOTH)
def test_a_returned_message_is_not_handed_out_before_it_is_due(open_store: OpenStore, order: Order) -> None:
    store = open_store(order)
    member = store.join()
    store.publish(("a", "1"))
    store.end(member, store.claim(member), after=5.0)
    store.clock.now += 4.999
    found = store.do(lambda tx: leases.claim(tx, store.place, member, 10))
    assert found.rows == []
    assert found.due == pytest.approx(store.clock.now + 0.001, abs=1e-6)
    store.clock.now += 0.002
    assert bodies(store.claim(member)) == ["1"]


def test_a_held_back_key_keeps_its_order_and_holds_up_no_other(open_store: OpenStore) -> None:
    store = open_store("key")
    member = store.join()
    store.publish(("a", "a1"), ("a", "a2"), ("b", "b1"))
    first = store.claim(member, 1)
    store.end(member, first, after=5.0)
    assert bodies(store.claim(member)) == ["b1"]
    store.publish(("b", "b2"), ("a", "a3"))
    assert bodies(store.claim(member)) == ["b2"]
    store.clock.now += 6
    assert bodies(store.claim(member)) == ["a1", "a2", "a3"]


def test_a_held_back_key_survives_a_change_of_owner(open_store: OpenStore) -> None:
    store = open_store("key")
    dead = store.join()
    store.publish(("a", "a1"), ("a", "a2"))
    store.end(dead, store.claim(dead, 1), after=5.0)
    assert store.claim(dead) == []
    store.expire(dead)
    heir = store.join()
    assert store.claim(heir) == []
    store.clock.now += 6
    assert bodies(store.claim(heir)) == ["a1", "a2"]


def test_a_crowd_behind_one_key_does_not_stop_the_other_slots(open_store: OpenStore) -> None:
    store = open_store("key")
    member = store.join()
    store.publish(("a", "a0"))
    store.end(member, store.claim(member), after=5.0)
    store.publish(*(("a", f"a{number}") for number in range(1, 2500)))
    store.publish(("b", "b1"), ("c", "c1"))
    seen: list[str] = []
    for _ in range(10):
        seen += bodies(store.claim(member))
    assert sorted(seen) == ["b1", "c1"]
    store.clock.now += 6
    late: list[str] = []
    while rows := store.claim(member, 500):
        late += bodies(rows)
    assert late == [f"a{number}" for number in range(2500)]


def test_a_delayed_copy_holds_up_nothing(open_store: OpenStore) -> None:
    store = open_store("key")
    member = store.join()
    store.copy("a", "later", after=3600)
    store.publish(("a", "1"))
    assert bodies(store.claim(member)) == ["1"]
    store.clock.now += 3601
    assert bodies(store.claim(member)) == ["later"]


def test_changing_the_order_mode_neither_loses_nor_doubles(open_store: OpenStore) -> None:
    store = open_store("none")
    member = store.join()
    store.publish(*((f"k{number}", str(number)) for number in range(20)))
    seen = bodies(store.claim(member, 7))
    store.end(member, store.claim(member, 3), after=0)
    store.leave(member)
    by_key = open_store("key")
    first, second = by_key.join(), by_key.join()
    by_key.balance(first)
    assert by_key.claim(first, 16)[-1].seq > 12, "this slot is ahead of those that nobody owns"
    by_key.leave(first)
    by_key.expire(second)
    again = open_store("none")
    rest = again.claim(again.join(), 100)
    assert sorted(bodies(rest), key=int) == [str(number) for number in range(20)]
    assert set(seen) <= set(bodies(rest))


def test_a_living_member_keeps_the_order_mode(open_store: OpenStore) -> None:
    store = open_store("none")
    member = store.join()
    with pytest.raises(ConfigurationError, match="order='none'"):
        open_store("key")
    store.leave(member)
    assert open_store("key").place.mode == "key"


def test_a_claim_by_key_passes_a_long_stretch_of_foreign_messages(open_store: OpenStore) -> None:
    store = open_store("key")
    member = store.join()
    store.publish(("a", "1"))
    store.do(lambda tx: tx.execute("UPDATE counter SET last = last + 1000000"))
    store.publish(("a", "2"))
    assert bodies(store.claim(member, 1)) == ["1"]
    assert bodies(store.claim(member, 1)) == ["2"]


def test_a_claim_stops_at_16_mib_of_bodies(open_store: OpenStore) -> None:
    store = open_store()
    member = store.join()
    for _ in range(3):
        store.publish(("a", "x" * (9 * 1024 * 1024)))
    assert [len(store.claim(member)), len(store.claim(member))] == [2, 1]


def waiting(store: Store, member: int) -> int:
    (flag,) = store.do(lambda tx: tx.execute("SELECT waiting FROM member WHERE id = ?", (member,)).fetchone())
    return int(flag)


def marked(store: Store, receipt: Receipt, blob: bytes | None) -> list[bool]:
    return store.do(lambda tx: leases.mark(tx, store.place.id, [(receipt, blob)]))


def marks(store: Store) -> list[bytes | None]:
    return store.do(lambda tx: [row[0] for row in tx.execute("SELECT mark FROM pending ORDER BY seq")])


def test_who_finds_nothing_is_noted_as_waiting_until_it_finds_something(open_store: OpenStore) -> None:
    store = open_store()
    member = store.join()
    assert store.claim(member) == []
    assert waiting(store, member) == 1
    store.publish(("a", "1"))
    assert bodies(store.claim(member)) == ["1"]
    assert waiting(store, member) == 0
    assert store.claim(member) == []
    assert waiting(store, member) == 1


def test_a_mark_is_written_and_erased_by_the_owner_of_this_arrival_only(open_store: OpenStore) -> None:
    store = open_store()
    member, other = store.join(), store.join()
    store.publish(("a", "1"), ("b", "2"))
    mine, beside = (receipt(member, row) for row in store.claim(member, 2))
    assert marked(store, mine, b"x") == [True]
    assert marks(store) == [b"x", None]
    assert marked(store, mine._replace(owner=other), b"y") == [False]
    assert marked(store, mine._replace(arrivals=7), b"y") == [False]
    assert marks(store) == [b"x", None]
    assert marked(store, beside, b"z") == marked(store, mine, None) == [True]
    assert marks(store) == [None, b"z"]


def test_an_acked_copy_leaves_no_row_behind(open_store: OpenStore) -> None:
    store = open_store()
    member = store.join()
    store.copy("a", "1")
    assert store.end(member, store.claim(member)) == [True]
    assert store.do(lambda tx: tx.execute("SELECT count(*) FROM message").fetchone()) == (0,)


@pytest.mark.parametrize("order", BOTH)
def test_a_look_says_what_is_there_and_what_is_due_next(open_store: OpenStore, order: Order) -> None:
    store = open_store(order)
    member = store.join()

    def look() -> tuple[bool, float | None]:
        return store.do(lambda tx: leases.peek(tx, store.place, member))

    store.claim(member)
    assert look() == (False, None)
    store.copy("a", "later", after=5.0)
    found = store.do(lambda tx: leases.claim(tx, store.place, member, 10))
    assert (found.rows, found.due) == ([], store.clock.now + 5.0)
    assert look() == (False, store.clock.now + 5.0)
    store.publish(("a", "now"))
    assert look()[0]
    assert bodies(store.claim(member)) == ["now"]
    store.clock.now += 5.0
    assert look()[0]


def test_in_order_a_return_holds_back_its_key_and_is_what_is_due_next(open_store: OpenStore) -> None:
    store = open_store("key")
    member = store.join()
    store.publish(("a", "1"))
    assert store.end(member, store.claim(member), after=7.0) == [True]
    found = store.do(lambda tx: leases.claim(tx, store.place, member, 10))
    assert (found.rows, found.due) == ([], store.clock.now + 7.0)


def test_a_member_that_is_gone_balances_nothing_and_one_with_too_much_says_so(open_store: OpenStore) -> None:
    store = open_store("key")
    first = store.join()
    store.publish(*((f"k{number}", "x") for number in range(500)))
    assert len(store.claim(first, 500)) == 500
    assert not store.balance(first)
    second = store.join()
    assert store.balance(first)
    surplus = store.do(lambda tx: leases.claim(tx, store.place, first, 1)).surplus
    assert surplus is True
    store.leave(first)
    assert not store.balance(first)
    assert store.balance(second) is False


def test_who_takes_as_much_as_it_asked_for_wakes_the_next_that_waits(open_store: OpenStore) -> None:
    store = open_store()
    first, second = store.join(), store.join()
    assert store.claim(second) == []
    store.publish(("a", "1"), ("b", "2"), ("c", "3"))
    store.claim(second, 0)

    def woken(limit: int) -> set[int]:
        def work(tx: Transaction) -> set[int]:
            tx.execute("UPDATE member SET waiting = 1 WHERE id = ?", (second,))
            leases.claim(tx, store.place, first, limit)
            return set(tx.wakes)

        return store.do(work)

    assert woken(1) == {second}
    assert woken(10) == set()


def test_a_return_wakes_who_waits_for_it(open_store: OpenStore) -> None:
    store = open_store()
    first, second = store.join(), store.join()
    store.publish(("a", "1"))
    rows = store.claim(first)
    assert store.claim(second) == []

    def work(tx: Transaction) -> set[int]:
        leases.settle(tx, store.place.id, [(receipt(first, rows[0]), 0.0)])
        return set(tx.wakes)

    assert store.do(work) == {second}
