"""
aiokafka's administrator behind the seam, with a consumer of no group beside it for reading and for ends of logs.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from brokerkit.adapters.kafka.client import Committed, Place, TopicInfo, TopicSpec
from brokerkit.adapters.kafka.failure import connection_error
from brokerkit.adapters.kafka.lib import (
    AdminClient,
    CommitRequest,
    ConsumerClient,
    CreateRequest,
    FetchOffsetsRequest,
    Partition,
    Resource,
    ResourceType,
    TopicsRequest,
    open_connection,
)
from brokerkit.adapters.kafka.lib import errors as kafka
from brokerkit.adapters.kafka.options import Options
from brokerkit.adapters.kafka.wire import Record
from brokerkit.errors import BrokerkitError, ConnectionLost

__all__ = ["AioAdmin"]

_TORN = 1.0
_READY = 30.0
_PAUSE = 0.02
_FETCH_WAIT_MS = 100
_LIMIT = "max.message.bytes"
_STAMP = "message.timestamp.type"
_RETENTION = "retention.ms"
_DEFAULT_LIMIT = 1_048_588
_DEFAULT_RETENTION = 604_800_000


class AioAdmin:
    """What is asked of the cluster outside a group; see `client.Admin`."""

    def __init__(self, options: Options, settings: dict[str, Any]) -> None:
        self._options = options
        self._settings = settings
        self._text = options.url.text
        self._admin: Any = AdminClient(**settings)
        self._scout: Any = None
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Connect; what aiokafka only logs (a refused password, a foreign certificate) is found out and raised."""
        try:
            await self._admin.start()
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise await self._diagnosed(error) from error

    async def stop(self, seconds: float) -> None:
        """Disconnect within so many seconds."""
        closing = [asyncio.ensure_future(self._admin.close())]
        if self._scout is not None:
            closing.append(asyncio.ensure_future(self._scout.stop()))
        await asyncio.wait(closing, timeout=seconds)
        for task in closing:
            task.cancel()
        done, _ = await asyncio.wait(closing, timeout=_TORN)
        for task in done:
            with contextlib.suppress(asyncio.CancelledError):
                task.exception()

    async def partitions(self, topics: Sequence[str]) -> Mapping[str, int]:
        """Return the number of partitions of those that exist and have leaders, without asking for their creation."""
        answer = await self._ask(TopicsRequest(list(topics), allow_auto_topic_creation=False))
        found: dict[str, int] = {}
        for topic in answer.to_object()["topics"]:
            if topic["error_code"]:
                error = kafka.for_code(topic["error_code"])
                if error not in {kafka.UnknownTopicOrPartitionError, kafka.LeaderNotAvailableError}:
                    raise connection_error(error(topic["topic"]), topic["topic"])
            elif all(partition["leader"] >= 0 for partition in topic["partitions"]):
                found[topic["topic"]] = len(topic["partitions"])
        return found

    async def describe(self, topics: Sequence[str]) -> Mapping[str, TopicInfo]:
        """Return what those are like that exist; where settings may not be read, the broker's defaults are taken."""
        counts = await self.partitions(topics)
        if not counts:
            return {}
        names = dict.fromkeys((_LIMIT, _STAMP, _RETENTION))
        try:
            answers = await self._admin.describe_configs(
                [Resource(ResourceType.TOPIC, topic, names) for topic in counts]
            )
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise connection_error(error, ", ".join(counts)) from error
        settings: dict[str, dict[str, str]] = {}
        for answer in answers:
            for resource in answer.to_object()["resources"]:
                settings[resource["resource_name"]] = {
                    entry["config_names"]: entry["config_value"] for entry in resource["config_entries"]
                }
        return {topic: _info(count, settings.get(topic, {})) for topic, count in counts.items()}

    async def create(self, topics: Sequence[TopicSpec]) -> None:
        """Create topics, with -1 for the replication factor, which means the broker's own; wait until they have leaders."""
        wanted: list[Any] = [
            (spec.name, spec.partitions, -1, [], list(spec.settings.items())) for spec in topics
        ]
        request = CreateRequest(
            create_topic_requests=wanted,
            timeout=int(self._options.request_timeout * 1000),
            validate_only=False,
        )
        try:
            answer = await self._admin._send_to_controller(request)  # noqa: SLF001
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise connection_error(error, self._text) from error
        for topic in answer.to_object()["topic_errors"]:
            code = kafka.for_code(topic["error_code"])
            if code not in {kafka.NoError, kafka.TopicAlreadyExistsError}:
                raise connection_error(code(topic["error_message"] or ""), topic["topic"])
        await self._until_led([spec.name for spec in topics])

    async def committed(self, group: str) -> Mapping[Place, Committed]:
        """Return what is committed for a group."""
        answer = await self._ask_coordinator(group, FetchOffsetsRequest(group, None))
        found: dict[Place, Committed] = {}
        for topic, partitions in answer.topics:
            for partition, offset, note, code in partitions:
                if code:
                    raise connection_error(kafka.for_code(code)(group), group)
                if offset >= 0:
                    found[topic, partition] = Committed(offset, note)
        return found

    async def found(self, group: str, offsets: Mapping[Place, Committed]) -> bool:
        """Commit for a group without members; the broker refuses this while it has some."""
        topics: dict[str, list[tuple[int, int, str]]] = {}
        for (topic, partition), (offset, note) in offsets.items():
            topics.setdefault(topic, []).append((partition, offset, note))
        request = CommitRequest(
            group,
            CommitRequest.DEFAULT_GENERATION_ID,
            "",
            CommitRequest.DEFAULT_RETENTION_TIME,
            list(topics.items()),
        )
        answer = await self._ask_coordinator(group, request)
        codes = {kafka.for_code(code) for _, partitions in answer.topics for _, code in partitions}
        members = {
            kafka.UnknownMemberIdError,
            kafka.IllegalGenerationError,
            kafka.RebalanceInProgressError,
        }
        if codes & members:
            return False
        for code in codes - {kafka.NoError}:
            raise connection_error(code(group), group)
        return True

    async def groups(self) -> Sequence[str]:
        """Return the ids of all consumer groups."""
        try:
            found = await self._admin.list_consumer_groups()
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise connection_error(error, self._text) from error
        return [str(each[0]) for each in found]

    async def ends(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Return where these logs end."""
        async with self._lock:
            scout = await self._ready()
            found: Mapping[Place, int] = await self._bounded(
                scout.end_offsets([Partition(*place) for place in places])
            )
            return found

    async def beginnings(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Return where these logs begin."""
        async with self._lock:
            scout = await self._ready()
            found: Mapping[Place, int] = await self._bounded(
                scout.beginning_offsets([Partition(*place) for place in places])
            )
            return found

    async def read(self, starts: Mapping[Place, int], limit: int) -> Mapping[Place, Sequence[Record]]:
        """Return up to so many records of each; a log that is shorter ends where it ends now."""
        async with self._lock:
            scout = await self._ready()
            places = [Partition(*place) for place in starts]
            ends = await self._bounded(scout.end_offsets(places))
            left = {place for place in places if starts[place] < ends[place]}
            found: dict[Place, list[Any]] = {place: [] for place in starts}
            if not left:
                return found
            scout.assign(list(left))
            for place in left:
                scout.seek(place, starts[place])
            try:
                async with asyncio.timeout(self._options.request_timeout):
                    while left:
                        for place, records in (await scout.getmany(timeout_ms=200)).items():
                            found[place] += records
                        for place in list(left):
                            if len(found[place]) >= limit or await scout.position(place) >= ends[place]:
                                left.discard(place)
                                scout.pause(place)
            except (kafka.KafkaError, kafka.IllegalStateError, OSError, TimeoutError) as error:
                raise connection_error(error, self._text) from error
            return {place: records[:limit] for place, records in found.items()}

    async def _ready(self) -> Any:
        if self._scout is None:
            scout: Any = ConsumerClient(
                **self._settings,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                fetch_max_wait_ms=_FETCH_WAIT_MS,
            )
            try:
                await scout.start()
            except (kafka.KafkaError, OSError, TimeoutError) as error:
                await scout.stop()
                raise connection_error(error, self._text) from error
            self._scout = scout
        return self._scout

    async def _bounded(self, call: Any) -> Any:
        try:
            async with asyncio.timeout(self._options.request_timeout):
                return await call
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise connection_error(error, self._text) from error

    async def _until_led(self, topics: Sequence[str]) -> None:
        """Wait until a new topic's partitions have leaders: what is sent before fails."""
        end = asyncio.get_running_loop().time() + _READY
        while len(await self.partitions(topics)) < len(set(topics)):
            if asyncio.get_running_loop().time() > end:
                message = f"{self._text}: new topics have no leaders after {_READY:g} s: {', '.join(topics)}"
                raise ConnectionLost(message)
            await asyncio.sleep(_PAUSE)

    async def _ask(self, request: Any, node: int | None = None) -> Any:
        try:
            return await self._admin._send_request(request, node)  # noqa: SLF001
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise connection_error(error, self._text) from error

    async def _ask_coordinator(self, group: str, request: Any) -> Any:
        """Ask a group's coordinator; a cluster that has just started may need a moment to name it."""
        end = asyncio.get_running_loop().time() + _READY
        while True:
            try:
                answer = await self._admin._send_request(  # noqa: SLF001
                    request, await self._admin.find_coordinator(group)
                )
            except (kafka.KafkaError, OSError, TimeoutError) as error:
                passing = bool(getattr(error, "retriable", False))
                if not passing or asyncio.get_running_loop().time() > end:
                    raise connection_error(error, group) from error
            else:
                if not _moving(answer) or asyncio.get_running_loop().time() > end:
                    return answer
            await asyncio.sleep(_PAUSE * 5)

    async def _diagnosed(self, error: BaseException) -> BrokerkitError:
        """Ask the hosts one by one why none of them could be used."""
        settings = {
            name: value
            for name, value in self._settings.items()
            if name not in {"bootstrap_servers", "retry_backoff_ms"}
        }
        found: BrokerkitError = connection_error(error, self._text)
        for host, port in self._options.url.hosts:
            try:
                connection: Any = await open_connection(host, port, **settings)
            except (kafka.KafkaError, OSError, TimeoutError) as reason:
                found = connection_error(reason, self._text)
                if not isinstance(found, ConnectionLost):
                    return found
            else:
                connection.close()
        return found


def _info(partitions: int, settings: Mapping[str, str]) -> TopicInfo:
    retention = float(settings.get(_RETENTION, _DEFAULT_RETENTION))
    return TopicInfo(
        partitions,
        int(settings.get(_LIMIT, _DEFAULT_LIMIT)),
        settings.get(_STAMP) == "LogAppendTime",
        retention / 1000 if retention >= 0 else float("inf"),
    )


def _moving(answer: Any) -> bool:
    """Say whether an answer means that the coordinator is loading or has moved."""
    passing = {
        kafka.GroupLoadInProgressError.errno,
        kafka.GroupCoordinatorNotAvailableError.errno,
        kafka.NotCoordinatorForGroupError.errno,
    }
    codes = {partition[-1] for _, partitions in answer.topics for partition in partitions}
    codes.add(getattr(answer, "error_code", 0))
    return bool(codes & passing)
