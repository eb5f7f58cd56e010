"""
A member of a group, or a reader of a dead place: what it has taken, what it holds for a while, and how it loses.
"""

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from brokerkit.adapter import OnLost, Order, Settled
from brokerkit.adapters.rabbitmq import names
from brokerkit.adapters.rabbitmq.balancer import Balancer
from brokerkit.adapters.rabbitmq.channel import Raw
from brokerkit.adapters.rabbitmq.client import Client
from brokerkit.adapters.rabbitmq.forwarder import Forwarder
from brokerkit.adapters.rabbitmq.ladder import read_wait, step
from brokerkit.adapters.rabbitmq.link import Link
from brokerkit.adapters.rabbitmq.presence import Presence
from brokerkit.adapters.rabbitmq.pulse import Pulse
from brokerkit.adapters.rabbitmq.source import Receipt, Source, count_of, delivery_of
from brokerkit.adapters.rabbitmq.tallies import Tallies
from brokerkit.adapters.rabbitmq.wire import WAIT
from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError, ConnectionLost, SettleError, Stale, Unavailable
from brokerkit.message import Address
from brokerkit.settlement import Ack, Retry

__all__ = ["RabbitSubscription"]

_log = logging.getLogger(__name__)

_FORWARDS = 4.0
"""Seconds that closing waits for copies that are on their way to the next rung: what is cut off there is sent on twice."""


