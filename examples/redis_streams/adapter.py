"""The adapter: one process's way to one Redis server."""

import asyncio
import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

from brokerkit.adapter import Capabilities, Measurement, OnLost, Order, Start
from brokerkit.brokerurl import BrokerUrl, parse_url
from brokerkit.delivery import Delivery
from brokerkit.errors import (
    Closed,
    ConfigurationError,
    DelayTooLong,
    NotFound,
    SendError,
    TooLarge,
    Unroutable,
    Unsupported,
)
from brokerkit.examples.redis_streams.entry import (
    base_of,
    fields_of,
    message_of,
    position_of,
    slot_of,
)
from brokerkit.examples.redis_streams.failure import sending, using
from brokerkit.examples.redis_streams.keeper import Keeper, Ward, Watch, pairs
from brokerkit.examples.redis_streams.line import FAILURES, Argument, Line
from brokerkit.examples.redis_streams.subscription import RedisSubscription
from brokerkit.examples.redis_streams.wake import Listener
from brokerkit.message import Address, Message
from brokerkit.names import check_name

__all__ = ["RedisAdapter"]

_WEEK = 7 * 24 * 3600.0
_YEAR = 365 * 24 * 3600.0
_OPTIONS = ("lease", "timeout", "prefix", "retention", "max_message")
_SECURE = ("rediss",)  # Redis' own name for TLS; `redis+tls` is known everywhere
_BATCH_MESSAGES, _BATCH_BYTES = 200, 1_000_000  # what one script is given, so that nobody waits long for it
_OLDEST_SERVER = 7


