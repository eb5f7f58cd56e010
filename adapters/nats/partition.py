"""
One partition of a group with order by key, as one member sees it: claimed, taken over, owned, given back.

The server gives a partition's messages to one member, who proves itself by a pin, and forgets the pin when its owner has not
asked for a while. So the owner asks every third of that time, and starts nothing unless the server has confirmed the pin
within it. A new owner first asks for all that the last one left: it naks everything between the ack floor and the last
delivered, holds what comes, and starts nothing until every message that is out at the server is in its hands, in order.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, cast

from brokerkit.adapters.nats.failure import ApiError, NoAnswer
from brokerkit.adapters.nats.held import Held
from brokerkit.adapters.nats.source import Source, nak
from brokerkit.adapters.nats.topology import GROUP

if TYPE_CHECKING:
    from brokerkit.adapters.nats.keyed import KeyedSubscription

__all__ = ["Partition"]

_log = logging.getLogger("brokerkit.nats")
_RENEWALS = 3
_MARGIN = 0.9
_FURTHEST = 20_000
_CHUNK = 500
_LOOK = 0.05

State = Literal["idle", "claiming", "taking", "owned", "leaving"]


class Partition:
    """
    A partition and how it stands with this member.

    state: idle (somebody else's), claiming (asked for), taking (pinned, waits for what the last owner left), owned, leaving
    (owned; nothing new is handed out, and it is given back when nothing is out). out: what of it has been handed out, copies
    from the inlet with a key of this partition included. until: end of the pin as far as it is confirmed.
    """

    def __init__(
        self, member: "KeyedSubscription", index: int, source: Source, pin_timeout: float, *, pins: bool
    ) -> None:
        self.index = index
        self.source = source
        self.state: State = "idle"
        self.pin: str | None = None
        self.until = 0.0
        self.out = 0
        self.waiting: deque[Held] = deque()
        self._taken: dict[int, Held] = {}
        self._member = member
        self._timeout = pin_timeout
        self._pins = pins
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._arrival = asyncio.Event()
        self._renewed = 0.0
        self._pin_ends = 0.0
        self._busy = False
        self._unwanted = False
        self._vacant = 0.0
        self._rousing = False

    @property
    def mine(self) -> bool:
        """Say whether the partition is with this member."""
        return self.state in {"taking", "owned", "leaving"}

    def confirmed(self, now: float) -> bool:
        """Say whether the pin is certain now."""
        return self.mine and (now < self.until or not self._pins)

    def takes_copies(self, now: float) -> bool:
        """
        Say whether copies with a key of this partition are this member's to handle.

        Also while it is claimed and the server has just said that nobody has the pin: a partition without news is pinned to
        nobody, and who claims it is who gets the next message.
        """
        return (self.state == "owned" and self.confirmed(now)) or (
            self.state == "claiming" and not self._unwanted and now < self._vacant
        )

    # -- coming and going

    def claim(self) -> None:
        """Reach for it; on a server without pins nobody has to wait."""
        self._unwanted = False
        if self._busy:
            return  # it is on its way out; who it is for is looked at again then
        if self.state == "leaving":
            self.state = "owned"
        elif self.state == "idle":
            self.state = "claiming" if self._pins else "owned"
            self._member.spawn(self._claim())

    async def _claim(self) -> None:
        await self.source.start()
        await self.source.ask(1)
        if self.state == "claiming" and not self._rousing:
            self._rousing = True
            await self._rouse()

    def yield_up(self) -> None:
        """Give it back as soon as nothing of it is out."""
        self._unwanted = True
        if self.state == "owned":
            self.state = "leaving"
        if self.state in {"claiming", "leaving"}:
            self.check_leaving()

    def check_leaving(self) -> None:
        """Give it back now if nothing of it is out."""
        leaves = self.state == "leaving" or (self.state == "claiming" and self._unwanted)
        if not self._busy and leaves and self.out == 0:
            self._busy = True
            self._member.spawn(self._leave())

    async def _leave(self) -> None:
        try:
            await self.release()
        finally:
            self._busy = False
        self._member.changed()

    async def release(self) -> None:
        """Stop asking, give back what has come, in order, and let go of the pin."""
        await self.source.drain()
        if self._task is not None:
            self._task.cancel()
        held = [each for each in self._member.held.values() if each.source is self.source]
        await self._member.give_back(held)
        self._member.forget_quietly(held)
        if self.pin is not None and self._loop.time() < self._pin_ends:  # else it may be the next owner's
            with contextlib.suppress(NoAnswer, ApiError):
                await self._member.site.api.unpin(self.source.stream, self.source.name, GROUP)
        self._reset()

    def _reset(self) -> None:
        self.state = "idle"
        self._vacant = 0.0
        self.pin = None
        self.until = self._pin_ends = 0.0
        self.waiting.clear()
        self._taken.clear()
        self.source.fields = {"group": GROUP} if self._pins else {}

    def lose(self, why: str) -> None:
        """It belongs to somebody else, or to nobody: drop what waits and tell of what is out."""
        if self.mine:
            self._drop(why)
            self._busy = True
            self._member.spawn(self._after_loss())

    def _drop(self, why: str) -> None:
        _log.info("partition %s of %s is lost: %s", self.index, self.source.stream, why)
        if self._task is not None:
            self._task.cancel()
        self._reset()
        self.source.forget_credit()
        self._member.lose_part(self)

    async def _after_loss(self) -> None:
        try:
            await self.source.drain()
        finally:
            self._busy = False
        self._member.changed()

    # -- arrivals

    def before(self, pin: str | None) -> None:
        """See to the pin of a message that is about to be held."""
        if self._pins and pin is not None and pin != self.pin:
            if self.mine:
                self._drop("it was lost and found again")
            self._pinned(pin)

    def arrived(self, held: Held) -> None:
        """Take a message that the server has sent to this member."""
        if self.state == "taking":
            self._taken[held.seq] = held
            self._arrival.set()
        else:
            self.waiting.append(held)

    def _pinned(self, pin: str) -> None:
        self.pin = pin
        self._pin_ends = self._member.alive + self._timeout * _MARGIN
        self.state = "taking"
        self.source.fields = {"group": GROUP, "id": pin}
        self._task = self._loop.create_task(self._take_over(pin))
        self._task.add_done_callback(_look)

    async def _take_over(self, pin: str) -> None:
        """Ask for what the last owner left, and open when all of it is here."""
        asked = False
        while True:
            here = len(self._taken)  # what comes behind the answer is not in its numbers
            info = await self._confirm(renew=not self.until or self._renewal_due())
            if self.pin != pin or self.state != "taking":
                return
            if info is not None:
                short = int(info["num_ack_pending"]) - here
                if not asked:
                    asked = short <= 0 or await self._call_back(info, spare=set(self._taken))
                elif short <= 0:
                    break
                if self.source.credit < short:  # what is new may have used up what was asked for
                    await self.source.request(short - self.source.credit)
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._arrival.wait()
        self.waiting = deque(sorted(self._taken.values(), key=lambda held: held.seq))
        self._taken.clear()
        self.state = "owned"
        self._member.changed()
        self._member.wake()

    async def _call_back(self, info: dict[str, Any], spare: set[int]) -> bool:
        """
        Nak all that may be out and is not in our hands, so that it comes back at once, in order, before what is new.

        False if the server did not answer.
        """
        floor, delivered = int(info["ack_floor"]["stream_seq"]), int(info["delivered"]["stream_seq"])
        seqs = [seq for seq in range(floor + 1, delivered + 1) if seq not in spare]
        if (
            len(seqs) > _FURTHEST
        ):  # far apart: the oldest and the newest; what lies between comes when its lease is over
            seqs = seqs[: _FURTHEST // 2] + seqs[-_FURTHEST // 2 :]
        number, now = info["delivered"]["consumer_seq"], time.time_ns()
        start = f"$JS.ACK.{self.source.stream}.{self.source.name}.1"
        for at in range(0, len(seqs), _CHUNK):
            part = [(f"{start}.{seq}.{number}.{now}.0", nak(0)) for seq in seqs[at : at + _CHUNK]]
            try:
                await self.source.send(part, timeout=self._timeout)
            except NoAnswer:
                return False
            await asyncio.sleep(0)
        return True

    # -- the pin

    async def turn(self, now: float) -> None:
        """Renew what is ours; wake what nobody owns."""
        if not self._pins or self._busy or not self._renewal_due():
            return
        if self.state in {"owned", "leaving"}:
            await self._confirm(renew=True)
        elif self.state == "claiming" and not self._rousing:
            self._renewed = now
            self._rousing = True
            self._member.spawn(self._rouse())  # beside the renewals of the others, which it must not hold up

    def _renewal_due(self) -> bool:
        return self._loop.time() - self._renewed >= self._timeout / _RENEWALS

    async def _confirm(self, *, renew: bool) -> dict[str, Any] | None:
        """See that the server still knows the pin; to renew it, ask for something with it first."""
        pin, now = self.pin, self._loop.time()
        written = renew and await self.source.request(1)
        if written:
            self._renewed = now
        try:
            info = await self._member.site.api.consumer(
                self.source.stream, self.source.name, timeout=self._timeout / _RENEWALS
            )
        except (NoAnswer, ApiError):
            return None
        if self.pin != pin or not self.mine:
            return None
        if info is None or _pin_in(info) != pin:
            self.lose("the server has another owner, or none")
            return None
        if written:
            self.until = self._pin_ends = now + self._timeout * _MARGIN
        return info

    async def _rouse(self) -> None:
        """
        Set a partition going whose owner has died and that nothing new comes to.

        A pin is given with a message, and what is out of a dead owner comes only when its lease is over, unless it is nak'ed.
        """
        try:
            await self._rouse_once()
        except (NoAnswer, ApiError) as error:
            _log.debug("partition %s: %s; asked again", self.index, error)
        finally:
            self._rousing = False

    async def _rouse_once(self) -> None:
        await self.source.start()
        await self.source.ask(1)
        info = await self._member.site.api.consumer(
            self.source.stream, self.source.name, timeout=self._timeout
        )
        if info is None:
            self._member.gone(self.source, "it was deleted")
        elif self.state == "claiming":
            pinned = bool(_pin_in(info))
            self._vacant = 0.0 if pinned else self._loop.time() + self._timeout / _RENEWALS * 1.5
            if not pinned and int(info["num_ack_pending"]) > 0:
                await self._call_back(info, spare=set())


def _pin_in(info: dict[str, Any]) -> str:
    groups = cast("list[dict[str, Any]]", info.get("priority_groups") or [])
    return str(
        next((each.get("pinned_client_id") or "" for each in groups if each.get("group") == GROUP), "")
    )


def _look(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("taking a partition over failed", exc_info=error)
