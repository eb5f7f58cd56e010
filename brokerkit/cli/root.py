"""
The outermost command: knows every other by name, module and one line of help, and imports none before it is asked for.
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

import click

from brokerkit.cli.commands import Group
from brokerkit.cli.exits import Exit, explain, masked, trace_of
from brokerkit.cli.output import ReaderGone
from brokerkit.cli.settings import Settings

__all__ = ["COMMANDS", "cli"]


class Lazy(NamedTuple):
    """Where a command is, and its line in the list of commands."""

    module: str
    help: str


COMMANDS: Final[Mapping[str, Lazy]] = {
    "run": Lazy("brokerkit.cli.run", "Run the consumers of an application."),
    "publish": Lazy("brokerkit.cli.publish", "Publish events."),
    "tail": Lazy("brokerkit.cli.tail", "Watch a channel without taking anything from it."),
    "dlq": Lazy("brokerkit.cli.dlq", "Look at dead letters, send them back, or discard them."),
    "provision": Lazy(
        "brokerkit.cli.provision", "Create at the broker what an application needs, or show how."
    ),
    "sandbox": Lazy("brokerkit.cli.sandbox", "Run real brokers on this machine, for development and tests."),
    "demo": Lazy("brokerkit.cli.demo", "Run the main job with real input, and count what arrived."),
    "conformance": Lazy("brokerkit.cli.conformance", "Check the promise against a broker of yours."),
    "bench": Lazy("brokerkit.cli.bench", "Measure publishing and consuming."),
}
"""Each module has a click command under the command's own name."""


class Root(Group):
    """The group of all commands; ends the process itself, with our exit codes and one line for an error."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the order in which they are told."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command, now that somebody wants it."""
        if cmd_name not in COMMANDS:
            return None
        import importlib

        command = getattr(importlib.import_module(COMMANDS[cmd_name].module), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 - a mistake of ours
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002, FBT002 - click's signature; errors are ours either way
        **extra: Any,
    ) -> NoReturn:
        """Run the command that the arguments name, and end the process."""
        settings = Settings()
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, obj=settings, **extra)
        except ReaderGone:
            code = _let_go_of_stdout()
        except Exception as error:  # noqa: BLE001 - one line for whatever it is
            code = _tell(settings, error)
        sys.exit(code if isinstance(code, int) else Exit.DONE)


def _tell(settings: Settings, error: Exception) -> Exit:
    """Write the one line that says what went wrong, and return the exit code."""
    code, text = explain(error)
    line = " ".join(masked(text, settings.url).split())
    if settings.verbosity > 1:
        click.echo(masked(trace_of(error), settings.url), err=True)
    click.echo(f"brokerkit: {_printable(line)}", err=True)
    return code


def _printable(line: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in line)


def _let_go_of_stdout() -> Exit:
    """Point stdout nowhere, so that its last flush has nothing to complain about."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Exit.DONE


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"brokerkit {version('brokerkit-bus')}")
    ctx.exit()


cli: Final = Root(
    name="brokerkit",
    help="A message-broker consumer toolkit that keeps the same promise on every broker.",
    examples=(
        ("brokerkit run app:bus", "consume until SIGTERM"),
        ("brokerkit publish orders '{\"total\": 17}' --type order.placed", "send one event"),
        ("brokerkit dlq list --channel orders --group billing", "what failed, and why"),
    ),
    variables=True,
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Print the version.",
        ),
    ],
    context_settings={"auto_envvar_prefix": "BROKERKIT", "help_option_names": ["-h", "--help"]},
)
