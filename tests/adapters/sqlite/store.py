"""The synchronous core on a file, driven step by step with a clock that stands still."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from brokerkit.adapter import Order
from brokerkit.adapters.sqlite import leases, log, members, places
from brokerkit.adapters.sqlite.claims import Claimed
from brokerkit.adapters.sqlite.database import Database, Job
from brokerkit.adapters.sqlite.leases import Receipt
from brokerkit.adapters.sqlite.places import Place
from brokerkit.adapters.sqlite.row import row_of
from brokerkit.adapters.sqlite.transaction import Transaction
from brokerkit.message import Address, Message

T = TypeVar("T")

INLET = Address("orders", "billing", "inlet")


class Clock:
    """Wall time that somebody moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now


class Store:
    """One connection to a file, and the group `billing` on the channel `orders`."""

    def __init__(self, path: Path, order: Order = "none", clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.database = Database(path, timeout=5.0, clock=self.clock)
        self.database.open()
        self.place: Place = self.do(lambda tx: places.open_place(tx, INLET, "earliest", order))

    def do(self, work: Callable[[Transaction], T]) -> T:
        job = Job(work)
        self.database.transact(lambda: [job])
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]

    def join(self) -> int:
        return self.do(lambda tx: members.join(tx, self.place.id, "", 10.0))

    def expire(self, member: int) -> None:
        self.do(lambda tx: members.expire(tx, member))

    def leave(self, member: int) -> None:
        self.do(lambda tx: members.leave(tx, self.place.id, member))

    def publish(self, *messages: tuple[str | None, str]) -> None:
        rows = [
            row_of(Message(body=body.encode(), key=key.encode() if key else None)) for key, body in messages
        ]
        self.do(partial(log.publish, channel="orders", rows=rows, must_route=False))

    def copy(self, key: str, body: str, after: float = 0.0) -> None:
        rows = [row_of(Message(body=body.encode(), key=key.encode()))]
        self.do(partial(log.put_copies, to=INLET, rows=rows, after=[after]))

    def claim(self, member: int, limit: int = 100) -> list[Claimed]:
        found = self.do(lambda tx: leases.claim(tx, self.place, member, limit))
        assert not found.gone
        return found.rows

    def end(self, member: int, rows: Sequence[Claimed], after: float | None = None) -> list[bool]:
        endings = [(receipt(member, row), after) for row in rows]
        return self.do(lambda tx: leases.settle(tx, self.place.id, endings))

    def balance(self, member: int) -> bool:
        return self.do(lambda tx: leases.rebalance(tx, self.place, member))

    def slots(self, member: int) -> set[int]:
        found = self.do(
            lambda tx: tx.execute(
                "SELECT slot FROM slot WHERE place = ? AND owner = ?", (self.place.id, member)
            ).fetchall()
        )
        return {slot for (slot,) in found}

    def close(self) -> None:
        self.database.close()


def receipt(member: int, row: Claimed) -> Receipt:
    return Receipt(row.seq, member, row.arrivals, row.slot, bool(row.copy))


def bodies(rows: Sequence[Claimed]) -> list[str]:
    return [row.body.decode() for row in rows]
