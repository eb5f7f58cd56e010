"""
`brokerkit provision`: what an application needs at its broker, created, looked for, or printed for an operator.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from brokerkit.cli.commands import command
from brokerkit.cli.exits import Exit
from brokerkit.cli.output import Output
from brokerkit.cli.settings import Settings, pass_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brokerkit.bus import Bus

__all__ = ["provision"]


@command(
    examples=(
        (
            "brokerkit provision app:bus",
            "create the channels and groups of the handlers, where they are missing",
        ),
        ("brokerkit provision app:bus --verify", "name what is missing; exit code 1 if anything is"),
        ("brokerkit provision app:bus --print", "print the commands that an operator would run"),
    )
)
@click.argument("target", metavar="MODULE:BUS")
@click.option(
    "--app-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Where the module is looked for first (the current directory).",
)
@click.option("--factory", is_flag=True, help="BUS is a function that returns the bus.")
@click.option("--verify", is_flag=True, help="Create nothing; name what is missing.")
@click.option("--print", "show", is_flag=True, help="Print shell commands; the broker is not touched.")
@pass_settings
def provision(settings: Settings, target: str, app_dir: Path, factory: bool, verify: bool, show: bool) -> int:
    """
    Create at the broker what the handlers of an application need.

    What exists is left as it is. A new group sees what comes after its creation, so on brokers that keep no log run
    this before anything is published.
    """
    from brokerkit.cli.application import load

    if verify and show:
        message = "--verify looks at the broker, --print does not touch it; give one of them"
        raise click.UsageError(message, click.get_current_context())
    settings.export()
    bus = load(target, app_dir, factory=factory)
    if settings.timeout is not None:
        bus.connect_timeout = settings.timeout
    if show:
        return _show(settings, bus)
    settings.url = bus.url
    missing = asyncio.run(_provision(bus, create=not verify))
    with Output(settings, "provision", ("NAME", "STATE")) as output:
        for name in missing:
            state = "missing" if verify else "created"
            output.item({"name": name, "state": state}, (name, state))
    return Exit.FAILED if verify and missing else Exit.DONE


async def _provision(bus: "Bus", *, create: bool) -> "Sequence[str]":
    async with bus:
        return await bus.provision(create=create)


def _show(settings: Settings, bus: "Bus") -> int:
    from brokerkit.adapter import Describes
    from brokerkit.errors import Unsupported

    if not isinstance(bus.adapter, Describes):
        message = (
            "nothing has to be made beforehand at this broker: its groups are made by who consumes first"
        )
        raise Unsupported(message)
    with Output(settings, "provision") as output:
        for line in bus.adapter.commands(bus.places()):
            if output.machine:
                output.item({"command": line})
            else:
                output.text(line)
    return Exit.DONE
