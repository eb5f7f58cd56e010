"""
Which topics an address needs, and how each of them is made. Pure.
"""

from collections.abc import Iterable

from brokerkit.adapters.kafka.client import TopicSpec
from brokerkit.adapters.kafka.names import RUNGS, Names
from brokerkit.adapters.kafka.options import Options
from brokerkit.message import Address

__all__ = ["Plan"]

_MOST = 3
_ROOM = 64 * 1024
_FOREVER = "-1"


class Plan:
    """The topics of one deployment, as they should be."""

    def __init__(self, names: Names, options: Options) -> None:
        self.names = names
        self._options = options

    def of(self, at: Address) -> list[str]:
        """Return the topics that an address needs: the inlet's first, the channel's last."""
        names = self.names
        if at.place is None:
            return [names.channel(at.channel)]
        if at.place == "dead":
            return [names.dead(at)]
        return [names.inlet(at), *(names.rung(at, seconds) for seconds in RUNGS), names.channel(at.channel)]

    def spec(self, at: Address, topic: str, source: int) -> TopicSpec:
        """
        Return how a topic is made.

        source: the channel's partitions. Ours take somewhat larger messages than channels do: a copy carries its story.
        A dead place has one partition: its letters are few, have an order, and one map says which are done.
        """
        options = self._options
        limit = str(options.max_message + _ROOM)
        if topic == self.names.channel(at.channel):
            return TopicSpec(name=topic, partitions=options.partitions, settings={"max.message.bytes": limit})
        settings = {
            "max.message.bytes": str(options.max_message + 2 * _ROOM),
            "cleanup.policy": "delete",
            "retention.bytes": _FOREVER,
        }
        if topic == self.names.dead(at):
            return TopicSpec(name=topic, partitions=1, settings={**settings, "retention.ms": _FOREVER})
        settings |= {
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": str(int(options.retention * 1000)),
        }
        return TopicSpec(name=topic, partitions=min(max(source, 1), _MOST), settings=settings)

    def commands(self, places: Iterable[Address]) -> list[str]:
        """Return the shell commands that make the topics of these addresses; asks nobody."""
        server = self._options.servers[0]
        made: dict[str, str] = {}
        for at in places:
            for topic in self.of(at):
                adopted = self.names.adopted(at) and topic == self.names.channel(at.channel)
                if not adopted and topic not in made:
                    made[topic] = _command(server, self.spec(at, topic, self._options.partitions))
        return list(made.values())


def _command(server: str, spec: TopicSpec) -> str:
    count = f" --partitions {spec.partitions}" if spec.partitions > 0 else ""
    settings = "".join(f" --config {name}={value}" for name, value in spec.settings.items())
    return f"kafka-topics.sh --bootstrap-server {server} --create --if-not-exists --topic {spec.name}{count}{settings}"
