"""
Groups: the queues they consist of, found or made, and what lies in them.
"""

import asyncio
from collections.abc import Mapping, Sequence

from brokerkit.adapter import Measurement, Order
from brokerkit.adapters.sqs.calls import CallFailed
from brokerkit.adapters.sqs.failure import lost
from brokerkit.adapters.sqs.names import FIFO, group_queue, queue_name, topic_name
from brokerkit.adapters.sqs.queues import Queue, Queues
from brokerkit.adapters.sqs.routes import Routes
from brokerkit.adapters.sqs.topics import Topics
from brokerkit.adapters.sqs.url import Options
from brokerkit.errors import ConfigurationError, NotFound
from brokerkit.message import Address

__all__ = ["Groups"]

_WAITING = "ApproximateNumberOfMessages"
_DELAYED = "ApproximateNumberOfMessagesDelayed"
_OUT = "ApproximateNumberOfMessagesNotVisible"


class Groups:
    """The groups as one adapter sees them."""

    def __init__(
        self,
        queues: Queues,
        routes: Routes,
        topics: Topics | None,
        options: Options,
        native: Mapping[str, str],
    ) -> None:
        self._queues = queues
        self._routes = routes
        self._topics = topics
        self._options = options
        self._native = native

    async def join(self, at: Address, order: Order) -> Sequence[tuple[Queue, str | None]]:
        """
        Return the queues that a member reads, each with its place (None for what comes by the channel).

        Makes what is missing. A new group is announced before this returns: what is published from now on reaches it.
        """
        if at.place == "dead":
            return [(await self._queues.make(queue_name(at, fifo=False)), "dead")]
        await self.provision([(at, order)], create=True)
        main = await self._queues.get(await self._main(at, order))
        inlet = await self._queues.get(queue_name(at, fifo=main.fifo))
        return [(main, None), (inlet, "inlet")]

    async def provision(self, places: Sequence[tuple[Address, Order]], *, create: bool) -> Sequence[str]:
        """Make the queues, topics and subscriptions that are missing, or only name them. Returns their names."""
        missing: list[str] = []
        fresh: dict[str, list[str]] = {}
        for at, order in places:
            needed = await self._needed(at, order)
            absent = await self._absent([name for name, _ in needed])
            missing.extend(absent)
            if create:
                await self._make(needed, absent)
                mains = [name for name, is_main in needed if is_main and self._is_fresh(at, name)]
                fresh.setdefault(at.channel, []).extend(mains)
            missing.extend(await self._subscribed(at, order, create=create))
        fresh = {channel: names for channel, names in fresh.items() if names}
        if fresh:
            await self._routes.announce(fresh)
            self._queues.young.difference_update(*fresh.values())
        return missing

    async def _absent(self, names: Sequence[str]) -> list[str]:
        found = await asyncio.gather(*(self._queues.find(name) for name in names))
        return [name for name, queue in zip(names, found, strict=True) if queue is None]

    async def _make(self, needed: Sequence[tuple[str, bool]], absent: Sequence[str]) -> None:
        """Make what is missing; the group's queue last: whoever sees it in a listing can rely on its places."""
        for last in (False, True):
            names = [name for name, is_main in needed if is_main is last and name in absent]
            await asyncio.gather(*(self._queues.create(name) for name in names))

    async def measure(self, at: Address) -> Measurement:
        """Count what lies in a group's queue and inlet, or in its dead place."""
        if at.place == "dead":
            queues = [await self._queues.get(queue_name(at, fifo=False))]
        else:
            main = await self._existing(at)
            queues = [main, await self._queues.get(queue_name(at, fifo=main.fifo))]
        counts = [await self._counts(queue) for queue in queues]
        return Measurement(
            waiting=sum(each.get(_WAITING, 0) for each in counts),
            delayed=sum(each.get(_DELAYED, 0) for each in counts),
            in_flight=sum(each.get(_OUT, 0) for each in counts),
            oldest=None,
        )

    def _is_fresh(self, at: Address, name: str) -> bool:
        """Say whether publishers that list a channel's groups may not know this one yet; none lists what is adopted."""
        adopted = at.channel in self._native or f"{at.channel}/{at.group}" in self._native
        return self._topics is None and not adopted and name in self._queues.young

    async def _counts(self, queue: Queue) -> dict[str, int]:
        try:
            found = await self._queues.attributes(queue, [_WAITING, _DELAYED, _OUT])
        except CallFailed as error:
            raise lost(error, f"{self._options.text}: queue {queue.name}") from error
        return {name: int(value) for name, value in found.items() if value.isdigit()}

    async def _needed(self, at: Address, order: Order) -> list[tuple[str, bool]]:
        """Return the names of the queues that an address needs, and whether each is the group's queue itself."""
        if at.group is None:
            return []
        dead = queue_name(Address(at.channel, at.group, "dead"), fifo=False)
        if at.place == "dead":
            return [(dead, False)]
        main = await self._main(at, order)
        return [(queue_name(at, fifo=main.endswith(FIFO)), False), (dead, False), (main, True)]

    async def _main(self, at: Address, order: Order) -> str:
        """Return the name of a group's queue; refuses an order that the queue does not have."""
        assert at.group is not None  # noqa: S101 - the caller has looked
        fifo = order == "key"
        mine = group_queue(at.channel, at.group, fifo=fifo)
        if self._queues.known(mine) is not None:
            return mine  # looked at before; who comes back after an outage asks nothing
        adopted = self._native.get(f"{at.channel}/{at.group}")
        if adopted is not None:
            if (await self._queues.get(adopted)).fifo != fifo:
                raise self._other_order(adopted, at, order)
            return adopted
        other = group_queue(at.channel, at.group, fifo=not fifo)
        if await self._queues.find(other) is not None:
            raise self._other_order(other, at, order)
        return mine

    async def _existing(self, at: Address) -> Queue:
        assert at.group is not None  # noqa: S101 - the caller has looked
        plain = group_queue(at.channel, at.group)
        for name in (self._native.get(f"{at.channel}/{at.group}"), plain, plain + FIFO):
            if name is not None and (queue := await self._queues.find(name)) is not None:
                return queue
        message = f"{self._options.text}: {at.channel} has no group {at.group}"
        raise NotFound(message)

    async def _subscribed(self, at: Address, order: Order, *, create: bool) -> list[str]:
        """With SNS: subscribe a group's queue to the channel's topic, or name what is missing of it."""
        topics = self._topics
        if (
            topics is None
            or at.group is None
            or at.place == "dead"
            or f"{at.channel}/{at.group}" in self._native
        ):
            return []
        adopted = self._native.get(at.channel)
        topic = adopted or (await topics.get(at.channel) if create else await topics.find(at.channel))
        queue = await self._queues.find(await self._main(at, order))
        name = topic_name(at.channel, fifo=self._options.sns == "fifo")
        missing = f"{adopted or name} -> {await self._main(at, order)}"
        if topic is None or queue is None:
            return [missing]
        if await topics.subscribed(topic, queue.arn):
            return []
        if create:
            await topics.subscribe(topic, queue)
        return [missing]

    def _other_order(self, name: str, at: Address, order: Order) -> ConfigurationError:
        message = (
            f"{self._options.text}: group {at.group} of {at.channel} reads the queue {name}, which does not go with "
            f'order="{order}": a queue is FIFO or it is not, for good. Use another group, or delete its queues first'
        )
        return ConfigurationError(message)
