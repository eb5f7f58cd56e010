"""
Counts of a group, by name: the last message of a subject each, in a stream of their own that is made at the first count.
"""

import asyncio
import base64
from collections.abc import Sequence

from brokerkit.adapters.nats import names
from brokerkit.adapters.nats.api import Api, Info, read_answer
from brokerkit.adapters.nats.failure import NO_MESSAGE, STREAM_MISSING, ApiError, NoAnswer
from brokerkit.adapters.nats.link import Link
from brokerkit.errors import SettleError, Unavailable
from brokerkit.message import Address

__all__ = ["PLACE", "Tallies"]

PLACE = "tallies"
_KEPT = 7 * 86_400 * 1_000_000_000
_TIMEOUT = 5.0
_MOST_UNSURE = 10_000


class Tallies:
    """
    The counts of one group.

    A count is read and written, not added to: one member at a time changes a name, who holds its message.
    """

    def __init__(self, link: Link, api: Api, at: Address, replicas: int) -> None:
        assert at.group is not None  # noqa: S101 - an inlet
        self._link = link
        self._api = api
        self._stream = names.stream(at.channel, PLACE)
        self._subject = names.subject(at.channel, PLACE, at.group)
        self._filter = f"{names.token(at.channel)}--{PLACE}.>"
        self._replicas = replicas
        self._lock = asyncio.Lock()
        self._unsure: dict[str, tuple[int, int]] = {}
        """Changes of which nobody knows whether they were stored: the counts before and after, by subject."""

    async def tally(self, changes: Sequence[tuple[str, int]]) -> Sequence[int | SettleError]:
        """Change the counts one after the other."""
        counts: list[int | SettleError] = []
        for name, change in changes:
            try:
                async with self._lock:
                    counts.append(await self._change(f"{self._subject}.{name}", change))
            except (ApiError, NoAnswer) as error:
                counts.append(Unavailable(f"{self._link.where}: a count could not be kept: {error}"))
        return counts

    async def _change(self, subject: str, change: int) -> int:
        stored = await self._look(subject)
        before = stored
        unsure = self._unsure.pop(subject, None)
        if unsure is not None and stored in unsure:
            before = unsure[0]  # whoever asked for that change was told that it failed
        after = max(0, before + change)
        if after != stored:
            if len(self._unsure) >= _MOST_UNSURE:
                del self._unsure[next(iter(self._unsure))]
            self._unsure[subject] = before, after
            await self._store(subject, after)
            del self._unsure[subject]
        return after

    async def _store(self, subject: str, count: int) -> None:
        try:
            if count:
                await self._write(subject, count)
            else:
                await self._api.ask(f"STREAM.PURGE.{self._stream}", {"filter": subject})
        except NoAnswer:
            if await self._look(subject) != count:  # it was not stored, or not yet
                raise

    async def _look(self, subject: str) -> int:
        try:
            found: Info = await self._api.ask(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject})
        except ApiError as error:
            if error.reason in {NO_MESSAGE, STREAM_MISSING}:
                return 0
            raise
        text = base64.b64decode(found["message"].get("data", ""))
        return int(text) if text.isdigit() else 0

    async def _write(self, subject: str, count: int) -> None:
        try:
            await self._publish(subject, count)
        except NoAnswer as error:
            if error.responders:
                raise
            await self._api.create_stream(self._config())
            await self._publish(subject, count)

    async def _publish(self, subject: str, count: int) -> None:
        answer = await self._link.call(subject, str(count).encode(), timeout=_TIMEOUT)
        read_answer(answer.data)

    def _config(self) -> Info:
        return {
            "name": self._stream,
            "subjects": [self._filter],
            "storage": "file",
            "num_replicas": self._replicas,
            "retention": "limits",
            "discard": "old",
            "max_msgs_per_subject": 1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": _KEPT,
        }
