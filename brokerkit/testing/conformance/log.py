"""
What consumers say while they work, here and over there, as one list that can be waited on.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from brokerkit.delivery import Delivery
from brokerkit.hooks import Alarm, HookEvent, Settled

__all__ = ["Log", "Note", "Say", "heard", "note_of"]


class Note(NamedTuple):
    """
    One thing that happened to one delivery, or an alarm; it can be sent between processes.

    what: `begin` and `end` of a handler, `alarm`, or an outcome of `Settled`. at: monotonic seconds, the same clock in
    every process of one machine. detail: the alarm's code, or the reason of a settlement.
    """

    what: str
    who: str
    id: str
    key: str | None
    attempt: int
    run: int
    at: float
    detail: str = ""


Say = Callable[[Note], object]


def note_of(what: str, who: str, delivery: Delivery | None, detail: str = "") -> Note:
    """Write down what has just happened."""
    if delivery is None:
        return Note(what, who, "", None, 0, 0, time.monotonic(), detail)
    key = delivery.message.key
    return Note(
        what,
        who,
        delivery.event.id,
        None if key is None else key.decode(),
        delivery.attempt,
        delivery.run,
        time.monotonic(),
        detail,
    )


def heard(say: Say, who: str) -> Callable[[HookEvent], None]:
    """Return a hook that writes down how deliveries end, and alarms."""

    def hook(event: HookEvent) -> None:
        if isinstance(event, Settled):
            detail = str(getattr(event.settlement, "reason", ""))
            say(note_of(event.outcome, who, event.delivery, detail))
        elif isinstance(event, Alarm):
            say(note_of("alarm", who, event.delivery, event.code))

    return hook


class Log:
    """The notes of one test, in the order in which they came home."""

    def __init__(self, patience: float) -> None:
        self.notes: list[Note] = []
        self._patience = patience
        self._waiting: asyncio.Future[None] | None = None

    def add(self, note: Note) -> None:
        """Take a note; on the loop of the test only."""
        self.notes.append(note)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def __iter__(self) -> Iterator[Note]:
        return iter(self.notes)

    def of(self, *whats: str, who: str | None = None, event: str | None = None) -> list[Note]:
        """Return the notes of some kinds, of all consumers or one, of all events or one."""
        return [
            note
            for note in self.notes
            if note.what in whats and who in (None, note.who) and event in (None, note.id)
        ]

    def ids(self, *whats: str, who: str | None = None) -> list[str]:
        """Return the ids of the events that some kinds of notes speak of."""
        return [note.id for note in self.of(*whats, who=who)]

    async def until(self, check: Callable[[], object], what: str, *, times: float = 1) -> None:
        """Wait until something is true that is asked after each note, for so many times the patience."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._patience * times
        while not check():
            self._waiting = loop.create_future()
            await asyncio.wait([self._waiting], timeout=max(end - loop.time(), 0))
            in_time = self._waiting.done() and loop.time() < end
            assert in_time, f"not within {self._patience * times:g} s: {what}; {self._summary()}"

    async def count(self, number: int, *whats: str) -> None:
        """Wait until there are so many notes of some kinds."""
        await self.until(lambda: len(self.of(*whats)) >= number, f"{number} of {whats}")

    async def all_of(
        self,
        ids: set[str],
        *whats: str,
        who: str | None = None,
        run: int | None = None,
        times: float = 1,
    ) -> None:
        """Wait until there is such a note of each of these events."""
        left = set(ids)
        seen = 0

        def complete() -> bool:
            nonlocal seen
            for note in self.notes[seen:]:
                if note.what in whats and who in (None, note.who) and run in (None, note.run):
                    left.discard(note.id)
            seen = len(self.notes)
            return not left

        await self.until(complete, f"{whats} of all; some of those left: {sorted(left)[:10]}", times=times)

    def _summary(self) -> str:
        counts: dict[str, int] = {}
        for note in self.notes:
            counts[note.what] = counts.get(note.what, 0) + 1
        return f"{counts}, last {self.notes[-5:]}"
