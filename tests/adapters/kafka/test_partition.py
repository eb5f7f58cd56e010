"""What a member knows of a partition: against a model, over many owners and every way in which one can leave."""

import random

import pytest

from brokerkit.adapters.kafka.notes import Note, Run, decode
from brokerkit.adapters.kafka.partition import Partition
from brokerkit.delivery import Delivery
from brokerkit.message import Address, Message

AT = Address("c")
NOBODY: frozenset[int] = frozenset()


def partition(head: int = 0, note: Note | None = None, *, end: int = 1_000, slack: int = 50) -> Partition:
    part = Partition("c", 0, AT)
    part.adopt(head, note, end=end, slack=slack)
    return part


def take(part: Partition, offsets: range) -> list[Delivery]:
    """Read what lies at these offsets, and return what is handed out."""
    taken: list[Delivery] = []
    for offset in offsets:
        known = part.known(offset)
        if known is None:
            continue
        delivery = Delivery(
            Message(body=b""),
            AT,
            part,
            arrivals=known[0],
            returns=known[1],
            position=("c-0", offset),
            mark=part.marks.get(offset),
        )
        part.open[offset] = delivery
        taken.append(delivery)
    part.read_upto(offsets.stop)
    return taken


def offset_of(delivery: Delivery) -> int:
    assert delivery.position is not None
    return delivery.position[1]


def finish(part: Partition, deliveries: list[Delivery]) -> None:
    for delivery in deliveries:
        assert part.finish(delivery, offset_of(delivery))


def heir(part: Partition, *, drained: bool, buffered: frozenset[int] = NOBODY, end: int = 1_000) -> Partition:
    """Commit, and let the next owner take over."""
    head, text = part.note(buffered, drained=drained)
    return partition(head, decode(text, head), end=end)


def test_a_slow_head_keeps_the_commit_and_the_next_owner_gets_only_what_is_not_done() -> None:
    part = partition()
    taken = take(part, range(65))
    finish(part, taken[1:])
    assert part.head == 0
    following = heir(part, drained=True)
    assert [offset_of(each) for each in take(following, range(70))] == [0, 65, 66, 67, 68, 69]


def test_a_finished_delivery_does_not_finish_its_successor() -> None:
    part = partition()
    (old,) = take(part, range(1))
    new = Delivery(old.message, AT, part, position=old.position)
    part.replace(0, new)
    assert not part.finish(old, 0)
    assert part.finish(new, 0)
    assert not part.finish(new, 0)


def test_arrivals_and_polite_returns_are_told_apart_over_owners() -> None:
    part = partition()
    take(part, range(1))
    for number in range(1, 4):
        part = heir(part, drained=True)
        (delivery,) = take(part, range(1))
        assert (delivery.arrivals, delivery.returns, delivery.suspect) == (number + 1, number, False)
    for number in range(1, 3):
        part = heir(part, drained=False)
        (delivery,) = take(part, range(1))
        assert (delivery.arrivals, delivery.returns, delivery.suspect) == (4 + number, 3, number == 2)


def test_what_was_read_and_never_handed_out_counts_no_arrival_when_its_owner_drains() -> None:
    part = partition()
    taken = take(part, range(4))
    part = heir(part, drained=True, buffered=frozenset(map(id, taken[2:])))
    assert [(each.arrivals, each.returns) for each in take(part, range(4))] == [
        (2, 1),
        (2, 1),
        (1, 0),
        (1, 0),
    ]


def test_after_a_crash_what_came_since_the_last_commit_may_have_been_in_hand_and_what_is_newer_not() -> None:
    part = partition()
    finish(part, take(part, range(10)))
    part = heir(part, drained=False, end=14)
    assert part.careful
    assert [each.arrivals for each in take(part, range(10, 20))] == [2, 2, 2, 2, *[1] * 6]
    assert not part.careful


def test_no_commit_or_a_stranger_s_one_makes_no_suspect() -> None:
    part = partition(5, decode("somebody else's", 5))
    assert not part.careful
    assert [each.arrivals for each in take(part, range(5, 8))] == [1, 1, 1]


def test_a_map_beyond_the_end_of_the_log_is_not_believed() -> None:
    note = Note(drained=True, upto=40, runs=[Run(10, 1, 1, 0)])
    part = partition(10, note, end=20)
    assert len(take(part, range(10, 20))) == 10


def test_what_lies_before_the_commit_is_never_taken_for_done() -> None:
    part = partition(10, Note(drained=True, upto=40, runs=[Run(10, 1, 1, 0)]))
    assert len(take(part, range(3, 8))) == 5


def test_an_owner_that_reads_nothing_hands_the_map_on() -> None:
    part = partition()
    taken = take(part, range(10))
    finish(part, taken[3:7])
    part = heir(heir(heir(part, drained=True), drained=True), drained=False)
    assert [offset_of(each) for each in take(part, range(10))] == [0, 1, 2, 7, 8, 9]


def test_a_mark_goes_to_the_next_owner_and_ends_with_its_message() -> None:
    part = partition()
    taken = take(part, range(3))
    part.marks = {0: b"a", 1: b"b"}
    finish(part, taken[:1])
    part = heir(part, drained=False)
    assert {offset_of(each): each.mark for each in take(part, range(1, 3))} == {1: b"b", 2: None}


def test_a_log_that_was_cut_moves_the_head_back() -> None:
    part = partition()
    take(part, range(20, 25))
    part.unordered = True
    take(part, range(3, 5))
    assert part.head == 3


@pytest.mark.parametrize("seed", range(60))
def test_over_many_owners_nothing_is_lost_and_nothing_that_was_committed_as_done_comes_again(
    seed: int,
) -> None:
    chance = random.Random(seed)
    end = 200
    part = partition(end=end)
    done: set[int] = set()
    arrived: dict[int, int] = {}
    while len(done) < end:
        safe = set(done)
        batch = take(part, range(part.next, min(part.next + chance.randrange(0, 40), end)))
        for delivery in batch:
            offset = offset_of(delivery)
            assert offset not in safe
            arrived[offset] = arrived.get(offset, 0) + 1
            assert delivery.arrivals is not None
            assert delivery.arrivals >= arrived[offset]
        ending = [each for each in part.open.values() if chance.random() < 0.6]
        chance.shuffle(ending)
        finish(part, ending)
        now = {offset_of(each) for each in ending}
        kind = chance.choice(["goes on", "drains", "dies", "dies uncommitted"])
        if kind == "dies uncommitted":
            part = dead_before(part, ending, end)
            continue
        done |= now
        if kind != "goes on":
            part = heir(part, drained=kind == "drains", end=end)
    assert set(arrived) == set(range(end))


def dead_before(part: Partition, ending: list[Delivery], end: int) -> Partition:
    """The owner dies before it commits that these are finished: they are open for its heir."""
    for delivery in ending:
        part.open[offset_of(delivery)] = delivery
    part.unordered = True
    return heir(part, drained=False, end=end)
