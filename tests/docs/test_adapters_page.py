"""The page for adapter authors: its adapter is judged by both suites, its excerpts exist, its lists are whole."""

import importlib.metadata
import inspect
import re
import sys
import textwrap
import tomllib
from dataclasses import fields
from types import ModuleType

import pytest

from brokerkit import adapter, errors
from brokerkit.adapter import Capabilities
from brokerkit.testing.conformance import LIMITS, AdapterConformance, BusConformance, Harness
from tests.docs.pages import ROOT, Block, blocks

PAGE = ROOT / "docs" / "adapters.md"
TEXT = PAGE.read_text(encoding="utf-8")
LINES = TEXT.splitlines()
SOURCE = re.compile(r"<!-- from: (\S+) -->")


def source_of(block: Block) -> str | None:
    found = SOURCE.fullmatch(LINES[block.line - 2])
    return None if found is None else found[1]


PYTHON = [block for block in blocks(PAGE) if block.info == "python"]
EXCERPTS = [block for block in PYTHON if source_of(block) is not None]
PROGRAMS = [block for block in PYTHON if source_of(block) is None]
NAME = "brokerkit_toy"
GROUP = "brokerkit.adapters"


def module_of(block: Block, name: str) -> ModuleType:
    """Import a block; its line numbers are those of the page."""
    module = ModuleType(name)
    module.__file__ = str(PAGE)
    sys.modules[name] = module
    exec(compile("\n" * block.line + block.text, str(PAGE), "exec"), module.__dict__)
    return module


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install what the page's pyproject says, as far as `open_adapter` looks, beside what is there."""
    (toml,) = [block.text for block in blocks(PAGE) if block.info == "toml"]
    table: dict[str, str] = tomllib.loads(toml)["project"]["entry-points"][GROUP]
    entries = [importlib.metadata.EntryPoint(name, value, GROUP) for name, value in table.items()]
    entries += importlib.metadata.entry_points(group=GROUP)

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        assert group == GROUP
        return entries

    monkeypatch.setattr(adapter, "entry_points", entry_points)


(_toy,) = [block for block in PROGRAMS if "class ToyAdapter:" in block.text]
(_harness,) = [block for block in PROGRAMS if "class ToyHarness:" in block.text]
module_of(_toy, NAME)
HARNESS = module_of(_harness, "brokerkit_toy_tests").ToyHarness


@pytest.mark.conformance
class TestToy(AdapterConformance):
    @pytest.fixture
    def harness(self) -> Harness:
        harness: Harness = HARNESS()
        return harness


@pytest.mark.conformance
class TestToyBus(BusConformance):
    @pytest.fixture
    def harness(self) -> Harness:
        harness: Harness = HARNESS()
        return harness


@pytest.mark.parametrize("block", [each for each in PROGRAMS if each not in (_toy, _harness)], ids=str)
def test_a_program_of_the_page_runs(block: Block) -> None:
    module_of(block, "brokerkit_adapters_page")


@pytest.mark.parametrize("block", EXCERPTS, ids=str)
def test_an_excerpt_stands_in_its_file(block: Block) -> None:
    source = (ROOT / str(source_of(block))).read_text(encoding="utf-8")
    excerpt = textwrap.dedent(block.text)
    assert any(
        textwrap.dedent(part) == excerpt
        for part in _parts(source, excerpt.count("\n"), excerpt.split("\n")[0])
    )


def _parts(source: str, count: int, first: str) -> list[str]:
    lines = source.splitlines(keepends=True)
    return ["".join(lines[at : at + count]) for at, line in enumerate(lines) if line.strip() == first.strip()]


def test_every_module_of_the_worked_example_is_told_of() -> None:
    walk = TEXT.partition("## The worked example")[2].partition("## Checklist")[0]
    modules = {path.name for path in (ROOT / "adapters" / "sqlite").glob("*.py")}
    unimportant = {"__init__.py", "desk.py", "statements.py"}
    assert modules - unimportant <= set(re.findall(r"\w+\.py", walk))


def test_every_capability_limit_and_protocol_is_in_its_table() -> None:
    cells = set(re.findall(r"^\| `([\w-]+)` \|", TEXT, re.MULTILINE))
    assert {field.name for field in fields(Capabilities)} <= cells
    assert set(LIMITS) <= cells
    assert {"Marks", "Measures", "Browses", "Provisions", "Describes", "Identifies"} <= cells


def test_every_error_that_an_adapter_gives_is_in_the_table() -> None:
    table = TEXT.partition("## Errors")[2].partition("## Limits")[0]
    told = set(re.findall(r"`(\w+)`", table))
    # `BadKey` and `LoopDetected` are the publisher's
    ours = {name for name, each in vars(errors).items() if inspect.isclass(each) and _is_adapters(each)}
    assert ours - {"SendError", "SettleError", "BadKey", "LoopDetected"} <= told


def _is_adapters(error: type) -> bool:
    return issubclass(error, errors.SendError | errors.SettleError | errors.Unsupported)
