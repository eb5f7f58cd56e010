from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brokerkit.cli.demo.checker import Call, Dead, Entry, Evidence, Published, counts
from brokerkit.cli.demo.plan import Plan, Without
from brokerkit.cli.demo.verdict import expected_break, is_good, promises
from brokerkit.cli.demo.witness import in_flight, writes


def published(number: int, *, repository: str | None = "o/r", poisoned: str = "") -> Published:
    return Published(
        "github", f"d{number}-1", "github.push", repository, number if repository else None, poisoned
    )


def entry(place: int, number: int, *, attempt: int = 1, run: int = 0, waited: float = 0.0) -> Entry:
    return Entry(place, "github", f"d{number}-1", "o/r", number, attempt, run, waited)


def call(number: int, *, answer: int = 200, key: str | None = None) -> Call:
    return Call(f"d{number}-1", key or f"github/d{number}-1", answer)


def whole() -> Evidence:
    """Three events, of which the second was a dead letter of the audit's until it was redriven."""
    plain = [entry(1, 1), entry(2, 2), entry(3, 3)]
    return Evidence(
        published=[published(1), published(2, poisoned="audit"), published(3)],
        ledgers={
            "audit": [entry(1, 1), entry(2, 3), entry(3, 2, run=1)],
            "projection": plain,
            "notifier": plain,
        },
        calls=[call(1), call(2), call(3)],
        dead=[Dead("audit", "github", "d2-1", "exhausted")],
        still_dead=[],
        ends={"audit": 2, "projection": 3, "notifier": 3},
        redriven=[("audit", "d2-1")],
        kills=[("audit", ["d1-1"])],
        crashes=0,
    )


def with_ledger(evidence: Evidence, group: str, entries: Sequence[Entry]) -> Evidence:
    return replace(evidence, ledgers={**evidence.ledgers, group: entries})


def zeros(counted: dict[str, Any]) -> dict[str, Any]:
    names = (
        "lost",
        "unexpected",
        "duplicated_effects",
        "key_order_breaks",
        "innocents_dead_lettered",
        "still_dead",
        "calls_never_taken",
        "repeated_calls",
        "repeated_calls_with_another_key",
    )
    return {name: counted[name] for name in names if counted[name]}


def test_a_whole_run_counts_no_fault() -> None:
    counted = counts(whole())

    assert zeros(counted) == {}
    assert counted["published"] == 3
    assert counted["dead_lettered"] == counted["redriven"] == counted["completed_after_redrive"] == 1
    assert counted["kills"] == counted["kills_in_flight"] == 1


def test_an_event_without_effect_is_lost() -> None:
    assert zeros(counts(with_ledger(whole(), "projection", [entry(1, 1), entry(2, 2)]))) == {"lost": 1}


def test_an_event_that_never_reached_the_chat_service_is_told() -> None:
    assert zeros(counts(replace(whole(), calls=[call(1), call(2), call(3, answer=503)]))) == {
        "calls_never_taken": 1
    }


def test_an_effect_without_a_publish_is_unexpected() -> None:
    ledger = [*whole().ledgers["audit"], entry(4, 9)]

    assert zeros(counts(with_ledger(whole(), "audit", ledger))) == {"unexpected": 1}


@pytest.mark.parametrize("group", ["audit", "projection"])
def test_an_effect_that_stands_twice_in_a_ledger_is_a_duplicate(group: str) -> None:
    ledger = [*whole().ledgers[group], entry(4, 3)]

    assert zeros(counts(with_ledger(whole(), group, ledger))) == {"duplicated_effects": 1}


def test_a_publish_that_was_repeated_is_one_event() -> None:
    evidence = whole()
    counted = counts(replace(evidence, published=[*evidence.published, published(1)]))

    assert (counted["published"], counted["redelivered_by_producer"]) == (3, 1)
    assert zeros(counted) == {}


def test_completing_before_an_earlier_event_of_the_key_is_a_break() -> None:
    assert zeros(counts(with_ledger(whole(), "projection", [entry(1, 2), entry(2, 1), entry(3, 3)]))) == {
        "key_order_breaks": 1
    }


def test_order_is_the_order_of_completion_and_not_that_of_reading() -> None:
    assert zeros(counts(with_ledger(whole(), "projection", [entry(3, 3), entry(1, 1), entry(2, 2)]))) == {}


