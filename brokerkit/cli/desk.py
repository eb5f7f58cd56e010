"""
A connected bus, and the dead letters of its groups.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import click

from brokerkit.cli.exits import Refused
from brokerkit.cli.settings import Settings, nearest

if TYPE_CHECKING:
    from brokerkit.patterns.dead_letter import DeadLetters

__all__ = ["Desk", "at_desk"]

T = TypeVar("T")


def at_desk(settings: Settings, work: "Callable[[Desk], Awaitable[T]]") -> T:
    """Connect, do some work, and close."""
    from brokerkit.cli.logs import set_up_logging

    set_up_logging(settings)

    async def connected() -> T:
        async with Desk(settings) as desk:
            return await work(desk)

    return asyncio.run(connected())


class Desk:
    """The dead letters behind one broker; channels are named without the deployment's prefix."""

    def __init__(self, settings: Settings) -> None:
        self._bus = settings.bus()

    async def __aenter__(self) -> Self:
        await self._bus.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._bus.close()

    async def groups(self) -> Sequence[tuple[str, str]]:
        """Return every (channel, group) of this deployment; `Refused` where the broker does not tell."""
        from brokerkit.adapter import Browses, redacted

        if not isinstance(self._bus.adapter, Browses):
            message = f"{redacted(self._bus.url)} does not tell its groups; give --channel and --group"
            raise Refused(message)
        prefix = f"{self._bus.prefix}." if self._bus.prefix else ""
        found = await self._bus.adapter.groups()
        return [
            (channel.removeprefix(prefix), group) for channel, group in found if channel.startswith(prefix)
        ]

    async def places(self, channel: str | None, group: str | None) -> Sequence[tuple[str, str]]:
        """
        Return the groups that `--channel` and `--group` choose.

        A name that fits none is a usage error with the nearest one, where the broker tells; elsewhere it is believed.
        """
        from brokerkit.adapter import Browses

        if channel and group and not isinstance(self._bus.adapter, Browses):
            return [(channel, group)]
        known = await self.groups()
        chosen = [place for place in known if channel in {None, place[0]} and group in {None, place[1]}]
        if chosen or not (channel or group):
            return chosen
        raise click.UsageError(_unknown(channel, group, known), click.get_current_context())

    def letters(self, channel: str, group: str) -> "DeadLetters":
        """Return the dead letters of one group."""
        from brokerkit.patterns.dead_letter import DeadLetters

        return DeadLetters(self._bus.adapter, channel, group, prefix=self._bus.prefix)

    async def depth(self, channel: str, group: str) -> tuple[int, float | None]:
        """Return how many dead letters a group has, and the age of the oldest in seconds."""
        from brokerkit.adapter import Measures, redacted
        from brokerkit.message import Address
        from brokerkit.names import with_prefix

        if not isinstance(self._bus.adapter, Measures):
            message = f"{redacted(self._bus.url)} does not count; use 'brokerkit dlq list'"
            raise Refused(message)
        found = await self._bus.adapter.measure(
            Address(with_prefix(self._bus.prefix, channel), group, "dead")
        )
        return found.waiting + found.delayed + found.in_flight, found.oldest


def _unknown(channel: str | None, group: str | None, known: Sequence[tuple[str, str]]) -> str:
    """Say which of the two names fits nothing, and which one is nearest."""
    channels = sorted({place[0] for place in known})
    if channel is not None and channel not in channels:
        return f"--channel {channel!r} has no group{nearest(channel, channels) or _there_are(channels)}"
    groups = sorted({place[1] for place in known if channel in {None, place[0]}})
    return f"--group {group!r} is not there{nearest(group or '', groups) or _there_are(groups)}"


def _there_are(names: Sequence[str]) -> str:
    return f"; there are {', '.join(names)}" if names else "; nobody consumes from this broker yet"
