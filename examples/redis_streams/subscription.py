"""One member's place in a group."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from redis import exceptions

from brokerkit.adapter import OnLost, Settled
from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError, ConnectionLost, SendError, SettleError, Stale, Unavailable
from brokerkit.examples.redis_streams.entry import COPIES, Row, message_of, position_of
from brokerkit.examples.redis_streams.failure import refused, using
from brokerkit.examples.redis_streams.keeper import Keeper, Ward
from brokerkit.examples.redis_streams.line import FAILURES, Argument, Line
from brokerkit.examples.redis_streams.wake import Listener
from brokerkit.message import Address
from brokerkit.settlement import Ack

__all__ = ["RedisSubscription"]

_log = logging.getLogger(__name__)
_LOOK = 0.5  # seconds between two looks when no hint comes
_PAUSE = 0.2  # seconds after a look that failed
_BYTES = 4_000_000  # a claim takes no more once it has so much
_CHUNK = 500  # settlements in one script
_GRACE = 3.0  # seconds for each step of leaving


@dataclass(frozen=True, slots=True)
class Receipt:
    """Which arrival of which entry a delivery is."""

    slot: int
    id: str
    arrivals: int

    @property
    def entry(self) -> tuple[int, str]:
        """Where it lies."""
        return self.slot, self.id


class RedisSubscription:
    """
    What is claimed belongs to the subscription, not to the call of `receive` that wanted it.

    A claim writes the owner at the server and runs in a task of its own. What it brings lies in `_ready` until `receive` hands
    it out, which is synchronous. Everything that is not settled is the member's until it leaves or is taken for dead.
    """

    def __init__(
        self, at: Address, ward: Ward, line: Line, keeper: Keeper, listener: Listener, on_lost: OnLost
    ) -> None:
        self._at = at
        self._ward = ward
        self._line = line
        self._keeper = keeper
        self._listener = listener
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._ready: list[Row] = []
        self._out: dict[tuple[int, str], Delivery] = {}
        self._settling = asyncio.Lock()
        self._claim: asyncio.Task[None] | None = None
        self._losing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._failure: ConnectionLost | None = None
        self._hinted = True
        self._look_at = 0.0
        self._turn = 0
        self._unsure = False  # whether a claim was made whose answer has not come
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it has left for good."""
        return self._closing is not None and self._closing.done()

    async def start(self) -> None:
        """Begin to listen for hints and to give signs of life. The member has joined already."""
        self._ward.gone = self._gone
        self._keeper.keep(self._ward)
        for channel in self._hints():
            await self._listener.add(channel, self._hint)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait for deliveries; see `Subscription`."""
        await asyncio.sleep(0)  # before anything is taken: a busy member must not starve its neighbours
        while not self._closed:
            if self._failure is not None:
                raise self._failure
            if self._ready and self._ward.fresh:
                return self._hand_out(limit)
            self._changed.clear()
            if self._claim is None and self._losing is None and self._wanted():
                self._hinted = False
                # What lies here from before a standstill may be somebody else's: a claim of nothing asks.
                self._claim = self._loop.create_task(self._take(0 if self._ready else limit))
            pause = None if self._claim or self._losing else self._look_at - self._loop.time()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()
        return ()

    async def settle(self, settled: Sequence[Settled]) -> Sequence[SettleError | None]:
        """End deliveries; see `Subscription`."""
        return await asyncio.shield(self._loop.create_task(self._settle(list(settled))))

    async def mark(self, marks: Sequence[tuple[Delivery, bytes | None]]) -> Sequence[SettleError | None]:
        """Keep bytes beside deliveries; see `Marks`."""
        outcomes: list[SettleError | None] = []
        for start in range(0, len(marks), _CHUNK):
            chunk = marks[start : start + _CHUNK]
            wanted: list[tuple[Delivery, tuple[Argument, ...]]] = [
                (delivery, (int(value is not None), value or b"")) for delivery, value in chunk
            ]
            outcomes += await self._ask("mark", wanted, before=False)
        return outcomes

    async def close(self) -> None:
        """Leave politely; see `Subscription`."""
        if self._closing is None:
            self._closed = True
            self._changed.set()
            self._closing = self._loop.create_task(self._leave())
        await asyncio.shield(self._closing)

    # Receiving

    def _wanted(self) -> bool:
        return bool(self._ready) or self._hinted or self._loop.time() >= self._look_at

    def _hint(self) -> None:
        self._hinted = True
        self._changed.set()

    def _hints(self) -> list[str]:
        place = f"{self._ward.base}:{self._ward.group}:{self._ward.place}:wake"
        return [place, f"{self._ward.base}:wake"] if self._at.place == "inlet" else [place]

    def _hand_out(self, limit: int) -> list[Delivery]:
        rows, self._ready = self._ready[:limit], self._ready[limit:]
        deliveries = [self._delivery(row) for row in rows]
        self._out.update(
            {(row.slot, row.id): delivery for row, delivery in zip(rows, deliveries, strict=True)}
        )
        return deliveries

    def _delivery(self, row: Row) -> Delivery:
        return Delivery(
            message_of(row.fields),
            self._at if row.slot == COPIES else Address(self._at.channel),
            Receipt(row.slot, row.id, row.arrivals),
            arrivals=row.arrivals,
            returns=row.returns,
            position=position_of(row.id),
            mark=row.mark,
        )

    async def _take(self, limit: int) -> None:
        began = time.monotonic()
        try:
            if self._unsure:
                await self._reconcile()
            self._turn += 1
            self._unsure = True
            answer = await self._action("claim", self._ward.order, limit, _BYTES, self._turn)
            self._unsure = False
            self._took(answer, began)
        except (SendError, ConfigurationError, *FAILURES) as error:
            self._look_at = self._loop.time() + _PAUSE
            if isinstance(error, exceptions.ResponseError) and refused(error) is None:
                self._lose(f"{self._at} cannot be read any more: {error}", error)
            else:
                _log.debug(
                    "a look at %s failed: %r", self._at, error
                )  # the keeper says when it lasts too long
        finally:
            self._claim = None
            self._changed.set()

    def _took(self, answer: object, began: float) -> None:
        if answer == b"gone":
            self._lose("the others took this member for dead")
            return
        self._ward.confirmed = max(self._ward.confirmed, began)
        due, found = cast("tuple[int, list[tuple[int, bytes, int, int, bytes | None, list[bytes]]]]", answer)
        rows = [Row(slot, entry.decode(), *rest) for slot, entry, *rest in found]  # type: ignore[arg-type]
        rows.sort(key=lambda row: position_of(row.id))  # of several streams, as they were published
        self._ready += rows
        pause = _LOOK if due < 0 else min(_LOOK, due / 1000 + 0.001)
        self._look_at = self._loop.time() + (0.0 if rows else pause)

    async def _reconcile(self) -> None:
        """Give back what a claim has taken whose answer was lost; nobody has seen it."""
        held = await self._action("held")
        if held == b"gone":
            return
        known = {(row.slot, row.id) for row in self._ready} | self._out.keys()
        stray = [
            (slot, entry.decode(), arrivals)
            for slot, entry, arrivals in cast("list[tuple[int, bytes, int]]", held)
            if (slot, entry.decode()) not in known
        ]
        for start in range(0, len(stray), _CHUNK):
            rows = stray[start : start + _CHUNK]
            await self._action("settle", *(word for row in rows for word in ("retry", *row, 0)))
        self._unsure = False

    # Settling

    async def _settle(self, settled: Sequence[Settled]) -> list[SettleError | None]:
        outcomes: list[SettleError | None] = []
        async with self._settling:  # one order for all settlements
            for start in range(0, len(settled), _CHUNK):
                wanted: list[tuple[Delivery, tuple[Argument, ...]]] = []
                for delivery, settlement in settled[start : start + _CHUNK]:
                    if isinstance(settlement, Ack):
                        wanted.append((delivery, ("ack", 0)))
                    else:
                        wanted.append((delivery, ("retry", _milliseconds(settlement.after))))
                done = await self._ask("settle", wanted, before=True)
                for (delivery, _), outcome in zip(wanted, done, strict=True):
                    if outcome is None or isinstance(outcome, Stale):
                        self._forget(delivery)
                outcomes += done
        return outcomes

    async def _ask(
        self, action: str, wanted: Sequence[tuple[Delivery, tuple[Argument, ...]]], *, before: bool
    ) -> list[SettleError | None]:
        """Do something to deliveries that are ours; `before` says on which side of the receipt the words stand."""
        outcomes: list[SettleError | None] = [
            Stale(f"{delivery!r} is no longer ours") for delivery, _ in wanted
        ]
        args: list[Argument] = []
        asked: list[int] = []
        for index, (delivery, words) in enumerate(wanted):
            receipt = self._receipt(delivery)
            if receipt is not None:
                first, last = (words[:1], words[1:]) if before else ((), words)
                args += [*first, receipt.slot, receipt.id, receipt.arrivals, *last]
                asked.append(index)
        if not asked:
            return outcomes
        try:
            answer = cast("list[int]", await self._action(action, *args))
        except (SendError, ConfigurationError, *FAILURES) as error:
            for index in asked:
                outcomes[index] = Unavailable(f"the server did not answer: {error}")
                cast("SettleError", outcomes[index]).__cause__ = error
            return outcomes
        for index, ours in zip(asked, answer, strict=True):
            if ours == 1:
                outcomes[index] = None
        return outcomes

    def _receipt(self, delivery: Delivery) -> Receipt | None:
        receipt = delivery.receipt
        if isinstance(receipt, Receipt) and self._out.get(receipt.entry) is delivery:
            return receipt
        return None

    def _forget(self, delivery: Delivery) -> None:
        receipt = self._receipt(delivery)
        if receipt is not None:
            del self._out[receipt.entry]

    # Losing and leaving

    def _gone(self, why: str) -> None:
        with suppress(RuntimeError):  # the loop of an application that ends without closing
            self._loop.call_soon_threadsafe(self._lose, why)

    def _lose(self, why: str, cause: BaseException | None = None) -> None:
        """Fence, tell, then let `receive` raise."""
        if self._losing is not None or self._closed:
            return
        lost, self._out = list(self._out.values()), {}
        self._ready.clear()
        self._keeper.let_go(self._ward)
        failure = ConnectionLost(f"{self._at}: {why}")
        failure.__cause__ = cause
        self._losing = self._loop.create_task(self._tell(lost, failure))

    async def _tell(self, lost: Sequence[Delivery], failure: ConnectionLost) -> None:
        try:
            if lost:
                async with asyncio.timeout(1.0):
                    await self._on_lost(lost, 0.0)
        except TimeoutError:
            _log.warning("%s: what was lost has not been let go within a second", self._at)
        finally:
            self._failure = failure
            self._changed.set()

    async def _leave(self) -> None:
        self._keeper.let_go(self._ward)
        for channel in self._hints():
            await self._listener.remove(channel, self._hint)
        lost = self._losing is not None
        try:
            async with asyncio.timeout(_GRACE):
                if self._losing is not None:
                    await asyncio.wait([self._losing])
                if self._claim is not None:
                    await asyncio.wait([self._claim])
                async with self._settling:
                    self._out.clear()
                    self._ready.clear()
                    await self._action("leave")
        except (SendError, ConfigurationError, TimeoutError, *FAILURES) as error:
            level = logging.DEBUG if lost else logging.WARNING
            _log.log(
                level,
                "%s: what was not settled comes back when the lease is over: %s",
                self._at,
                _words(error),
            )
        finally:
            self._out.clear()
            self._ready.clear()

    async def _action(self, action: str, *args: Argument) -> object:
        ward = self._ward
        return await self._line.script(ward.base, action, ward.group, ward.place, ward.member, *args)


def _words(error: Exception) -> str:
    return str(using(error)) if not isinstance(error, TimeoutError) else f"not done within {_GRACE:g} s"


def _milliseconds(seconds: float) -> int:
    return max(0, -int(-seconds * 1000 // 1))
