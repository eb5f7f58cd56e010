"""The short programs under examples/ run, and print what is expected."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import unexpected

EXPECTED = {
    "quickstart": """\
shipping: packed o-17
billing: charged 90 for o-17 at attempt 2
['ack', 'ack']
shipping: packed o-17
['ack', 'ack']
""",
    "ordered": """\
alice: 1 fails at attempt 1
bob: 10 booked at attempt 1
alice: 1 fails at attempt 2
alice: 1 booked at attempt 3
alice: 2 booked at attempt 1
alice: 3 booked at attempt 1
""",
    "inbox_transfer": """\
alice has 45
bob has 55
""",
}
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_short_example_is_held_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*EXPECTED, "__init__"}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_prints_what_is_expected(name: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BROKERKIT_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"brokerkit.examples.{name}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, unexpected(done.stderr)) == (0, [])
    assert done.stdout == EXPECTED[name]
    assert list(tmp_path.iterdir()) == []
