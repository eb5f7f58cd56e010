"""
The rounds: every line in a process of its own, taking turns.
"""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.plan import Line
from tests.bench.work import Figures, Task

__all__ = ["Measured", "Plan", "measure"]

_ROOT: Final = Path(__file__).parents[2]
_LONGEST: Final = 900.0
_REASON: Final = 12
_WATCHED: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured at one broker. messages: of each line in a round, and a tenth more to warm up."""

    broker: str
    url: str
    lines: Sequence[Line]
    rounds: int
    messages: int
    waiting: int


@dataclass(kw_only=True)
class Measured:
    """
    What came out.

    rounds: by name of the line, what each round measured; None where it failed. failed: the reasons. busy: share of the CPUs
    that others used just before, None where that cannot be told. load: load averages of the last minute, before and after.
    """

    plan: Plan
    rounds: dict[str, list[Figures | None]] = field(default_factory=dict[str, list[Figures | None]])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    busy: float | None = None
    load: tuple[float, float] = (0.0, 0.0)
    server: str = ""


def measure(plan: Plan, say: Callable[[str], None]) -> Measured:
    """Run all rounds. A line that fails is not tried again; its place may hold what it lost."""
    run = f"bench-{secrets.token_hex(3)}"
    measured = Measured(plan=plan, rounds={line.name: [] for line in plan.lines})
    measured.busy = _busy()
    before = os.getloadavg()[0]
    for number in range(plan.rounds):
        for line in plan.lines:
            if line.name in measured.failed:
                measured.rounds[line.name].append(None)
                continue
            begin = time.monotonic()
            answer = _in_process(_task(plan, line, number, run))
            took = time.monotonic() - begin
            where = f"{plan.broker}, round {number + 1} of {plan.rounds}: {line.name}"
            if isinstance(answer, str):
                measured.failed[line.name] = answer
                measured.rounds[line.name].append(None)
                say(f"{where}: FAILED: {answer}")
                continue
            measured.rounds[line.name].append(answer)
            measured.server = measured.server or answer.server
            again = f", {answer.twice} TWICE" if answer.twice else ""
            say(f"{where}: {answer.rate:,.0f}/s, {answer.cpu_us:.1f} us{again} ({took:.1f} s in all)")
    measured.load = before, os.getloadavg()[0]
    return measured


def _busy() -> float | None:
    """Watch for a while how much of the CPUs is in use."""

    def spent() -> tuple[int, int]:
        user, nice, system, idle, waiting, *rest = map(
            int, stat.read_text("ascii").split("\n", 1)[0].split()[1:9]
        )
        return user + nice + system + sum(rest), idle + waiting

    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    before = spent()
    time.sleep(_WATCHED)
    used, idle = (now - then for now, then in zip(spent(), before, strict=True))
    return used / max(used + idle, 1)


def _task(plan: Plan, line: Line, number: int, run: str) -> Task:
    waits = "-beside" if line.waits else ""
    return Task(
        broker=plan.broker,
        url=plan.url,
        client=line.client,
        verb=line.verb,
        place=f"{run}-{line.verb}-{line.client}{waits}",
        round=number,
        messages=plan.messages,
        warm=max(1, plan.messages // 10),
        waiting=plan.waiting if line.waits else 0,
    )


def _in_process(task: Task) -> Figures | str:
    """Return what a line's process measured, or why it failed."""
    command = [sys.executable, "-m", "tests.bench.child", json.dumps(asdict(task))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKERKIT_")}
    try:
        done = subprocess.run(
            command,
            cwd=_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {_LONGEST:.0f} s"
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return Figures(**json.loads(lines[-1]))
    if done.returncode == 1 and lines:
        return str(json.loads(lines[-1])["failed"])
    said = "\n".join(done.stderr.strip().splitlines()[-_REASON:])
    return f"ended with {done.returncode}: {said}"