def test_a_dead_letter_of_the_projection_is_left_out_of_the_order() -> None:
    evidence = whole()
    evidence = replace(
        evidence,
        published=[published(1, poisoned="projection"), published(2, poisoned="audit"), published(3)],
        dead=[*evidence.dead, Dead("projection", "github", "d1-1", "exhausted")],
        redriven=[*evidence.redriven, ("projection", "d1-1")],
        ends={**evidence.ends, "projection": 2},
    )
    late = with_ledger(evidence, "projection", [entry(1, 2), entry(2, 3), entry(3, 1, run=1)])

    assert zeros(counts(late)) == {}


def test_a_dead_letter_that_was_not_poisoned_for_its_group_is_an_innocent() -> None:
    evidence = whole()
    dead = [*evidence.dead, Dead("notifier", "github", "d2-1", "exhausted")]

    assert counts(replace(evidence, dead=dead))["innocents_dead_lettered"] == 1


def test_dead_letters_are_counted_as_distinct_events_of_a_group() -> None:
    evidence = whole()

    assert counts(replace(evidence, dead=[*evidence.dead, *evidence.dead]))["dead_lettered"] == 1


def test_an_effect_from_before_the_redrive_does_not_complete_it() -> None:
    assert counts(replace(whole(), ends={"audit": 3, "projection": 3, "notifier": 3}))[
        "completed_after_redrive"
    ] == (0)


def test_what_the_redrive_did_not_report_is_not_redriven() -> None:
    assert counts(replace(whole(), redriven=[]))["redriven"] == 0


def test_a_call_that_was_taken_twice_is_repeated_and_its_keys_are_compared() -> None:
    evidence = replace(whole(), calls=[call(1), call(1, key="other"), call(2, answer=503), call(2), call(3)])

    assert zeros(counts(evidence)) == {"repeated_calls": 1, "repeated_calls_with_another_key": 1}


def test_a_kill_with_nothing_under_way_is_not_in_flight() -> None:
    counted = counts(replace(whole(), kills=[("audit", ["d1-1"]), ("notifier", [])]))

    assert (counted["kills"], counted["kills_in_flight"]) == (2, 1)


def test_only_a_later_attempt_two_seconds_on_counts_as_a_delayed_retry() -> None:
    ledger = [
        entry(1, 1, attempt=2, waited=2.1),
        entry(2, 2, attempt=2, waited=1.9),
        entry(3, 3, attempt=1, waited=9.0),
    ]

    assert counts(with_ledger(whole(), "projection", ledger))["retried_held"] == 1


@pytest.mark.parametrize(
    ("lines", "standing"),
    [
        ("", []),
        ("+ 1 a\n", ["a"]),
        ("+ 1 a\n- 1\n", []),
        ("+ 1 a\n+ 2 b\n- 1\n", ["b"]),
        ("+ 1 a\n- 1\n+ 2 a\n", ["a"]),
    ],
)
def test_a_handling_is_in_flight_between_its_first_write_and_its_settlement(
    tmp_path: Path, lines: str, standing: list[str]
) -> None:
    path = tmp_path / "witness"
    path.write_text(lines, "ascii")

    assert in_flight(path) == standing
    assert writes(path) == lines.count("+")


def test_a_process_that_has_not_written_yet_has_nothing_in_flight(tmp_path: Path) -> None:
    assert in_flight(tmp_path / "none") == []


def plan(tmp_path: Path, without: Without | None = None) -> Plan:
    return Plan(
        events=3,
        kills=1,
        seed=1,
        without=without,
        url="sqlite:///x.db",
        prefix="",
        folder=tmp_path,
        time_limit=1,
    )


def test_one_broken_promise_breaks_the_verdict(tmp_path: Path) -> None:
    counted = counts(with_ledger(whole(), "audit", [entry(1, 1)]))
    kept = promises(plan(tmp_path), counted)

    assert "no event was lost" in [promise.text for promise in kept if not promise.holds]
    assert not is_good(plan(tmp_path), counted, kept)


@pytest.mark.parametrize("without", ["inbox", "order", "dedupe"])
def test_a_sabotage_that_breaks_nothing_fails(tmp_path: Path, without: Without) -> None:
    counted = counts(whole())

    assert expected_break(without, counted)[1] is False
    assert not is_good(plan(tmp_path, without), counted, promises(plan(tmp_path), counted))
