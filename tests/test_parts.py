"""The parts in which `make test` runs the tests leave none out."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SCRIPT: Final = (ROOT / "scripts" / "tests").read_text("utf-8")
BROKERS: Final = ("kafka", "rabbitmq", "nats", "sqs")


def named() -> set[Path]:
    """Return every file and folder that a part names."""
    text = "\n".join(re.sub(r"\$(broker\b|\{broker\})", broker, SCRIPT) for broker in BROKERS)
    return {ROOT / word.strip('"') for word in re.findall(r'tests/[\w/.]+"?', text)}


def test_every_test_file_is_in_a_part() -> None:
    parts = named()
    files = (ROOT / "tests").rglob("test_*.py")
    assert [str(file) for file in files if not parts & {file, *file.parents}] == []


def test_every_part_exists() -> None:
    assert [str(path) for path in named() if not path.exists()] == []