class RabbitSubscription:
    """A place in one channel for one group: one source for each queue that belongs to it; also `Holds` and `Tallies`."""

    def __init__(
        self, at: Address, order: Order, on_lost: OnLost, forwarder: Forwarder, signs: Link, *, prefetch: int
    ) -> None:
        self._at = at
        self._order: Order = order
        self._on_lost = on_lost
        self._forwarder = forwarder
        self._signs = signs
        self._prefetch = prefetch
        self._channel = Address(at.channel)
        self._back = names.return_exchange(at.channel, at.group or "")
        self._loop = asyncio.get_running_loop()
        self._client: Client | None = None
        self._pulse: Pulse | None = None
        self._sources: list[Source] = []
        self._balancer: Balancer | None = None
        self._changed = asyncio.Event()
        self._failure: ConnectionLost | None = None
        self._turn = 0
        self._tallies = Tallies(at, signs)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    async def open(
        self, client: Client, pulse: Pulse, queues: Sequence[str], *, beat: float | None = None
    ) -> None:
        """Begin to consume these queues; with `beat`, seconds, they are partitions and shared with the other members."""
        self._client, self._pulse = client, pulse
        for part, queue in enumerate(queues):
            await self._add_source(client, queue, part)
        client.lost.add_done_callback(self._connection_lost)
        if beat is not None:
            exchange = names.members_exchange(self._at.channel, self._at.group or "")
            balancer = Balancer(self._sources, self._requeue, self._start)
            balancer.presence = Presence(exchange, beat, self._review, self._signs)
            self._balancer = balancer
            await balancer.presence.open()

    def _review(self) -> None:
        if self._balancer is not None and not self._closed:
            self._balancer.review()
            self._changed.set()

    async def _requeue(self, source: Source) -> None:
        """Hand a partition back: what it holds returns to the head of its queue, and we go to the end of the line."""
        client = self._client
        self._sources.remove(source)
        await source.close()
        if client is None or self._closed or not client.alive:
            return
        try:
            await self._add_source(client, source.queue, source.part)
        except BrokerkitError as error:
            self._fail(str(error))

    async def _add_source(self, client: Client, queue: str, part: int) -> None:
        source = Source(queue, part, self._taken, self._source_changed)
        self._sources.append(source)
        try:
            await source.open(client, self._prefetch)
        except BaseException:
            self._sources.remove(source)
            await (
                source.close()
            )  # cut off, it may consume already: an orphan would keep the queue from everybody
            raise

    # -- receiving

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait until there is something; empty when closed, `ConnectionLost` when the connection is."""
        if limit < 1:
            message = f"receive({limit}): ask for at least one"
            raise ValueError(message)
        await asyncio.sleep(
            0
        )  # a reader that always finds something must not starve its loop; nothing is taken yet
        while not self._closed:
            self._raise_failure()  # first: what is still ready must not hide that a partition is gone
            if self._pulse is not None and self._pulse.doubtful:
                if not await self._pulse.sure() and not self._has_ended():
                    self._changed.clear()
                    await (
                        self._changed.wait()
                    )  # the connection is gone: `_fail` or `close` follows, once others have a turn
            elif batch := self._hand_out(limit):
                return batch
            self._raise_failure()
            if self._closed:
                break
            self._changed.clear()
            if not any(source.ready and not source.resting for source in self._sources):
                await self._changed.wait()
        return ()

    def _has_ended(self) -> bool:
        return self._closed or self._failure is not None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise ConnectionLost(str(self._failure)) from self._failure

    def _hand_out(self, limit: int) -> Sequence[Delivery]:
        """Take from each source in turn; no turn of the loop lies between this and the caller."""
        batch: list[Delivery] = []
        sources = self._sources
        for place in range(len(sources)):
            source = sources[(self._turn + place) % len(sources)]
            if source.resting:
                continue
            ready = source.ready
            while ready and len(batch) < limit:
                delivery = ready.popleft()
                source.out[_receipt(delivery).tag] = delivery
                batch.append(delivery)
        self._turn += 1
        return batch

    def _taken(self, source: Source, tag: int, raw: Raw) -> None:
        """Look at what has come: a copy that still has to wait is held, or sent on to the next rung."""
        address = self._address_of(raw)
        headers: Mapping[str, Any] = raw.header.properties.headers or {}
        if address.place == "inlet" and (left := read_wait(headers.get(WAIT))):
            rung, remains = step(left)
            if rung is None:
                self._hold(source, tag, raw, address, left / 1000)
            else:
                self._start(self._forward(source, tag, raw, rung, remains))
            return
        self._ready(source, tag, raw, address)

    def _address_of(self, raw: Raw) -> Address:
        """Return where it came in. Only what came through the group's own exchange may say what it is."""
        delivery: Any = raw.delivery
        if delivery.exchange == self._back and delivery.routing_key == (
            "dead" if self._at.place == "dead" else "in"
        ):
            return self._at
        return self._channel

    def _ready(self, source: Source, tag: int, raw: Raw, address: Address) -> None:
        source.ready.append(delivery_of(raw, address, Receipt(source, tag), count_of(raw)))
        self._changed.set()

    def _hold(self, source: Source, tag: int, raw: Raw, address: Address, seconds: float) -> None:
        """Keep it, unsettled, and hand it out (again) after so many seconds, under the same tag."""

        def due() -> None:
            del source.waiting[tag]
            self._ready(source, tag, raw, address)

        source.waiting[tag] = self._loop.call_later(seconds, due)

    async def _forward(self, source: Source, tag: int, raw: Raw, rung: int, remains: int) -> None:
        """Send a copy to its next rung and ack this one when that is confirmed."""
        source.forwards += 1
        try:
            # once we are leaving none is begun: the original goes back and is sent on by whoever gets it
            until = lambda: source.lost or self._closed  # noqa: E731
            if await self._forwarder.forward(self._at, raw, rung, remains, until=until):
                source.finish([tag])
        finally:
            source.forwards -= 1
            if self._balancer is not None:
                self._balancer.settled()
            self._changed.set()

    # -- settling

    async def settle(self, settled: Sequence[Settled]) -> Sequence[SettleError | None]:
        """End some deliveries; an ack is written, in order, when this returns None for it: no broker confirms acks."""
        if self._pulse is not None and self._pulse.doubtful and not await self._pulse.sure():
            return [Stale(f"{self._at}: the connection was lost")] * len(settled)
        outcomes: list[SettleError | None] = [None] * len(settled)
        acks: dict[int, tuple[Source, list[int], list[int]]] = {}
        for index, (delivery, settlement) in enumerate(settled):
            receipt = delivery.receipt
            if not isinstance(receipt, Receipt) or not self._holds(receipt, delivery):
                outcomes[index] = Stale(f"{delivery.address}: it is no longer ours")
            elif isinstance(settlement, Ack):
                source = receipt.source
                del source.out[receipt.tag]
                _, tags, places = acks.setdefault(id(source), (source, [], []))
                tags.append(receipt.tag)
                places.append(index)
            else:
                outcomes[index] = self._return(receipt, delivery, settlement)
        for source, tags, places in acks.values():
            if not source.finish(tags):
                for place in places:
                    outcomes[place] = Stale(f"{self._at}: it is no longer ours")
        if self._balancer is not None:
            self._balancer.settled()
        return outcomes

    async def hold(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        """Ask the broker, one round trip for each channel, whether these are still ours; `Stale` if not."""
        answers: dict[int, SettleError | None] = {}
        for delivery in deliveries:
            receipt = delivery.receipt
            if isinstance(receipt, Receipt) and id(receipt.source) not in answers:
                answers[id(receipt.source)] = await receipt.source.ask()
        return [self._held(delivery, answers) for delivery in deliveries]

    async def tally(self, changes: Sequence[tuple[str, int]]) -> Sequence[int | SettleError]:
        """Change some counts of the group, durably; see `brokerkit.adapter.Tallies`."""
        return await self._tallies.tally(changes)

    def _held(self, delivery: Delivery, answers: Mapping[int, SettleError | None]) -> SettleError | None:
        receipt = delivery.receipt
        if isinstance(receipt, Receipt) and self._holds(receipt, delivery):
            return answers[id(receipt.source)]
        return Stale(f"{delivery.address}: it is no longer ours")

    def _holds(self, receipt: Receipt, delivery: Delivery) -> bool:
        source = receipt.source
        return not (source.lost or source.closed) and source.out.get(receipt.tag) is delivery

    def _return(self, receipt: Receipt, delivery: Delivery, retry: Retry) -> SettleError | None:
        if self._order == "key":
            return Unavailable("with order by key a return is held by the lane, not by the broker")
        del receipt.source.out[receipt.tag]
        self._hold(receipt.source, receipt.tag, delivery.native, delivery.address, max(retry.after, 0.0))
        return None

    # -- losing

    def _connection_lost(self, _: object) -> None:
        if not self._closed:
            for source in self._sources:
                source.fence()
            self._lose(self._sources, "the connection to the broker was lost")

    def _source_changed(self, source: Source) -> None:
        if self._closed or source not in self._sources:
            return
        if source.lost:
            self._lose([source], f"the broker has closed the channel of queue {source.queue!r}")
        else:
            self._fail(f"the broker has ended the consumer of queue {source.queue!r}; was it deleted?")

    def _lose(self, sources: Sequence[Source], reason: str) -> None:
        """Everything of these sources is somebody else's already: say so, then let `receive` fail."""
        lost = [delivery for source in sources for delivery in source.out.values()]
        for source in sources:
            source.out.clear()
        if lost:
            self._start(self._tell(lost, reason))
        else:
            self._fail(reason)

    async def _tell(self, lost: Sequence[Delivery], reason: str) -> None:
        try:
            await self._on_lost(lost, 0.0)
        finally:
            self._fail(reason)

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = ConnectionLost(f"{self._at}: {reason}")
        self._changed.set()

    # -- leaving

    async def close(self) -> None:
        """
        Leave at once, or within about 7 s from a broker that is slow; idempotent.

        What is unsettled goes back to the head of its queue, in order.
        """
        if self._closing is None:
            self._closed = True
            self._changed.set()
            self._closing = self._loop.create_task(self._leave())
        await asyncio.shield(self._closing)

    async def _leave(self) -> None:
        if self._client is not None:
            self._client.lost.remove_done_callback(self._connection_lost)
        end = self._loop.time() + _FORWARDS
        while any(source.forwards for source in self._sources) and (left := end - self._loop.time()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                break
        presence = None if self._balancer is None else self._balancer.presence
        signs = [each.close() for each in (presence, self._tallies) if each is not None]
        await asyncio.gather(*signs, *(source.close() for source in self._sources))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=3.0)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._task_done))

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s: %r", self._at, error, exc_info=error)


def _receipt(delivery: Delivery) -> Receipt:
    receipt = delivery.receipt
    assert isinstance(receipt, Receipt)  # noqa: S101 - made here
    return receipt
