"""A pytest plug-in, `-p tests.time_budget`, that says how long each folder of tests took and may take."""

from collections import defaultdict
from typing import Final

import pytest

BUDGETS: Final = {"adapters": 150, "conformance": 330, "faults": 300, "packaging": 60, "sandbox": 180}
"""Seconds by folder under tests/; anything else shares `OTHERWISE`. Together with set-up under twenty minutes."""

OTHERWISE: Final = 120

_took: defaultdict[str, float] = defaultdict(float)


def part_of(node_id: str) -> str:
    """
    Return the part that a test belongs to: its folder under tests/, else the top folder.

    >>> part_of("tests/packaging/test_wheel.py::test_it"), part_of("tests/test_lanes.py::test_it")
    ('packaging', 'tests')
    >>> part_of("brokerkit/message.py::brokerkit.message")
    'brokerkit'
    """
    folders = node_id.split("::", maxsplit=1)[0].split("/")[:-1]
    return folders[1] if len(folders) > 1 and folders[0] == "tests" else (folders or [node_id])[0]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _took[part_of(report.nodeid)] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("time budget")
    for part, seconds in sorted(_took.items()):
        budget = BUDGETS.get(part, OTHERWISE)
        over = ", OVER BUDGET" if seconds > budget else ""
        terminalreporter.write_line(f"{part}: {seconds:.1f} s of {budget} s{over}")
