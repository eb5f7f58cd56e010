"""
The counts, made by a process of their own out of what the others have left behind, never out of anybody's memory.

    python -m brokerkit.cli.demo.checker snapshot before FOLDER URL CHANNEL
    python -m brokerkit.cli.demo.checker counts FOLDER

`snapshot` reads the broker's dead places and notes where each ledger ends. `counts` compares the producer's rows with the
ledgers, the snapshots, the kills and the witness files, and prints one object.
"""

import asyncio
import json
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from brokerkit.cli.demo.plan import GROUPS, TRANSACTIONAL
from brokerkit.cli.demo.progress import rows
from brokerkit.cli.demo.witness import in_flight

__all__ = ["Call", "Dead", "Entry", "Evidence", "Published", "counts", "read_evidence", "snapshot"]

_LONG: Final = 2.0
_TAKEN: Final = 200

Identity = tuple[str, str]


class Published(NamedTuple):
    """A row of the producer's: one confirmed publish."""

    source: str
    event_id: str
    type: str
    repository: str | None
    sequence: int | None
    poisoned: str


class Entry(NamedTuple):
    """A row of a group's ledger; `place` is where it stands in the order of completion."""

    place: int
    source: str
    event_id: str
    repository: str | None
    sequence: int | None
    attempt: int
    run: int
    waited: float


class Call(NamedTuple):
    """A row of the chat service's ledger."""

    event_id: str
    idempotency_key: str
    answer: int


class Dead(NamedTuple):
    """A dead letter in the place of a group."""

    group: str
    source: str
    event_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """
    Everything that is counted.

    dead: before the redrive. still_dead: at the end. ends: the last place of each ledger before the redrive. redriven: (group,
    event id) as the redrive reported it. kills: for each kill the group and the events that were in flight.
    crashes: how many processes ended although nobody had asked them to.
    """

    published: Sequence[Published]
    ledgers: Mapping[str, Sequence[Entry]]
    calls: Sequence[Call]
    dead: Sequence[Dead]
    still_dead: Sequence[Dead]
    ends: Mapping[str, int]
    redriven: Sequence[tuple[str, str]]
    kills: Sequence[tuple[str, Sequence[str]]]
    crashes: int


def counts(evidence: Evidence) -> dict[str, Any]:
    """Return every count of a run."""
    return {
        **_published(evidence),
        **_kills(evidence),
        **_retries(evidence),
        **_dead_letters(evidence),
        **_effects(evidence),
        "key_order_breaks": _key_order_breaks(evidence),
        **_calls(evidence),
    }


def _published(evidence: Evidence) -> dict[str, Any]:
    events = {(row.source, row.event_id): row for row in evidence.published}
    return {
        "published": len(events),
        "redelivered_by_producer": len(evidence.published) - len(events),
        "payloads": len({row.event_id.partition("-")[0] for row in events.values()}),
        "types": len({_github_type(row.type) for row in events.values()}),
        "keyed": sum(row.repository is not None for row in events.values()),
        "keyless": sum(row.repository is None for row in events.values()),
        "repositories": len({row.repository for row in events.values() if row.repository is not None}),
    }


def _github_type(event_type: str) -> str:
    return event_type.split(".")[1]


def _kills(evidence: Evidence) -> dict[str, Any]:
    return {
        "kills": len(evidence.kills),
        "kills_in_flight": sum(bool(events) for _, events in evidence.kills),
        "crashes": evidence.crashes,
        "kills_by_group": dict(Counter(group for group, _ in evidence.kills)),
    }


def _retries(evidence: Evidence) -> dict[str, Any]:
    """Count the keyed events that were handled at a second or later attempt, two seconds or more after their arrival."""
    keyed = {row.event_id for row in evidence.published if row.repository is not None}
    late = {
        group: {
            entry.event_id
            for entry in evidence.ledgers[group]
            if entry.event_id in keyed and entry.run == 0 and entry.attempt > 1 and entry.waited >= _LONG
        }
        for group in ("projection", "notifier")
    }
    return {
        "retried_held": len(late["projection"]),
        "retried_copied": len(late["notifier"]),
        "retried_share": round(len(late["projection"] | late["notifier"]) / max(1, len(keyed)), 4),
    }


def _dead_letters(evidence: Evidence) -> dict[str, Any]:
    dead = {(each.group, each.source, each.event_id) for each in evidence.dead}
    poisoned = {
        (group, row.source, row.event_id) for row in evidence.published for group in row.poisoned.split()
    }
    sent = set(evidence.redriven)
    left = {(each.group, each.source, each.event_id) for each in evidence.still_dead}
    completed = {
        (group, entry.source, entry.event_id)
        for group, entries in evidence.ledgers.items()
        for entry in entries
        if entry.place > evidence.ends[group] and entry.run > 0
    }
    return {
        "poisoned": len(poisoned),
        "dead_lettered": len(dead),
        "dead_lettered_by_group": dict(Counter(group for group, _, _ in dead)),
        "dead_lettered_by_reason": dict(Counter(each.reason for each in set(evidence.dead))),
        "redriven": len({each for each in dead if (each[0], each[2]) in sent}),
        "completed_after_redrive": len(dead & completed),
        "still_dead": len(left),
        "innocents_dead_lettered": len((dead | left) - poisoned),
    }


