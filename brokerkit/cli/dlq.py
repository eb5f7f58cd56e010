"""
`brokerkit dlq`: dead letters, looked at, sent back, thrown away.
"""

import shlex
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from brokerkit.cli.commands import Group
from brokerkit.cli.desk import Desk, at_desk
from brokerkit.cli.exits import Exit, Failed, Refused
from brokerkit.cli.letters import age, as_item, described, when
from brokerkit.cli.output import Output, safe
from brokerkit.cli.settings import Settings, pass_settings

if TYPE_CHECKING:
    from brokerkit.patterns.dead_letter import DeadLetters, Letter, LetterOutcome

__all__ = ["dlq"]

_SHORT: Final = 60
_GOOD: Final = frozenset({"redriven", "discarded", "would_redrive"})


@click.group(
    cls=Group,
    examples=(
        ("brokerkit dlq groups", "how many dead letters each group has"),
        ("brokerkit dlq list --channel orders --group billing", "what failed, and why"),
        ("brokerkit dlq redrive --channel orders --group billing --all --dry-run", "what would be sent back"),
    ),
)
def dlq() -> None:
    """
    Look at dead letters, send them back, or discard them.

    A dead letter goes back to the group that failed it, and to no other.
    """


def _channel(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--channel", required=required, metavar="CHANNEL", help="The channel that it came from."
    )