class RedisAdapter:
    """
    `redis://user:password@host:port/db`, encrypted as `rediss://` or `redis+tls://`.

    lease: seconds after which a member that shows no sign of life loses what it has. timeout: seconds for connecting and
    for one command. prefix: what all keys begin with. retention: seconds for which a channel keeps messages.
    max_message: size limit in bytes.
    """

    def __init__(self, url: str, **options: str | float | bool | None) -> None:
        self._url = _checked(parse_url(url, port=6379, known=_OPTIONS, options=options, secure=_SECURE))
        self._lease = self._url.number("lease", 30.0, least=0.5)
        self._timeout = self._url.number("timeout", 5.0, least=0.1)
        self._retention = self._url.number("retention", _WEEK, least=60.0)
        self._prefix = check_name("prefix", self._url.text_of("prefix", "brokerkit"))
        self._line: Line | None = None
        self._listener: Listener | None = None
        self._keeper: Keeper | None = None
        self._subscriptions: list[RedisSubscription] = []
        self._closing: asyncio.Task[None] | None = None
        self._server = ""
        self.capabilities = Capabilities(
            order_key=True,
            durable=True,
            processes=True,
            counts_arrivals=True,
            marks=True,
            log=False,
            lease=self._lease,
            max_delay=_YEAR,
            max_message=int(self._url.number("max_message", 8_388_608, least=1, most=256_000_000)),
            key_returns=False,
        )

    @property
    def server(self) -> str:
        """Product and version; empty before `connect`."""
        return self._server

    async def connect(self) -> None:
        """Connect and look what server it is; see `Adapter`."""
        self._refuse_closed()
        line = Line(self._url, timeout=self._timeout)
        try:
            facts = _facts(await line.command("INFO"))
            self._accept(facts)
        except (ConfigurationError, SendError):
            await line.close(0.0)
            raise
        except FAILURES as error:
            await line.close(0.0)
            raise using(error) from error
        except BaseException:
            await line.close(0.0)
            raise
        self._refuse_closed()
        self._line = line
        self._listener = Listener(line, f"{self._prefix}:hello")
        self._keeper = Keeper(self._url, self._lease)

    async def send(
        self,
        to: Address,
        messages: Sequence[Message],
        *,
        after: float | Sequence[float] = 0,
        must_route: bool = False,
    ) -> Sequence[SendError | None]:
        """Store messages; see `Adapter`."""
        line, base = self._open(), self._base(to)
        delays = (
            [float(after)] * len(messages)
            if isinstance(after, int | float)
            else [float(one) for one in after]
        )
        if to.place != "inlet" and any(delay > 0 for delay in delays):
            message = f"only what is sent to a group's inlet can be delayed, not {to}"
            raise Unsupported(message)
        outcomes: list[SendError | None] = [
            self._refusal(message, delay) for message, delay in zip(messages, delays, strict=True)
        ]
        good = [index for index, outcome in enumerate(outcomes) if outcome is None]
        head = (to.group or "", to.place or "", int(must_route), int(self._retention * 1000))
        for batch in _batches(good, messages):
            args: list[Argument] = [*head, len(batch)]
            for index in batch:
                fields = fields_of(messages[index])
                args += [slot_of(to, messages[index]), math.ceil(delays[index] * 1000), len(fields), *fields]
            outcome = await self._publish(line, base, to, args)
            for index in batch:
                outcomes[index] = outcome
        return outcomes

    async def subscribe(
        self,
        at: Address,
        *,
        order: Order,
        start: Start,
        prefetch: int,  # noqa: ARG002 - nothing is claimed before `receive` wants it
        on_lost: OnLost,
    ) -> RedisSubscription:
        """Join a group; see `Adapter`."""
        line, base = self._open(), self._base(at)
        if at.group is None or at.place not in {"inlet", "dead"}:
            message = f"{at}: only the inlet and the dead place of a group can be read"
            raise Unsupported(message)
        if at.place == "dead" and order == "key":
            message = f"{at}: dead letters have no order"
            raise Unsupported(message)
        watch = Watch(self._lease)
        ward = Ward(base, at.group, at.place, secrets.token_hex(16), order, watch, lambda _: None)
        await self._join(line, ward, start)
        self._refuse_closed()
        assert self._keeper is not None  # noqa: S101 - `_open` has seen to it
        assert self._listener is not None  # noqa: S101
        subscription = RedisSubscription(at, ward, line, self._keeper, self._listener, on_lost)
        self._subscriptions = [one for one in self._subscriptions if not one.closed] + [subscription]
        await subscription.start()
        return subscription

    async def measure(self, at: Address) -> Measurement:
        """Count what waits at an inlet or a dead place; see `Measures`."""
        if at.group is None or at.place is None:
            message = f"{at}: only the inlet and the dead place of a group can be measured"
            raise Unsupported(message)
        answer = await self._read(self._base(at), "measure", at.group, at.place)
        if answer == b"missing":
            message = f"there is no group {at.group!r} on {at.channel!r}"
            raise NotFound(message)
        waiting, delayed, in_flight, oldest = cast("tuple[int, int, int, int]", answer)
        return Measurement(
            waiting=waiting,
            delayed=delayed,
            in_flight=in_flight,
            oldest=None if oldest < 0 else oldest / 1000,
        )

    async def browse(
        self, at: Address, *, cursor: str | None, limit: int
    ) -> tuple[Sequence[Delivery], str | None]:
        """Read a channel or a dead place without taking; see `Browses`. A cursor is the id of the last entry."""
        if at.place == "inlet":
            message = f"{at}: a channel or a dead place can be browsed"
            raise Unsupported(message)
        answer = await self._read(
            self._base(at), "browse", at.group or "", at.place or "", cursor or "0-0", limit
        )
        if isinstance(answer, bytes):
            return (), answer.decode()
        rows = [(entry.decode(), fields) for entry, fields in cast("list[tuple[bytes, list[bytes]]]", answer)]
        found = [Delivery(message_of(fields), at, position=position_of(entry)) for entry, fields in rows]
        return found, rows[-1][0] if rows else None

    async def groups(self) -> Sequence[tuple[str, str]]:
        """Return the groups that exist; see `Browses`."""
        line, found, cursor = self._open(), set[tuple[str, str]](), b"0"
        try:
            while True:
                answer = await line.command(
                    "SCAN", cursor, "MATCH", f"{self._prefix}:{{*}}:groups", "COUNT", 500
                )
                cursor, keys = cast("tuple[bytes, list[bytes]]", answer)
                for key in keys:
                    members = cast("list[bytes]", await line.command("SMEMBERS", key))
                    channel = key.decode().partition("{")[2].partition("}")[0]
                    found |= {(channel, group.decode()) for group in members}
                if cursor == b"0":
                    return sorted(found)
        except FAILURES as error:
            raise using(error) from error

    async def close(self) -> None:
        """Close everything; see `Adapter`."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await asyncio.gather(*(subscription.close() for subscription in self._subscriptions))
        if self._keeper is not None:
            await self._keeper.close()
        if self._listener is not None:
            await self._listener.close()
        if self._line is not None:
            await self._line.close()

    def _refuse_closed(self) -> None:
        if self._closing is not None:
            message = f"{self._url.text} is closed"
            raise Closed(message)

    def _open(self) -> Line:
        self._refuse_closed()
        if self._line is None:
            message = f"{self._url.text} is not connected"
            raise Closed(message)
        return self._line

    def _base(self, at: Address) -> str:
        check_name("channel", at.channel)
        if at.group is not None:
            check_name("group", at.group)
        return base_of(self._prefix, at.channel)

    def _accept(self, facts: dict[str, str]) -> None:
        """See whether this server can keep what is promised."""
        version = facts.get("redis_version", "")
        if not version.partition(".")[0].isdigit() or int(version.partition(".")[0]) < _OLDEST_SERVER:
            message = f"{self._url.text}: Redis {version or '?'}; {_OLDEST_SERVER}.0 or newer is needed"
            raise Unsupported(message)
        if facts.get("redis_mode") == "cluster":
            message = f"{self._url.text}: a Redis Cluster; this adapter speaks to one server"
            raise Unsupported(message)
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys"):
            message = f"{self._url.text}: maxmemory-policy {policy} deletes messages; set noeviction"
            raise Unsupported(message)
        self._server = f"Redis {version}"
        self.capabilities = replace(self.capabilities, durable=facts.get("aof_enabled") == "1")

    def _refusal(self, message: Message, delay: float) -> SendError | None:
        capabilities = self.capabilities
        if message.size > capabilities.max_message:
            return TooLarge(f"{message.size} bytes with headers; at most {capabilities.max_message}")
        if delay > capabilities.max_delay:
            return DelayTooLong(f"after={delay}: at most {capabilities.max_delay:.0f} seconds")
        return None

    async def _publish(
        self, line: Line, base: str, to: Address, args: Sequence[Argument]
    ) -> SendError | None:
        try:
            answer = await line.script(base, "publish", *args)
        except (SendError, *FAILURES) as error:
            return sending(error)
        except ConfigurationError as error:
            return NotFound(f"the database cannot be used: {error}")
        if answer == b"unroutable":
            return Unroutable(f"no group reads {to}")
        if answer == b"missing":
            return NotFound(f"there is no group {to.group!r} on {to.channel!r}")
        return None

    async def _join(self, line: Line, ward: Ward, start: Start) -> None:
        """
        Join, or say that the living members have another order.

        Nobody else may be there to see that they are dead: then they are watched from here, for a lease.
        """
        loop = asyncio.get_running_loop()
        args = (ward.group, ward.place, start, ward.order, ward.member)
        signs: dict[bytes, bytes] = {}
        try:
            while True:
                others = pairs(await line.script(ward.base, "join", *args, ward.sign()))
                if not others:
                    return
                if any(signs.get(member, sign) != sign for member, sign in others.items()):
                    message = f"the members of group {ward.group!r} on {ward.base} have another order than {ward.order!r}"
                    raise ConfigurationError(message)
                signs |= others
                for member, sign in ward.watch.judge(others, loop.time()):
                    await line.script(ward.base, "evict", ward.group, ward.place, member, sign)
                await asyncio.sleep(0.1)
        except FAILURES as error:
            raise using(error) from error

    async def _read(self, base: str, action: str, *args: Argument) -> object:
        line = self._open()
        try:
            return await line.script(base, action, *args)
        except FAILURES as error:
            raise using(error) from error


def _checked(url: BrokerUrl) -> BrokerUrl:
    if url.scheme not in {"redis", "redis+tls", *_SECURE}:
        message = f"{url.text}: the schemes are redis://, rediss:// and redis+tls://"
        raise ConfigurationError(message)
    if len(url.hosts) != 1:
        message = f"{url.text}: exactly one host; Sentinel and Cluster are not supported"
        raise ConfigurationError(message)
    if url.path and not url.path.isdecimal():
        message = f"{url.text}: the path is the number of a database, such as /0"
        raise ConfigurationError(message)
    return url


def _facts(info: object) -> dict[str, str]:
    lines = cast("bytes", info).decode(errors="replace").splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines) if value}


def _batches(good: Sequence[int], messages: Sequence[Message]) -> Iterator[list[int]]:
    batch: list[int] = []
    size = 0
    for index in good:
        if batch and (len(batch) >= _BATCH_MESSAGES or size + messages[index].size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(index)
        size += messages[index].size
    if batch:
        yield batch
