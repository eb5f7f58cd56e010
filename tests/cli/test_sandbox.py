import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from brokerkit.sandbox import Sandbox, sandbox
from brokerkit.sandbox.recipe import Recipe
from tests.cli.conftest import Brokerkit
from tests.sandbox.recipes import Small


class Other(Small):
    name: ClassVar[str] = "other"


@pytest.fixture(autouse=True)
def servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Two servers of a few lines instead of the real ones, and no container engine."""
    recipes: dict[str, Recipe] = {"small": Small(), "other": Other()}
    monkeypatch.setattr(sandbox, "_RECIPES", recipes)
    monkeypatch.setattr(sandbox, "SERVERS", tuple(recipes))
    monkeypatch.setattr("brokerkit.sandbox.SERVERS", tuple(recipes))
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "docker").write_text("#!/bin/sh\nexit 1\n", "ascii")
    (programs / "docker").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("BROKERKIT_CACHE", str(tmp_path / "cache"))
    yield
    Sandbox().down("small", "other", ephemeral=True)


def test_up_tells_where_the_servers_are(brokerkit: Brokerkit) -> None:
    done = brokerkit("sandbox", "up", "-o", "json")

    assert done.code == 0
    assert [(item["server"], item["state"]) for item in done.items] == [
        ("small", "running"),
        ("other", "running"),
    ]


def test_a_second_up_leaves_the_server_alone(brokerkit: Brokerkit) -> None:
    first = brokerkit("sandbox", "up", "small", "-o", "json")
    second = brokerkit("sandbox", "up", "small", "-o", "json")

    assert first.items == second.items


def test_env_is_for_a_shell_or_for_a_program(brokerkit: Brokerkit) -> None:
    (item,) = brokerkit("sandbox", "up", "small", "-o", "json").items

    assert brokerkit("sandbox", "env").out == f"export BROKERKIT_SMALL_URL={item['url']}\n"
    assert brokerkit("sandbox", "env", "-o", "json").items == [
        {"name": "BROKERKIT_SMALL_URL", "value": item["url"]}
    ]


def test_env_of_what_does_not_run_is_a_failure_without_a_line_to_evaluate(brokerkit: Brokerkit) -> None:
    done = brokerkit("sandbox", "env", "small")

    assert (done.code, done.out) == (1, "")
    assert "small does not run; brokerkit sandbox up small" in done.err


def test_status_says_by_its_code_how_many_run(brokerkit: Brokerkit) -> None:
    assert brokerkit("sandbox", "status").code == 0
    assert brokerkit("sandbox", "status", "small").code == 1
    brokerkit("sandbox", "up")
    assert brokerkit("sandbox", "status").code == 0

    Sandbox().server("other").kill()
    done = brokerkit("sandbox", "status", "-o", "json")

    assert done.code == 3
    assert [item["state"] for item in done.items] == ["running", "crashed"]


def test_down_stops_what_runs_and_keeps_its_data(brokerkit: Brokerkit) -> None:
    brokerkit("sandbox", "up", "small")
    done = brokerkit("sandbox", "down", "small", "other", "-o", "json")

    assert [item["result"] for item in done.items] == ["stopped", "not_running"]
    assert Path(".brokerkit", "sandbox", "small", "data").is_dir()
    assert "nothing runs" in brokerkit("sandbox", "down").err


def test_what_was_up_for_the_moment_leaves_no_data(brokerkit: Brokerkit) -> None:
    brokerkit("sandbox", "up", "small", "--ephemeral")
    brokerkit("sandbox", "down")

    assert not Path(".brokerkit", "sandbox", "small").exists()


def test_one_that_fails_harms_no_other(brokerkit: Brokerkit) -> None:
    done = brokerkit("sandbox", "up", "--setting", "small.mode=ends", "-o", "json")

    assert done.code == 3
    assert [item["server"] for item in done.items] == ["other"]
    assert "brokerkit: small ended while it was starting: out of cheese" in done.err


def test_a_server_that_does_not_answer_in_time_is_a_time_out(brokerkit: Brokerkit) -> None:
    done = brokerkit("sandbox", "up", "small", "--setting", "small.mode=sick", "--timeout", "0.5")

    assert done.code == 124
    assert "small runs and is not ready" in done.err


@pytest.mark.parametrize("setting", ["small", "small=1", "small.=1", "none.a=1"])
def test_a_setting_names_its_server(setting: str, brokerkit: Brokerkit) -> None:
    done = brokerkit("sandbox", "up", "small", "--setting", setting)

    assert done.code == 2
    assert "write SERVER.KEY=VALUE" in done.err


def test_a_server_that_there_is_not_gets_the_nearest(brokerkit: Brokerkit) -> None:
    done = brokerkit("sandbox", "up", "smal")

    assert (done.code, done.out) == (2, "")
    assert "no server 'smal'; did you mean 'small'?" in done.err


def test_containers_that_cannot_be_had_are_refused(brokerkit: Brokerkit) -> None:
    done = brokerkit("sandbox", "up", "small", "--engine", "compose")

    assert done.code == 6
    assert "say --engine native" in done.err


def test_logs_prints_the_last_lines(brokerkit: Brokerkit) -> None:
    brokerkit("sandbox", "up", "small", "--setting", "small.mode=ends")

    assert brokerkit("sandbox", "logs", "small", "--lines", "1").out == "out of cheese\n"
    assert brokerkit("sandbox", "logs", "other").code == 1


def test_reset_wants_a_yes_and_then_leaves_nothing(brokerkit: Brokerkit) -> None:
    brokerkit("sandbox", "up", "small")
    place = Path(".brokerkit", "sandbox", "small")

    assert brokerkit("sandbox", "reset").code == 6
    assert brokerkit("sandbox", "reset", "--dry-run", "-o", "json").items == [
        {"server": "small", "result": "would_reset"}
    ]
    assert place.is_dir()
    assert brokerkit("sandbox", "reset", "--yes").code == 0
    assert not place.exists()


def test_install_names_the_versions(brokerkit: Brokerkit) -> None:
    done = brokerkit("sandbox", "install", "-o", "json")

    assert done.items == [{"server": "small", "version": "1.0"}, {"server": "other", "version": "1.0"}]


def test_an_installation_that_fails_says_what_to_run(
    brokerkit: Brokerkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(recipe: Small, tools: Any) -> None:
        from brokerkit.sandbox import SetupFailed

        what = "the jars of small"
        raise SetupFailed(what, "call a friend")

    monkeypatch.setattr(Other, "install", fail)
    done = brokerkit("sandbox", "install")

    assert done.code == 3
    assert "setup failed: the jars of small; call a friend" in done.err


def test_the_folder_keeps_itself_out_of_a_repository(brokerkit: Brokerkit) -> None:
    brokerkit("sandbox", "up", "small")

    assert Path(".brokerkit", ".gitignore").read_text("ascii") == "*\n"


def test_a_folder_can_be_named_once_for_all_commands(
    brokerkit: Brokerkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BROKERKIT_SANDBOX_FOLDER", str(tmp_path / "elsewhere"))
    brokerkit("sandbox", "up", "small", "--ephemeral")

    assert (tmp_path / "elsewhere" / "small").is_dir()
    assert brokerkit("sandbox", "down").code == 0
    assert not (tmp_path / "elsewhere" / "small").exists()
