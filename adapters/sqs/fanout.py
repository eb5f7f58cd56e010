"""
Sends: to the queues of a channel's groups, or to its topic; to one of a group's own places; or to nobody yet.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from brokerkit.adapters.sqs.calls import CallFailed, Transport
from brokerkit.adapters.sqs.names import queue_name, unrouted_name
from brokerkit.adapters.sqs.outbox import Batch, Outbox, Parcel
from brokerkit.adapters.sqs.queues import Queue, Queues
from brokerkit.adapters.sqs.routes import Routes
from brokerkit.adapters.sqs.topics import Topics
from brokerkit.adapters.sqs.url import Options
from brokerkit.adapters.sqs.wire import Entry, entry_of
from brokerkit.errors import (
    BrokerkitError,
    ConnectionLost,
    NotFound,
    PublishUnknown,
    SendError,
    TooLarge,
    Unroutable,
)
from brokerkit.message import Address, Message

__all__ = ["LONGEST_DELAY", "RESERVE", "Fanout"]

LONGEST_DELAY = 900
RESERVE = 4096
"""Bytes kept free for the packed attribute beyond what it packs; a larger message has to pay for its own encoding."""

_ROOM = 16 * 1024
_FULL_AGE = 5.0


@dataclass(frozen=True, slots=True)
class _Target:
    """Somewhere to store a message: a queue or a topic. limit: of one message, in bytes."""

    name: str
    fifo: bool
    limit: int
    outbox: Outbox
    body: str = "MessageBody"
    queue: Queue | None = None


class Fanout:
    """The sends of one adapter."""

    def __init__(
        self,
        queues: Queues,
        routes: Routes,
        topics: Topics | None,
        transport: Transport,
        options: Options,
        native: Mapping[str, str],
    ) -> None:
        self._queues = queues
        self._routes = routes
        self._topics = topics
        self._transport = transport
        self._options = options
        self._native = native
        self._outboxes: dict[str, Outbox] = {}
        self._unrouted: dict[str, tuple[float, int]] = {}

    async def send(
        self, to: Address, messages: Sequence[Message], delays: Sequence[float], *, must_route: bool
    ) -> Sequence[SendError | None]:
        """Store messages; one outcome for each. A message that one of several queues has not stored counts as not known."""
        until = asyncio.get_running_loop().time() + self._options.send_timeout
        try:
            async with asyncio.timeout_at(until):
                targets = await self._targets(to, len(messages), must_route=must_route)
        except TimeoutError:
            late = ConnectionLost(f"{self._options.text}: no answer within {self._options.send_timeout:g} s")
            return [late] * len(messages)
        except SendError as error:
            return [error] * len(messages)
        except BrokerkitError as error:
            raised = ConnectionLost(str(error))
            raised.__cause__ = error
            return [raised] * len(messages)
        outcomes: list[SendError | None] = [None] * len(messages)
        waiting: list[tuple[int, list[tuple[Outbox, Parcel]]]] = []
        batch = Batch()
        for index, (message, delay) in enumerate(zip(messages, delays, strict=True)):
            entry = entry_of(message, delay)
            refused = _too_large(to, message, entry, targets)
            if refused is not None:
                outcomes[index] = refused
            else:
                waiting.append((index, [self._put(target, entry, delay, batch, until) for target in targets]))
        loop = asyncio.get_running_loop()
        end = loop.call_at(until, _give_up, [pair for _, pairs in waiting for pair in pairs])
        missing = False
        try:
            for index, pairs in waiting:
                found = [await parcel.done for _, parcel in pairs]
                missing = missing or any(isinstance(outcome, NotFound) for outcome in found)
                outcomes[index] = _joined(to, [_doubted(to, outcome) for outcome in found])
        finally:
            end.cancel()
        if missing:
            self._forget(to, targets)
        return outcomes

    def close(self, error: SendError) -> None:
        """Answer what has not been sent."""
        for outbox in self._outboxes.values():
            outbox.drop(error)

    def _put(
        self, target: _Target, entry: Entry, delay: float, batch: Batch, until: float
    ) -> tuple[Outbox, Parcel]:
        fields = entry.arguments(fifo=target.fifo, body=target.body)
        if delay > 0 and not target.fifo:
            fields["DelaySeconds"] = min(math.floor(delay), LONGEST_DELAY)
        done: asyncio.Future[SendError | None] = asyncio.get_running_loop().create_future()
        parcel = Parcel(entry, fields, batch, done, until)
        target.outbox.put(parcel)
        return target.outbox, parcel

    async def _targets(self, to: Address, count: int, *, must_route: bool) -> Sequence[_Target]:
        if to.group is not None:
            return [self._target(await self._place(to))]
        adopted = self._native.get(to.channel, "")
        if self._topics is not None and (not adopted or ":sns:" in adopted):
            return await self._topic(to.channel, adopted, must_route=must_route)
        if adopted:
            return [self._target(await self._queues.get(adopted))]
        queues = await self._routes.of(to.channel)
        if queues:
            return [self._target(queue) for queue in queues]
        if must_route or self._options.unrouted == 0:
            message = f"no group reads {to}"
            raise Unroutable(message)
        return [self._target(await self._unrouted_queue(to.channel, count))]

    async def _topic(self, channel: str, adopted: str, *, must_route: bool) -> Sequence[_Target]:
        topics = self._topics
        assert topics is not None  # noqa: S101 - the caller has looked
        topic = adopted or await topics.get(channel)
        if must_route and not await topics.subscribed(topic):
            message = f"no group reads {channel}"
            raise Unroutable(message)
        outbox = self._outboxes.get(topic)
        if outbox is None:
            outbox = Outbox(
                topic, partial(topics.publish, topic), fifo=topic.endswith(".fifo"), limit=topics.limit
            )
            self._outboxes[topic] = outbox
        limit = min(topics.limit, self._options.max_message)
        return [_Target(topic, topic.endswith(".fifo"), limit, outbox, "Message")]

    async def _place(self, to: Address) -> Queue:
        """Return the queue of a group's own place; its inlet is of the kind of its queue."""
        assert to.group is not None  # noqa: S101 - the caller has looked
        names = list(dict.fromkeys(queue_name(to, fifo=fifo) for fifo in (False, True)))
        for name in names:
            if (known := self._queues.known(name)) is not None:
                return known
        for name in names:
            if (found := await self._queues.find(name)) is not None:
                return found
        message = (
            f"{self._options.text}: {to.channel} has no group {to.group}, or its queues have not been made"
        )
        raise NotFound(message)

    async def _unrouted_queue(self, channel: str, count: int) -> Queue:
        """Return the queue for what no group has asked for, if there is still room in it."""
        queue = await self._queues.make(unrouted_name(channel))
        loop = asyncio.get_running_loop()
        counted, stored = self._unrouted.get(channel, (-math.inf, 0))
        if loop.time() - counted > _FULL_AGE:
            try:
                found = await self._queues.attributes(queue, ["ApproximateNumberOfMessages"])
            except CallFailed as error:
                message = f"{self._options.text}: {error}"
                raise ConnectionLost(message) from error
            counted, stored = loop.time(), int(found.get("ApproximateNumberOfMessages", 0))
        if stored + count > self._options.unrouted:
            message = (
                f"no group reads {channel}, and {stored} messages wait for one already (option unrouted)"
            )
            raise Unroutable(message)
        self._unrouted[channel] = (counted, stored + count)
        return queue

    def _target(self, queue: Queue) -> _Target:
        outbox = self._outboxes.get(queue.url)
        if outbox is None:
            outbox = Outbox(f"queue {queue.name}", partial(self._post, queue), fifo=queue.fifo)
            self._outboxes[queue.url] = outbox
        return _Target(queue.name, queue.fifo, queue.limit, outbox, queue=queue)

    async def _post(self, queue: Queue, entries: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
        arguments = {"QueueUrl": queue.url, "Entries": entries}
        return (await self._transport.call("SendMessageBatch", arguments, timeout=seconds)).data

    def _forget(self, to: Address, targets: Sequence[_Target]) -> None:
        """Look again before the next send: something that was there has been deleted."""
        self._routes.forget(to.channel)
        for target in targets:
            if target.queue is not None:
                self._queues.forget(target.queue)


def _give_up(sent: Sequence[tuple[Outbox, Parcel]]) -> None:
    for outbox, parcel in sent:
        outbox.give_up(parcel)


def _too_large(to: Address, message: Message, entry: Entry, targets: Sequence[_Target]) -> TooLarge | None:
    """
    Say whether a message is too large for one of its targets, with all that travels beside its body.

    What a channel takes has to leave room for the story of its failure: base64 and escapes come on top of what the
    publisher has counted.
    """
    limit = min(target.limit for target in targets)
    most = limit - _ROOM if to.group is None and entry.size - message.size > RESERVE else limit
    if message.size <= limit - RESERVE and entry.size <= most:
        return None
    text = f"{message.size} bytes with headers, {entry.size} as they travel; {to} takes {limit - RESERVE} and {most}"
    return TooLarge(text)


def _doubted(to: Address, outcome: SendError | None) -> SendError | None:
    """Return a group's queue that was listed and is missing as something to try again: it is deleted, or not there yet."""
    if not isinstance(outcome, NotFound) or to.group is not None:
        return outcome
    error = ConnectionLost(f"a group of {to} was there and is not: {outcome}")
    error.__cause__ = outcome
    return error


def _joined(to: Address, outcomes: Sequence[SendError | None]) -> SendError | None:
    """Return one outcome for a message that went to several queues."""
    failed = [outcome for outcome in outcomes if outcome is not None]
    if not failed:
        return None
    stored = len(outcomes) - len(failed)
    if not stored:
        # an outcome that is not known says most: it forbids nothing and promises nothing
        return next((each for each in failed if isinstance(each, PublishUnknown)), failed[0])
    error = PublishUnknown(f"{stored} of {len(outcomes)} groups of {to} have it; {failed[0]}")
    error.__cause__ = failed[0]
    return error
