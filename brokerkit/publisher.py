"""
Publishing: from a value to a confirmed message, or to one honest outcome.

Inside a handler a publish is held until the handler has succeeded, and sent, confirmed, before anything remembers the
handling as done: a handler that publishes and then fails has published nothing.
"""

import asyncio
import hashlib
import logging
import os
import random
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary

from brokerkit.adapter import Adapter
from brokerkit.clock import SYSTEM, Clock
from brokerkit.codec import Codec, JsonCodec
from brokerkit.context import asked_to_stop, current
from brokerkit.copies import is_foreign
from brokerkit.delivery import Delivery
from brokerkit.endpoint import type_of
from brokerkit.envelope import FORMS, Form, lay, timestamp
from brokerkit.errors import (
    BadHeader,
    BadKey,
    BrokerkitError,
    Closed,
    ConfigurationError,
    ConnectionLost,
    LoopDetected,
    PublishUnknown,
    SendError,
    TooLarge,
)
from brokerkit.event import Event, made
from brokerkit.message import Address, Message, check_headers
from brokerkit.names import check_name, with_prefix

__all__ = ["Outcome", "Outgoing", "Publisher"]

_log = logging.getLogger("brokerkit")

ROOM = 16 * 1024
_LONGEST_KEY = 1024
_LONGEST_ATTRIBUTE = 1024
_DEEPEST = 100
_RESERVED = ("bk-", "ce-", "ce_", "cloudevents")
_ATTRIBUTES = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data"}
)
_CARRIERS: tuple[type[Any], ...] = (Event, Message, Delivery)
_FIRST_BACKOFF = 0.05
_LONGEST_BACKOFF = 2.0

