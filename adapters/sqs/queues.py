"""
The queues as the service has them: found by name, made if that is allowed, and remembered.
"""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brokerkit.adapters.sqs.calls import CallFailed
from brokerkit.adapters.sqs.failure import is_missing, lost
from brokerkit.adapters.sqs.names import FIFO
from brokerkit.adapters.sqs.session import AwsSession
from brokerkit.adapters.sqs.url import MiB, Options
from brokerkit.errors import ConfigurationError, NotFound

__all__ = ["Queue", "Queues", "attributes_of"]

_RETENTION = 14 * 24 * 3600
_PAGE = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that exists. limit: bytes of its largest message. arn: may be empty, where we may not read attributes."""

    name: str
    url: str
    limit: int
    arn: str

    @property
    def fifo(self) -> bool:
        """Whether it keeps the order of a message group."""
        return self.name.endswith(FIFO)


def attributes_of(name: str, lease: int) -> dict[str, str]:
    """Return the attributes with which a queue of ours is made."""
    attributes = {
        "MaximumMessageSize": str(MiB),
        "MessageRetentionPeriod": str(_RETENTION),
        "ReceiveMessageWaitTimeSeconds": "0",
        "VisibilityTimeout": str(lease),
    }
    if name.endswith(FIFO):
        attributes |= {
            "FifoQueue": "true",
            "ContentBasedDeduplication": "false",
            "DeduplicationScope": "messageGroup",
            "FifoThroughputLimit": "perMessageGroupId",
        }
    return attributes


class Queues:
    """
    The directory of one adapter; everything in it is a seldom call of botocore's.

    young: the names of queues that were made, by whomever, so short a time ago that not every publisher may know them.
    """

    def __init__(self, session: AwsSession, options: Options) -> None:
        self._session = session
        self._options = options
        self.young: set[str] = set()
        self._known: dict[str, Queue] = {}
        self._finding: dict[str, asyncio.Task[Queue | None]] = {}

    async def find(self, name: str) -> Queue | None:
        """Return a queue by its name (or its URL or ARN, where an existing one is adopted), or None if there is none."""
        if (known := self._known.get(name)) is not None:
            return known
        task = self._finding.get(name)
        if task is None:
            task = self._finding[name] = asyncio.create_task(self._look(name))
            task.add_done_callback(lambda done: self._found(name, done))
        return await asyncio.shield(task)

    def known(self, name: str) -> Queue | None:
        """Return a queue if it has been found before."""
        return self._known.get(name)

    async def get(self, name: str) -> Queue:
        """Return a queue by its name; raises `NotFound`."""
        queue = await self.find(name)
        if queue is None:
            message = f"{self._options.text}: there is no queue {name}"
            raise NotFound(message)
        return queue

    async def make(self, name: str) -> Queue:
        """Return a queue by its name, made if it is missing. Raises `NotFound` where provisioning is off."""
        found = await self.find(name)
        return found if found is not None else await self.create(name)

    async def create(self, name: str) -> Queue:
        """Make a queue that was not found and return it. Raises `NotFound` where provisioning is off."""
        if self._options.provisioning == "off":
            message = f"{self._options.text}: there is no queue {name}, and provisioning is off"
            raise NotFound(message)
        arguments = {"QueueName": name, "Attributes": attributes_of(name, self._options.lease)}
        try:
            await self.call("CreateQueue", arguments)
        except CallFailed as error:
            raise self._not_made(error, name) from error
        return await self._wait_for(name)

    def forget(self, queue: Queue) -> None:
        """Look a queue up again before it is used the next time: it may have been deleted."""
        for name in [name for name, known in self._known.items() if known.url == queue.url]:
            del self._known[name]

    async def names(self, prefix: str) -> list[str]:
        """List the names of queues that begin with a prefix. Raises `CallFailed`."""
        found: list[str] = []
        arguments: dict[str, Any] = {"QueueNamePrefix": prefix, "MaxResults": _PAGE}
        while True:
            data = await self.call("ListQueues", arguments)
            found.extend(url.rpartition("/")[2] for url in data.get("QueueUrls") or ())
            if not data.get("NextToken"):
                return found
            arguments["NextToken"] = data["NextToken"]

    async def attributes(self, queue: Queue, names: Sequence[str]) -> Mapping[str, str]:
        """Return some attributes of a queue. Raises `CallFailed`."""
        return (await self._attributes(queue.url, names))[0]

    async def allow(self, queue: Queue, topic: str) -> None:
        """Let an SNS topic send to a queue, beside whatever else its policy says. Raises `CallFailed`."""
        text = (await self.attributes(queue, ["Policy"])).get("Policy")
        policy: dict[str, Any] = json.loads(text) if text else {"Version": "2012-10-17", "Statement": []}
        statement = {
            "Sid": "brokerkit",
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": queue.arn,
            "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
        }
        if statement in policy["Statement"]:
            return
        policy["Statement"] = [each for each in policy["Statement"] if each.get("Sid") != "brokerkit"]
        policy["Statement"].append(statement)
        attributes = {"Policy": json.dumps(policy, separators=(",", ":"))}
        await self.call("SetQueueAttributes", {"QueueUrl": queue.url, "Attributes": attributes})

    async def call(self, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Make a seldom call within the usual time limit."""
        answer = await self._session.control(operation, arguments, timeout=self._options.send_timeout)
        return answer.data

    async def _attributes(self, url: str, names: Sequence[str]) -> tuple[Mapping[str, str], float | None]:
        """Return some attributes of a queue, and the service's time."""
        arguments = {"QueueUrl": url, "AttributeNames": list(names)}
        timeout = self._options.send_timeout
        answer = await self._session.control("GetQueueAttributes", arguments, timeout=timeout)
        found: Mapping[str, str] = answer.data.get("Attributes") or {}
        return found, answer.date

    def _found(self, name: str, task: asyncio.Task[Queue | None]) -> None:
        del self._finding[name]
        queue = None if task.cancelled() or task.exception() is not None else task.result()
        if queue is not None:
            self._known[name] = queue

    async def _look(self, name: str) -> Queue | None:
        try:
            url = await self._url(name)
            if url is None:
                return None
            return await self._described(url)
        except CallFailed as error:
            raise lost(error, f"{self._options.text}: queue {name}") from error

    async def _url(self, name: str) -> str | None:
        if "://" in name:
            return name
        arguments = {"QueueName": name}
        if name.startswith("arn:"):
            owner, _, queue = name.rpartition(":")
            arguments = {"QueueName": queue, "QueueOwnerAWSAccountId": owner.rpartition(":")[2]}
        try:
            return str((await self.call("GetQueueUrl", arguments))["QueueUrl"])
        except CallFailed as error:
            if is_missing(error):
                return None
            raise

    async def _described(self, url: str) -> Queue | None:
        name = url.rpartition("/")[2]
        wanted = ["CreatedTimestamp", "MaximumMessageSize", "QueueArn"]
        found: Mapping[str, str]
        try:
            found, date = await self._attributes(url, wanted)
        except CallFailed as error:
            if is_missing(error):
                return None
            if error.code not in {"AccessDenied", "AccessDeniedException"}:
                raise
            _log.warning(
                "the attributes of queue %s may not be read; its size limit is taken for 1 MiB", name
            )
            found, date = dict[str, str](), None
        # both times are cut to the second
        if date is not None and date - float(found.get("CreatedTimestamp", 0)) < self._options.settling + 1:
            self.young.add(name)
        limit = min(int(found.get("MaximumMessageSize", MiB)), self._options.max_message)
        return Queue(name, url, limit, found.get("QueueArn", ""))

    async def _wait_for(self, name: str) -> Queue:
        """Wait until a queue that was made can be seen: the service needs up to a second or so."""
        for _ in range(40):
            if (queue := await self.find(name)) is not None:
                return queue
            await asyncio.sleep(0.25)
        message = f"{self._options.text}: queue {name} was made, but cannot be seen after 10 s"
        raise NotFound(message)

    def _not_made(self, error: CallFailed, name: str) -> Exception:
        what = f"{self._options.text}: queue {name} could not be made"
        if error.code == "QueueDeletedRecently":
            message = f"{what}: it was deleted less than 60 s ago; try again"
            return lost(CallFailed(message, code="Throttled"), what)
        if error.code in {"QueueNameExists", "QueueAlreadyExists"}:
            message = f"{what}: one with other attributes was made at the same moment; start again"
            return ConfigurationError(message)
        return lost(error, what)
