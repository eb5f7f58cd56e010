"""
Reading what `examples/github_webhooks/witness.py` writes: which handlings stand between first write and settlement.
"""

from pathlib import Path

__all__ = ["in_flight", "writes"]


def in_flight(path: Path) -> list[str]:
    """Return the ids of the events whose handler has written and whose delivery has not been settled."""
    standing: dict[str, str] = {}
    for line in _lines(path):
        sign, number, *event_id = line.split(" ")
        if sign == "+":
            standing[number] = event_id[0]
        else:
            standing.pop(number, None)
    return list(standing.values())


def writes(path: Path) -> int:
    """Return how many handlers have written."""
    return sum(line.startswith("+") for line in _lines(path))


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("ascii")
    except FileNotFoundError:
        return []
    return text.splitlines()
