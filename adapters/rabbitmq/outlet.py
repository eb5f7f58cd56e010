"""
One channel by which is published: what is out and unconfirmed, and what becomes of it.

Messages that are given in one turn of the loop leave in one write at its end. A bounded number is out; whoever wants more waits
for room. When the connection ends or a send's time is up, what has no confirmation has an unknown outcome, and nothing more
goes out here: what the connection holds is not published a second time by it.
"""

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from typing import Any

from pamqp import commands

from brokerkit.adapters.rabbitmq.channel import Channel
from brokerkit.adapters.rabbitmq.client import Client
from brokerkit.adapters.rabbitmq.failure import at_publish
from brokerkit.adapters.rabbitmq.parcels import Parcel, frames_of
from brokerkit.errors import BadHeader, ConnectionLost, SendError, TooLarge

__all__ = ["Outlet"]

_WINDOW = 1000
_RUN = secrets.token_hex(8)
_NUMBERS = itertools.count()

Outcomes = list[SendError | None]


def _unsent() -> SendError:
    return ConnectionLost("not sent: the connection was lost, or too much is unconfirmed")


class Outlet:
    """The publishing channel of one connection; it ends with it."""

    def __init__(self, client: Client, channel: Channel) -> None:
        self._client = client
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._window = asyncio.Semaphore(_WINDOW)
        self._out: set[Slot] = set()
        self._frames: list[tuple[bytes, Slot]] = []
        self._ended = False
        channel.closed.add_done_callback(self._channel_closed)
        client.lost.add_done_callback(self._end)

    @property
    def alive(self) -> bool:
        """Whether it may be published here."""
        return not self._ended and self._client.alive and self._channel.alive

    @property
    def ready(self) -> bool:
        """Whether it may be published here at once: the broker has not blocked the connection."""
        return self.alive and self._client.ready

    async def publish(self, parcels: Sequence[Parcel], deadline: float) -> Sequence[SendError | None]:
        """
        Publish and return one outcome for each, in order; ends by the deadline, a time of the loop.

        Cancelled, what is on its way stays on its way, until the deadline: its room is not taken for ever.
        """
        batch = _Batch(parcels, self._loop.create_future())
        try:
            await self._put(batch, deadline)
        except BaseException:
            if not batch.close():
                self._loop.call_at(deadline, self._late, batch)
            raise
        if batch.close():
            return batch.outcomes
        timer = self._loop.call_at(deadline, self._late, batch)
        try:
            await batch.done
        finally:
            if not batch.open:
                timer.cancel()
        return batch.outcomes

    async def _put(self, batch: "_Batch", deadline: float) -> None:
        window = self._window
        for index in range(len(batch.parcels)):
            if window.locked():
                try:
                    async with asyncio.timeout_at(deadline):
                        await window.acquire()
                except TimeoutError:
                    return
            else:
                await window.acquire()
            if not self.alive:
                window.release()  # wakes the next one that waits here
                return
            self._begin(batch, index)

    def _begin(self, batch: "_Batch", index: int) -> None:
        parcel = batch.parcels[index]
        name = f"{_RUN}-{next(_NUMBERS)}"
        try:
            frames = frames_of(parcel, name, self._channel.number, self._channel.largest)
        except TooLarge as error:
            self._refuse(batch, index, error)
            return
        except (TypeError, ValueError, OverflowError) as error:
            refused = BadHeader(f"AMQP cannot carry it: {error}")
            refused.__cause__ = error
            self._refuse(batch, index, refused)
            return
        slot = Slot(self, batch, index)
        self._out.add(slot)
        batch.open += 1
        slot.forget = self._channel.expect(slot, name if parcel.mandatory else None)
        if not self._frames:
            self._loop.call_soon(self._flush)
        self._frames.append((frames, slot))

    def _refuse(self, batch: "_Batch", index: int, outcome: SendError) -> None:
        self._window.release()
        batch.outcomes[index] = outcome

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        if not (self.alive and self._channel.write(b"".join(each for each, _ in frames))):
            for _, slot in frames:
                slot.settle(_unsent())

    def settled(self, slot: "Slot") -> None:
        """Note that one is out no more."""
        self._out.discard(slot)
        self._window.release()

    def _late(self, batch: "_Batch") -> None:
        if batch.open:
            self._client.abort()  # nothing more goes out here, or each message that waits would go out twice

    def _channel_closed(self, _: object) -> None:
        """A publish channel that the broker has closed takes the connection with it: all that was out is unknown."""
        self._client.fail(self._channel.error)

    def _end(self, _: object) -> None:
        self._ended = True
        error = self._channel.error or self._client.error
        for slot in list(self._out):
            slot.settle(at_publish(error, slot.parcel))


class _Batch:
    """The outcomes of one call, and the number of those that are open; `done` when there are none left."""

    __slots__ = ("done", "open", "outcomes", "parcels")

    def __init__(self, parcels: Sequence[Parcel], done: "asyncio.Future[None]") -> None:
        self.parcels = parcels
        self.outcomes: Outcomes = [_unsent()] * len(parcels)
        self.open = 1  # the putting of them all
        self.done = done

    def close(self) -> bool:
        """Note that one less is open, and say whether nothing is."""
        self.open -= 1
        if not self.open and not self.done.done():
            self.done.set_result(None)
        return not self.open


class Slot:
    """
    One message that is out; the client takes it for the future of its confirmation.

    forget: what makes the client forget its name, if it has been told one.
    """

    __slots__ = ("_batch", "_index", "_outlet", "_settled", "forget")

    def __init__(self, outlet: Outlet, batch: _Batch, index: int) -> None:
        self._outlet = outlet
        self._batch = batch
        self._index = index
        self._settled = False
        self.forget: Any = None

    @property
    def parcel(self) -> Parcel:
        """What it carries, and where to."""
        return self._batch.parcels[self._index]

    def done(self) -> bool:
        """Whether there is an outcome."""
        return self._settled

    def cancelled(self) -> bool:
        """Whether nobody waits for the client's word any more."""
        return self._settled

    def set_result(self, frame: object) -> None:
        """Take the client's word that it is confirmed."""
        ok = isinstance(frame, commands.Basic.Ack)
        self.settle(None if ok else at_publish(None, self.parcel))

    def set_exception(self, error: BaseException) -> None:
        """Take the client's word that it is refused or returned."""
        self.settle(at_publish(error, self.parcel))

    def settle(self, outcome: SendError | None) -> None:
        """Note the outcome, once."""
        if self._settled:
            return
        self._settled = True
        if self.forget is not None:
            self.forget()
        self._outlet.settled(self)
        self._batch.outcomes[self._index] = outcome
        self._batch.close()