def _effects(evidence: Evidence) -> dict[str, Any]:
    wanted = {(row.source, row.event_id) for row in evidence.published}
    effects = {
        group: Counter((entry.source, entry.event_id) for entry in evidence.ledgers[group])
        for group in GROUPS
    }
    lost = {group: len(wanted - effects[group].keys()) for group in GROUPS}
    return {
        "lost": sum(lost.values()),
        "lost_by_group": lost,
        "unexpected": sum(len(effects[group].keys() - wanted) for group in GROUPS),
        "duplicated_effects": sum(_extra(effects[group].values()) for group in TRANSACTIONAL),
    }


def _extra(times: Iterable[int]) -> int:
    return sum(count - 1 for count in times)


def _key_order_breaks(evidence: Evidence) -> int:
    """Count the events of a repository that completed after a later one, over those that were never dead letters."""
    aside = {each.event_id for each in evidence.dead if each.group == "projection"}
    breaks = 0
    highest: dict[str, int] = defaultdict(int)
    seen: set[Identity] = set()
    for entry in sorted(evidence.ledgers["projection"]):
        identity = (entry.source, entry.event_id)
        if entry.repository is None or entry.sequence is None or entry.event_id in aside or identity in seen:
            continue
        seen.add(identity)
        breaks += entry.sequence < highest[entry.repository]
        highest[entry.repository] = max(highest[entry.repository], entry.sequence)
    return breaks


def _calls(evidence: Evidence) -> dict[str, Any]:
    """
    Count the calls that the chat service got.

    repeated: calls that were taken although an earlier one about the same event was. explained: as many as the kills can
    account for, which is what a killed process may have had under way.
    """
    from brokerkit.examples.github_webhooks.settings import CALLS_AT_ONCE

    killed = sum(group == "notifier" for group, _ in evidence.kills)
    taken = Counter(call.event_id for call in evidence.calls if call.answer == _TAKEN)
    keys: dict[str, set[str]] = defaultdict(set)
    for call in evidence.calls:
        keys[call.event_id].add(call.idempotency_key)
    wanted = {row.event_id for row in evidence.published}
    return {
        "calls": len(evidence.calls),
        "calls_refused_or_stalled": sum(call.answer != _TAKEN for call in evidence.calls),
        "calls_never_taken": len(wanted - taken.keys()),
        "repeated_calls": _extra(taken.values()),
        "repeated_calls_explained": killed * CALLS_AT_ONCE,
        "repeated_calls_with_another_key": sum(len(each) - 1 for each in keys.values()),
    }


def read_evidence(folder: Path) -> Evidence:
    """Read what a run has left in its folder."""
    return Evidence(
        published=[
            Published(*row)
            for row in _select(
                folder, "producer", "source, event_id, type, repository, sequence, poisoned", "published"
            )
        ],
        ledgers={
            group: [
                Entry(*row)
                for row in _select(
                    folder,
                    group,
                    "rowid, source, event_id, repository, sequence, attempt, run, waited",
                    "ledger",
                )
            ]
            for group in GROUPS
        },
        calls=[Call(*row) for row in _select(folder, "chat", "event_id, idempotency_key, answer", "ledger")],
        dead=_snapshot(folder, "before"),
        still_dead=_snapshot(folder, "after"),
        ends={line["group"]: line["end"] for line in _lines(folder / "ends-before.ndjson")},
        redriven=[(line["group"], line["id"]) for line in _lines(folder / "redriven.ndjson")],
        kills=[
            (line["group"], in_flight(folder / "witness" / line["witness"]))
            for line in _lines(folder / "kills.ndjson")
        ],
        crashes=len(_lines(folder / "crashes.ndjson")),
    )


def _select(folder: Path, database: str, columns: str, table: str) -> list[tuple[Any, ...]]:
    uri = f"{(folder / database).as_uri()}.db?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY rowid").fetchall()  # noqa: S608 - ours


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _snapshot(folder: Path, when: str) -> list[Dead]:
    return [Dead(**line) for line in _lines(folder / f"dead-{when}.ndjson")]


async def snapshot(folder: Path, when: str, url: str, channel: str) -> None:
    """Note every dead letter that the broker has, and where each ledger ends now."""
    from brokerkit.adapter import open_adapter

    adapter = open_adapter(url)
    await adapter.connect()
    try:
        dead = [each for group in GROUPS for each in await _dead_of(adapter, channel, group)]
    finally:
        await adapter.close()
    _note(folder / f"dead-{when}.ndjson", [each._asdict() for each in dead])
    ends = [{"group": group, "end": rows(folder / f"{group}.db", "ledger")} for group in GROUPS]
    _note(folder / f"ends-{when}.ndjson", ends)


async def _dead_of(adapter: Any, channel: str, group: str) -> list[Dead]:
    from brokerkit.patterns import DeadLetters

    letters = DeadLetters(adapter, channel, group)
    found: list[Dead] = []
    cursor: str | None = None
    while True:
        page, cursor = await letters.list(500, cursor)
        found += [Dead(group, letter.source, letter.id, letter.reason) for letter in page]
        if cursor is None or not page:
            return found


def _note(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def main(arguments: Sequence[str]) -> None:
    """Do what the command line says."""
    if arguments[0] == "snapshot":
        _, when, folder, url, channel = arguments
        asyncio.run(snapshot(Path(folder), when, url, channel))
    else:
        print(json.dumps(counts(read_evidence(Path(arguments[1])))))  # noqa: T201 - its output


if __name__ == "__main__":
    main(sys.argv[1:])
