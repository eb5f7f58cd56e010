#!/usr/bin/env python3
"""
Run both conformance suites against every broker and write docs/guarantees.json and docs/guarantees.md.

    scripts/guarantees.py              # all six; real servers come from a sandbox of their own
    scripts/guarantees.py kafka nats   # these; the others keep what the last run said
    scripts/guarantees.py --page       # only make the page anew out of the JSON
    scripts/guarantees.py --tests      # take the reports of the last `make test`, restarts included
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from brokerkit.sandbox import Sandbox
from brokerkit.testing.conformance.harness import LIMITS
from brokerkit.testing.conformance.report import run_suites, server_of

DOCS = Path(__file__).parents[1] / "docs"
BROKERS = ("memory", "sqlite", "kafka", "rabbitmq", "nats", "sqs")
OPTIONS = {
    "memory": "lease=0.6&max_message=200000",
    "sqlite": "lease=1&max_message=200000",
    "kafka": "session=2&drain=4",
    "rabbitmq": "heartbeat=1",
    "nats": "lease=2",
    "sqs": "lease=2&poll=1",
}
SUITES = {
    "memory": "TestMemory",
    "sqlite": "TestSqlite",
    "kafka": "TestKafka",
    "rabbitmq": "TestRabbit",
    "nats": "TestNats",
    "sqs": "TestSqs",
}
REPORTS = DOCS.parent / ".cache" / "tests"
MARKS = {"passed": "kept", "off": "off", "failed": "**BROKEN**"}


def run(broker: str, folder: Path) -> dict[str, Any]:
    """Run the suites against one broker and return the report."""
    url = f"memory://guarantees?{OPTIONS['memory']}"
    box = Sandbox(folder)
    if broker == "sqlite":
        url = f"sqlite:///{folder / 'broker.db'}?{OPTIONS[broker]}"
    elif broker != "memory":
        url = f"{box.up(broker, ephemeral=True).url}?{OPTIONS[broker]}"
    try:
        server, limits = asyncio.run(server_of(url))
        return run_suites(url, server, limits, show=True) | {"broker": broker}
    finally:
        box.down()


def of_the_tests(broker: str, folder: Path) -> dict[str, Any] | None:
    """Return what the last `make test` has shown of one broker, or None if it was not part of it."""
    part = "embedded" if broker in {"memory", "sqlite"} else broker
    file = REPORTS / f"{part}.json"
    if not file.exists():
        return None
    report: dict[str, Any] = json.loads(file.read_text("utf-8"))
    suites = {SUITES[broker]: "TestAdapter", f"{SUITES[broker]}Bus": "TestBus"}
    promises = [
        {**each, "suite": suites[each["suite"]]} for each in report["promises"] if each["suite"] in suites
    ]
    figures = report["figures"].get(SUITES[broker], {})
    box = Sandbox(folder)
    url = f"sqlite:///{folder / 'broker.db'}" if broker == "sqlite" else f"{broker}://guarantees"
    if broker not in {"memory", "sqlite"}:
        url = box.up(broker, ephemeral=True).url
    try:
        server, limits = asyncio.run(server_of(url))
    finally:
        box.down()
    return {
        "broker": broker,
        "version": server,
        "passed": sum(each["outcome"] == "passed" for each in promises),
        "failed": sum(each["outcome"] == "failed" for each in promises),
        "off": sum(each["outcome"] == "off" for each in promises),
        "promises": promises,
        "figures": figures,
        "limits": {name: LIMITS[name] for name in sorted(limits)},
    }


def page(reports: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the page."""
    yield "# Guarantees, as they were measured"
    yield ""
    yield "Made by `scripts/guarantees.py` out of a run of the conformance suites against real servers; do not edit."
    yield "The same run against a broker of yours: `brokerkit conformance --broker URL`."
    yield "The data: [guarantees.json](guarantees.json)."
    yield ""
    yield "| broker | version | kept | broken | off |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for each in reports:
        yield f"| {each['broker']} | {each['version']} | {each['passed']} | {each['failed']} | {each['off']} |"
    yield ""
    yield "## Limits"
    yield ""
    yield "What a broker falls short of, out of a closed list. Nothing else is spared."
    yield ""
    for each in reports:
        for name, evidence in each["limits"].items():
            yield f"- {each['broker']}: `{name}`: {evidence}"
    yield ""
    yield "## Figures"
    yield ""
    yield "Smallest, median and largest of what the suites measured on the way, servers and clients together on two cores."
    yield ""
    yield "| figure | " + " | ".join(each["broker"] for each in reports) + " |"
    yield "| --- |" + " --- |" * len(reports)
    for name in sorted({name for each in reports for name in each["figures"]}):
        spreads = [each["figures"].get(name) for each in reports]
        cells = [f"{s['least']:.3f} / {s['median']:.3f} / {s['most']:.3f}" if s else "" for s in spreads]
        yield f"| {name} | " + " | ".join(cells) + " |"
    for suite, title in (("TestBus", "The way of a message"), ("TestAdapter", "The boundary")):
        yield ""
        yield f"## {title}, promise by promise"
        yield ""
        yield from table(reports, suite)


