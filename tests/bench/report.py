"""
From what was measured to medians, ratios, a table, a JSON object and a page.
"""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from tests.bench.plan import AIMS, Line
from tests.bench.rounds import Measured
from tests.bench.work import WINDOW, Figures

__all__ = ["SCHEMA", "merged", "page", "report", "table"]

SCHEMA: Final = "brokerkit.benchmarks/1"

_QUIET: Final = 0.2
"""Share of the CPUs in use before a run, above which the machine was not ours alone."""

_LIBRARIES: Final = {
    "kafka": ("aiokafka",),
    "rabbitmq": ("aiormq", "aio-pika"),
    "nats": ("nats-py",),
    "sqs": ("botocore", "aiohttp"),
}
_SIGNIFICANT: Final = 3
_ENOUGH: Final = {"rounds": 3, "messages": 5000}


def report(measured: Sequence[Measured]) -> dict[str, Any]:
    """Return everything as one object."""
    return {
        "schema": SCHEMA,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "pinned": False,
        "window": WINDOW,
        "brokers": [_broker(each) for each in measured],
    }


def _broker(measured: Measured) -> dict[str, Any]:
    plan = measured.plan
    libraries = (*_LIBRARIES.get(plan.broker, ()), "faststream", "pydantic")
    quiet = measured.busy is not None and measured.busy <= _QUIET
    enough = plan.rounds >= _ENOUGH["rounds"] and plan.messages >= _ENOUGH["messages"]
    return {
        "broker": plan.broker,
        "server": measured.server,
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "libraries": {name: found for name in libraries if (found := _version(name))},
        "rounds": plan.rounds,
        "messages": plan.messages,
        "waiting": plan.waiting,
        "busy": None if measured.busy is None else round(measured.busy, 2),
        "load": [round(each, 2) for each in measured.load],
        "conclusive": quiet and enough and not measured.failed,
        "lines": [_line(measured, line) for line in plan.lines],
        "aims": _aims(measured),
        "beside_retries": _beside(measured),
        "failed": measured.failed,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _line(measured: Measured, line: Line) -> dict[str, Any]:
    rounds = [each for each in measured.rounds[line.name] if each is not None]
    base = next((each for each in measured.plan.lines if each.base and each.verb == line.verb), None)
    return {
        "line": line.name,
        "what": line.what,
        "rate": _rounded(statistics.median(each.rate for each in rounds)) if rounds else None,
        "rates": [_rounded(each.rate) for each in rounds],
        "cpu_us": _rounded(statistics.median(each.cpu_us for each in rounds)) if rounds else None,
        "base": base.name if base else None,
        "ratio": _ratio(measured, line.name, base.name) if base else None,
        "handled": sum(each.handled for each in rounds),
        "twice": sum(each.twice for each in rounds),
    }


def _ratio(measured: Measured, line: str, base: str) -> float | None:
    """Return the median over the rounds of the ratio of two lines' rates within a round."""
    pairs: list[tuple[Figures | None, Figures | None]] = list(
        zip(measured.rounds.get(line, []), measured.rounds.get(base, []), strict=False)
    )
    ratios = [ours.rate / theirs.rate for ours, theirs in pairs if ours is not None and theirs is not None]
    return _rounded(statistics.median(ratios)) if ratios else None


def _aims(measured: Measured) -> list[dict[str, Any]]:
    names = {line.name for line in measured.plan.lines}
    aims: list[dict[str, Any]] = []
    for aim in AIMS.get(measured.plan.broker, ()):
        if aim.line in names and aim.base in names:
            ratio = _ratio(measured, aim.line, aim.base)
            met = None if ratio is None else ratio >= aim.ratio
            aims.append({"line": aim.line, "base": aim.base, "aim": aim.ratio, "ratio": ratio, "met": met})
    return aims


def _beside(measured: Measured) -> float | None:
    """Return the ratio of the rates with delayed retries waiting and without."""
    beside = next((line for line in measured.plan.lines if line.waits), None)
    if beside is None:
        return None
    return _ratio(measured, beside.name, f"{beside.verb} {beside.client}")


def _rounded(value: float) -> float:
    """Round to three significant digits: more would claim what a shared machine cannot measure."""
    return float(f"{value:.{_SIGNIFICANT}g}")


def merged(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any]:
    """Return `now`, with those brokers of `before` that were not measured again."""
    if before is None or before.get("schema") != SCHEMA:
        return dict(now)
    again = {each["broker"] for each in now["brokers"]}
    kept = [each for each in before["brokers"] if each["broker"] not in again]
    return {**now, "brokers": sorted([*kept, *now["brokers"]], key=lambda each: str(each["broker"]))}


def table(said: Mapping[str, Any]) -> str:
    """Return the report for people."""
    parts: list[str] = []
    for broker in said["brokers"]:
        parts.append(
            f"{broker['broker']} ({broker['server'] or 'embedded'}): {broker['messages']:,} messages, medians of "
            f"{broker['rounds']} interleaved rounds, client and server share {said['cpus']} CPUs, unpinned, "
            f"{_used(broker)}"
        )
        if not broker["conclusive"]:
            parts.append("NOT CONCLUSIVE: a busy machine, a short run, or a line that failed")
        parts.append(f"  {'line':<32} {'rate/s':>10} {'CPU us':>8} {'ratio':>7}  what")
        for line in broker["lines"]:
            twice = f" ({line['twice']} handled twice)" if line["twice"] else ""
            parts.append(
                f"  {line['line']:<32} {_figure(line['rate'], ',.0f'):>10} {_figure(line['cpu_us'], '.1f'):>8} "
                f"{_figure(line['ratio'], '.2f'):>7}  {line['what']}{twice}"
            )
        for aim in broker["aims"]:
            verdict = {True: "met", False: "MISSED", None: "not measured"}[aim["met"]]
            if not broker["conclusive"]:
                verdict += ", not conclusive"
            parts.append(
                f"  aim: {aim['line']} at least {aim['aim']:g} of {aim['base']}: "
                f"{_figure(aim['ratio'], '.2f')}, {verdict}"
            )
        if broker["beside_retries"] is not None:
            parts.append(
                f"  rate while {broker['waiting']:,} delayed retries wait, to the rate without: "
                f"{broker['beside_retries']:.2f}"
            )
        parts += [f"  FAILED: {line}: {reason}" for line, reason in broker["failed"].items()]
        parts.append("")
    return "\n".join(parts)


def _used(broker: Mapping[str, Any]) -> str:
    busy = "in unknown use" if broker["busy"] is None else f"{broker['busy']:.0%} in use"
    before, after = broker["load"]
    return f"CPUs {busy} before it, load average {before} before and {after} after"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


_HEAD: Final = """\
# Benchmarks

`make bench` measures this and `make bench BENCH_ARGS="--write"` writes this page and [the figures](benchmarks.json).
What the engine alone costs, part by part and without a broker, is `brokerkit bench`.

**How.** Every line is one client doing one thing, in a process of its own, against a real server on loopback. Within a round the
lines take turns, and a ratio is taken between lines of the same round; the medians over the rounds are shown. Rates are good
for nothing but these ratios. The clock starts when a tenth as many messages again have gone through, and stops when
everything is handled and the last settlement is out. A line fails, loudly, if a message is missing, if one is strange, or if the
broker counts one as unsettled afterwards.

- A message is 200 bytes of JSON. brokerkit wraps it in a CloudEvents envelope, 380 in all, and raw clients move as many bytes;
  FastStream moves the bare JSON, so it has less to carry. Raw clients decode nothing, except in the lines called `-model`.
- At most {window} publishes are unconfirmed at once; consumers take {window} ahead where the client can.
- brokerkit's consumer has 16 workers, a pydantic model and `dedupe() + retry() + bulkhead() + timeout()`, the dedupe store in
  memory. Settled is what the adapter reports so, which on Kafka, NATS and SQS the broker has confirmed; on RabbitMQ
  an ack has no answer. Raw acks on RabbitMQ and NATS only have to be sent.
- FastStream runs without its default logger, which makes it slower, and with its default acknowledgement policy. It has
  no SQS.
- Server and client share the machine's CPUs and nothing is pinned: a client that uses less CPU leaves more to the server.
  "CPU us" is the client process's time for each message.
"""

_BOUNDS: Final[Mapping[str, str]] = {
    "kafka": "The broker hands out records faster than any Python handles them; the client's CPU is the bound.",
    "rabbitmq": "aiormq's decoding of frames and its task for each delivery, then the server, which shares the CPUs.",
    "nats": "nats-py's parser and a publish for each ack, which brokerkit does as well; then our own CPU.",
    "sqs": "Polls in flight times ten over the round trip: the local server, not the client.",
}


def page(said: Mapping[str, Any]) -> str:
    """Return the report as a page of the documentation."""
    parts = [_HEAD.format(window=said["window"])]
    for broker in said["brokers"]:
        libraries = ", ".join(f"{name} {found}" for name, found in broker["libraries"].items())
        parts.append(f"## {broker['broker']}\n")
        parts.append(
            f"{broker['server'] or 'Embedded'}; {libraries}; Python {said['python']}, {said['cpus']} CPUs, unpinned. "
            f"{broker['messages']:,} messages, {broker['rounds']} rounds, {broker['at']}, {_used(broker)}.\n"
        )
        if not broker["conclusive"]:
            parts.append("**Not conclusive**: a busy machine, a short run, or a line that failed.\n")
        parts.append("| line | rate /s | CPU us | ratio | what |\n|---|---|---|---|---|")
        parts += [
            f"| {line['line']} | {_figure(line['rate'], ',.0f')} | {_figure(line['cpu_us'], '.1f')} "
            f"| {_figure(line['ratio'], '.2f')} | {line['what']} |"
            for line in broker["lines"]
        ]
        parts.append("")
        if broker["aims"]:
            parts.append("| aim | at least | measured |\n|---|---|---|")
            parts += [
                f"| {aim['line']} to {aim['base']} | {aim['aim']:g} | {_figure(aim['ratio'], '.2f')}"
                f"{'' if aim['met'] else ', missed' if aim['met'] is False else ''} |"
                for aim in broker["aims"]
            ]
            parts.append("")
        if broker["beside_retries"] is not None:
            parts.append(
                f"While {broker['waiting']:,} delayed retries wait, new messages are handled at "
                f"{broker['beside_retries']:.2f} of the rate without them.\n"
            )
        if bound := _BOUNDS.get(broker["broker"]):
            parts.append(f"**What bounds it.** {bound}\n")
        parts += [
            f"**Failed.** {line}: {reason.splitlines()[-1]}\n" for line, reason in broker["failed"].items()
        ]
    return "\n".join(parts).rstrip() + "\n"
