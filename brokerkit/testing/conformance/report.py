"""
What a run of the suites has shown, as data: a pytest plug-in that writes it, and the run itself.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from brokerkit.adapter import Identifies, open_adapter, redacted
from brokerkit.testing.conformance.harness import LIMITS

__all__ = ["Promises", "pytest_configure", "run_suites", "server_of"]

_FILE = "BROKERKIT_CONFORMANCE_REPORT"
_FIGURE = "figure:"
_SUITE = "brokerkit.testing.conformance.live"
_OF_THE_SUITE = "test_every_capability_has_a_test"


class Promises:
    """Collects one record for each test: its sentence, its part, how it ended and why it was off."""

    def __init__(self, path: Path | None = None) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self.figures: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of one phase of one test; the worst phase is how it ended."""
        name = report.nodeid.rpartition("::")[2]
        if name == _OF_THE_SUITE:
            return
        suite = report.nodeid.split("::")[1] if "::" in report.nodeid else ""
        record = self.records.setdefault(
            report.nodeid,
            {
                "promise": name.removeprefix("test_").replace("_", " "),
                "suite": suite,
                "outcome": "passed",
                "why": "",
            },
        )
        if report.failed:
            record |= {"outcome": "failed", "why": _last_line(report.longreprtext)}
        elif report.skipped and record["outcome"] == "passed":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            record |= {"outcome": "off", "why": reason.removeprefix("Skipped: ")}
        if report.when == "teardown":
            for key, value in report.user_properties:
                if key.startswith(_FIGURE) and isinstance(value, int | float):
                    self.figures[suite.removesuffix("Bus")][key.removeprefix(_FIGURE)].append(float(value))

    def pytest_sessionfinish(self) -> None:
        """Write what was noted, if a file was asked for."""
        if self._path is not None:
            self._path.write_text(json.dumps(self.summary()), "utf-8")

    def summary(self) -> dict[str, Any]:
        """Return counts, the promises one by one, and by suite the figures with their smallest, median and largest."""
        promises = list(self.records.values())
        return {
            "passed": sum(each["outcome"] == "passed" for each in promises),
            "failed": sum(each["outcome"] == "failed" for each in promises),
            "off": sum(each["outcome"] == "off" for each in promises),
            "promises": promises,
            "figures": {
                suite: {name: _spread(values) for name, values in sorted(figures.items())}
                for suite, figures in self.figures.items()
            },
        }


def pytest_configure(config: pytest.Config) -> None:
    """Collect, where the environment names a file."""
    if path := os.environ.get(_FILE):
        config.pluginmanager.register(Promises(Path(path)))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "n": len(values),
        "least": min(values),
        "median": round(statistics.median(values), 4),
        "most": max(values),
    }


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.startswith("E ")]
    return (lines or text.splitlines() or [""])[0][:300]


async def server_of(url: str) -> tuple[str, frozenset[str]]:
    """Return the product and version that answers at a URL, and the limits that its adapter names."""
    adapter = open_adapter(url)
    await adapter.connect()
    try:
        name = adapter.server if isinstance(adapter, Identifies) else url.partition(":")[0]
        return name, adapter.capabilities.limits
    finally:
        await adapter.close()


def run_suites(
    url: str, server: str, limits: frozenset[str], *, only: str = "", show: bool = False
) -> dict[str, Any]:
    """
    Run both suites against a URL in a process of their own and return the report.

    only: a pytest `-k` expression. show: let pytest print what it does, on stderr. Blocks until it is done. Raises
    `RuntimeError` with pytest's last lines if there is no report.
    """
    with tempfile.TemporaryDirectory(prefix="brokerkit-conformance-") as folder:
        file = Path(folder) / "report.json"
        done = subprocess.run(  # noqa: S603 - our own interpreter and suite
            [
                sys.executable,
                *("-m", "pytest", "--pyargs", _SUITE, "-p", f"{__name__}", "-p", "no:cacheprovider", "-q"),
                *("--rootdir", folder, "-c", os.devnull, "-o", "asyncio_mode=auto"),
                *(("-k", only) if only else ()),
            ],
            cwd=folder,
            env={**os.environ, "BROKERKIT_CONFORMANCE_URL": url, _FILE: str(file)},
            stdout=sys.stderr if show else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        report: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
        if not report.get("promises"):
            message = f"the suites did not run: {' '.join((done.stdout or '').split()[-40:])}"
            raise RuntimeError(message)
    return {
        "broker": redacted(url).partition(":")[0],
        "version": server,
        **report,
        "figures": {
            name: spread for figures in report["figures"].values() for name, spread in figures.items()
        },
        "limits": {name: LIMITS[name] for name in sorted(limits)},
    }
