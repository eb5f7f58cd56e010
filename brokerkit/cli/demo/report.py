"""
What people see of a run, and the one object for programs.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

import click

from brokerkit.cli.demo.driver import State
from brokerkit.cli.demo.plan import GROUPS, Plan
from brokerkit.cli.demo.verdict import Counts, Promise, expected_break, is_good, promises
from brokerkit.cli.exits import masked
from brokerkit.cli.settings import Settings

__all__ = ["Progress", "report"]

SCHEMA: Final = {"name": "brokerkit.demo", "version": 1}
_EVERY: Final = 5.0
_BAR: Final = 8


class Progress:
    """
    The progress on stderr.

    On a terminal one line with bars that is written over; elsewhere a plain line for each phase and every few seconds.
    """

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self._events = plan.events
        self._kills = plan.kills
        self._silent = settings.verbosity < 0
        self._live = sys.stderr.isatty()
        self._phase = ""
        self._at = 0.0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live and not self._silent and self._phase:
            click.echo("", err=True)

    def tell(self, state: State) -> None:
        """Show where the run is."""
        now = time.monotonic()
        if self._silent or (state.phase == self._phase and now - self._at < (0.2 if self._live else _EVERY)):
            return
        self._phase, self._at = state.phase, now
        if self._live:
            click.echo(f"\r\x1b[2K{self._bars(state)}", err=True, nl=False)
        else:
            click.echo(f"{now - self._started:5.0f} s  {self._line(state)}", err=True)

    def _line(self, state: State) -> str:
        counts = "  ".join(f"{name} {count}" for name, count in state.done.items())
        return f"{state.phase}: {counts}  kills {state.kills} of {self._kills}"

    def _bars(self, state: State) -> str:
        bars = "  ".join(f"{name} {self._bar(count)}" for name, count in state.done.items())
        return f"{state.phase}  {bars}  kills {state.kills}/{self._kills}"

    def _bar(self, count: int) -> str:
        full = min(_BAR, count * _BAR // self._events)
        return "█" * full + "░" * (_BAR - full)


def report(plan: Plan, counts: Counts, settings: Settings) -> bool:
    """Write the result to stdout and return whether the run showed what it should."""
    kept = promises(plan, counts)
    good = is_good(plan, counts, kept)
    if settings.output == "table":
        click.echo(_for_people(plan, counts, kept, good=good))
    else:
        click.echo(json.dumps({**_as_object(plan, counts, kept), "ok": good}))
    return good


def _as_object(plan: Plan, counts: Counts, kept: Sequence[Promise]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "broker": masked(plan.url, plan.url),
        "seed": plan.seed,
        "without": plan.without,
        **counts,
        "promises": {promise.text: promise.holds for promise in kept},
    }
    if plan.without is not None:
        result["expected_break"], result["break_seen"] = expected_break(plan.without, counts)
    return result


def _for_people(plan: Plan, counts: Counts, kept: Sequence[Promise], *, good: bool) -> str:
    broker = plan.url.partition("://")[0]
    head = f"{counts['published']:,} GitHub webhook deliveries over {broker}://, to three groups of two processes each"
    rows = [f"  {name:<15}{text}" for name, text in _rows(counts)]
    marks = [f"  {'yes' if promise.holds else 'NO '}  {promise.text}" for promise in kept]
    return "\n".join([head, "", *rows, "", *marks, "", _verdict(plan, counts, good=good)])


def _rows(counts: Counts) -> Iterator[tuple[str, str]]:
    by_group = counts["dead_lettered_by_group"]
    yield "payloads", f"{counts['payloads']} different ones, of {counts['types']} types"
    yield "keys", f"{counts['keyed']:,} events spread over {counts['repositories']} made-up repositories"
    yield "no key", f"{counts['keyless']} events, whose payload has no repository"
    yield "sent twice", f"{counts['redelivered_by_producer']} events, as GitHub does"
    yield (
        "killed",
        f"{counts['kills']} processes, {counts['kills_in_flight']} between a first write and its settlement",
    )
    yield "crashed", f"{counts['crashes']} processes, of an event that ends whoever handles it"
    yield "tried again", f"{counts['retried_share']:.0%} of the keyed events, 2 s or more later:"
    yield (
        "",
        f"{counts['retried_held']} held in their key's lane, {counts['retried_copied']} as delayed copies",
    )
    yield (
        "dead letters",
        f"{counts['dead_lettered']}: {', '.join(f'{by_group.get(name, 0)} {name}' for name in GROUPS)}",
    )
    yield (
        "redriven",
        f"{counts['redriven']} after the fix, of which {counts['completed_after_redrive']} completed",
    )
    yield "innocents", f"{counts['innocents_dead_lettered']} dead-lettered"
    yield "lost", f"{counts['lost']}"
    yield "doubled", f"{counts['duplicated_effects']} effects of the groups with an inbox"
    yield "out of order", f"{counts['key_order_breaks']}"
    yield (
        "repeated calls",
        f"{counts['repeated_calls']} of {counts['calls']:,}, each with the same idempotency key;",
    )
    yield "", f"the kills explain up to {counts['repeated_calls_explained']}"
    yield "time", f"{counts['seconds']} s"


def _verdict(plan: Plan, counts: Counts, *, good: bool) -> str:
    if plan.without is None:
        return "Every promise holds." if good else "NOT every promise holds."
    text, seen = expected_break(plan.without, counts)
    if seen:
        return f"Without {plan.without}: {text}, as it must be. The count can fail."
    return f"Without {plan.without}: NO {text}, although the protection was off."