def _group(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--group", required=required, metavar="GROUP", help="The group that failed it.")


_all = click.option("--all", is_flag=True, help="Every dead letter that the group has now.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
_yes = click.option("--yes", is_flag=True, help="Do not ask; a script has to say it.")
_ids = click.argument("ids", nargs=-1, metavar="[ID... | -]")


@dlq.command(
    examples=(
        ("brokerkit dlq groups", "every group, with its dead letters"),
        ("brokerkit dlq groups -o ndjson", "one object a line, for a script"),
    )
)
@pass_settings
def groups(settings: Settings) -> int:
    """Count the dead letters of each group."""

    async def count(desk: Desk) -> list[tuple[str, str, int, float | None]]:
        return [(*place, *await desk.depth(*place)) for place in await desk.groups()]

    with Output(settings, "dlq.groups", ("CHANNEL", "GROUP", "DEPTH", "OLDEST")) as output:
        for channel, group, depth, oldest in at_desk(settings, count):
            output.item(
                {"channel": channel, "group": group, "depth": depth, "oldest": oldest},
                (channel, group, str(depth), "-" if oldest is None else age(oldest)),
            )
    return Exit.DONE


@dlq.command(
    "list",
    examples=(
        ("brokerkit dlq list", "dead letters of all groups"),
        ("brokerkit dlq list --channel orders --group billing --limit 20", "the oldest twenty of one group"),
        ("brokerkit dlq list -o ndjson | jq -r .id", "their ids"),
    ),
)
@_channel(required=False)
@_group(required=False)
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="At most N."
)
@click.option("--after", metavar="CURSOR", help="Go on where a listing ended: the `next` of its JSON.")
@pass_settings
def list_(settings: Settings, channel: str | None, group: str | None, limit: int, after: str | None) -> int:
    """List dead letters, oldest first."""
    if after and not (channel and group):
        message = f"--after {after!r} goes on with the listing of one group: give --channel and --group"
        raise click.UsageError(message, click.get_current_context())

    async def page(desk: Desk) -> "tuple[list[Letter], str | None]":
        places = await desk.places(channel, group)
        found: list[Letter] = []
        following: str | None = None
        for place in places:
            part, following = await desk.letters(*place).list(limit - len(found), after)
            found += part
            if len(found) == limit:
                break
        return found, following if len(found) == limit and len(places) == 1 else None

    found, following = at_desk(settings, page)
    with Output(settings, "dlq.list", ("ID", "TYPE", "FROM", "REASON", "TRIES", "FAILED", "ERROR")) as output:
        output.next = following
        for letter in found:
            output.item(as_item(letter), _row(letter))
    if len(found) == limit:
        settings.say(
            f"the oldest {limit}; there may be more" + (f", from --after {following}" if following else "")
        )
    return Exit.DONE


def _row(letter: "Letter") -> Sequence[str]:
    error = f"{letter.error_type}: {letter.message}" if letter.error_type else letter.detail
    return (
        letter.id,
        letter.type or "-",
        f"{letter.channel}/{letter.group}",
        letter.reason or "-",
        str(letter.attempts),
        when(letter.last_failure) or "-",
        error if len(error) <= _SHORT else f"{error[:_SHORT]}...",
    )


@dlq.command(
    examples=(
        ("brokerkit dlq show 0b54a2c0", "everything about one dead letter"),
        ("brokerkit dlq show 0b54a2c0 -o json | jq '.items[0].data'", "its data alone"),
    )
)
@click.argument("letter_id", metavar="ID")
@_channel(required=False)
@_group(required=False)
@pass_settings
def show(settings: Settings, letter_id: str, channel: str | None, group: str | None) -> int:
    """Show everything about one dead letter."""

    async def find(desk: Desk) -> "list[Letter]":
        places = await desk.places(channel, group)
        found = [await desk.letters(*place).show(letter_id) for place in places]
        return [letter for letter in found if letter is not None]

    found = at_desk(settings, find)
    if not found:
        message = f"no dead letter {letter_id!r}; 'brokerkit dlq list' shows what there is"
        raise Failed(message)
    with Output(settings, "dlq.show") as output:
        for letter in found:
            if output.machine:
                output.item(as_item(letter, whole=True))
            else:
                output.text(described(letter))
    return Exit.DONE


@dlq.command(
    examples=(
        ("brokerkit dlq redrive --channel orders --group billing 0b54a2c0", "one goes back to the group"),
        ("brokerkit dlq redrive --channel orders --group billing --all --dry-run", "what would go back"),
        (
            "brokerkit dlq list -o ndjson | jq -r .id | brokerkit dlq redrive --channel orders --group billing --yes -",
            "some",
        ),
    )
)
@_ids
@_channel(required=True)
@_group(required=True)
@_all
@_dry_run
@_yes
@pass_settings
def redrive(
    settings: Settings,
    ids: tuple[str, ...],
    channel: str,
    group: str,
    all: bool,  # noqa: A002 - as the flag, and so as its variable
    dry_run: bool,
    yes: bool,
) -> int:
    """
    Send dead letters back to the group that failed them.

    The handler sees the same event, at attempt 1. A letter is removed only when the broker has confirmed its copy.
    """
    act = _Act(settings, "redrive", channel, group, _chosen(ids, everything=all))
    return act.run(dry_run=dry_run, yes=yes)


@dlq.command(
    examples=(
        ("brokerkit dlq discard --channel orders --group billing 0b54a2c0", "throw one away"),
        (
            "brokerkit dlq discard --channel orders --group billing --all --dry-run",
            "what would be thrown away",
        ),
    )
)
@_ids
@_channel(required=True)
@_group(required=True)
@_all
@_dry_run
@_yes
@pass_settings
def discard(
    settings: Settings,
    ids: tuple[str, ...],
    channel: str,
    group: str,
    all: bool,  # noqa: A002 - as the flag, and so as its variable
    dry_run: bool,
    yes: bool,
) -> int:
    """Throw dead letters away for good. There is no way back."""
    act = _Act(settings, "discard", channel, group, _chosen(ids, everything=all))
    return act.run(dry_run=dry_run, yes=yes)


def _chosen(ids: tuple[str, ...], *, everything: bool) -> list[str] | None:
    """Return the ids that were named, here or on stdin; None for all."""
    if everything == bool(ids):
        message = (
            "--all and ids: give one of them"
            if ids
            else "nothing is selected: give ids, - for ids on stdin, or --all"
        )
        raise click.UsageError(message, click.get_current_context())
    if ids == ("-",):
        return [line.strip() for line in sys.stdin if line.strip()]
    return None if everything else list(ids)


class _Act:
    """One redrive or discard: asked for, confirmed, done, reported."""

    def __init__(
        self, settings: Settings, verb: str, channel: str, group: str, ids: list[str] | None
    ) -> None:
        self._settings = settings
        self._verb = verb
        self._channel = channel
        self._group = group
        self._ids = ids

    def run(self, *, dry_run: bool, yes: bool) -> Exit:
        """Do it, or say what would be done; the exit code tells whether all of it worked."""
        if dry_run:
            return self._report(self._at(self._preview))
        if not yes:
            self._confirm()
        return self._report(self._at(self._do))

    def _at(self, work: "Callable[[DeadLetters], Awaitable[list[LetterOutcome]]]") -> "list[LetterOutcome]":
        async def on(desk: Desk) -> "list[LetterOutcome]":
            ((channel, group),) = await desk.places(self._channel, self._group)
            return await work(desk.letters(channel, group))

        return at_desk(self._settings, on)

    async def _preview(self, letters: "DeadLetters") -> "list[LetterOutcome]":
        return await letters.redrive(self._ids, dry_run=True)

    async def _do(self, letters: "DeadLetters") -> "list[LetterOutcome]":
        if self._verb == "redrive":
            return await letters.redrive(self._ids)
        if self._ids is None:
            self._ids = [outcome.id for outcome in await self._preview(letters)]
        return await letters.discard(self._ids)

    def _confirm(self) -> None:
        """Ask on a terminal, about exactly what is there now; refuse in a script. Discarding all asks for the number."""
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            message = f"{self._verb} changes state: say --yes in a script, or look first with --dry-run"
            raise Refused(message)
        found = [each.id for each in self._at(self._preview) if each.result != "not_found"]
        question = f"{self._verb} {len(found)} dead letters of {self._channel}/{self._group}"
        if self._verb == "discard" and self._ids is None:
            sure = click.prompt(
                f"{question}: type the number", err=True, default="", show_default=False
            ) == str(len(found))
        else:
            sure = click.confirm(f"{question}?", err=True)
        if not sure:
            message = "not confirmed; nothing was done"
            raise Refused(message)
        self._ids = [*found, *(each for each in self._ids or () if each not in found)]

    def _report(self, outcomes: "Sequence[LetterOutcome]") -> Exit:
        bad = [outcome for outcome in outcomes if outcome.result not in _GOOD or outcome.error]
        with Output(self._settings, f"dlq.{self._verb}", ("ID", "RESULT", "ERROR")) as output:
            for outcome in outcomes:
                result = f"would_{self._verb}" if outcome.result == "would_redrive" else outcome.result
                output.item(
                    {"id": outcome.id, "result": result, "error": outcome.error or None},
                    (outcome.id, result, outcome.error),
                )
        self._summarise(outcomes, bad)
        if not bad:
            return Exit.DONE
        return Exit.FAILED if len(bad) == len(outcomes) else Exit.PARTIAL

    def _summarise(self, outcomes: "Sequence[LetterOutcome]", bad: "Sequence[LetterOutcome]") -> None:
        counts = Counter(each.result.replace("would_redrive", f"would_{self._verb}") for each in outcomes)
        text = ", ".join(f"{count} {result.replace('_', ' ')}" for result, count in counts.items())
        self._settings.say(f"{self._channel}/{self._group}: {text or 'no dead letters'}")
        for outcome in bad:
            self._settings.warn(
                safe(f"{outcome.id}: {outcome.result.replace('_', ' ')} {outcome.error}".rstrip())
            )
        again = [shlex.quote(each.id) for each in bad if each.result in {"failed", "unknown"}]
        if again:
            place = f"--channel {self._channel} --group {self._group}"
            self._settings.warn(f"again: brokerkit dlq {self._verb} {place} {' '.join(again)}")