HeadersLike = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """
    One message of a `publish_many`, with what `publish` takes beside the data.

    key: messages of one key keep their order where a group asks for it. type: else the data's class name. id: else
    random, or derived from the message being handled. extensions: CloudEvents attributes, lower-case letters and digits.
    """

    data: Any
    key: str | None = None
    type: str | None = None
    id: str | None = None
    subject: str | None = None
    time: str | None = None
    headers: HeadersLike = ()
    extensions: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one message of a `publish_many` fared: its event, and None or the error."""

    event: Event[bytes]
    error: SendError | None


@dataclass(frozen=True, slots=True)
class _Held:
    publisher: "Publisher"
    channel: str
    message: Message
    must_route: bool
    timeout: float | None


class Publisher:
    """
    Makes events and sends them.

    name: the `source` of what is published. timeout: seconds for which an unreachable broker or an unknown outcome is tried
    again, with the same event id.
    """

    def __init__(
        self,
        *,
        name: str | None,
        codec: Codec,
        form: Form,
        prefix: str,
        timeout: float,
        clock: Clock = SYSTEM,
    ) -> None:
        self.name = name
        self.codec = codec
        self.form: Form = form
        self.prefix = prefix
        self.timeout = timeout
        self.adapter: Adapter | None = None
        self._clock = clock

    def make(self, channel: str, outgoing: Outgoing, form: Form | None) -> tuple[Event[bytes], Message]:
        """
        Return the event and the message that carries it, checked.

        Raises the typed error for what cannot travel (`BadName`, `BadHeader`, `BadKey`, `TooLarge`,
        `ConfigurationError`), before anything moves.
        """
        _check_channel(channel)
        if form is not None and form not in FORMS:
            message = f"envelope={form!r}: use {', '.join(map(repr, FORMS))}"
            raise ConfigurationError(message)
        if self.name is None:
            message = (
                "publishing needs Bus(name=...): it becomes the source of the events, the same over restarts"
            )
            raise ConfigurationError(message)
        data, content_type = self._encode(outgoing.data)
        key = _key(outgoing.key)
        headers = _headers(outgoing.headers) if outgoing.headers else ()
        delivery = current()
        event = made(
            _random_id() if outgoing.id is None else outgoing.id,
            self.name,
            _type(outgoing),
            data,
            outgoing.subject,
            outgoing.time or timestamp(self._clock.time()),
            content_type,
            None,
            _extensions(outgoing.extensions, delivery),
        )
        if outgoing.id is None and delivery is not None:
            event = replace(event, id=_derived_id(delivery, channel, event, key))
        _check_attributes(event, outgoing)
        prefix = "ce-" if self.adapter is None else self.adapter.capabilities.attributes
        carried = lay(
            event,
            form or self.form,
            key=key,
            headers=headers,
            prefix=prefix,
            is_json=content_type is not None
            and type(self.codec) is JsonCodec
            and not isinstance(outgoing.data, bytes),
        )
        self._check_size(carried)
        return event, carried

    def _encode(self, data: Any) -> tuple[bytes, str | None]:
        if isinstance(data, bytes):
            return data, "application/octet-stream"
        if isinstance(data, _CARRIERS):
            message = f"{type(data).__name__} given as data: publish what it carries (its .data), and give type and key apart"
            raise ConfigurationError(message)
        try:
            return self.codec.encode(data), self.codec.content_type
        except (TypeError, ValueError, RecursionError) as error:
            message = f"{type(data).__name__} cannot be written as {self.codec.content_type}: {error}"
            raise ConfigurationError(message) from error

    def _check_size(self, message: Message) -> None:
        if self.adapter is None:
            return
        limit = self.adapter.capabilities.max_message - ROOM
        if message.size > limit:
            text = f"the message has {message.size} bytes with its headers; at most {limit} can be published to this broker"
            raise TooLarge(text)

    async def publish(
        self,
        channel: str,
        outgoing: Sequence[Outgoing],
        *,
        form: Form | None,
        must_route: bool,
        hold: bool,
        timeout: float | None,
    ) -> list[Outcome]:
        """
        Send some messages, or hold them for the handler that is running; one outcome for each.

        What comes from a task that has outlived its handler is sent at once: nobody would send it later.
        """
        made = [self.make(channel, each, form) for each in outgoing]
        delivery = current()
        if hold and delivery is not None and delivery.handling:
            self._hold(delivery, [_Held(self, channel, message, must_route, timeout) for _, message in made])
            return [Outcome(event, None) for event, _ in made]
        errors = await self.send(
            channel, [message for _, message in made], must_route=must_route, timeout=timeout
        )
        return [Outcome(event, error) for (event, _), error in zip(made, errors, strict=True)]

    def _hold(self, delivery: Delivery, outputs: Sequence[_Held]) -> None:
        if delivery.extra is None:
            delivery.extra = {}
        held: list[_Held] = delivery.extra.setdefault("outputs", [])
        held += outputs

    async def send(
        self,
        channel: str,
        messages: Sequence[Message],
        *,
        must_route: bool = False,
        timeout: float | None = None,
    ) -> list[SendError | None]:
        """
        Send until confirmed, refused, or out of time; one outcome for each message.

        What is unreachable or unknown is sent again under the same id. When the time is over: `PublishUnknown` if any try
        may have arrived, else the last error.
        """
        if self.adapter is None:
            closed = Closed("the bus is not connected: use it inside 'async with bus:'")
            return [closed] * len(messages)
        to = Address(with_prefix(self.prefix, channel))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.timeout if timeout is None else timeout)
        errors = await self._try(to, messages, must_route, deadline)
        outcomes = list(errors)
        if outcomes.count(None) == len(outcomes):
            return outcomes
        left = list(range(len(messages)))
        unknown: set[int] = set()
        backoff = _FIRST_BACKOFF
        while True:
            again: list[int] = []
            for index, error in zip(left, errors, strict=True):
                outcomes[index] = error
                if isinstance(error, PublishUnknown):
                    unknown.add(index)
                if error is not None and error.retryable:
                    again.append(index)
            left = again
            wait = random.uniform(backoff / 2, backoff)  # noqa: S311 - jitter
            if not left or loop.time() + wait >= deadline:
                return [_final(outcome, index in unknown) for index, outcome in enumerate(outcomes)]
            await asyncio.sleep(wait)
            backoff = min(backoff * 2, _LONGEST_BACKOFF)
            errors = await self._try(to, [messages[index] for index in left], must_route, deadline)

    async def _try(
        self, to: Address, messages: Sequence[Message], must_route: bool, deadline: float
    ) -> Sequence[SendError | None]:
        adapter = self.adapter
        if adapter is None:
            return [ConnectionLost("the bus was closed before the broker had confirmed")] * len(messages)
        try:
            async with asyncio.timeout_at(deadline):
                errors = await adapter.send(to, messages, must_route=must_route)
        except TimeoutError:
            unknown = PublishUnknown(
                f"no confirmation for {to} within the publish timeout; publish again with the same id"
            )
            return [unknown] * len(messages)
        except SendError as error:
            return [error] * len(messages)
        except BrokerkitError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and asked_to_stop():
                raise
            _log.exception("sending raised instead of returning outcomes")
            unknown = PublishUnknown(f"the broker's client failed while sending to {to}: {error!r}")
            unknown.__cause__ = error
            return [unknown] * len(messages)
        if len(errors) != len(messages):
            _log.critical("sending %d messages returned %d outcomes", len(messages), len(errors))
            return [PublishUnknown("the adapter returned a wrong number of outcomes")] * len(messages)
        return errors


async def flush_outputs(delivery: Delivery) -> None:
    """
    Send what a handler has published, confirmed, in order; raises the first error, which fails the attempt.

    Runs inside the attempt: before an inbox commits, before dedupe remembers, before the ack. A second run publishes the
    same ids.
    """
    held: list[_Held] = (delivery.extra or {}).pop("outputs", [])
    at = 0
    while at < len(held):
        first = held[at]
        part = [first.message]
        while at + len(part) < len(held) and _together(first, held[at + len(part)]):
            part.append(held[at + len(part)].message)
        errors = await first.publisher.send(
            first.channel, part, must_route=first.must_route, timeout=first.timeout
        )
        for error in errors:
            if error is not None:
                raise error
        at += len(part)


def _together(one: _Held, other: _Held) -> bool:
    return (one.publisher, one.channel, one.must_route, one.timeout) == (
        other.publisher,
        other.channel,
        other.must_route,
        other.timeout,
    )


def _final(error: SendError | None, unknown: bool) -> SendError | None:
    if error is None or not unknown or isinstance(error, PublishUnknown):
        return error
    text = f"an earlier try may have been stored, the last one was not: {error}"
    final = PublishUnknown(text)
    final.__cause__ = error
    return final


def _key(key: object) -> bytes | None:
    if key is None:
        return None
    if not isinstance(key, str):
        message = f"key is {type(key).__name__}: give text, or None for no order"
        raise BadKey(message)
    try:
        encoded = key.encode()
    except UnicodeEncodeError as error:
        message = "key holds a lone surrogate and cannot be encoded"
        raise BadKey(message) from error
    if len(encoded) > _LONGEST_KEY:
        message = f"key has {len(encoded)} bytes; at most {_LONGEST_KEY}"
        raise BadKey(message)
    return encoded


def _headers(headers: HeadersLike) -> tuple[tuple[str, str | bytes], ...]:
    pairs = cast("Mapping[str, str | bytes]", headers).items() if isinstance(headers, Mapping) else headers
    checked = check_headers(pairs)
    for name, _ in checked:
        lowered = name.lower()
        if lowered == "content-type" or lowered.startswith(_RESERVED) or is_foreign(name):
            message = (
                f"header {name!r} is reserved for brokerkit, CloudEvents or a broker; choose another name"
            )
            raise BadHeader(message)
    return checked


@lru_cache(maxsize=1024)
def _check_channel_name(channel: str) -> None:
    check_name("channel", channel)


def _check_channel(channel: object) -> None:
    if type(channel) is str:
        _check_channel_name(channel)
    else:
        check_name("channel", channel)


def _type_of_class(kind: type[object]) -> str | None:
    """Return the type that a class stands for, checked once."""
    if kind not in _TYPES:
        name = type_of(kind)
        if name is not None:
            _check_text("type", name)
        _TYPES[kind] = name
    return _TYPES[kind]


_TYPES: WeakKeyDictionary[type[object], str | None] = WeakKeyDictionary()


def _type(outgoing: Outgoing) -> str:
    name = outgoing.type or _type_of_class(cast("type[object]", type(outgoing.data)))
    if not name:
        message = f"{type(outgoing.data).__name__} stands for no event type; give type='order.placed' or publish a model"
        raise ConfigurationError(message)
    return name


def _extensions(given: Mapping[str, str], delivery: Delivery | None) -> dict[str, str]:
    if delivery is None and not given:
        return {}
    extensions = dict(given)
    for name, value in extensions.items():
        if not (name.isascii() and name.isalnum() and name == name.lower()) or not isinstance(value, str):
            message = (
                f"extension {name!r}: CloudEvents names are lower-case letters and digits, values are text"
            )
            raise BadHeader(message)
        if name in _ATTRIBUTES:
            message = f"extension {name!r}: this is an attribute of its own, not an extension"
            raise BadHeader(message)
    if delivery is None:
        return extensions
    incoming = delivery.event
    inherited = incoming.extensions
    passed_on = {
        "correlationid": inherited.get("correlationid", incoming.id),
        "causationid": incoming.id,
        "traceparent": inherited.get("traceparent"),
        "tracestate": inherited.get("tracestate"),
    }
    for name, inherited_value in passed_on.items():
        if inherited_value and _can_travel(inherited_value):
            extensions.setdefault(name, inherited_value)
    extensions["causationdepth"] = str(_depth(inherited.get("causationdepth")) + 1)
    return extensions


def _can_travel(value: str) -> bool:
    """Say whether a stranger's attribute may be passed on: one that may not must not fail whoever answers it."""
    if len(value) > _LONGEST_ATTRIBUTE:
        return False
    try:
        check_headers([("inherited", value)])
    except BadHeader:
        return False
    return True


