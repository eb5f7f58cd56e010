"""
Fan-out by SNS: a topic for each channel, and a subscription with raw delivery for each group's queue.

Everything here goes through botocore in threads, a publish too: SNS is paid for and limited by the call, not by our CPU.
"""

from collections.abc import Mapping
from typing import Any

from brokerkit.adapters.sqs.calls import CallFailed
from brokerkit.adapters.sqs.failure import is_missing, lost
from brokerkit.adapters.sqs.names import FIFO, topic_name
from brokerkit.adapters.sqs.queues import Queue, Queues
from brokerkit.adapters.sqs.session import AwsSession
from brokerkit.adapters.sqs.url import Options
from brokerkit.errors import NotFound, Unsupported

__all__ = ["Topics"]

_LIMIT = 256 * 1024


class Topics:
    """The topics of one adapter. limit: bytes of the largest message."""

    limit = _LIMIT

    def __init__(self, session: AwsSession, queues: Queues, options: Options) -> None:
        self._session = session
        self._queues = queues
        self._options = options
        self._fifo = options.sns == "fifo"
        self._known: dict[str, str] = {}

    async def get(self, channel: str) -> str:
        """Return the ARN of a channel's topic, made if it is missing; making one that is there changes nothing."""
        name = topic_name(channel, fifo=self._fifo)
        if (known := self._known.get(name)) is not None:
            return known
        if self._options.provisioning == "off":
            found = await self.find(channel)
            if found is None:
                message = f"{self._options.text}: there is no topic {name}, and provisioning is off"
                raise NotFound(message)
        else:
            attributes = {"FifoTopic": "true", "ContentBasedDeduplication": "false"} if self._fifo else {}
            made = await self._call("CreateTopic", {"Name": name, "Attributes": attributes}, f"topic {name}")
            found = str(made["TopicArn"])
        self._known[name] = found
        return found

    async def find(self, channel: str) -> str | None:
        """Return the ARN of a channel's topic, or None if there is none."""
        name = topic_name(channel, fifo=self._fifo)
        arguments: dict[str, Any] = {}
        while True:
            page = await self._call("ListTopics", arguments, f"topic {name}")
            for each in page.get("Topics") or ():
                if str(each["TopicArn"]).rpartition(":")[2] == name:
                    return str(each["TopicArn"])
            if not page.get("NextToken"):
                return None
            arguments = {"NextToken": page["NextToken"]}

    async def subscribe(self, topic: str, queue: Queue) -> None:
        """Let everything that is published to a topic come into a queue, as it is. Raises `Unsupported` for what cannot be."""
        if queue.fifo and not topic.endswith(FIFO):
            message = (
                f"{self._options.text}: queue {queue.name} keeps an order by key, and a standard topic sends to no FIFO "
                "queue; use sns=fifo for this channel, or sns=off"
            )
            raise Unsupported(message)
        try:
            await self._queues.allow(queue, topic)
        except CallFailed as error:
            raise lost(error, f"{self._options.text}: the policy of queue {queue.name}") from error
        arguments = {
            "TopicArn": topic,
            "Protocol": "sqs",
            "Endpoint": queue.arn,
            "Attributes": {"RawMessageDelivery": "true"},
            "ReturnSubscriptionArn": True,
        }
        await self._call("Subscribe", arguments, f"topic {topic}")

    async def subscribed(self, topic: str, endpoint: str | None = None) -> bool:
        """Say whether anything, or this queue, is subscribed to a topic."""
        arguments: dict[str, Any] = {"TopicArn": topic}
        while True:
            page = await self._call("ListSubscriptionsByTopic", arguments, f"topic {topic}")
            ends = [each.get("Endpoint") for each in page.get("Subscriptions") or ()]
            if endpoint in ends or (endpoint is None and ends):
                return True
            if not page.get("NextToken"):
                return False
            arguments["NextToken"] = page["NextToken"]

    async def publish(self, topic: str, entries: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
        """Publish one batch within so many seconds. Raises `CallFailed`."""
        arguments: Mapping[str, Any] = {"TopicArn": topic, "PublishBatchRequestEntries": entries}
        return (await self._session.control("PublishBatch", arguments, service="sns", timeout=seconds)).data

    async def _call(self, operation: str, arguments: Mapping[str, Any], what: str) -> dict[str, Any]:
        try:
            answer = await self._session.control(
                operation, arguments, service="sns", timeout=self._options.send_timeout
            )
        except CallFailed as error:
            if is_missing(error):
                self._known.clear()
            raise lost(error, f"{self._options.text}: {what}") from error
        return answer.data
