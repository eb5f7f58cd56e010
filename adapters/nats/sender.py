"""
Sending: one outcome for each message, whatever becomes of its neighbours.
"""

import asyncio
import itertools
from collections.abc import Sequence

from brokerkit.adapters.nats import names
from brokerkit.adapters.nats.api import read_answer
from brokerkit.adapters.nats.failure import ApiError, NoAnswer, as_send_error, meaning
from brokerkit.adapters.nats.link import Call, Incoming, Link
from brokerkit.adapters.nats.patience import Patience
from brokerkit.adapters.nats.places import Places
from brokerkit.adapters.nats.topology import Channel
from brokerkit.adapters.nats.wire import encode, head_of
from brokerkit.errors import (
    BrokerkitError,
    Closed,
    ConnectionLost,
    DelayTooLong,
    NotFound,
    PublishUnknown,
    SendError,
    Throttled,
    TooLarge,
    Unauthorised,
    Unroutable,
)
from brokerkit.message import Address, Message

__all__ = ["Sender"]

_ROUTED = 1.0
_STORED = 503
_STORE_FAILED = 10077
_FULL = {10047, _STORE_FAILED}  # out of storage; the stream holds as much as it may
_IN_PROCESS = 10158  # a copy with this id is being stored; it may yet fail
_TOO_LARGE = {10054}
_BUSY = {10167, 10210}


