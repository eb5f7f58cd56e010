"""
Signs of life, and the watch over those of the others.

They come out of a thread with an event loop of its own, so a handler that blocks the application's loop does not cost the lease.
Whether another member is dead is judged by the clock of the one who watches: its sign has stood still for a lease. Who was
away itself judges nobody and begins to watch anew.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from brokerkit.adapter import Order
from brokerkit.brokerurl import BrokerUrl
from brokerkit.errors import ConfigurationError, SendError
from brokerkit.examples.redis_streams.line import FAILURES, Line

__all__ = ["Keeper", "Ward", "Watch", "pairs"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Watch:
    """What has been seen of the signs of others, and since when it is the same."""

    lease: float
    _seen: dict[bytes, tuple[bytes, float]] = field(default_factory=dict[bytes, tuple[bytes, float]])

    def judge(self, signs: dict[bytes, bytes], at: float, *, away: bool = False) -> list[tuple[bytes, bytes]]:
        """Return who is dead, with its last sign. A sign says how long its owner's lease is; the longer one counts."""
        seen, self._seen = self._seen, {}
        dead: list[tuple[bytes, bytes]] = []
        for member, sign in signs.items():
            before = seen.get(member)
            if away or before is None or before[0] != sign:
                self._seen[member] = (sign, at)
                continue
            self._seen[member] = before
            if at - before[1] > max(self.lease, _lease_in(sign)):
                dead.append((member, sign))
        return dead


@dataclass(eq=False, slots=True)
class Ward:
    """
    One membership that is kept.

    confirmed: monotonic time of a moment at which it was still ours, for the server had said so later. gone: called from
    the thread, with the reason, when it is lost.
    """

    base: str
    group: str
    place: str
    member: str
    order: Order
    watch: Watch
    gone: Callable[[str], None]
    confirmed: float = field(default_factory=time.monotonic)
    beats: int = 0

    @property
    def fresh(self) -> bool:
        """Whether it is ours by our own clock, without asking."""
        return time.monotonic() - self.confirmed < self.watch.lease

    def sign(self) -> str:
        """Return the next sign of life."""
        self.beats += 1
        return f"{self.beats}|{self.watch.lease}"


class Keeper:
    """The thread of one adapter. Its methods are called on the adapter's loop."""

    def __init__(self, url: BrokerUrl, lease: float) -> None:
        self._url = url
        self._lease = lease
        self._wards: list[Ward] = []
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._ring: Callable[[], None] | None = None

    def keep(self, ward: Ward) -> None:
        """Give signs of life for this one from now on."""
        with self._lock:
            self._wards = [*self._wards, ward]
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="redis-streams-keeper", daemon=True)
            self._thread.start()

    def let_go(self, ward: Ward) -> bool:
        """Give no more of them, and return whether any were given."""
        with self._lock:
            before, self._wards = self._wards, [other for other in self._wards if other is not ward]
        return len(self._wards) < len(before)

    async def close(self) -> None:
        """End the thread."""
        with self._lock:
            self._wards = []
        self._stop.set()
        if self._ring is not None:
            with suppress(RuntimeError):  # its loop has ended meanwhile
                self._ring()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 2.0)

    def _work(self) -> None:
        asyncio.run(self._tend_all())

    async def _tend_all(self) -> None:
        loop, ring = asyncio.get_running_loop(), asyncio.Event()
        self._ring = lambda: cast("None", loop.call_soon_threadsafe(ring.set))
        line = Line(self._url, timeout=max(self._lease / 2, 0.5))
        try:
            while not self._stop.is_set():
                began = loop.time()
                well = await asyncio.gather(*(self._tend(line, ward) for ward in self._wards))
                pause = self._lease / 3 if all(well) else self._lease / 10
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.01, began + pause - loop.time())):
                        await ring.wait()
        finally:
            await line.close(0.1)

    async def _tend(self, line: Line, ward: Ward) -> bool:
        began = time.monotonic()
        place = (ward.group, ward.place)
        try:
            answer = await line.script(ward.base, "beat", *place, ward.member, ward.sign(), ward.order)
            if answer == b"gone":
                self._lost(ward, "the others took this member for dead")
                return True
            away = began - ward.confirmed > ward.watch.lease / 2 + ward.watch.lease / 3
            ward.confirmed = max(began, ward.confirmed)
            others = pairs(answer)
            others.pop(ward.member.encode(), None)
            for member, sign in ward.watch.judge(others, began, away=away):
                if await line.script(ward.base, "evict", *place, member, sign) == 1:
                    _log.warning("a member of group %s at %s gave no sign of life and was taken out", *place)
        except (SendError, ConfigurationError, *FAILURES) as error:
            if time.monotonic() - ward.confirmed > ward.watch.lease:
                self._lost(ward, f"no sign of life could be given for {ward.watch.lease:g} s: {error}")
            return False
        return True

    def _lost(self, ward: Ward, why: str) -> None:
        if self.let_go(ward):
            ward.gone(why)


def pairs(answer: object) -> dict[bytes, bytes]:
    """Return a hash out of the flat list that a script gives."""
    flat = cast("Sequence[bytes]", answer)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _lease_in(sign: bytes) -> float:
    try:
        return float(sign.rpartition(b"|")[2])
    except ValueError:
        return 0.0
