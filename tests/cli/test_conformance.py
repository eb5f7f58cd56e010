import json
from typing import Any, Literal

import pytest

from brokerkit.testing.conformance.report import Promises, run_suites
from tests.cli.conftest import Brokerkit

URL = "memory://of-the-command?lease=0.6&max_message=200000"


def test_the_report_is_one_object_with_broker_version_counts_limits_and_figures(brokerkit: Brokerkit) -> None:
    done = brokerkit("conformance", "--broker", URL, "--only", "delayed_copy_is_not_early", "-o", "json")
    report = json.loads(done.out)
    assert done.code == 0
    assert (report["broker"], report["passed"], report["failed"], report["limits"]) == ("memory", 1, 0, {})
    (promise,) = report["promises"]
    assert promise["promise"] == "a delayed copy is not early and not late"
    assert 0 <= report["figures"]["delayed copy, seconds late"]["median"] < 1


def test_a_promise_that_is_off_says_why(brokerkit: Brokerkit) -> None:
    done = brokerkit("conformance", "--broker", URL, "--only", "outlives_a_restart", "-o", "json")
    (promise,) = json.loads(done.out)["promises"]
    assert (promise["outcome"], promise["why"]) == ("off", "off by capability: durable is False")


def test_a_broken_promise_is_named_and_the_exit_code_says_so(
    brokerkit: Brokerkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> dict[str, object]:
        promise = {"promise": "nothing is lost", "outcome": "failed", "why": "E  assert 1 == 2"}
        return {
            "version": "Sieve 1.0",
            "passed": 3,
            "failed": 1,
            "off": 0,
            "limits": {},
            "figures": {},
            "promises": [promise],
        }

    monkeypatch.setattr("brokerkit.testing.conformance.report.run_suites", broken)
    done = brokerkit("conformance", "--broker", URL)
    assert done.code == 1
    assert done.out.splitlines() == [
        "Sieve 1.0: 3 promises kept, 1 broken, 0 off",
        "broken: nothing is lost: E  assert 1 == 2",
    ]


def test_a_suite_that_cannot_run_is_an_error_and_no_clean_report() -> None:
    with pytest.raises(RuntimeError, match="did not run"):
        run_suites(URL, "memory", frozenset(), only="((")


def test_without_a_broker_the_usage_is_wrong(brokerkit: Brokerkit) -> None:
    assert brokerkit("conformance").code == 2


def reports(name: str, **ends: str) -> list[pytest.TestReport]:
    """Return what pytest says of one test: how setup, call and teardown ended."""
    phases: tuple[Literal["setup", "call", "teardown"], ...] = ("setup", "call", "teardown")
    made: list[pytest.TestReport] = []
    for when in phases:
        outcome: Any = ends.get(when, "passed")
        text = ("file", 1, "Skipped: off: because") if outcome == "skipped" else "E  it fell"
        made.append(
            pytest.TestReport(f"live.py::TestIt::{name}", ("live.py", 1, name), {}, outcome, text, when)
        )
    return made


def test_the_worst_phase_of_a_test_is_how_it_ended() -> None:
    promises = Promises()
    for report in [
        *reports("test_it_is_so"),
        *reports("test_it_falls_in_the_end", teardown="failed"),
        *reports("test_it_is_off", setup="skipped"),
        *reports("test_it_cannot_begin", setup="failed"),
    ]:
        promises.pytest_runtest_logreport(report)
    ended = {each["promise"]: (each["outcome"], each["why"]) for each in promises.summary()["promises"]}
    assert ended == {
        "it is so": ("passed", ""),
        "it falls in the end": ("failed", "E  it fell"),
        "it is off": ("off", "off: because"),
        "it cannot begin": ("failed", "E  it fell"),
    }
