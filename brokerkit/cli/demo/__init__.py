"""
`brokerkit demo`: the main job on real input, with processes that are killed on the way, and every count checked.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from brokerkit.cli.commands import command
from brokerkit.cli.exits import Exit
from brokerkit.cli.settings import Settings, pass_settings

if TYPE_CHECKING:
    from brokerkit.cli.demo.plan import Without

__all__ = ["demo"]


@command(
    examples=(
        ("brokerkit demo", "the whole job on sqlite://, about a minute and a half on two cores"),
        ("brokerkit demo -o json", "the counts as one object on stdout"),
        ("brokerkit demo --without inbox", "take a protection away, and see its count fail"),
        ("brokerkit demo --broker nats://localhost", "the same job at another broker"),
    )
)
@click.option(
    "--events",
    type=click.IntRange(min=100),
    default=5000,
    show_default=True,
    help="Distinct events to publish.",
)
@click.option(
    "--kills", type=click.IntRange(min=0), default=15, show_default=True, help="Processes to end by SIGKILL."
)
@click.option(
    "--seed", type=int, default=1, show_default=True, help="Chooses repositories, trouble and victims."
)
@click.option(
    "--without",
    type=click.Choice(["inbox", "order", "dedupe"]),
    help="Leave a protection out; the exit code says whether its count fails then.",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep databases, witness files and logs in this new or empty directory.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=1),
    default=1200,
    show_default=True,
    metavar="SECONDS",
    help="Fail, and say what is missing, after so long.",
)
@pass_settings
def demo(
    settings: Settings,
    events: int,
    kills: int,
    seed: int,
    without: "Without | None",
    keep: Path | None,
    time_limit: float,
) -> int:
    """
    Run the main job with real input, and count what arrived.

    GitHub webhook deliveries are published to three services of two processes each: an audit and a projection with an inbox, a
    notifier that calls a flaky service behind dedupe, retry, timeout and bulkhead. Processes are killed while they
    work, some events fail until a fix is deployed and their dead letters are redriven. Then another process compares every
    ledger with what was published.

    The exit code is 0 only if every promise holds, or with --without if the expected break was seen.
    """
    import asyncio

    from brokerkit.cli.demo.driver import run
    from brokerkit.cli.demo.plan import Plan
    from brokerkit.cli.demo.report import Progress, report

    with _folder(keep) as folder:
        plan = Plan(
            events=events,
            kills=kills,
            seed=seed,
            without=without,
            url=settings.url or f"sqlite:///{folder / 'broker.db'}",
            prefix=_prefix(settings),
            folder=folder,
            time_limit=time_limit,
        )
        with Progress(plan, settings) as progress:
            try:
                counts = asyncio.run(run(plan, progress.tell))
            except asyncio.CancelledError as error:
                raise click.Abort from error
        return Exit.DONE if report(plan, counts, settings) else Exit.FAILED


def _prefix(settings: Settings) -> str:
    """Return what keeps this run apart from whatever else is at a broker that outlives it."""
    if settings.url is None:
        return ""
    import uuid

    own = f"demo-{uuid.uuid4().hex[:8]}"
    return f"{settings.prefix}.{own}" if settings.prefix else own


@contextmanager
def _folder(keep: Path | None) -> Generator[Path]:
    """Return the folder of the run: the one to keep, or one that is gone afterwards."""
    if keep is None:
        import tempfile

        with tempfile.TemporaryDirectory(prefix="brokerkit-demo-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        message = f"--keep {str(keep)!r} is not empty; name a new directory"
        raise click.UsageError(message, click.get_current_context())
    yield keep.resolve()
