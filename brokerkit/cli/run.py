"""
`brokerkit run`: the consumers of an application, as one process.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brokerkit.cli.commands import command
from brokerkit.cli.exits import Exit
from brokerkit.cli.output import Output
from brokerkit.cli.settings import Settings, pass_settings

if TYPE_CHECKING:
    from brokerkit.bus import Bus

__all__ = ["run"]


@command(
    examples=(
        ("brokerkit run app:bus", "consume with every handler of `bus` in app.py, until SIGTERM or Ctrl-C"),
        (
            "brokerkit run app:bus --url nats://localhost --only orders/billing",
            "one group, at another broker",
        ),
        ("brokerkit run app:bus --dry-run", "print what would be consumed, by whom, inside which patterns"),
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
@click.option("--dry-run", is_flag=True, help="Print the start-up plan and exit; the broker is not touched.")
@click.option(
    "--only", multiple=True, metavar="WHICH", help="Run this CHANNEL/GROUP or handler only; repeatable."
)
@click.option(
    "--exclude", multiple=True, metavar="WHICH", help="Leave this CHANNEL/GROUP or handler out; repeatable."
)
@click.option(
    "--concurrency", type=click.IntRange(min=1), metavar="N", help="Handlers at once in each group."
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long a drain may take after the first signal (30, or what the application says).",
)
@pass_settings
def run(
    settings: Settings,
    target: str,
    app_dir: Path,
    factory: bool,
    dry_run: bool,
    only: tuple[str, ...],
    exclude: tuple[str, ...],
    concurrency: int | None,
    grace: float | None,
) -> int:
    """
    Run the consumers of an application.

    The first SIGTERM or SIGINT drains: nothing more is started, what runs may finish within the grace, and the exit code is
    0. A second one cancels what still runs (130). A handler that ignores this is left behind, its message comes
    back to the group, and the process ends within two seconds after the grace (1).
    """
    from brokerkit.cli.application import leave_out, load, set_concurrency
    from brokerkit.cli.logs import set_up_logging
    from brokerkit.cli.serving import Server

    server = Server()
    with server.signals():
        settings.export()
        bus = load(target, app_dir, factory=factory)
        if not bus.subscribers:
            message = (
                f"{target} has no handler; decorate one with @bus.subscriber(...), or include its router"
            )
            raise click.UsageError(message, click.get_current_context())
        leave_out(bus, only, exclude)
        if concurrency is not None:
            set_concurrency(bus, concurrency)
        if grace is not None:
            bus.grace = grace
        if settings.timeout is not None:
            bus.connect_timeout = settings.timeout
        if dry_run:
            return _show_plan(settings, bus)
        settings.url = bus.url
        set_up_logging(settings, logging.INFO)
        return server.run(bus)


def _show_plan(settings: Settings, bus: "Bus") -> int:
    consumptions = bus.consumptions()
    for consumption in consumptions:
        consumption.check(bus.adapter.capabilities)
    with Output(settings, "plan") as output:
        if not output.machine:
            output.text("\n".join(bus.plan()))
        for consumption in consumptions if output.machine else ():
            output.item(_described(consumption))
    return Exit.DONE


def _described(consumption: Any) -> dict[str, Any]:
    settings = consumption.settings
    return {
        "channel": consumption.channel,
        "group": consumption.group,
        "order": settings.order,
        "start": settings.start,
        "concurrency": settings.concurrency,
        "prefetch": settings.prefetch,
        "hold_limit": settings.hold_limit,
        "ignore": sorted(consumption.ignore),
        "unknown": consumption.unknown,
        "handlers": [
            {
                "handler": subscriber.endpoint.name,
                "takes": subscriber.takes,
                "patterns": [
                    getattr(pattern, "__name__", None) or repr(pattern)
                    for pattern in consumption.chains[subscriber.endpoint.name]
                ],
            }
            for subscriber in consumption.subscribers
        ],
    }
