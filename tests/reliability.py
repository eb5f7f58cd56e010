"""
A pytest plug-in, `-p tests.reliability`, that keeps one row for each scenario of the catalogue of faults that was run.

A test belongs to scenarios by its name: `test_f41_...` is F41, `test_b2_b16_...` is B2 and B16. Its broker is the folder under
tests/adapters, or what its parameters name. Figures and seeds are properties that the test records
(`record_property("figure", ...)`). The rows go to `.cache/reliability.json`; `scripts/reliability.py` makes the page of them.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

BROKERS: Final = ("memory", "sqlite", "kafka", "rabbitmq", "nats", "sqs")
FILE: Final = Path(__file__).parents[1] / ".cache" / "reliability.json"
_NAME: Final = re.compile(r"::test_((?:[fbxr]\d+_)+)([^\[]*)(\[.*\])?$")

_rows: dict[tuple[str, str, str], dict[str, Any]] = {}


def scenarios_of(node_id: str) -> list[tuple[str, str, str]]:
    """
    Return number, broker and claim of a test for each scenario that it belongs to.

    >>> scenarios_of("tests/adapters/nats/test_faults.py::test_f45_a_body_just_under_the_limit_is_refused")
    [('F45', 'nats', 'a body just under the limit is refused')]
    >>> scenarios_of("tests/faults/test_frozen.py::TestIt::test_f41_a_publish_ends[kafka]")
    [('F41', 'kafka', 'a publish ends')]
    >>> scenarios_of("tests/faults/test_restarts.py::test_r1_nothing_is_lost[SIGKILL-kafka]")
    [('R1', 'kafka', 'nothing is lost (SIGKILL)')]
    >>> scenarios_of("tests/core/test_codec.py::test_b2_b16_what_does_not_fit_is_refused")
    [('B2', 'core', 'what does not fit is refused'), ('B16', 'core', 'what does not fit is refused')]
    >>> scenarios_of("tests/core/test_lanes.py::test_a_lane_is_left")
    []
    """
    found = _NAME.search(node_id)
    if found is None:
        return []
    parameters = (found[3] or "")[1:-1].split("-")
    words = [*re.split(r"[^a-z]+", node_id.split("::", maxsplit=1)[0]), *parameters]
    broker = next((word for word in reversed(words) if word in BROKERS), "core")
    rest = ", ".join(word for word in parameters if word and word not in BROKERS)
    claim = found[2].replace("_", " ").strip() + (f" ({rest})" if rest else "")
    return [(number.upper(), broker, claim) for number in found[1].strip("_").split("_")]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for scenario in scenarios_of(report.nodeid):
        _note(scenario, report)


def _note(scenario: tuple[str, str, str], report: pytest.TestReport) -> None:
    number, broker, claim = scenario
    row = _rows.setdefault(
        scenario,
        {"id": number, "broker": broker, "claim": claim, "passed": True, "figure": None, "seed": None},
    )
    if report.outcome != "passed":
        row["passed"] = False
        row["why"] = "skipped" if report.skipped else "failed"
    if report.when == "teardown":
        for name, value in report.user_properties:
            if name in {"figure", "seed"}:
                row[name] = value


def pytest_sessionfinish() -> None:
    if not _rows:
        return
    before: list[dict[str, Any]] = json.loads(FILE.read_text("utf-8")) if FILE.exists() else []
    kept = {(row["id"], row["broker"], row["claim"]): row for row in before} | _rows
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps([kept[key] for key in sorted(kept)], indent=1) + "\n", "utf-8")