def _depth(text: str | None) -> int:
    depth = int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 6 else 0  # noqa: PLR2004 - any sane depth
    if depth >= _DEEPEST:
        message = f"{depth} events have been published in answer to each other: a loop, cut here"
        raise LoopDetected(message)
    return depth


def _random_id() -> str:
    digits = os.urandom(16).hex()
    # version and variant as `uuid.uuid4` has them, which costs three times as much
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _derived_id(delivery: Delivery, channel: str, event: Event[bytes], key: bytes | None) -> str:
    """
    Return the id of what a handler publishes: the same on a second run over the same message.

    Made of the incoming identity, the group, the target, type, subject, key, the data and the ordinal among equals; a
    handler that puts time or chance into the data gets a new id on a second run.
    """
    digest = hashlib.blake2b(digest_size=16)
    names = (*delivery.event.identity, delivery.channel, delivery.group, channel, event.type, event.subject)
    parts = [None if name is None else str(name).encode("utf-8", "surrogatepass") for name in names]
    for part in (*parts, key, event.data):
        # with its length: whatever a stranger's id holds, no two lists of parts are written alike
        digest.update(b"-" if part is None else len(part).to_bytes(8, "big") + part)
    if delivery.extra is None:
        delivery.extra = {}
    ordinals: dict[bytes, int] = delivery.extra.setdefault("ordinals", {})
    base = digest.digest()
    ordinal = ordinals[base] = ordinals.get(base, 0) + 1
    digest.update(str(ordinal).encode())
    return str(uuid.UUID(bytes=digest.digest()))


def _check_attributes(event: Event[bytes], outgoing: Outgoing) -> None:
    """Check what the caller gave; what we made ourselves is right."""
    _check_source(event.source)
    if outgoing.id is not None:
        _check_text("id", event.id)
    if outgoing.type:
        _check_text("type", event.type)
    if event.subject is not None:
        _check_text("subject", event.subject)
    if event.extensions:
        check_headers(event.extensions.items())
    if outgoing.time:
        _check_text("time", event.time)
        if event.when() is None:
            message = (
                f"event attribute time: {event.time!r} is no RFC 3339 time, for example 2026-01-31T12:00:00Z"
            )
            raise BadHeader(message)


@lru_cache(maxsize=64)
def _check_source(source: str) -> None:
    _check_text("source", source)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value or len(value) > _LONGEST_ATTRIBUTE:
        message = f"event attribute {name}: give text of 1 to {_LONGEST_ATTRIBUTE} characters"
        raise BadHeader(message)
    check_headers([(name, value)])
