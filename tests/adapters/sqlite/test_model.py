"""Any sequence of sends, claims, endings, deaths and joinings, by several members in one file, against a model."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from brokerkit.adapter import Order
from brokerkit.adapters.sqlite import cleaning, leases
from brokerkit.adapters.sqlite.claims import Claimed
from tests.adapters.sqlite.store import Store, receipt

KEYS = st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=6)
PICK = st.integers(0, 1000)


class Group(RuleBasedStateMachine):
    """
    A group of living members, and what the promises say of each message.

    Bodies are unique. `out`: what each member has. `dead`: what declared dead members still believe to have.
    """

    order: Order

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name) / "model.db", self.order)
        self.out: dict[int, dict[bytes, Claimed]] = {}
        self.dead: list[tuple[int, Claimed]] = []
        self.sent: list[tuple[str | None, bytes]] = []
        self.copies: set[bytes] = set()
        self.due: dict[bytes, float] = {}
        self.arrivals: dict[bytes, int] = {}
        self.returns: dict[bytes, int] = {}
        self.done: set[bytes] = set()

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.store.clock.now += 10_000
        self.due.clear()
        for member in list(self.out):
            self.store.leave(member)
            self._give_back(member, polite=True)
        last = self.store.join()
        self.out[last] = {}
        while rows := self.store.claim(last, 50):
            self._take(last, rows)
            assert all(self.store.end(last, rows))
            self._finish(last, rows)
        assert self.done == {body for _, body in self.sent}
        self.store.close()
        self.folder.cleanup()

    @rule(keys=KEYS)
    def publish(self, keys: list[str | None]) -> None:
        new = [(key, b"%d" % (len(self.sent) + number)) for number, key in enumerate(keys)]
        self.store.publish(*((key, body.decode()) for key, body in new))
        self.sent += new

    @rule(key=st.sampled_from("abcd"), after=st.sampled_from([0.0, 3.0]))
    def copy(self, key: str, after: float) -> None:
        body = b"%d" % len(self.sent)
        self.store.copy(key, body.decode(), after)
        self.sent.append((key, body))
        self.copies.add(body)
        self.due[body] = self.store.clock.now + after

    @precondition(lambda self: len(self.out) < 4)
    @rule()
    def join(self) -> None:
        self.out[self.store.join()] = {}

    @precondition(lambda self: self.out)
    @rule(pick=PICK, limit=st.sampled_from([1, 3, 50]))
    def claim(self, pick: int, limit: int) -> None:
        member = self._member(pick)
        self._take(member, self.store.claim(member, limit))

    @precondition(lambda self: any(self.out.values()))
    @rule(pick=PICK, size=st.integers(1, 4), after=st.sampled_from([None, None, 0.0, 2.0]))
    def end(self, pick: int, size: int, after: float | None) -> None:
        member = [member for member, out in self.out.items() if out][pick % sum(map(bool, self.out.values()))]
        rows = list(self.out[member].values())[:size]
        assert self.store.end(member, rows, after) == [True] * len(rows)
        if after is None:
            self._finish(member, rows)
        else:
            for row in rows:
                del self.out[member][row.body]
                self.returns[row.body] = self.returns.get(row.body, 0) + 1
                self.due[row.body] = self.store.clock.now + after

    @precondition(lambda self: self.dead)
    @rule(pick=PICK, after=st.sampled_from([None, 0.0]))
    def end_too_late(self, pick: int, after: float | None) -> None:
        member, row = self.dead[pick % len(self.dead)]
        assert self.store.end(member, [row], after) == [False]
        assert self.store.do(
            lambda tx: leases.mark(tx, self.store.place.id, [(receipt(member, row), b"x")])
        ) == [False]

    @precondition(lambda self: self.out)
    @rule(pick=PICK)
    def die(self, pick: int) -> None:
        member = self._member(pick)
        self.dead += [(member, row) for row in self.out[member].values()]
        self.store.expire(member)
        self._give_back(member, polite=False)

    @precondition(lambda self: self.out)
    @rule(pick=PICK)
    def leave(self, pick: int) -> None:
        member = self._member(pick)
        self.store.leave(member)
        self._give_back(member, polite=True)

    @precondition(lambda self: self.out)
    @rule(pick=PICK)
    def balance(self, pick: int) -> None:
        if self.order == "key":
            self.store.balance(self._member(pick))

    @rule(seconds=st.sampled_from([1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.store.clock.now += seconds

    @rule()
    def clean(self) -> None:
        self.store.do(lambda tx: cleaning.delete_done(tx, self.store.place.channel, 0))

    @invariant()
    def a_slot_of_which_something_is_out_has_that_owner(self) -> None:
        if not hasattr(self, "store") or self.order == "none":
            return
        for member, out in self.out.items():
            assert {row.slot for row in out.values()} <= self.store.slots(member)

    def _member(self, pick: int) -> int:
        return list(self.out)[pick % len(self.out)]

    def _take(self, member: int, rows: Sequence[Claimed]) -> None:
        held = {body for out in self.out.values() for body in out}
        for row in rows:
            body = row.body
            assert body not in held, "handed out twice"
            assert body not in self.done, "handed out after it was done"
            assert self.due.get(body, 0.0) <= self.store.clock.now, "handed out too early"
            assert bool(row.copy) == (body in self.copies)
            self.arrivals[body] = self.arrivals.get(body, 0) + 1
            assert (row.arrivals, row.returns) == (self.arrivals[body], self.returns.get(body, 0))
            if self.order == "key" and row.key is not None and body not in self.copies:
                self._check_order(member, row)
            self.out[member][body] = row

    def _check_order(self, member: int, row: Claimed) -> None:
        assert row.key is not None
        for key, body in self.sent:
            if key != row.key.decode() or body in self.copies:
                continue
            for other, out in self.out.items():
                assert other == member or body not in out, "one key is out at two members"
            earlier = int(body) < int(row.body)
            assert not earlier or body in self.done or body in self.out[member], (
                "an earlier one was overtaken"
            )

    def _finish(self, member: int, rows: Sequence[Claimed]) -> None:
        for row in rows:
            del self.out[member][row.body]
            self.done.add(row.body)

    def _give_back(self, member: int, *, polite: bool) -> None:
        for body in self.out.pop(member):
            # The due time of whoever was handed out is over.
            self.due.pop(body, None)
            if polite:
                self.returns[body] = self.returns.get(body, 0) + 1


class Competing(Group):
    order: Order = "none"


class Slotted(Group):
    order: Order = "key"


_SETTINGS = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestCompeting = pytest.mark.filterwarnings("default")(Competing.TestCase)
TestSlotted = pytest.mark.filterwarnings("default")(Slotted.TestCase)
TestCompeting.settings = _SETTINGS
TestSlotted.settings = _SETTINGS
