"""
Reading, redriving and discarding the dead letters of one group.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

from brokerkit.adapter import Adapter, Browses, Subscription
from brokerkit.clock import SYSTEM, Clock
from brokerkit.copies import TooNew, read_delivery, redrive_copy
from brokerkit.delivery import Delivery
from brokerkit.errors import PublishUnknown
from brokerkit.message import Address
from brokerkit.names import check_name, with_prefix
from brokerkit.patterns.dead_letter.letter import Letter, died_at, read_letter
from brokerkit.settlement import ACK, Ack, Retry

__all__ = ["DeadLetters", "LetterOutcome", "Result"]

Result = Literal["redriven", "discarded", "would_redrive", "failed", "unknown", "not_found"]

_log = logging.getLogger("brokerkit.dead_letter")

_BATCH: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterOutcome:
    """
    What became of one selected dead letter.

    result: `redriven`; `discarded`; `would_redrive` (a dry run); `failed` (nothing was sent, the letter stays);
        `unknown` (the copy may have been sent, the letter stays: its event id lets dedupe and inbox absorb a second one);
        `not_found` (no letter with that id was handed out).
    error: what went wrong. With `redriven` or `discarded`, why the letter may still be there.
    """

    id: str
    result: Result
    letter: Letter | None = None
    error: str = ""


Outcomes = list[LetterOutcome]
Letters = list[Letter]
Deliveries = list[Delivery]
"""Named here, for inside the class `list` is its method."""


class DeadLetters:
    """
    The dead letters of one group, behind a connected adapter.

    prefix: the one of the bus, if it has one.
    idle: how many seconds without a new letter mean that there are no more, on a broker that cannot be browsed.
    hold: how many letters are held at the most while one is searched for; those that were not selected go back
        uncounted at the end, not before, or they would be handed out again at once.
    """

    def __init__(
        self,
        adapter: Adapter,
        channel: str,
        group: str,
        *,
        prefix: str = "",
        idle: float = 2.0,
        hold: int = 10_000,
        clock: Clock = SYSTEM,
    ) -> None:
        check_name("channel", channel)
        check_name("group", group)
        self._adapter = adapter
        self.channel = channel
        self.group = group
        self.idle = idle
        self.hold = hold
        self._clock = clock
        at = with_prefix(prefix, channel)
        self._dead = Address(at, group, "dead")
        self._inlet = Address(at, group, "inlet")

    def __repr__(self) -> str:
        return f"DeadLetters({self.channel!r}, {self.group!r})"

    async def list(self, limit: int = 100, cursor: str | None = None) -> tuple[Letters, str | None]:
        """
        Return at most `limit` letters, oldest first, and the cursor of the next page (None: that was the last).

        Without taking them where the broker can be browsed. Elsewhere they are taken for a moment and given back
        uncounted, `cursor` must be None, and one page is all there is.
        """
        if isinstance(self._adapter, Browses):
            found, following = await self._adapter.browse(self._dead, cursor=cursor, limit=limit)
            return [read_letter(delivery) for delivery in found if self._read(delivery)], following
        async with self._taking(limit) as taking:
            letters: Letters = []
            while len(letters) < limit and (batch := await taking.receive(limit - len(letters))):
                letters += [read_letter(delivery) for delivery in batch if self._read(delivery)]
                taking.keep(batch)
            return letters, None

    async def show(self, letter_id: str) -> Letter | None:
        """Return the oldest letter of that event id, or None."""
        cursor: str | None = None
        while True:
            letters, cursor = await self.list(
                self.hold if cursor is None and not self._browsable else _BATCH, cursor
            )
            for letter in letters:
                if letter.id == letter_id:
                    return letter
            if cursor is None or not letters:
                return None

    async def redrive(self, ids: Iterable[str] | None = None, *, dry_run: bool = False) -> Outcomes:
        """
        Send letters back to the group that failed them, and to no other; return one outcome for each.

        ids: event ids; None for all that are there now. What arrives during the call is never swept along.
        dry_run: change nothing, and say what would be sent.

        A letter is settled only after its copy is confirmed, so a crash between leaves both, with one event id, and never
        none. The copy starts at attempt 1 with one run more, and keeps the story. Letters of one event id are sent one by one.
        """
        if dry_run:
            return await self._would(ids)
        return await self._each(ids, self._redrive)

    async def discard(self, ids: Iterable[str]) -> Outcomes:
        """Throw letters away for good; return one outcome for each. There is no way back."""
        return await self._each(ids, self._discard)

    def _taking(self, hold: int) -> "_Taking":
        return _Taking(self._adapter, self._dead, hold=hold, idle=self.idle)

    @property
    def _browsable(self) -> bool:
        return isinstance(self._adapter, Browses)

    def _read(self, delivery: Delivery) -> bool:
        """Fill in a delivery; False for a copy that a later version of brokerkit has written."""
        delivery.channel, delivery.group = self.channel, self.group
        delivery.order = "none"
        try:
            read_delivery(delivery, self._clock.time())
        except TooNew as error:
            _log.warning("a dead letter is left alone: %s", error)
            return False
        return True

    async def _would(self, ids: Iterable[str] | None) -> Outcomes:
        selection = _Selection(ids, self._clock.time())
        cursor: str | None = None
        while True:
            letters, cursor = await self.list(_BATCH if self._browsable else self.hold, cursor)
            for letter in letters:
                if selection.names(letter.id):
                    selection.add(LetterOutcome(id=letter.id, result="would_redrive", letter=letter))
            if cursor is None or not letters:
                return selection.outcomes()

    async def _each(self, ids: Iterable[str] | None, work: "_Work") -> Outcomes:
        selection = _Selection(ids, self._clock.time())
        if selection.nothing:
            return []
        places = await self._places(selection) if self._browsable else None
        async with self._taking(self.hold) as taking:
            while places is None or places:
                batch = await taking.receive(_BATCH)
                if not batch:
                    break
                chosen, others = self._divide(batch, selection, places)
                taking.keep(others)
                if chosen:
                    selection.add(*await work(taking, chosen))
        return selection.outcomes()

    async def _places(self, selection: "_Selection") -> set[tuple[str, int]] | None:
        """Return where the selected letters stand, as far as it can be seen; None if letters have no coordinates."""
        assert isinstance(self._adapter, Browses)  # noqa: S101 - for the type checker
        places: set[tuple[str, int]] = set()
        cursor: str | None = None
        while True:
            found, cursor = await self._adapter.browse(self._dead, cursor=cursor, limit=_BATCH)
            for delivery in found:
                if self._read(delivery) and selection.names(delivery.event.id):
                    if delivery.position is None:
                        return None
                    places.add(delivery.position)
            if cursor is None or not found:
                return places

    def _divide(
        self, batch: Sequence[Delivery], selection: "_Selection", places: set[tuple[str, int]] | None
    ) -> tuple[Deliveries, Deliveries]:
        chosen: Deliveries = []
        others: Deliveries = []
        for delivery in batch:
            wanted = self._read(delivery) and (
                selection.wants(delivery) if places is None else delivery.position in places
            )
            if wanted and places is not None and delivery.position is not None:
                places.discard(delivery.position)
            (chosen if wanted else others).append(delivery)
        return chosen, others

    async def _redrive(self, taking: "_Taking", chosen: Sequence[Delivery]) -> Outcomes:
        chosen = [delivery for delivery in chosen if not taking.lost(delivery)]
        copies = [redrive_copy(delivery) for delivery in chosen]
        errors = await self._adapter.send(self._inlet, copies)
        sent = [delivery for delivery, error in zip(chosen, errors, strict=True) if error is None]
        kept = dict(zip(map(id, sent), await taking.settle(sent, ACK), strict=True))
        taking.keep([delivery for delivery, error in zip(chosen, errors, strict=True) if error is not None])
        outcomes: Outcomes = []
        for delivery, error in zip(chosen, errors, strict=True):
            letter = read_letter(delivery)
            if error is None:
                outcomes.append(
                    LetterOutcome(id=letter.id, result="redriven", letter=letter, error=kept[id(delivery)])
                )
            else:
                result: Result = "unknown" if isinstance(error, PublishUnknown) else "failed"
                outcomes.append(LetterOutcome(id=letter.id, result=result, letter=letter, error=_said(error)))
        return outcomes

    async def _discard(self, taking: "_Taking", chosen: Sequence[Delivery]) -> Outcomes:
        errors = await taking.settle(chosen, ACK)
        return [
            LetterOutcome(id=delivery.event.id, result="discarded", letter=read_letter(delivery), error=error)
            for delivery, error in zip(chosen, errors, strict=True)
        ]


class _Selection:
    """What was asked for, frozen when the call began, and what became of it."""

    def __init__(self, ids: Iterable[str] | None, begun: float) -> None:
        self._ids = None if ids is None else dict.fromkeys(ids)
        self._begun = begun
        self._outcomes: list[LetterOutcome] = []
        self._sent: set[tuple[str, str, int]] = set()

    @property
    def nothing(self) -> bool:
        return self._ids is not None and not self._ids

    def names(self, letter_id: str) -> bool:
        return self._ids is None or letter_id in self._ids

    def wants(self, delivery: Delivery) -> bool:
        """Whether a letter is selected; one that died after the call began, or again after it was redriven, is not."""
        died = died_at(delivery.story)
        if died is not None and died > self._begun:
            return False
        earlier = (*delivery.event.identity, delivery.run - 1)
        return self.names(delivery.event.id) and earlier not in self._sent

    def add(self, *outcomes: LetterOutcome) -> None:
        self._outcomes += outcomes
        for outcome in outcomes:
            if outcome.letter is not None:
                self._sent.add((outcome.letter.source, outcome.id, outcome.letter.runs))

    def outcomes(self) -> list[LetterOutcome]:
        seen = {outcome.id for outcome in self._outcomes}
        missing = [] if self._ids is None else [name for name in self._ids if name not in seen]
        return [*self._outcomes, *(LetterOutcome(id=name, result="not_found") for name in missing)]


class _Taking:
    """A stay in the dead place. Whatever is not settled at its end goes back uncounted."""

    def __init__(self, adapter: Adapter, dead: Address, *, hold: int, idle: float) -> None:
        self._adapter = adapter
        self._dead = dead
        self._hold = hold
        self._idle = idle
        self._kept: list[Delivery] = []
        self._lost: set[int] = set()
        self._subscription: Subscription

    async def __aenter__(self) -> Self:
        self._subscription = await self._adapter.subscribe(
            self._dead, order="none", start="earliest", prefetch=self._hold, on_lost=self._on_lost
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                back = [delivery for delivery in self._kept if not self.lost(delivery)]
                await self._subscription.settle([(delivery, _BACK) for delivery in back])
        finally:
            await self._subscription.close()

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Return the next letters, or nothing if there are no more or no more may be held."""
        limit = min(limit, self._hold - len(self._kept))
        if limit < 1:
            _log.warning("%s: %d letters are held, no more are searched", self._dead, len(self._kept))
            return ()
        try:
            async with asyncio.timeout(self._idle):
                return await self._subscription.receive(limit)
        except TimeoutError:
            return ()

    def keep(self, deliveries: Iterable[Delivery]) -> None:
        """Hold deliveries until the end: returned now they would be handed out again."""
        self._kept += deliveries

    def lost(self, delivery: Delivery) -> bool:
        return id(delivery) in self._lost

    async def settle(self, deliveries: Sequence[Delivery], how: Ack) -> list[str]:
        """Settle, and say for each what went wrong, or nothing."""
        errors = await self._subscription.settle([(delivery, how) for delivery in deliveries])
        return ["" if error is None else _said(error) for error in errors]

    async def _on_lost(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        del seconds
        self._lost.update(map(id, deliveries))


_Work = Callable[[_Taking, Sequence[Delivery]], Awaitable[list[LetterOutcome]]]

_BACK: Final = Retry(after=0, reason="not selected", counts=False)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
