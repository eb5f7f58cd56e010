"""
`brokerkit tail`: watch a channel without taking anything from it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import click

from brokerkit.cli.commands import command
from brokerkit.cli.exits import Exit, Refused, TimedOut
from brokerkit.cli.output import Output, safe
from brokerkit.cli.settings import Settings, pass_settings

if TYPE_CHECKING:
    from brokerkit.delivery import Delivery

__all__ = ["tail"]

_PAGE: Final = 200
_PAUSE: Final = 0.1


@command(
    examples=(
        ("brokerkit tail orders", "print what arrives from now on"),
        ("brokerkit tail orders --last 10 --no-follow", "print the last ten and exit"),
        ("brokerkit tail orders --count 1 --timeout 30 -o ndjson", "wait for one, or exit with 124"),
    )
)
@click.argument("channel")
@click.option(
    "--last", type=click.IntRange(min=0), metavar="N", help="Begin with the last N that are stored."
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Exit after N.")
@click.option(
    "--no-follow", is_flag=True, help="Exit at the end of what is stored; without --last that is all of it."
)
@click.option("--headers-only", is_flag=True, help="Leave the data out.")
@click.option("--raw", is_flag=True, help="Print the messages' own bytes, one a line, and nothing else.")
@pass_settings
def tail(
    settings: Settings,
    channel: str,
    last: int | None,
    count: int | None,
    no_follow: bool,
    headers_only: bool,
    raw: bool,
) -> int:
    """
    Watch a channel without taking anything from it.

    A broker that hands a message out only by taking it is refused. Each line of -o ndjson can be fed to `brokerkit
    publish --from-ndjson -`.
    """
    from brokerkit.cli.logs import set_up_logging
    from brokerkit.names import check_name

    check_name("channel", channel)
    _check_flags(settings, count, no_follow=no_follow, headers_only=headers_only, raw=raw)
    set_up_logging(settings)
    with Output(settings, "tail") as output:
        watch = _Watch(settings, channel, last, follow=not no_follow)
        show = partial(_raw, output) if raw else partial(_show, output, data=not headers_only)
        asyncio.run(_tail(watch, show, count, settings.timeout if count else None))
    return Exit.DONE


def _check_flags(
    settings: Settings, count: int | None, *, no_follow: bool, headers_only: bool, raw: bool
) -> None:
    message = ""
    if raw and (settings.output != "table" or headers_only):
        other = "--headers-only" if headers_only else f"--output {settings.output}"
        message = f"--raw and {other}: give one of them"
    elif settings.output == "json" and count is None and not no_follow:
        message = (
            "--output json is one object, and following has no end: say --count, --no-follow, or -o ndjson"
        )
    if message:
        raise click.UsageError(message, click.get_current_context())


async def _tail(
    watch: "_Watch", show: "Callable[[Delivery], None]", count: int | None, timeout: float | None
) -> None:
    """Show what comes, as many as asked for. Raises `TimedOut` if they do not come in time."""
    shown = 0
    try:
        async with watch, asyncio.timeout(timeout):
            async for delivery in watch.deliveries():
                show(delivery)
                shown += 1
                if shown == count:
                    return
    except TimeoutError as error:
        message = f"{shown} of {count} messages came within --timeout {timeout:g}"
        raise TimedOut(message) from error


class _Watch:
    """One channel, read without taking."""

    def __init__(self, settings: Settings, channel: str, last: int | None, *, follow: bool) -> None:
        from brokerkit.message import Address
        from brokerkit.names import with_prefix

        self._settings = settings
        self._bus = settings.bus()
        self._channel = channel
        self._at = Address(with_prefix(self._bus.prefix, channel))
        self._last = last
        self._follow = follow
        self._cursor: str | None = None

    async def __aenter__(self) -> Self:
        await self._bus.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._bus.close()

    async def deliveries(self) -> "AsyncIterator[Delivery]":
        """Yield what is stored, as far as it is wanted, then what comes."""
        if self._last is None and self._follow:
            _, self._cursor = await self._browse("end")
        elif self._last is not None:
            async for delivery in self._newest(self._last):
                yield delivery
        while True:
            page = await self._page()
            for delivery in page:
                yield delivery
            if not page and not self._follow:
                return
            if not page:
                await asyncio.sleep(_PAUSE)

    async def _newest(self, last: int) -> "AsyncIterator[Delivery]":
        """Yield the last few that are stored; no broker can be read backwards, so all of it is read."""
        kept: deque[Delivery] = deque(maxlen=last)
        while page := await self._page():
            kept.extend(page)
        for delivery in kept:
            yield delivery

    async def _page(self) -> "Sequence[Delivery]":
        """Return the next page; a channel that nobody has published to yet is an empty one while we follow."""
        from brokerkit.errors import NotFound

        try:
            page, cursor = await self._browse(self._cursor)
        except NotFound:
            if not self._follow:
                raise
            return ()
        self._cursor = cursor or self._cursor
        for delivery in page:
            delivery.channel = self._channel
        return page

    async def _browse(self, cursor: str | None) -> "tuple[Sequence[Delivery], str | None]":
        from brokerkit.adapter import Browses, redacted

        if not isinstance(self._bus.adapter, Browses):
            message = (
                f"{redacted(self._bus.url)} hands a message out only by taking it, and tail takes nothing; "
                "read the channel with a group of its own: brokerkit run"
            )
            raise Refused(message)
        return await self._bus.adapter.browse(self._at, cursor=cursor, limit=_PAGE)


def _raw(output: Output, delivery: "Delivery") -> None:
    output.raw(delivery.message.body)


def _show(output: Output, delivery: "Delivery", *, data: bool) -> None:
    from brokerkit.cli.records import as_record

    record = as_record(delivery, data=data)
    if output.machine:
        output.item(record)
        return
    event = delivery.event
    head = [event.time or "-", event.type or "-", event.id, f"key={record['key']}" if record["key"] else ""]
    head += [f"{name}={value if isinstance(value, str) else '(bytes)'}" for name, value in record["headers"]]
    output.text(safe(" ".join(filter(None, head))))
    if data:
        output.text(f"    {safe(event.data.decode('utf-8', 'backslashreplace'))}")
    if event.error:
        output.text(f"    cannot be read: {safe(event.error)}")
