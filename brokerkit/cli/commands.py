"""
What the help of every command has in common: examples first, then its own flags, then the global ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import click

from brokerkit.cli.exits import Exit
from brokerkit.cli.settings import GlobalOption, global_options, nearest

__all__ = ["Command", "Examples", "Group", "command", "lay_out"]

Examples = Sequence[tuple[str, str]]
"""Pairs of a command line and what it does."""


class Command(click.Command):
    """A command with examples, and with the global flags after its own."""

    def __init__(self, *args: Any, examples: Examples = (), **more: Any) -> None:
        super().__init__(*args, **more)
        self.examples = examples
        self.params += global_options(variables=False)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help: examples first, then flags."""
        lay_out(self, ctx, formatter, self.examples)


class Group(click.Group):
    """A command of commands, with examples and the global flags."""

    command_class = Command

    def __init__(self, *args: Any, examples: Examples = (), variables: bool = False, **more: Any) -> None:
        super().__init__(*args, **more)
        self.no_args_is_help = False
        self.examples = examples
        self.params += global_options(variables=variables)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the flags; without any word, show the help as the answer to a wrong usage."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(Exit.USAGE)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a name that is not there gets the nearest one."""
        names = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in names:
            message = f"no command {args[0]!r}{nearest(args[0], names)}"
            raise click.UsageError(message, ctx)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help: examples first, then commands, then flags."""
        lay_out(self, ctx, formatter, self.examples)


def command(*, examples: Examples) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command of ours."""
    return click.command(cls=Command, examples=examples)


def lay_out(
    of: click.Command, ctx: click.Context, formatter: click.HelpFormatter, examples: Examples
) -> None:
    """Write usage, one line, examples, the command's own flags, the global flags, and where the variables are."""
    of.format_usage(ctx, formatter)
    of.format_help_text(ctx, formatter)
    with formatter.section("Examples"):
        for line, does in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
            formatter.write(f"{'':>{formatter.current_indent}}    {does}\n")
    if isinstance(of, click.Group):
        of.format_commands(ctx, formatter)
    own = [
        param
        for param in of.get_params(ctx)
        if isinstance(param, click.Option) and not isinstance(param, GlobalOption)
    ]
    _flags(ctx, formatter, "Flags", own)
    _flags(ctx, formatter, "Global flags", [each for each in of.params if isinstance(each, GlobalOption)])
    formatter.write_paragraph()
    formatter.write_text(_variables(ctx, own))


def _flags(
    ctx: click.Context, formatter: click.HelpFormatter, title: str, params: Sequence[click.Parameter]
) -> None:
    rows = [row for param in params if (row := param.get_help_record(ctx)) is not None]
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows)


def _variables(ctx: click.Context, own: Sequence[click.Option]) -> str:
    """Return the sentence that tells how flags become variables, with one of this command's own."""
    text = "Every flag has a variable: BROKERKIT_URL for --url"
    for param in own:
        if param.expose_value and ctx.auto_envvar_prefix:
            variable = f"{ctx.auto_envvar_prefix}_{(param.name or '').upper()}"
            return f"{text}, {variable} for {max(param.opts, key=len)}."
    return f"{text}."
