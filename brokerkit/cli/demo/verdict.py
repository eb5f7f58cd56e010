"""
From the counts to a verdict: which promises hold, and whether a sabotage broke what it should.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from brokerkit.cli.demo.plan import Plan, Without

__all__ = ["Counts", "Promise", "expected_break", "is_good", "promises"]

Counts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise in words, and whether it holds."""

    text: str
    holds: bool


def promises(plan: Plan, counts: Counts) -> list[Promise]:
    """Return every promise of the demo with what became of it."""
    dead = counts["dead_lettered"]
    return [
        Promise(f"published at least {plan.events}", counts["published"] >= plan.events),
        Promise(
            f"keys spread over at least {plan.least_repositories} repositories",
            counts["repositories"] >= plan.least_repositories,
        ),
        Promise(f"at least {plan.kills} processes killed", counts["kills"] >= plan.kills),
        Promise(
            "at least 90 % of them between a handler's first write and its settlement",
            counts["kills_in_flight"] >= 0.9 * counts["kills"],
        ),
        Promise(
            "at least 5 % of the keyed events retried after 2 s or more, held as well as copied",
            min(counts["retried_held"], counts["retried_copied"]) >= 0.05 * counts["keyed"],
        ),
        Promise(
            f"at least {plan.least_dead} dead letters in two groups or more",
            dead >= plan.least_dead and len(counts["dead_lettered_by_group"]) > 1,
        ),
        Promise("every poisoned event, and no other, was dead-lettered", dead == counts["poisoned"]),
        Promise("no innocent event was dead-lettered", counts["innocents_dead_lettered"] == 0),
        Promise(
            "every dead letter was redriven and completed",
            dead == counts["redriven"] == counts["completed_after_redrive"] and counts["still_dead"] == 0,
        ),
        Promise("no event was lost", counts["lost"] + counts["calls_never_taken"] == 0),
        Promise("no effect came from nowhere", counts["unexpected"] == 0),
        Promise("no effect of a transactional group was doubled", counts["duplicated_effects"] == 0),
        Promise("no repository's events completed out of order", counts["key_order_breaks"] == 0),
        Promise(
            "a repeated call had the idempotency key of the first",
            counts["repeated_calls_with_another_key"] == 0,
        ),
    ]


_BREAKS: Final[Mapping[Without, tuple[str, Callable[[Counts], bool]]]] = {
    "inbox": ("duplicated effects", lambda counts: counts["duplicated_effects"] > 0),
    "order": ("events of a repository out of order", lambda counts: counts["key_order_breaks"] > 0),
    "dedupe": (
        "more repeated calls than the kills explain",
        lambda counts: counts["repeated_calls"] > counts["repeated_calls_explained"],
    ),
}


def expected_break(without: Without, counts: Counts) -> tuple[str, bool]:
    """Return what a sabotage must break, and whether that was seen."""
    text, seen = _BREAKS[without]
    return text, seen(counts)


def is_good(plan: Plan, counts: Counts, kept: Sequence[Promise]) -> bool:
    """Return whether the run showed what it should: every promise kept, or the expected break."""
    if plan.without is not None:
        return expected_break(plan.without, counts)[1]
    return all(promise.holds for promise in kept)
