#!/usr/bin/env python3
"""
Make docs/reliability.json and docs/reliability.md out of what the last runs of the fault tests kept in .cache/reliability.json.

    make faults        # or `pytest -p tests.reliability -m faults`; then
    scripts/reliability.py
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for the cases of a claim, where they have no figures and passed: their number is the figure."""
    kept: list[dict[str, Any]] = []
    alike: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        claim = row["claim"].partition(" (")[0]
        if row["figure"] or row["seed"] or not row["passed"]:
            kept.append(row)
            continue
        one = alike.setdefault((row["id"], row["broker"], claim), {**row, "claim": claim, "figure": 0})
        one["figure"] += 1
    for one in alike.values():
        one["figure"] = f"{one['figure']} cases" if one["figure"] > 1 else None
    return kept + list(alike.values())


def main() -> int:
    """Write both files."""
    rows = merged(json.loads((ROOT / ".cache" / "reliability.json").read_text("utf-8")))
    rows.sort(key=lambda row: (row["id"][0], int(row["id"][1:]), row["broker"], row["claim"]))
    (ROOT / "docs" / "reliability.json").write_text(
        json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    lines = [
        "# Faults, and what was seen",
        "",
        "Made by `scripts/reliability.py` out of the last run of the fault tests (`make faults`); do not edit.",
        "F numbers are those of the catalogue of faults, R numbers are restarts and freezes. The data:",
        "[reliability.json](reliability.json).",
        "",
        "| id | broker | claim | passed | figure |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        passed = "yes" if row["passed"] else f"**no: {row.get('why', '')}**"
        lines.append(f"| {row['id']} | {row['broker']} | {row['claim']} | {passed} | {row['figure'] or ''} |")
    (ROOT / "docs" / "reliability.md").write_text("\n".join(lines) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
