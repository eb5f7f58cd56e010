"""
What people see of a run, and the one object for programs.
"""

import json
import sys
import time
from types import TracebackType
from typing import Any, Final, Self

import click

from brokerkit.cli.demo.driver import State
from brokerkit.cli.demo.plan import GROUPS, Plan
from brokerkit.cli.demo.verdict import expected_break, is_good, promises
from brokerkit.cli.exits import masked
from brokerkit.cli.settings import Settings

__all__ = ["Progress", "report"]

SCHEMA: Final = "brokerkit.demo/1"
_EVERY: Final = 5.0
_WIDTH: Final = 24


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
        full = min(8, count * 8 // self._events)
        return "█" * full + "░" * (8 - full)


def report(plan: Plan, counts: dict[str, Any], settings: Settings) -> bool:
    """Write the result to stdout and return whether the run showed what it should."""
    kept = promises(plan, counts)
    good = is_good(plan, counts, kept)
    if settings.output != "table":
        head = {
            "schema": SCHEMA,
            "broker": masked(plan.url, plan.url),
            "seed": plan.seed,
            "without": plan.without,
        }
        tail: dict[str, Any] = {"promises": {promise.text: promise.holds for promise in kept}}
        if plan.without is not None:
            text, seen = expected_break(plan.without, counts)
            tail |= {"expected_break": text, "break_seen": seen}
        click.echo(json.dumps({**head, **counts, **tail, "ok": good}))
        return good
    click.echo(_summary(plan, counts))
    for promise in kept:
        click.echo(f"  {'yes' if promise.holds else 'NO '}  {promise.text}")
    click.echo(_verdict(plan, counts, good))
    return good


def _summary(plan: Plan, counts: dict[str, Any]) -> str:
    by_group = counts["dead_lettered_by_group"]
    dead = ", ".join(f"{group} {by_group.get(group, 0)}" for group in GROUPS)
    return f"""
{counts["published"]:,} GitHub webhook deliveries ({counts["payloads"]} payloads of {counts["types"]} types) went over {masked(plan.url, plan.url).partition("://")[0]}://
  keys           {counts["keyed"]:,} events spread over {counts["repositories"]} made-up repositories; {counts["keyless"]} have no repository and no key
  sent twice     {counts["redelivered_by_producer"]} by the producer, as GitHub does
  killed         {counts["kills"]} processes by SIGKILL, {counts["kills_in_flight"]} of them between a first write and its settlement; {counts["crashes"]} died of a poisoned event
  tried again    {counts["retried_held"]} events held in their key's lane, {counts["retried_copied"]} copied with a delay: {counts["retried_share"]:.0%} of the keyed events, 2 s or more later
  dead letters   {counts["dead_lettered"]} ({dead}); {counts["redriven"]} redriven after the fix, {counts["completed_after_redrive"]} completed then
  lost           {counts["lost"]}
  innocents      {counts["innocents_dead_lettered"]} dead-lettered
  doubled        {counts["duplicated_effects"]} effects in the groups with an inbox
  out of order   {counts["key_order_breaks"]}
  repeated calls {counts["repeated_calls"]} to the chat service, each with the same idempotency key (the kills explain up to {counts["repeated_calls_explained"]})
  time           {counts["seconds"]} s
"""


def _verdict(plan: Plan, counts: dict[str, Any], good: bool) -> str:
    if plan.without is None:
        return "every promise holds" if good else "NOT every promise holds"
    text, seen = expected_break(plan.without, counts)
    return f"without {plan.without}: {text} {'seen, as it must be' if seen else 'NOT seen, although the protection was off'}"
