"""
`brokerkit publish`: one event from the command line, or many from a file.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from brokerkit.cli.commands import command
from brokerkit.cli.exits import Exit, explain, masked
from brokerkit.cli.output import Output
from brokerkit.cli.settings import Choice, Settings, pass_settings

if TYPE_CHECKING:
    from brokerkit.bus import Bus
    from brokerkit.cli.records import Numbered, Template
    from brokerkit.event import Event
    from brokerkit.publisher import Outgoing

__all__ = ["publish"]

_BATCH: Final = 500


@command(
    examples=(
        ("brokerkit publish orders '{\"total\": 17}' --type order.placed --key o-17", "send one event"),
        (
            "brokerkit publish orders @order.json --type order.placed --header tenant=acme",
            "its data from a file",
        ),
        (
            "brokerkit tail orders --last 100 --no-follow -o ndjson | brokerkit publish copies --from-ndjson -",
            "send many",
        ),
    )
)
@click.argument("channel")
@click.argument("body", required=False, metavar="[BODY | - | @FILE]")
@click.option("--type", metavar="TYPE", help="The event's type, such as order.placed.")
@click.option("--key", metavar="KEY", help="Events of one key keep their order where a group asks for it.")
@click.option("--id", metavar="ID", help="The event's id; random without.")
@click.option("--header", multiple=True, metavar="NAME=VALUE", help="A header; repeatable.")
@click.option("--content-type", metavar="TYPE", help="What BODY is, if it is not JSON, such as text/plain.")
@click.option(
    "--envelope",
    type=Choice(("structured", "binary", "plain")),
    default="structured",
    show_default=True,
    help="How the event is laid into the message; plain sends the data alone.",
)
@click.option(
    "--count", type=click.IntRange(min=1), default=1, metavar="N", help="Send it N times, with N ids."
)
@click.option(
    "--from-ndjson",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Send one event for each line (- is stdin): an object with data, type, key, id, headers.",
)
@click.option("--must-route", is_flag=True, help="Refuse if no group reads the channel.")
@pass_settings
def publish(
    settings: Settings,
    channel: str,
    body: str | None,
    type: str | None,  # noqa: A002 - as the flag, and so as its variable
    key: str | None,
    id: str | None,  # noqa: A002 - as the flag, and so as its variable
    header: tuple[str, ...],
    content_type: str | None,
    envelope: str,
    count: int,
    from_ndjson: Path | None,
    must_route: bool,
) -> int:
    """
    Publish events to a channel, and wait until the broker has them.

    Prints the id of each. BODY is JSON unless --content-type says otherwise; - reads it from stdin, @FILE from a file.
    """
    from brokerkit.cli.logs import set_up_logging
    from brokerkit.cli.records import JSON, AsIs, Template, header_pairs
    from brokerkit.names import check_name

    check_name("channel", channel)
    template = Template(
        type=type or ("plain" if envelope == "plain" else None),
        key=key,
        id=id,
        headers=header_pairs(header),
    )
    _check_flags(body, template, content_type, count, from_ndjson)
    set_up_logging(settings)
    codec = AsIs(content_type or JSON)
    bus = settings.bus(codec=codec, envelope=envelope)
    with Output(settings, "publish") as output:
        job = _Job(settings, bus, channel, output, must_route=must_route)
        if from_ndjson is not None:
            return asyncio.run(job.from_lines(from_ndjson, template))
        assert body is not None  # noqa: S101 - checked
        return asyncio.run(job.one(template.of_body(body, json=codec.is_json), count))


def _check_flags(
    body: str | None, template: "Template", content_type: str | None, count: int, from_ndjson: Path | None
) -> None:
    """Refuse flags that contradict each other, before anything is read or connected."""
    given = {"BODY": body, "--content-type": content_type, "--id": template.id, "--count": count > 1 or None}
    wrong = [flag for flag, value in given.items() if value is not None]
    message = ""
    if from_ndjson is not None:
        if wrong:
            message = f"--from-ndjson and {wrong[0]}: give one of them; each line has its own"
    elif body is None:
        message = "BODY is missing: give JSON, - for stdin, @FILE, or --from-ndjson FILE"
    elif template.id is not None and count > 1:
        message = (
            f"--id {template.id!r} and --count {count}: several events cannot have one id; leave one out"
        )
    elif template.type is None:
        message = "--type is missing: give the event's type, such as --type order.placed (--envelope plain has none)"
    if message:
        raise click.UsageError(message, click.get_current_context())


class _Job:
    """One run of the command: what is sent, and what became of it."""

    def __init__(
        self, settings: Settings, bus: "Bus", channel: str, output: Output, *, must_route: bool
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._channel = channel
        self._output = output
        self._must_route = must_route
        self._sent = 0
        self._failed = 0
        self._worst: Exception | None = None

    async def one(self, outgoing: "Outgoing", count: int) -> Exit:
        """Send one event, or the same data several times; raises the error of a single one."""
        async with self._bus:
            for begin in range(0, count, _BATCH):
                numbers = range(begin + 1, min(begin + _BATCH, count) + 1)
                if not await self._send([(number, outgoing) for number in numbers]):
                    break
        if count == 1 and self._worst is not None:
            raise self._worst
        return self._end()

    async def from_lines(self, path: Path, template: "Template") -> Exit:
        """Send what the lines of a file say; a line that cannot be sent is named and harms no other."""
        from brokerkit.cli.records import lines_of

        async with self._bus:
            async for lines in lines_of(path, _BATCH):
                if not await self._send([(number, template.of_line(line)) for number, line in lines]):
                    self._settings.warn(f"stopped; nothing after line {lines[-1][0]} was tried")
                    break
        return self._end()

    async def _send(self, batch: Sequence["Numbered"]) -> bool:
        """Send a batch and report each; False when the broker is gone and the rest would only wait for it too."""
        for number, item in batch:
            if isinstance(item, Exception):
                self._fail(number, item)
        good = [(number, item) for number, item in batch if not isinstance(item, Exception)]
        reached = True
        for (number, _), (event, error) in zip(
            good, await self._try([item for _, item in good]), strict=True
        ):
            if error is None and event is not None:
                self._succeed(number, event)
            elif error is not None:
                self._fail(number, error)
                reached = reached and explain(error)[0] not in {Exit.UNREACHABLE, Exit.TIMED_OUT}
        self._settings.progress(f"published {self._sent:,}")
        return reached

    async def _try(self, items: "Sequence[Outgoing]") -> "list[tuple[Event[bytes] | None, Exception | None]]":
        """Send some; where one of them may not travel at all, each on its own."""
        from brokerkit.errors import BrokerkitError

        try:
            outcomes = await self._bus.publish_many(self._channel, items, must_route=self._must_route)
        except BrokerkitError as error:
            if len(items) == 1:
                return [(None, error)]
            return [(await self._try([item]))[0] for item in items]
        return [(outcome.event, outcome.error) for outcome in outcomes]

    def _succeed(self, number: int, event: "Event[bytes]") -> None:
        self._sent += 1
        if self._output.machine:
            self._output.item(
                {"number": number, "id": event.id, "source": event.source, "type": event.type, "error": None}
            )
        else:
            self._output.text(event.id)

    def _fail(self, number: int, error: Exception) -> None:
        self._failed += 1
        self._worst = self._worst or error
        text = masked(explain(error)[1], self._settings.url)
        self._settings.warn(f"{number}: {text}")
        if self._output.machine:
            code = getattr(error, "code", "usage")
            self._output.item({"number": number, "error": {"code": code, "message": text}})

    def _end(self) -> Exit:
        self._settings.progress("")
        self._settings.say(
            f"published {self._sent:,} to {self._channel}"
            + (f", {self._failed:,} failed" if self._failed else "")
        )
        if self._worst is None:
            return Exit.DONE
        return Exit.PARTIAL if self._sent else explain(self._worst)[0]
