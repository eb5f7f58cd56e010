"""
Where a channel's messages go: the queues of its groups, as fresh a list as a new group relies on.

A publisher uses no list that it asked for longer than `groups_age` ago. Who makes a group waits for as long, after it has
seen the group in a listing itself: whatever is published once its `subscribe` has returned reaches it. The argument
and its limits are in docs/adr/0008-sqs-fan-out.md.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from brokerkit.adapters.sqs.calls import CallFailed
from brokerkit.adapters.sqs.failure import lost
from brokerkit.adapters.sqs.names import channel_prefix, group_queues
from brokerkit.adapters.sqs.queues import Queue, Queues
from brokerkit.adapters.sqs.url import Options
from brokerkit.errors import ConnectionLost

__all__ = ["Routes"]

_LONGEST = 60.0
_DOUBT = 10.0


@dataclass(slots=True)
class _List:
    asked: float
    queues: tuple[Queue, ...]


class Routes:
    """The lists of one adapter, one for each channel that it publishes to."""

    def __init__(self, queues: Queues, options: Options, native: Mapping[str, str]) -> None:
        self._queues = queues
        self._options = options
        self._native = native
        self._lists: dict[str, _List] = {}
        self._last: dict[str, tuple[Queue, ...]] = {}
        self._vanished: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[_List]] = {}

    async def of(self, channel: str) -> tuple[Queue, ...]:
        """Return the queues of a channel's groups. Raises `ConnectionLost` and its kin if they cannot be known."""
        loop = asyncio.get_running_loop()
        age, begun = self._options.groups_age, loop.time()
        found = self._lists.get(channel)
        if found is not None and begun - found.asked <= age:
            if begun - found.asked > age / 2:
                self._refresh(channel)
            return found.queues
        while True:
            found = await asyncio.shield(self._ask(channel))
            if begun - found.asked <= age:
                return found.queues

    def forget(self, channel: str) -> None:
        """Ask again before the next message: a queue of the list is gone."""
        self._lists.pop(channel, None)

    async def announce(self, channels: Mapping[str, Iterable[str]]) -> None:
        """Wait until every publisher knows these new groups' queues; one wait for all of them."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _LONGEST
        for channel, names in channels.items():
            while not set(names) <= set(await self._listed(channel)):
                if loop.time() > end:
                    message = f"{self._options.text}: the queues {', '.join(names)} do not show in a listing after {_LONGEST:g} s"
                    raise ConnectionLost(message)
                await asyncio.sleep(0.05)
            self.forget(channel)
        await asyncio.sleep(self._options.settling)

    def _refresh(self, channel: str) -> None:
        """Ask already, beside the sends; one that fails is asked again when the list is too old to be used."""
        _ = self._ask(channel)

    def _ask(self, channel: str) -> asyncio.Task[_List]:
        task = self._asking.get(channel)
        if (
            task is None or task.done()
        ):  # done, and its callback has not run: it may be too old for who asks now
            task = self._asking[channel] = asyncio.create_task(self._fetch(channel))
            task.add_done_callback(lambda done: self._asked(channel, done))
        return task

    def _asked(self, channel: str, task: asyncio.Task[_List]) -> None:
        if self._asking.get(channel) is task:
            del self._asking[channel]
        if not task.cancelled() and task.exception() is None:
            self._lists[channel] = task.result()

    async def _fetch(self, channel: str) -> _List:
        asked = asyncio.get_running_loop().time()
        names = [*await self._listed(channel), *self._adopted(channel)]
        found = await asyncio.gather(*(self._queues.find(name) for name in dict.fromkeys(names)))
        queues = [queue for queue in found if queue is not None]
        queues += self._doubtful(channel, {queue.url for queue in queues}, asked)
        self._last[channel] = tuple(queues)
        return _List(asked, tuple(queues))

    def _doubtful(self, channel: str, there: set[str], now: float) -> list[Queue]:
        """
        Return groups that were there and are not listed now, for some seconds: a listing may be incomplete.

        A server that has just started lists queues that it has not restored yet as missing (tried); without this a message
        would go past a group, or into the unrouted queue, and be confirmed.
        """
        doubtful: list[Queue] = []
        for queue in self._last.get(channel, ()):
            if queue.url in there:
                self._vanished.pop(queue.url, None)
            elif now - self._vanished.setdefault(queue.url, now) < _DOUBT:
                doubtful.append(queue)
        return doubtful

    async def _listed(self, channel: str) -> list[str]:
        try:
            return group_queues(channel, await self._queues.names(channel_prefix(channel)))
        except CallFailed as error:
            raise lost(error, f"{self._options.text}: the groups of {channel} cannot be listed") from error

    def _adopted(self, channel: str) -> list[str]:
        return [name for place, name in self._native.items() if place.startswith(f"{channel}/")]
