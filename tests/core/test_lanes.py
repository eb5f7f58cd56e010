"""
Lanes as bookkeeping: against a model, step by step.
"""

from collections import defaultdict, deque

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from brokerkit.delivery import Delivery
from brokerkit.lanes import Lanes
from brokerkit.message import Address, Message


def arrival(key: str | None) -> Delivery:
    return Delivery(Message(body=b"", key=None if key is None else key.encode()), Address("orders"))


class TestOneKey:
    def test_the_first_may_start_and_those_behind_it_may_not(self) -> None:
        lanes = Lanes()
        assert lanes.enter(arrival("a")) is True
        assert lanes.enter(arrival("a")) is False
        assert lanes.enter(arrival("a")) is False
        assert lanes.waiting == 2
        assert len(lanes) == 1

    def test_leaving_hands_out_the_next_in_order_of_arrival(self) -> None:
        lanes = Lanes()
        first, second, third = (arrival("a") for _ in range(3))
        for delivery in (first, second, third):
            lanes.enter(delivery)
        assert lanes.leave(first) is second
        assert lanes.waiting == 1
        assert lanes.leave(second) is third
        assert lanes.waiting == 0
        assert lanes.leave(third) is None
        assert len(lanes) == 0
        assert lanes.enter(arrival("a")) is True

    def test_one_that_comes_while_the_next_is_active_waits_behind_it(self) -> None:
        lanes = Lanes()
        first, second, late = (arrival("a") for _ in range(3))
        lanes.enter(first)
        lanes.enter(second)
        lanes.leave(first)
        assert lanes.enter(late) is False
        assert lanes.leave(second) is late

    def test_an_empty_key_is_a_key(self) -> None:
        lanes = Lanes()
        assert lanes.enter(arrival("")) is True
        assert lanes.enter(arrival("")) is False


def test_keys_do_not_wait_for_each_other() -> None:
    lanes = Lanes()
    assert all(lanes.enter(arrival(key)) for key in "abc")
    assert len(lanes) == 3
    assert lanes.waiting == 0


def test_without_a_key_there_is_no_lane() -> None:
    lanes = Lanes()
    one, other = arrival(None), arrival(None)
    assert lanes.enter(one) is True
    assert lanes.enter(other) is True
    assert len(lanes) == 0
    assert lanes.leave(one) is None
    assert lanes.waiting == 0


class TestDropping:
    def test_only_those_that_wait_are_dropped_and_returned(self) -> None:
        lanes = Lanes()
        active, second, third = (arrival("a") for _ in range(3))
        for delivery in (active, second, third):
            lanes.enter(delivery)
        assert lanes.drop([active, second]) == [second]
        assert lanes.waiting == 1
        assert lanes.leave(active) is third

    def test_what_is_equal_but_another_arrival_stays(self) -> None:
        lanes = Lanes()
        active, waiting = arrival("a"), arrival("a")
        lanes.enter(active)
        lanes.enter(waiting)
        assert lanes.drop([arrival("a")]) == []
        assert lanes.all_waiting() == [waiting]

    def test_several_lanes_are_searched(self) -> None:
        lanes = Lanes()
        behind: list[Delivery] = []
        for key in "abc":
            lanes.enter(arrival(key))
            for _ in range(2):
                behind.append(arrival(key))
                lanes.enter(behind[-1])
        assert lanes.drop(behind[1::2]) == behind[1::2]
        assert lanes.all_waiting() == behind[::2]
        assert lanes.drop_all() == behind[::2]
        assert lanes.waiting == 0
        assert lanes.all_waiting() == []
        assert len(lanes) == 3

    def test_a_lane_whose_waiting_ones_are_gone_ends_with_its_active_one(self) -> None:
        lanes = Lanes()
        active = arrival("a")
        lanes.enter(active)
        lanes.enter(arrival("a"))
        lanes.drop_all()
        assert lanes.leave(active) is None
        assert len(lanes) == 0


class LanesMachine(RuleBasedStateMachine):
    """Against one queue a key, whose head is the active one."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes()
        self.model: defaultdict[str, deque[Delivery]] = defaultdict(deque)

    def busy(self) -> list[str]:
        return [key for key, queue in self.model.items() if queue]

    @rule(key=st.sampled_from("abc"))
    def enter(self, key: str) -> None:
        delivery = arrival(key)
        self.model[key].append(delivery)
        assert self.lanes.enter(delivery) is (len(self.model[key]) == 1)

    @rule()
    def enter_without_a_key(self) -> None:
        delivery = arrival(None)
        assert self.lanes.enter(delivery)
        assert self.lanes.leave(delivery) is None

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        queue = self.model[data.draw(st.sampled_from(self.busy()))]
        expected = queue[1] if len(queue) > 1 else None
        assert self.lanes.leave(queue.popleft()) is expected

    @precondition(lambda self: self.busy())
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        every = [delivery for queue in self.model.values() for delivery in queue]
        lost = data.draw(st.lists(st.sampled_from(every), unique_by=id))
        found = self.lanes.drop(lost)
        expected = [
            delivery
            for queue in self.model.values()
            for at, delivery in enumerate(queue)
            if at and delivery in lost
        ]
        assert {id(each) for each in found} == {id(each) for each in expected}
        assert len(found) == len(expected)
        for queue in self.model.values():
            kept = [each for at, each in enumerate(queue) if not at or each not in lost]
            queue.clear()
            queue.extend(kept)

    @rule()
    def drop_all(self) -> None:
        expected = [delivery for queue in self.model.values() for delivery in list(queue)[1:]]
        assert {id(each) for each in self.lanes.drop_all()} == {id(each) for each in expected}
        for queue in self.model.values():
            while len(queue) > 1:
                queue.pop()

    @invariant()
    def it_counts_right(self) -> None:
        waiting = [delivery for queue in self.model.values() for delivery in list(queue)[1:]]
        assert self.lanes.waiting == len(waiting)
        assert len(self.lanes) == len(self.busy())
        assert {id(each) for each in self.lanes.all_waiting()} == {id(each) for each in waiting}


TestLanesMachine = LanesMachine.TestCase
TestLanesMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@given(keys=st.lists(st.sampled_from("ab"), max_size=30))
def test_every_arrival_becomes_active_exactly_once_and_in_order(keys: list[str]) -> None:
    lanes = Lanes()
    deliveries = [arrival(key) for key in keys]
    active = [delivery for delivery in deliveries if lanes.enter(delivery)]
    at = 0
    while at < len(active):
        following = lanes.leave(active[at])
        if following is not None:
            active.append(following)
        at += 1
    assert len(active) == len(deliveries)
    for key in "ab":
        mine = [delivery for delivery in deliveries if delivery.message.key == key.encode()]
        assert [delivery for delivery in active if delivery.message.key == key.encode()] == mine
