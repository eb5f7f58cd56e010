"""
`brokerkit conformance`: the promise, checked against a broker of yours.
"""

import asyncio
import json
from typing import TYPE_CHECKING, Any

import click

from brokerkit.cli.commands import command
from brokerkit.cli.exits import Exit
from brokerkit.cli.settings import Settings, pass_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["conformance"]


@command(
    examples=(
        ("brokerkit conformance --broker nats://localhost", "run both suites against a broker, some minutes"),
        ("brokerkit conformance --broker amqp://localhost -o json", "the report as one object on stdout"),
        ("brokerkit conformance --broker kafka://localhost --only delayed", "only what the words name"),
    )
)
@click.option("--only", default="", metavar="WORDS", help="Run what matches only, as pytest's -k.")
@pass_settings
def conformance(settings: Settings, only: str) -> int:
    """
    Check against a broker what brokerkit promises.

    Makes channels and groups with names of its own and leaves them there: not for a broker in production. Restarting the
    broker is not part of it. Exit code 1 if a promise was broken. Needs the extra `testing`.
    """
    from brokerkit.testing.conformance.report import run_suites, server_of

    if settings.url is None:
        message = "no broker: give --broker URL or BROKERKIT_URL"
        raise click.UsageError(message, click.get_current_context())
    server, limits = asyncio.run(server_of(settings.url))
    report = run_suites(settings.url, server, limits, only=only, show=settings.verbosity > 0)
    click.echo(
        "\n".join(_lines(report)) if settings.output == "table" else json.dumps(report, ensure_ascii=False)
    )
    return Exit.FAILED if report["failed"] else Exit.DONE


def _lines(report: "Mapping[str, Any]") -> list[str]:
    promises = report["promises"]
    return [
        f"{report['version']}: {report['passed']} promises kept, {report['failed']} broken, {report['off']} off",
        *(f"broken: {each['promise']}: {each['why']}" for each in promises if each["outcome"] == "failed"),
        *(f"limit: {name}: {evidence}" for name, evidence in report["limits"].items()),
        *(
            f"{name}: {each['least']:.3f} / {each['median']:.3f} / {each['most']:.3f} (least, median, most of {each['n']})"
            for name, each in report["figures"].items()
        ),
    ]
