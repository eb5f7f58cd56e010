"""
`python -m tests.bench`: measure, and show or write what came out.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.plan import BROKERS, LINES, MESSAGES
from tests.bench.report import merged, page, report, table
from tests.bench.rounds import Measured, Plan, measure
from tests.bench.servers import served

__all__ = ["main"]

_DOCS: Final = Path(__file__).parents[2] / "docs"
_DATA: Final = _DOCS / "benchmarks.json"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--broker", action="append", choices=sorted(LINES), help="may be given again; the four real ones"
    )
    parser.add_argument("--url", help="a server that runs, instead of a sandbox's; with one --broker")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, help="in each line of each round; by broker")
    parser.add_argument("--waiting", type=int, default=10_000, help="delayed retries that wait (10000)")
    parser.add_argument("--lines", default="", help="only lines with this in their names")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.json and .md")
    chosen = parser.parse_args(arguments)
    if chosen.url and len(chosen.broker or ()) != 1:
        parser.error("--url needs one --broker")
    if chosen.rounds < 1 or (chosen.messages is not None and chosen.messages < 1) or chosen.waiting < 0:
        parser.error("--rounds and --messages are at least 1, --waiting at least 0")
    return chosen


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 1 if a line failed."""
    chosen = _arguments(arguments)
    measured: list[Measured] = []
    for broker in chosen.broker or BROKERS:
        lines = [line for line in LINES[broker] if chosen.lines in line.name]
        if not lines:
            _say(f"{broker} has no line with {chosen.lines!r} in its name")
            return 2
        with served(broker, chosen.url, _say) as (url, server):
            _say(f"{broker}: {server or url.rpartition('@')[2]}, load average {os.getloadavg()[0]:.2f}")
            plan = Plan(
                broker=broker,
                url=url,
                lines=lines,
                rounds=chosen.rounds,
                messages=chosen.messages or MESSAGES[broker],
                waiting=chosen.waiting,
            )
            done = measure(plan, _say)
            done.server = server or done.server
            measured.append(done)
    said = report(measured)
    print(json.dumps(said) if chosen.output == "json" else table(said))
    if chosen.write:
        _write(said)
    return 1 if any(each.failed for each in measured) else 0


def _write(said: dict[str, Any]) -> None:
    before = json.loads(_DATA.read_text("utf-8")) if _DATA.exists() else None
    all_of_it = merged(before, said)
    _DATA.write_text(json.dumps(all_of_it, indent=1) + "\n", "utf-8")
    (_DOCS / "benchmarks.md").write_text(page(all_of_it), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
