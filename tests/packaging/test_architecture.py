import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
CORE: Final = sorted((ROOT / "brokerkit").glob("*.py"))
ADAPTERS: Final = sorted(path.parent for path in (ROOT / "adapters").glob("*/__init__.py"))
PATTERNS: Final = sorted(
    path
    for path in (ROOT / "patterns").iterdir()
    if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
)
CLIENTS: Final = {
    "aiokafka": {"kafka"},
    "confluent_kafka": {"kafka"},
    "aio_pika": {"rabbitmq"},
    "aiormq": {"rabbitmq"},
    "pamqp": {"rabbitmq"},
    "nats": {"nats"},
    "aiohttp": {"sqs"},
    "botocore": {"sqs"},
    "aiosqlite": {"sqlite"},
}
"""Each broker's client library, and the adapters that may import it; nothing else of the package may."""

ALSO_ALLOWED: Final = {"aiosqlite": {"patterns"}, "aiohttp": {"contrib"}}
"""Libraries that are more than a broker's client, and the other parts that may use them."""


def imports_of(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


def offenders(files: list[Path], *forbidden: str) -> list[str]:
    """Return the imports in `files` of a forbidden package or of anything below it."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports_of(path)
        if any(name == package or name.startswith(f"{package}.") for package in forbidden)
    ]


def part_of(path: Path) -> tuple[str, str]:
    """Return the top-level part of a source file and the name below it: `("adapters", "kafka")`."""
    top, below = path.relative_to(ROOT).parts[:2]
    return (below, "") if top == "brokerkit" else (top, below.removesuffix(".py"))


def source_files() -> list[Path]:
    """Return every file of the package once: the symlinked twins are left out, their targets are in."""
    own = [path for path in (ROOT / "brokerkit").rglob("*.py") if path.resolve() == path]
    return sorted({*own, *(ROOT / "adapters").rglob("*.py"), *(ROOT / "patterns").rglob("*.py")})


@pytest.mark.parametrize("module", CORE, ids=lambda path: path.stem)
def test_a_core_module_imports_neither_adapters_nor_patterns(module: Path) -> None:
    assert offenders([module], "brokerkit.adapters", "brokerkit.patterns", "adapters", "patterns") == []


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda path: path.name)
def test_an_adapter_imports_no_other_adapter_and_no_pattern(adapter: Path) -> None:
    others = [f"brokerkit.adapters.{other.name}" for other in ADAPTERS if other != adapter]

    assert offenders(files_of(adapter), "brokerkit.patterns", *others) == []


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda path: path.stem)
def test_a_pattern_imports_no_other_pattern_and_no_adapter(pattern: Path) -> None:
    others = [
        f"brokerkit.patterns.{other.stem}"
        for other in PATTERNS
        if other != pattern and not other.stem.startswith("_")  # what they share
    ]

    assert offenders(files_of(pattern), "brokerkit.adapters", *others) == []


@pytest.mark.parametrize("client", sorted(CLIENTS))
def test_only_its_own_adapter_imports_a_client_library(client: str) -> None:
    strangers = [
        path
        for path in source_files()
        if not (part_of(path)[0] == "adapters" and part_of(path)[1] in CLIENTS[client])
        and part_of(path)[0] not in ALSO_ALLOWED.get(client, set())
    ]

    assert offenders(strangers, client) == []


def test_only_the_command_line_imports_click_and_rich() -> None:
    assert offenders([path for path in source_files() if part_of(path)[0] != "cli"], "click", "rich") == []


def test_only_the_test_kit_imports_test_libraries() -> None:
    others = [path for path in source_files() if part_of(path)[0] != "testing"]

    assert offenders(others, "pytest", "pytest_asyncio", "hypothesis", "_pytest") == []


def test_nothing_imports_the_tests_or_unpickles() -> None:
    assert offenders(source_files(), "tests", "pickle", "shelve", "marshal") == []


LOADED_BY_HELP: Final = """
import contextlib, io, json, sys
before = set(sys.modules)
sys.argv = ["brokerkit", "--help"]
with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
    from brokerkit.cli import main
    main()
print(json.dumps({"said": said.getvalue(), "loaded": sorted(set(sys.modules) - before)}))
"""


def test_help_imports_only_the_standard_library_click_and_the_command_line() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    run = subprocess.run(
        [sys.executable, "-c", LOADED_BY_HELP],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    answer = json.loads(run.stdout)

    foreign = [
        name
        for name in answer["loaded"]
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "click", "colorama"}
        and name != "brokerkit"
        and not f"{name}.".startswith("brokerkit.cli.")
    ]
    assert "Usage" in answer["said"]
    assert foreign == []
