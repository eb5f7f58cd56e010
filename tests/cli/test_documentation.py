import doctest
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
import pytest

from brokerkit.cli.exits import Exit
from brokerkit.cli.root import cli
from brokerkit.cli.settings import GlobalOption

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "command-line.md"
TEXT: Final = PAGE.read_text("utf-8")
FILE: Final = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)```", re.DOTALL)
SESSION: Final = re.compile(r"<!-- run(?:: with dead letters ([^>]*))? -->\n```console\n(.*?)```", re.DOTALL)
SECTIONS: Final = ["run", "publish", "tail", "dlq", "provision", "conformance", "sandbox"]


def steps(session: str) -> list[tuple[str, str]]:
    """Return the commands of a console session, each with what it prints."""
    parts = re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]
    return [(command, printed) for command, _, printed in (part.partition("\n") for part in parts)]


def in_one_shell(commands: list[str]) -> list[str]:
    """Run commands one after the other in one shell and return what each printed, stdout and stderr as they came."""
    mark = "-- end of a command --"
    script = "\n".join(f"{{ {command}\n}} 2>&1 || echo failed\necho '{mark}'" for command in commands)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return [part.lstrip("\n") for part in done.stdout.split(mark)[:-1]]


@pytest.mark.parametrize("number", range(len(SESSION.findall(TEXT))))
def test_the_examples_of_the_page_print_what_it_says(number: int, dead_letters: Callable[..., None]) -> None:
    for name, source in FILE.findall(TEXT):
        Path(name).write_text(source, "utf-8")
    ids, session = SESSION.findall(TEXT)[number]
    if ids:
        dead_letters(*ids.split())
    expected = steps(session)
    printed = in_one_shell([command for command, _ in expected])

    check = doctest.OutputChecker().check_output
    for (command, want), got in zip(expected, printed, strict=True):
        assert check(want, got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), f"$ {command}\n{got}"


def section(name: str) -> str:
    found = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("name", SECTIONS)
def test_every_flag_of_a_command_is_on_the_page(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    commands = list(command.commands.values()) if isinstance(command, click.Group) else [command]

    for each in commands:
        for param in each.params:
            if isinstance(param, click.Option) and not isinstance(param, GlobalOption):
                assert f"`{param.opts[0]}" in section(name), f"{each.name} {param.opts[0]}"


def test_every_global_flag_and_its_variable_is_on_the_page() -> None:
    page = section("Global flags")
    for param in cli.params:
        assert param.opts[-1] in page
        if isinstance(param, GlobalOption):
            assert f"`BROKERKIT_{(param.name or '').upper()}`" in page


def test_every_exit_code_is_on_the_page() -> None:
    assert [
        int(code) for code in re.findall(r"^\| (\d+) \|", section("Global flags"), re.MULTILINE)
    ] == sorted(Exit)
