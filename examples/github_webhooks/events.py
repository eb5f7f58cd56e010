"""
GitHub's deliveries: the shipped payloads, and as many events made of them as a load needs.

What is GitHub's: event names, actions, payloads, to the byte. What is made up: the repositories that the events are
spread over (in the file one repository has two thirds of them), the sequence numbers, and the time.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

__all__ = ["GitHubEvent", "Payload", "generate", "payloads", "repositories_for"]

_FILE = Path(__file__).with_name("payloads.ndjson")
_MOST_REPOSITORIES = 640
_OWNERS = ("octo-org", "hub-labs", "merge-works", "fork-and-sons", "pull-house")
_THINGS = ("api", "web", "docs", "infra", "mobile", "parser", "scheduler", "search")


@dataclass(frozen=True, slots=True)
class Payload:
    """
    One line of the file.

    type: `github.<event>.<action>`, or without the action where the event has none. digest: SHA-256 of the payload's
    canonical JSON, with the event's name in it. has_repository: whether it has a natural key.
    """

    type: str
    data: dict[str, Any]
    digest: str
    has_repository: bool


@dataclass(frozen=True, slots=True)
class GitHubEvent:
    """
    One event to publish.

    id: `<digest>-<repeat>`, the same on every run. repository: made up, the key; None where the payload has none.
    sequence: counts the events of one repository from 1; None without a repository.
    """

    id: str
    payload: Payload
    repository: str | None
    sequence: int | None


@cache
def payloads() -> tuple[Payload, ...]:
    """Return what the file holds, in its order."""
    with _FILE.open(encoding="utf-8") as lines:
        return tuple(_payload(json.loads(line)) for line in lines)


def _payload(line: dict[str, Any]) -> Payload:
    canonical = json.dumps([line["event"], line["payload"]], sort_keys=True, separators=(",", ":"))
    action = f".{line['action']}" if line["action"] else ""
    return Payload(
        type=f"github.{line['event']}{action}",
        data=line["payload"],
        digest=hashlib.sha256(canonical.encode()).hexdigest(),
        has_repository=bool(line["payload"].get("repository")),
    )


def repositories_for(events: int) -> list[str]:
    """Return the made-up repositories for a load of so many events: about eight events for each, at most 640."""
    count = max(8, min(_MOST_REPOSITORIES, events // 8))
    return [
        f"{_OWNERS[number % len(_OWNERS)]}/{_THINGS[number // 5 % len(_THINGS)]}-{number:03d}"
        for number in range(count)
    ]


def generate(events: int, seed: str) -> Iterator[GitHubEvent]:
    """
    Make so many distinct events: the file over and over, each time in another order.

    An id counts how often its payload was used before, so equal payloads in the file (two pairs) are different events.
    """
    chance = Random(f"repositories {seed}")  # noqa: S311 - a load, not a secret
    repositories = repositories_for(events)
    repeats: dict[str, int] = {}
    sequences: dict[str, int] = {}
    order: list[Payload] = []
    for _ in range(events):
        if not order:
            order = list(payloads())
            chance.shuffle(order)
        payload = order.pop()
        repeat = repeats[payload.digest] = repeats.get(payload.digest, 0) + 1
        repository = chance.choice(repositories) if payload.has_repository else None
        sequence = None
        if repository is not None:
            sequence = sequences[repository] = sequences.get(repository, 0) + 1
        yield GitHubEvent(f"{payload.digest}-{repeat}", payload, repository, sequence)
