"""
`brokerkit tail`: watch a channel without taking anything from it.
"""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Final

import click

from brokerkit.cli.commands import command
from brokerkit.cli.exits import Exit, TimedOut
from brokerkit.cli.output import Output, safe
from brokerkit.cli.settings import Settings, pass_settings

if TYPE_CHECKING:
    from brokerkit.adapter import Browses
    from brokerkit.delivery import Delivery
    from brokerkit.message import Address

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
@click.option("--last", type=click.IntRange(min=0), metavar="N", help="Begin with the last N that are stored.")
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
        watch = _watch(settings, channel, last, follow=not no_follow)
        printing = _print(watch, output, count, headers_only=headers_only, raw=raw)
        asyncio.run(_within(printing, settings.timeout if count is not None and not no_follow else None))
    return Exit.DONE


def _check_flags(settings: Settings, count: int | None, *, no_follow: bool, headers_only: bool, raw: bool) -> None:
    message = ""
    if raw and (settings.output != "table" or headers_only):
        other = "--headers-only" if headers_only else f"--output {settings.output}"
        message = f"--raw and {other}: give one of them"
    elif settings.output == "json" and count is None and not no_follow:
        message = "--output json is one object, and following has no end: give --count, --no-follow, or --output ndjson"
    if message:
        raise click.UsageError(message, click.get_current_context())


async def _within(printing: "asyncio.Future[None] | object", timeout: float | None) -> None:
    raise NotImplementedError