def table(reports: list[dict[str, Any]], suite: str) -> Iterator[str]:
    """Yield one row for each promise, and the reasons of those that are off."""
    reasons: dict[str, int] = {}
    yield "| promise | " + " | ".join(each["broker"] for each in reports) + " |"
    yield "| --- |" + " --- |" * len(reports)
    names: dict[str, None] = {}
    for each in reports:
        names.update({p["promise"]: None for p in each["promises"] if p["suite"] == suite})
    kept = [{p["promise"]: p for p in each["promises"] if p["suite"] == suite} for each in reports]
    for name in names:
        cells: list[str] = []
        for promises in kept:
            found = promises.get(name)
            cell = MARKS[found["outcome"]] if found else ""
            if found and found["outcome"] == "off":
                cell = f"off ({reasons.setdefault(found['why'], len(reasons) + 1)})"
            cells.append(cell)
        yield f"| {name.replace('|', ' ')} | " + " | ".join(cells) + " |"
    yield ""
    for reason, number in reasons.items():
        yield f"({number}) {reason.removeprefix('off: ').removeprefix('off ')}  "


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("brokers", nargs="*", metavar="BROKER", help=", ".join(BROKERS))
    parser.add_argument("--page", action="store_true", help="only make the page anew")
    parser.add_argument("--tests", action="store_true", help="take the reports of the last `make test`")
    asked = parser.parse_args(arguments)
    if unknown := sorted(set(asked.brokers) - set(BROKERS)):
        parser.error(f"there is no broker {unknown[0]}; there are {', '.join(BROKERS)}")
    return asked


def main(arguments: list[str]) -> int:
    """Run what is asked for and write both files; 1 if a promise was broken."""
    asked = _arguments(arguments)
    file = DOCS / "guarantees.json"
    before = {each["broker"]: each for each in json.loads(file.read_text("utf-8"))} if file.exists() else {}
    wanted = [] if asked.page else asked.brokers or list(BROKERS)
    for broker in wanted:
        with tempfile.TemporaryDirectory(prefix="brokerkit-guarantees-") as folder:
            report = of_the_tests(broker, Path(folder)) if asked.tests else run(broker, Path(folder))
        if report is None:
            continue
        before[broker] = report
        print(
            f"{broker}: {before[broker]['passed']} kept, {before[broker]['failed']} broken", file=sys.stderr
        )
    reports = [before[name] for name in BROKERS if name in before]
    file.write_text(json.dumps(reports, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (DOCS / "guarantees.md").write_text("\n".join(page(reports)) + "\n", "utf-8")
    return sum(each["failed"] for each in reports) and 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
