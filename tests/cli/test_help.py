import importlib.util
import json
import os
import subprocess
import sys
from typing import Final

import click
import pytest

from brokerkit.cli.root import COMMANDS, cli
from tests.cli.conftest import Brokerkit

HERE: Final = [name for name, lazy in COMMANDS.items() if importlib.util.find_spec(lazy.module)]
OURS: Final = [
    ("run",),
    ("publish",),
    ("tail",),
    ("dlq",),
    ("dlq", "groups"),
    ("dlq", "list"),
    ("dlq", "show"),
    ("dlq", "redrive"),
    ("dlq", "discard"),
    ("provision",),
    ("conformance",),
    ("sandbox",),
    ("sandbox", "up"),
    ("sandbox", "down"),
    ("sandbox", "status"),
    ("sandbox", "env"),
    ("sandbox", "logs"),
    ("sandbox", "reset"),
    ("sandbox", "install"),
]


def test_the_help_lists_every_command(brokerkit: Brokerkit) -> None:
    done = brokerkit("--help")

    assert done.code == 0
    for name, lazy in COMMANDS.items():
        assert f"  {name} " in done.out
        assert lazy.help in done.out


@pytest.mark.parametrize("name", HERE)
def test_a_command_that_is_listed_is_there(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)

    assert command is not None
    assert command.name == name


@pytest.mark.parametrize("words", [(), *OURS], ids=" ".join)
def test_a_help_opens_with_examples_and_tells_the_variables(
    words: tuple[str, ...], brokerkit: Brokerkit
) -> None:
    said = brokerkit(*words, "-h").out
    examples = said.index("Examples:")

    assert examples < said.index("Flags:") < said.index("Global flags:")
    assert said.count("brokerkit", examples, said.index("Flags:")) >= 2
    assert "BROKERKIT_URL for --url" in said


@pytest.mark.parametrize("words", [(), ("dlq",), ("sandbox",)], ids=" ".join)
def test_a_group_without_a_command_shows_its_help_as_a_wrong_usage(
    words: tuple[str, ...], brokerkit: Brokerkit
) -> None:
    done = brokerkit(*words)

    assert (done.code, done.out) == (2, "")
    assert "Commands:\n" in done.err


def test_help_imports_no_command_and_nothing_that_a_command_needs() -> None:
    script = (
        "import contextlib, io, json, sys\nsys.argv = ['brokerkit', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    from brokerkit.cli import main\n    main()\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    loaded = set(json.loads(run.stdout))

    assert loaded.isdisjoint({"rich", "pydantic", "asyncio", "brokerkit.bus", "brokerkit.errors"})
    assert loaded.isdisjoint(lazy.module for lazy in COMMANDS.values())


def test_the_version_is_printed(brokerkit: Brokerkit) -> None:
    done = brokerkit("--version")

    assert done.code == 0
    assert done.out.startswith("brokerkit 0.")


@pytest.mark.parametrize(
    ("arguments", "named", "nearest"),
    [
        (("tial", "orders"), "'tial'", "'tail'"),
        (("dlq", "redrve"), "'redrve'", "'redrive'"),
        (("tail", "orders", "--cout", "1"), "--cout", "--count"),
        (("-o", "jsn", "tail", "orders"), "'jsn'", "'json'"),
        (("publish", "orders", "{}", "--envelope", "binry"), "'binry'", "'binary'"),
    ],
)
def test_a_wrong_word_gets_the_nearest_right_one(
    arguments: tuple[str, ...], named: str, nearest: str, brokerkit: Brokerkit
) -> None:
    done = brokerkit(*arguments)

    assert done.code == 2
    assert done.out == ""
    assert named in done.err
    assert nearest in done.err
    assert done.err.count("\n") == 1


def flags_of(command: click.Command) -> list[click.Option]:
    inner = (
        [each for sub in command.commands.values() for each in flags_of(sub)]
        if isinstance(command, click.Group)
        else []
    )
    return [param for param in command.params if isinstance(param, click.Option)] + inner


def test_a_variable_is_called_as_its_flag() -> None:
    for name in ("run", "publish", "tail", "dlq", "sandbox"):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for flag in flags_of(command):
            assert f"--{flag.name}".replace("_", "-") in flag.opts


def test_a_global_flag_may_stand_before_or_after_the_command(brokerkit: Brokerkit, url: str) -> None:
    before = brokerkit("--url", url, "-o", "json", "publish", "orders", "1", "--type", "t")
    after = brokerkit("publish", "orders", "1", "--type", "t", "-b", url, "-o", "json")

    assert before.code == after.code == 0
    assert len(before.items) == len(after.items) == 1


def test_every_flag_has_a_variable_and_the_flag_wins(
    brokerkit: Brokerkit, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKERKIT_PUBLISH_TYPE", "from.variable")
    monkeypatch.setenv("BROKERKIT_OUTPUT", "json")
    with_variable = brokerkit("publish", "orders", "1", "--url", url)
    with_flag = brokerkit("publish", "orders", "1", "--url", url, "--type", "from.flag")

    assert with_variable.items[0]["type"] == "from.variable"
    assert with_flag.items[0]["type"] == "from.flag"


def test_a_flag_wins_over_the_variable_of_the_broker(
    brokerkit: Brokerkit, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKERKIT_URL", "nowhere://example")

    assert brokerkit("publish", "orders", "1", "--type", "t").code == 2
    monkeypatch.setenv("BROKERKIT_URL", "nowhere://example")
    assert brokerkit("publish", "orders", "1", "--type", "t", "--url", url).code == 0
