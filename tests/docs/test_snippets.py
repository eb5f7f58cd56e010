"""What the pages say is run, compared and looked up: what is not executed drifts."""

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import brokerkit
from brokerkit import copies, errors, patterns
from tests.docs.pages import ROOT, Block, anchors, blocks, links, pages, unexpected

GUIDE = [page for page in pages() if page.name == "README.md" or "docs/guide" in page.as_posix()]
PYTHON = [block for page in GUIDE for block in blocks(page) if block.info.startswith("python")]
REFERENCE = ROOT / "docs" / "reference"


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKERKIT_")}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def programs() -> list[Block]:
    return [block for block in PYTHON if block.info == "python"]


def codes() -> dict[str, str]:
    return {
        name: member.code
        for name, member in vars(errors).items()
        if inspect.isclass(member) and issubclass(member, errors.BrokerkitError)
    }


def test_the_guide_has_programs_to_run() -> None:
    assert len(programs()) > 10
    assert {block.info for block in PYTHON} <= {"python", "python fragment"}


@pytest.mark.parametrize("block", programs(), ids=str)
def test_a_program_of_the_guide_runs_and_prints_what_the_page_says(block: Block, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(block.text, encoding="utf-8")

    done = run([sys.executable, "-W", "error", program.name], tmp_path)

    assert (done.returncode, unexpected(done.stderr)) == (0, [])
    if block.output is not None:
        assert done.stdout == block.output


@pytest.mark.parametrize("block", [block for block in PYTHON if block not in programs()], ids=str)
def test_a_fragment_of_the_guide_is_python(block: Block) -> None:
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    lost: list[str] = []
    for target in links(page):
        name, _, anchor = target.partition("#")
        to = (page.parent / name).resolve() if name else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            lost.append(target)
    assert lost == []


def test_every_public_name_is_told_of_in_guide_or_reference() -> None:
    told = "\n".join(
        page.read_text(encoding="utf-8") for page in pages() if page.parent.name in {"guide", "reference"}
    )
    words = set(re.findall(r"\w+", told))
    assert {*brokerkit.__all__, *patterns.__all__} <= words


def test_every_error_is_in_the_reference_with_its_code() -> None:
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE))
    assert rows == {**codes(), "TooNew": copies.TooNew.code}


def test_every_error_says_in_the_reference_whether_it_may_pass() -> None:
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `\w+` \| (yes|no) \|", text, re.MULTILINE))
    assert {name: answer == "yes" for name, answer in rows.items() if name != "TooNew"} == {
        name: getattr(errors, name).retryable for name in codes()
    }


def test_the_headers_of_the_reference_are_those_of_the_code() -> None:
    text = (REFERENCE / "headers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(bk-[a-z]+)` \|", text, re.MULTILINE)) == copies.OURS


def test_every_argument_of_the_bus_and_of_the_patterns_is_in_the_settings() -> None:
    text = (REFERENCE / "settings.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    functions: list[Callable[..., object]] = [
        brokerkit.Bus.__init__,
        brokerkit.Bus.subscriber,
        brokerkit.Bus.publish,
        patterns.bulkhead,
        patterns.dedupe,
        patterns.inbox,
        patterns.retry,
        patterns.sql_store,
        patterns.timeout,
    ]
    arguments = {name for function in functions for name in inspect.signature(function).parameters}
    assert arguments - {"self", "options"} <= told


def test_the_pages_name_no_machine() -> None:
    told = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    assert re.findall(r"/(?:work|home|root|Users)/\w+", told) == []