class Sender:
    """
    Sends for one adapter. max_delay and max_message: its limits; timeout: seconds after which an outcome is unknown.

    Within a batch the order is kept. Nothing is buffered while there is no connection: what could not be written was not sent.
    """

    def __init__(self, link: Link, places: Places, *, timeout: float, max_delay: float) -> None:
        self._link = link
        self._places = places
        self._timeout = timeout
        self._patience = Patience(timeout)
        self._max_delay = max_delay
        self._turn = itertools.count()
        self._routed: dict[str, float] = {}

    async def send(
        self,
        to: Address,
        messages: Sequence[Message],
        delays: Sequence[float],
        *,
        must_route: bool,
        most: int,
    ) -> list[SendError | None]:
        """Send; what has been begun runs on when its caller is cancelled, so that nothing is half written."""
        if not messages:
            return []
        if len(messages) == 1:
            outcome = await self._send_one(to, messages[0], delays[0], must_route=must_route, most=most)
            if not isinstance(outcome, NotFound):
                return [outcome]
        work = asyncio.ensure_future(self._send(to, messages, delays, must_route=must_route, most=most))
        return await asyncio.shield(work)

    async def _send_one(
        self, to: Address, message: Message, after: float, *, must_route: bool, most: int
    ) -> SendError | None:
        """Send to a place that is known, with neither a task nor a timer of its own; `NotFound` if it is not."""
        channel = self._places.known(to.channel) if to.place is None else None
        known = self._places.has(to.channel, to.place) if to.place else channel and not _is_pattern(channel)
        if not known or must_route or self._link.full:
            return NotFound(str(to))
        begun = self._begin(to, channel, message, after, most)
        if isinstance(begun, SendError):
            return begun
        self._patience.add(begun.future)
        try:
            await begun.future
        except (NoAnswer, Unauthorised):
            pass  # what it means is read from the future
        finally:
            self._link.forget(begun)
        outcome = self._outcome(begun)
        if isinstance(outcome, NotFound):
            self._places.forget(to.channel)
        return outcome

    async def _send(
        self,
        to: Address,
        messages: Sequence[Message],
        delays: Sequence[float],
        *,
        must_route: bool,
        most: int,
    ) -> list[SendError | None]:
        deadline = asyncio.get_running_loop().time() + self._timeout
        outcomes: list[SendError | None] = [NotFound(str(to))] * len(messages)
        left = list(range(len(messages)))
        for again in (True, False):
            try:
                channel = await self._prepare(to, must_route=must_route)
            except BrokerkitError as error:
                for index in left:
                    outcomes[index] = as_send_error(error)
                return outcomes
            part = [(index, messages[index], delays[index]) for index in left]
            for index, outcome in await self._send_to(to, channel, part, most, deadline):
                outcomes[index] = outcome
            left = [index for index in left if isinstance(outcomes[index], NotFound)]
            if not (left and again):
                break
            self._places.forget(to.channel)
        return outcomes

    async def _prepare(self, to: Address, *, must_route: bool) -> Channel | None:
        if not self._link.up:
            message = f"{self._link.where} cannot be reached"
            raise ConnectionLost(message)
        if to.place is not None:
            await self._places.own(to.channel, to.place)
            return None
        channel = await self._places.channel(to.channel)
        if _is_pattern(channel):
            message = (
                f"channel {to.channel!r} adopts {channel.subjects[0]!r}, which can be read and not be sent to"
            )
            raise NotFound(message)
        if must_route and not await self._is_routed(channel):
            message = f"no group reads channel {to.channel!r}"
            raise Unroutable(message)
        return channel

    async def _is_routed(self, channel: Channel) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._routed.get(channel.name, -_ROUTED) < _ROUTED:
            return True
        found = await self._places.has_groups(channel)
        if found:
            self._routed[channel.name] = now
        return found

    def _subject(self, to: Address, channel: Channel | None, key: bytes | None) -> str:
        if channel is None:
            assert to.place is not None  # noqa: S101 - not a channel
            assert to.group is not None  # noqa: S101
            return names.subject(to.channel, to.place, to.group)
        count = len(channel.subjects)
        # without a key there is no order to keep, and the load is spread
        return channel.subjects[next(self._turn) % count if key is None else names.partition_of(key, count)]

    async def _send_to(
        self,
        to: Address,
        channel: Channel | None,
        part: Sequence[tuple[int, Message, float]],
        most: int,
        deadline: float,
    ) -> list[tuple[int, SendError | None]]:
        outcomes: list[tuple[int, SendError | None]] = []
        waiting: list[tuple[int, Call]] = []
        for index, message, after in part:
            if self._link.full:
                await self._link.room()
                if asyncio.get_running_loop().time() >= deadline:
                    late = f"{self._link.where}: not sent: the server takes nothing more"
                    outcomes.append((index, ConnectionLost(late)))
                    continue
            begun = self._begin(to, channel, message, after, most)
            if isinstance(begun, SendError):
                outcomes.append((index, begun))
            else:
                waiting.append((index, begun))
        futures = [call.future for _, call in waiting]
        if futures:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait(futures, timeout=left)
        for index, call in waiting:
            self._link.forget(call)
            outcomes.append((index, self._outcome(call)))
        return outcomes

    def _begin(
        self, to: Address, channel: Channel | None, message: Message, after: float, most: int
    ) -> Call | SendError:
        if message.size > most:
            return TooLarge(f"{message.size} bytes with headers; at most {most}")
        if not after <= self._max_delay:
            return DelayTooLong(f"after={after}: at most {self._max_delay:.0f} seconds")
        head = head_of(encode(message, scope=to.group or "", after=after))
        size, limit = len(head) + len(message.body), self._link.max_payload
        if size > limit:
            # a larger one would make the server end the connection, and the client give up
            return TooLarge(f"{size} bytes on the wire, headers included; the server takes {limit}")
        try:
            return self._link.begin(self._subject(to, channel, message.key), message.body, head)
        except NoAnswer as error:
            return ConnectionLost(f"{self._link.where}: {error}")

    def _outcome(self, call: Call) -> SendError | None:
        where, future = self._link.where, call.future
        error = future.exception() if future.done() else None
        if error is None:
            answer = future.result() if future.done() else None
            if answer is None:
                return PublishUnknown(f"{where}: no confirmation within {self._timeout:g} s")
            return self._read(answer)
        if isinstance(error, Unauthorised | Closed):
            return error
        if isinstance(error, NoAnswer) and not error.responders:
            return NotFound(f"{where}: {error}; no stream takes it")
        return PublishUnknown(f"{where}: {error} before it was confirmed")

    def _read(self, answer: Incoming) -> SendError | None:
        """Return None only if a stream says where it has put the message: others may listen on its subject, and answer."""
        try:
            found = read_answer(answer.data)
            stream, seq = found.get("stream"), found.get("seq")
        except ApiError as error:
            return self._refused(error)
        except (ValueError, TypeError, AttributeError):  # no JSON, or not in the form of an answer
            stream, seq = None, 0
        if stream and type(seq) is int and seq > 0:
            return None
        return PublishUnknown(f"{self._link.where}: the answer is not the stream's confirmation")

    def _refused(self, error: ApiError) -> SendError:
        text = f"{self._link.where}: {error}"
        if not error.reason:
            return PublishUnknown(f"{text}: the answer is not the stream's")
        if error.reason == _IN_PROCESS or (error.reason == _STORE_FAILED and "closed" in error.text):
            return PublishUnknown(text)
        if error.reason in _TOO_LARGE:
            return TooLarge(text)
        if error.code in {429, _STORED} or error.reason in _FULL | _BUSY:
            return Throttled(text)
        return as_send_error(meaning(error, self._link.where))


def _is_pattern(channel: Channel) -> bool:
    return "*" in channel.subjects[0] or channel.subjects[0].endswith(">")
