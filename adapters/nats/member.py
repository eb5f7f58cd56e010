"""
What every subscription does: hold arrivals, renew their leases, settle them, and notice what is lost.

A lease is counted from a moment that is certainly before the server's: the last time this loop was seen to turn for an
arrival, the moment of writing for a renewal that the server has answered. So it is over here before it is over there, and
what nobody has renewed is given up, told to the engine and refused by `settle` before somebody else can have it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from brokerkit.adapter import OnLost, Settled
from brokerkit.adapters.nats.api import Api
from brokerkit.adapters.nats.chores import Chores
from brokerkit.adapters.nats.failure import ApiError, NoAnswer
from brokerkit.adapters.nats.held import Held, Identity
from brokerkit.adapters.nats.link import Incoming, Link
from brokerkit.adapters.nats.returns import Returns
from brokerkit.adapters.nats.servertime import ServerTime
from brokerkit.adapters.nats.settling import hold, settle
from brokerkit.adapters.nats.source import PROGRESS, Source, nak
from brokerkit.adapters.nats.tallies import Tallies
from brokerkit.adapters.nats.wire import AFTER, after_of, decode, read_receipt
from brokerkit.delivery import Delivery
from brokerkit.errors import ConnectionLost, SettleError
from brokerkit.message import Address

__all__ = ["Member", "Site"]

_log = logging.getLogger("brokerkit.nats")
_RENEWALS = 3
_TICKS = 12
_LONGEST_TICK = 1.0
_MARGIN = 0.9
_CLOSE = 3.0
_CLOCK = 10.0
_AT_HAND = 0.03
"""What is due so soon waits here instead of going to the server and back."""


@dataclass(slots=True, kw_only=True)
class Site:
    """What a subscription has from its adapter. lease: seconds; forget: called once it has ended."""

    link: Link
    api: Api
    at: Address
    lease: float
    on_lost: OnLost
    returns: Returns
    tallies: Tallies
    forget: "Callable[[Member], None]"
    time: ServerTime = field(default_factory=ServerTime)


class Member:
    """
    The common part of a subscription; a subclass says where messages wait and which of them may go out.

    Everything between two awaits is one step of the loop, so nothing here needs a lock.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.held: dict[tuple[Source, int], Held] = {}
        self.sources: list[Source] = []
        self.closed = False
        self.cut: ConnectionLost | None = None
        self.limit = 0
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._chores = Chores()
        self._alive = self._loop.time()
        self._down_since: float | None = None
        self._renewed = self._alive
        self._renewing = False
        self._asking = False
        self._breaking = False
        self._catching_up = False
        self._closing: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._tick_length = min(_LONGEST_TICK, site.lease / _TICKS)

    @property
    def alive(self) -> float:
        """Return when this loop was last seen to turn: what arrives now was sent after that."""
        return self._alive

    # -- what a subclass says

    def place(self, held: Held) -> None:
        """Put an arrival where it waits to be handed out."""
        raise NotImplementedError

    def take(self, limit: int, now: float) -> list[Held]:
        """Return what may go out now, at most so many, taken from where it waited."""
        raise NotImplementedError

    async def ask(self) -> None:
        """Ask the server for what a waiting `receive` wants; `limit` says how much, 0 if nobody waits."""
        raise NotImplementedError

    def ours(self, held: Held, now: float) -> bool:
        """Say whether the server still takes it for ours."""
        return now < held.until

    def settled(self, held: Held) -> None:
        """Hear that one has been settled or lost."""

    def gone(self, source: Source, why: str) -> None:
        """Hear that a consumer was deleted, or belongs to somebody else."""
        self.break_off(f"consumer {source.name} of {source.stream}: {why}")

    async def leave(self) -> None:
        """Give everything back to the group, in order."""
        await asyncio.gather(*(source.drain() for source in self.sources))
        await self.give_back(list(self.held.values()))

    def turned(self, now: float) -> None:
        """Do what is to be done now and then."""

    # -- the boundary

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait for something and return at most `limit`; empty when closed, `ConnectionLost` when cut off."""
        if limit < 1:
            message = f"receive({limit}): ask for at least one"
            raise ValueError(message)
        await asyncio.sleep(0)
        try:
            while True:
                if self.closed:
                    return []
                if self.cut is not None:
                    raise self.cut
                taken = self.take(limit, self._loop.time())
                if taken:
                    return self._hand_out(taken)
                waiter = self._waiter = self._loop.create_future()
                self.limit = limit
                await self.ask()
                await waiter
        finally:
            self.limit = 0

    def _hand_out(self, taken: Sequence[Held]) -> list[Delivery]:
        for held in taken:
            held.out = True
        return [held.delivery for held in taken]

    async def settle(self, settled: Sequence[Settled]) -> Sequence[SettleError | None]:
        """
        End some deliveries; the server confirms each consumer's last one, and with it all before.

        `Stale` for what is not held here any more; `Unavailable` where no answer came: settling again is harmless.
        """
        work = self._loop.create_task(settle(self, settled))
        return await asyncio.shield(work)

    async def hold(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        """Renew the leases of deliveries, confirmed by the server; `Stale` for what is no longer ours."""
        work = self._loop.create_task(hold(self, deliveries))
        return await asyncio.shield(work)

    async def tally(self, changes: Sequence[tuple[str, int]]) -> Sequence[int | SettleError]:
        """Change some counts of the group, durably; see `brokerkit.adapter.Tallies`."""
        work = self._loop.create_task(self.site.tallies.tally(changes))
        return await asyncio.shield(work)

    async def before_acks(self, source: Source, acked: Sequence[Held]) -> None:
        """Do what has to be done before these are acked."""

    async def close(self) -> None:
        """Leave; what is unsettled goes back in order. Ends within a few seconds, whatever the server does."""
        if self._closing is None:
            self.closed = True
            self.wake()
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._stop_ticking()
        leaving = self._loop.create_task(self.leave())
        leaving.add_done_callback(_look)
        await asyncio.wait([leaving], timeout=_CLOSE)
        leaving.cancel()
        self._chores.cancel()
        self.held.clear()
        self.site.link.on_back.discard(self._came_back)
        self.site.forget(self)

    # -- arrivals

    def source(self, stream: str, name: str, patience: float | None = None) -> Source:
        """Return a new source that brings its messages here."""
        made = Source(
            self.site.link,
            stream,
            name,
            patience=patience or self.site.lease,
            on_message=self.arrived,
            on_hungry=self._hungry,
            on_gone=self.gone,
        )
        self.sources.append(made)
        return made

    def arrived(self, source: Source, message: Incoming) -> None:
        """Take a message: hold it, or give it back until it is due."""
        now = self._loop.time()
        if self.by_lease(source) and now - self._alive > self.site.lease / _RENEWALS:
            # the loop stood still: it may have come long ago and be somebody else's; the server brings it again
            self._stood_still()
            return
        receipt = read_receipt(message.reply)
        identity: Identity = (receipt.seq, receipt.stored)
        have = self.held.get((source, receipt.seq))
        if have is not None and have.returned:
            self.drop(have)  # it is back before the server's answer to its return
            have = None
        if have is not None and have.identity == identity and self.ours(have, now):
            have.reply, have.deliveries = message.reply, receipt.deliveries
            if source.credit == 0:
                self._hungry(source)
            return  # the server has forgotten that it is here: it lost the last second of its memory
        address = self.address_of(source)
        after = after_of(message.headers) if AFTER in message.headers and address.place == "inlet" else 0.0
        if after > 0 and self._too_early(source, message, identity, after):
            return
        delivery = Delivery(
            decode(message.headers.items(), message.data),
            address,
            arrivals=receipt.deliveries,
            returns=self._returns(source, identity, receipt.deliveries, delayed=after > 0),
            position=(source.stream, receipt.seq),
            native=message,
        )
        held = Held(
            source,
            message.reply,
            identity,
            receipt.deliveries,
            self._alive + self.site.lease * _MARGIN,
            delivery,
        )
        delivery.receipt = held
        if have is not None:
            self.lose([have])
        self.held[held.key] = held
        self.place(held)

    def address_of(self, source: Source) -> Address:
        """Return where a source's messages came in: by which consumer, and by nothing that they say."""
        raise NotImplementedError

    def _returns(self, source: Source, identity: Identity, deliveries: int, *, delayed: bool) -> int:
        if deliveries == 1:
            return 0
        known = self.site.returns.count(source.stream, source.name, identity)
        if delayed and not known and deliveries > 1:
            known = 1  # a delayed copy comes once before its time, to whoever asks, and goes back
        return min(known, deliveries - 1)

    def _too_early(self, source: Source, message: Incoming, identity: Identity, after: float) -> bool:
        left = (identity[1] - self.site.time.now()) / 1e9 + after
        if left <= 0:
            return False
        if left <= _AT_HAND:
            self.later(left, lambda: self.arrived(source, message))
        else:
            self.spawn(self.turn_away(source, message.reply, identity, left))
        if source.credit == 0:
            self._hungry(source)
        return True

    async def turn_away(self, source: Source, reply: str, identity: Identity, seconds: float) -> None:
        """Give a message back that cannot be handed out now; one that cannot be written costs a lease."""
        self.site.returns.add(source.stream, source.name, identity)
        with contextlib.suppress(NoAnswer):
            await self.site.link.publish(reply, nak(seconds))

    # -- losses

    def holds(self, held: Held) -> bool:
        """Say whether this very arrival is still held."""
        return self.held.get(held.key) is held

    def drop(self, held: Held) -> None:
        """Forget one that has been settled."""
        self.held.pop(held.key, None)
        self.settled(held)

    def lose(self, lost: Iterable[Held]) -> None:
        """Forget what is somebody else's now, and tell the engine of what it has."""
        out = self._forget(lost)
        if out:
            self.spawn(self._tell(out))

    def _forget(self, lost: Iterable[Held]) -> list[Delivery]:
        out: list[Delivery] = []
        for held in lost:
            if self.holds(held):
                del self.held[held.key]
                self.settled(held)
                if held.out:
                    out.append(held.delivery)
        return out

    async def _tell(self, lost: Sequence[Delivery]) -> None:
        try:
            await self.site.on_lost(lost, 0.0)
        except Exception:  # noqa: BLE001 - what is lost is lost, whatever the engine makes of it
            _log.exception("on_lost failed for %d deliveries", len(lost))

    def check_leases(self, now: float) -> None:
        """Give up what has not been renewed in time."""
        self.lose([held for held in self.held.values() if not self.ours(held, now)])

    def break_off(self, why: str) -> None:
        """End with `ConnectionLost`: fence first, then tell, then let `receive` raise."""
        if not (self._breaking or self.closed):
            self._breaking = True
            self.spawn(self._break_off(why))

    async def _break_off(self, why: str) -> None:
        lost = self._forget(list(self.held.values()))
        if lost:
            await self._tell(lost)
        self.cut = ConnectionLost(f"{self.site.link.where}: {self.site.at}: {why}; subscribe again")
        self.wake()

    async def give_back(self, back: Sequence[Held]) -> None:
        """Return what is still ours, in the order of the stream, and wait until the server has taken it."""
        now = self._loop.time()
        by_source: dict[Source, list[Held]] = {}
        for held in sorted(back, key=lambda each: each.seq):
            if self.ours(held, now):
                by_source.setdefault(held.source, []).append(held)
                self.site.returns.add(held.source.stream, held.source.name, held.identity)
        with contextlib.suppress(NoAnswer):  # the server gives it to somebody else when the lease is over
            await asyncio.gather(*(source.send_for(part, nak(0)) for source, part in by_source.items()))

    # -- time

    def begin(self) -> None:
        """Start to renew and to watch."""
        self.site.link.on_back.add(self._came_back)
        self._alive = self._loop.time()
        self._tick()

    def _tick(self) -> None:
        if self.closed or self._breaking:
            return
        self._ticker = self._loop.call_later(self._tick_length, self._tick)
        now = self._loop.time()
        self.check_leases(now)
        if now - self._alive > self.site.lease / _RENEWALS:
            self._stood_still()
        else:
            self._alive = now
        self._watch_connection(now)
        if now - self._renewed >= self.site.lease / _RENEWALS - self._tick_length and not self._renewing:
            self._renewed = now
            self.spawn(self._renew(now))
        for source in self.sources:
            source.check(now)
        self.turned(now)

    def _stood_still(self) -> None:
        """Take nothing until something asked from now on is answered, and `_alive` is set: what comes before may be old."""
        if not self._catching_up:
            self._catching_up = True
            self.spawn(self._catch_up())

    async def _catch_up(self) -> None:
        source = self.sources[0]
        try:
            await self.site.api.consumer(source.stream, source.name, timeout=self.site.lease / _RENEWALS)
            self._alive = self._loop.time()
        except (NoAnswer, ApiError):
            _log.debug("no answer after the loop stood still; asked again")
        finally:
            self._catching_up = False
        self._hungry(source)  # what was dropped has used up what was asked for

    def by_lease(self, source: Source) -> bool:  # noqa: ARG002 - a subclass looks at it
        """Say whether what a source brings is ours by a lease of its own; else something surer decides."""
        return True

    def _stop_ticking(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()

    def _watch_connection(self, now: float) -> None:
        if self.site.link.up:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = now
        elif now - self._down_since > self.site.lease:
            self.break_off("the server cannot be reached")

    async def _renew(self, now: float) -> None:
        """Tell the server that what is held here is still at work."""
        self._renewing = True
        try:
            parts: dict[Source, list[Held]] = {}
            for held in self.held.values():
                if not held.returned:
                    parts.setdefault(held.source, []).append(held)
            await asyncio.gather(*(self.renew_at(source, part, now) for source, part in parts.items()))
            if self.watches_time and self.site.time.age > _CLOCK:
                with contextlib.suppress(NoAnswer, ApiError):  # asked again with the next renewal
                    await self.look_at_clock()
        finally:
            self._renewing = False

    async def renew_at(self, source: Source, part: Sequence[Held], now: float) -> bool:
        """Say whether the server has answered; if not it is tried again, until the lease is over."""
        try:
            await source.send_for(part, PROGRESS, timeout=self.site.lease / _RENEWALS)
        except NoAnswer:
            return False
        for held in part:
            held.until = now + self.site.lease * _MARGIN
        return True

    watches_time = False

    async def look_at_clock(self) -> None:
        """Learn the server's time from the leader of the stream whose messages may have to wait. Raises as `Api` does."""
        for source in self.sources:
            if self.address_of(source).place == "inlet":
                info = await self.site.api.stream(source.stream)
                if info is not None and "ts" in info:  # servers before 2.10 do not say it
                    self.site.time.observe(info["ts"])
                return

    def _came_back(self) -> None:
        self._down_since = None
        for source in self.sources:
            source.forget_credit()
            self._hungry(source)
            if self.by_lease(source):
                self.spawn(self._recall(source))

    async def _recall(self, source: Source) -> None:
        """
        Ask again for what the server may have forgotten to have sent: it writes that down a second later, if it is not killed.

        It takes no ack of such a message, and says nothing, until it has sent it again.
        """
        while self.site.link.up and not self.closed:
            held = [each.seq for each in self.held.values() if each.source is source]
            if not held:
                return
            try:
                info = await self.site.api.consumer(source.stream, source.name)
            except (NoAnswer, ApiError):
                await asyncio.sleep(self._tick_length)
                continue
            if info is not None:
                known = int(info["delivered"]["stream_seq"])
                forgotten = sum(seq > known for seq in held)
                if forgotten:
                    await source.request(forgotten)
            return

    def _hungry(self, _: Source) -> None:
        if not (self._asking or self.closed or self._breaking):
            self._asking = True
            self.spawn(self._ask_again())

    async def _ask_again(self) -> None:
        self._asking = False
        await self.ask()

    # -- helpers

    def wake(self) -> None:
        """Let a waiting `receive` look again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def spawn(self, work: Awaitable[None]) -> None:
        """Run something beside; its end is seen to."""
        self._chores.spawn(work)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call in so many seconds, unless it has left by then."""
        self._chores.later(seconds, lambda: None if self.closed else call())


def _look(future: "asyncio.Future[None]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _log.error("leaving a group failed: %r", error)
