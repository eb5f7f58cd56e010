"""
The topics of channels and groups: which there are, how they are made, and how large a message each takes.
"""

import asyncio
from collections.abc import Sequence

from brokerkit.adapters.kafka.client import Admin, TopicInfo
from brokerkit.adapters.kafka.plan import Plan
from brokerkit.errors import ConfigurationError, NotFound
from brokerkit.message import Address

__all__ = ["Topics"]


class Topics:
    """
    Knows the topics of one deployment, and makes those that are missing where that is allowed.

    What was once seen is not asked for again, except by `forget`. smallest: the least that one of the topics that were looked at
    takes, in bytes.
    """

    def __init__(self, admin: Admin, plan: Plan, *, create: bool) -> None:
        self._admin = admin
        self._plan = plan
        self._may_create = create
        self.smallest: int | None = None
        self._known: dict[str, int] = {}
        self._infos: dict[str, TopicInfo] = {}
        self._ready: set[Address] = set()
        self._fresh: set[str] = set()
        self._lock = asyncio.Lock()

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic had when it was last seen, or 0."""
        return self._known.get(topic, 0)

    def forget(self, topic: str) -> None:
        """Look at a topic again when it is next needed."""
        self._known.pop(topic, None)
        self._infos.pop(topic, None)
        self._ready.clear()
        self._fresh.discard(topic)

    def at_hand(self, topic: str) -> TopicInfo | None:
        """Return what a topic was like when it was last looked at, or None."""
        return self._infos.get(topic)

    def fresh(self, topic: str) -> bool:
        """Say whether we have made a topic: then it begins at 0."""
        return topic in self._fresh

    def ready(self, at: Address) -> bool:
        """Say whether the topics of an address have all been seen."""
        return at in self._ready

    async def missing(self, at: Address) -> list[str]:
        """Return the topics of an address that do not exist."""
        wanted = self._plan.of(at)
        found = await self._admin.partitions(wanted)
        self._known.update(found)
        return [topic for topic in wanted if topic not in found]

    async def ensure(self, at: Address) -> None:
        """See that the topics of an address exist. Raises `NotFound` if one does not and may not be created."""
        if not all(topic in self._known for topic in self._plan.of(at)):
            async with self._lock:
                missing = await self.missing(at)
                if missing:
                    await self._make(at, missing)
        if all(topic in self._known for topic in self._plan.of(at)):
            self._ready.add(at)

    async def make(self, at: Address) -> None:
        """Create what is missing, even where the option says that nothing is created by the way."""
        async with self._lock:
            missing = await self.missing(at)
            if missing:
                await self._create(at, missing)

    async def info(self, topic: str) -> TopicInfo:
        """Return what a topic that exists is like."""
        return (await self._look([topic]))[0]

    async def check_ladder(self, at: Address) -> None:
        """See that an inlet's topics stamp records with the time of the append: delays are counted from it."""
        ladder = self._plan.of(at)[:-1]
        for topic, info in zip(ladder, await self._look(ladder), strict=True):
            if not info.append_time:
                message = f"the topic {topic} needs message.timestamp.type=LogAppendTime; delays are counted from it"
                raise ConfigurationError(message)

    async def _look(self, topics: Sequence[str]) -> list[TopicInfo]:
        """Look at those that were not looked at yet, all at once."""
        new = [topic for topic in topics if topic not in self._infos]
        if new:
            found = await self._admin.describe(new)
            self._infos.update(found)
            limits = [info.max_message for info in found.values()]
            self.smallest = min(limits if self.smallest is None else [*limits, self.smallest], default=None)
        for topic in topics:
            if topic not in self._infos:
                self.forget(topic)
                message = f"the topic {topic} does not exist"
                raise NotFound(message)
        return [self._infos[topic] for topic in topics]

    async def _make(self, at: Address, missing: Sequence[str]) -> None:
        if not self._may_create:
            message = f"{', '.join(missing)}: no such topic, and provisioning=off"
            raise NotFound(message)
        await self._create(at, missing)

    async def _create(self, at: Address, missing: Sequence[str]) -> None:
        channel = self._plan.names.channel(at.channel)
        if channel in missing and self._plan.names.adopted(at):
            message = f"the adopted topic {channel} does not exist; it is not ours to create"
            raise NotFound(message)
        count = self._plan.spec(at, channel, 0).partitions
        if channel in missing and count < 0 and len(missing) > 1:  # only the broker knows how many it makes
            await self._admin.create([self._plan.spec(at, channel, 0)])
            self._fresh.add(channel)
            missing = [topic for topic in missing if topic != channel]
        if channel not in missing and at.place is not None:
            count = (await self._admin.partitions([channel])).get(channel, 1)
        await self._admin.create([self._plan.spec(at, topic, max(count, 1)) for topic in missing])
        self._fresh.update(missing)
        self._known.update(await self._admin.partitions(self._plan.of(at)))
