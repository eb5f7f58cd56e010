"""
What every command knows: the broker, the form of the output, how much to say.

Each global flag may stand before or after the command's name; after wins.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from brokerkit.cli.exits import masked

if TYPE_CHECKING:
    from brokerkit.bus import Bus

__all__ = ["Form", "GlobalOption", "Settings", "global_options", "pass_settings"]

Form = Literal["table", "json", "ndjson"]

_NAME: Final = "brokerkit-cli"
_TIMEOUT: Final = 30.0


@dataclass(slots=True)
class Settings:
    """The values of the global flags."""

    url: str | None = None
    name: str | None = None
    prefix: str | None = None
    output: Form = "table"
    no_color: bool = False
    verbose: int = 0
    quiet: int = 0
    timeout: float | None = None

    @property
    def verbosity(self) -> int:
        """How much to say: 0, or more, or less."""
        return self.verbose - self.quiet

    @property
    def color(self) -> bool:
        """Whether stdout may have colours."""
        return sys.stdout.isatty() and not self.no_color and not os.environ.get("NO_COLOR")

    def say(self, text: str) -> None:
        """Write a line for people, on stderr, unless they want quiet."""
        if self.verbosity >= 0:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Write a line on stderr that is needed even where quiet is wanted."""
        click.echo(masked(text, self.url), err=True)

    def progress(self, text: str) -> None:
        """Show how far it is on a terminal, in place; an empty text takes it away."""
        if self.verbosity >= 0 and sys.stderr.isatty():
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)

    def export(self) -> None:
        """Hand broker, name and prefix to every bus that is made from now on: a flag wins over what the code says."""
        for name, value in (
            ("BROKERKIT_URL", self.url),
            ("BROKERKIT_NAME", self.name),
            ("BROKERKIT_PREFIX", self.prefix),
        ):
            if value:
                os.environ[name] = value

    def bus(self, **more: Any) -> "Bus":
        """Return a bus at the broker of `--url`; a usage error if there is none."""
        if not self.url:
            message = "no broker: give --url, or set BROKERKIT_URL, for example --url sqlite:///events.db"
            raise click.UsageError(message, click.get_current_context())
        from brokerkit.bus import Bus

        self.export()
        timeout = self.timeout or _TIMEOUT
        return Bus(
            self.url,
            name=self.name or _NAME,
            prefix=self.prefix or "",
            connect_timeout=timeout,
            publish_timeout=timeout,
            **more,
        )


pass_settings: Final[Callable[[Callable[..., Any]], Callable[..., Any]]] = click.make_pass_decorator(
    Settings, ensure=True
)


class GlobalOption(click.Option):
    """A flag of every command; the help lists it apart."""


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Store a flag that was given; one that was not leaves what stands before the command's name."""
    if value and param.name:
        setattr(ctx.ensure_object(Settings), param.name, value)


def global_options(*, variables: bool) -> Sequence[click.Option]:
    """Return the global flags; only the outermost command reads their variables, the others would win over its flags."""

    def option(*names: str, **more: Any) -> GlobalOption:
        return GlobalOption(names, expose_value=False, callback=_keep, allow_from_autoenv=variables, **more)

    return [
        option(
            "-b", "--broker", "--url", "url", metavar="URL", help="The broker, such as sqlite:///events.db."
        ),
        option("--name", metavar="NAME", help="The source of what is published."),
        option("--prefix", metavar="PREFIX", help="Put before every channel's name at the broker."),
        option(
            "-o", "--output", type=Choice(("table", "json", "ndjson")), help="Form of the data on stdout."
        ),
        option("--no-color", is_flag=True, help="No colours, as with NO_COLOR=1."),
        option("-q", "--quiet", count=True, help="Say less on stderr; twice: errors only."),
        option("-v", "--verbose", count=True, help="Say more on stderr; twice: tracebacks as well."),
        option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="Give up reaching the broker, or waiting for its answer, after this long.",
        ),
    ]


class Choice(click.Choice[str]):
    """A choice that names the nearest one when it refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the choice; the refusal names the flag, the value and the nearest choice."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            message = f"{error.message.rstrip('.')}{nearest(str(value), list(self.choices))}"
            raise click.BadParameter(message, ctx, param) from error


def nearest(value: str, choices: Sequence[str]) -> str:
    """Return `; did you mean 'json'?` for the choice that looks most like the value, or nothing."""
    import difflib

    found = difflib.get_close_matches(value, choices, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
