import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from brokerkit.sandbox import SetupFailed, tools
from brokerkit.sandbox.cache import Cache
from brokerkit.sandbox.tools import Tools, last_lines

Program = Callable[[str, str], Path]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def kit(tmp_path: Path, said: list[str]) -> Tools:
    return Tools(Cache(tmp_path / "cache"), said.append)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Put a script on a PATH on which nothing but the shell's tools is found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for needed in ("sh", "cat", "mkdir", "cp", "env"):
        (folder / needed).symlink_to(f"/bin/{needed}")
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return write


def test_a_program_is_looked_for_in_its_own_folder_before_the_path(
    kit: Tools, program: Program, tmp_path: Path
) -> None:
    on_the_path = program("server", "exit 0")
    own = tmp_path / "own"
    own.mkdir()

    assert kit.program("server", package="server", where=[own]) == on_the_path
    on_the_path.rename(own / "server")
    assert kit.program("server", package="server", where=[own]) == own / "server"


def test_who_may_install_nothing_is_told_what_to_run(
    kit: Tools, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    program("apt-get", "exit 0")

    with pytest.raises(SetupFailed, match="setup failed: epmd is missing; apt-get install erlang-base"):
        kit.program("epmd", package="erlang-base")


@pytest.mark.parametrize("policy", [True, False], ids=["with a policy", "without"])
def test_root_gets_the_package_and_its_service_does_not_start(
    policy: bool,
    kit: Tools,
    program: Program,
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "policy-rc.d"
    if policy:
        file.write_text("of somebody else", "ascii")
    monkeypatch.setattr(tools, "_POLICY", file)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    cat = f"cat {file} >> {tmp_path / 'policies'}"
    program("apt-get", f"{cat}\ncp {program('template', 'exit 0')} {tmp_path / 'bin' / 'server'}")

    assert kit.program("server", package="the-server") == tmp_path / "bin" / "server"
    assert "apt-get install" in said[1]
    assert said[1].endswith("the-server")
    assert ("exit 101" in (tmp_path / "policies").read_text("ascii")) != policy
    assert file.exists() == policy


def test_a_package_that_cannot_be_installed_says_what_apt_said_last(
    kit: Tools, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "_POLICY", tmp_path / "policy")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program("apt-get", "echo no such package; exit 100")

    with pytest.raises(
        SetupFailed, match=r"server .* could not be installed .no such package.; apt-get install x"
    ):
        kit.program("server", package="x")
    assert not (tmp_path / "policy").exists()


def test_an_old_java_is_refused_by_name(
    kit: Tools, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    program("java", "echo 'openjdk version \"11.0.2\"' >&2")

    with pytest.raises(SetupFailed, match=r"Java 17 or newer is missing \(.*java is 11\)"):
        kit.java()


def test_jars_are_copied_once_for_their_coordinates(kit: Tools, program: Program) -> None:
    program(
        "mvn",
        'for word in "$@"; do case $word in -DoutputDirectory=*) mkdir -p "${word#*=}"; cp "$4" "${word#*=}";; esac; done',
    )

    jars = kit.maven("kafka-1", ["org.example:kafka:1.0"])

    pom = (jars / "pom.xml").read_text("utf-8")
    assert "<groupId>org.example</groupId><artifactId>kafka</artifactId><version>1.0</version>" in pom
    program("mvn", "exit 1")
    assert kit.maven("kafka-1", ["org.example:kafka:1.0"]) == jars


def test_a_download_that_fails_is_a_failed_set_up(kit: Tools, program: Program) -> None:
    program("mvn", "echo unknown host; exit 1")

    with pytest.raises(
        SetupFailed, match=r"setup failed: the jars of kafka-1 could not be installed \(unknown host\)"
    ) as caught:
        kit.maven("kafka-1", ["org.example:kafka:1.0"])
    assert caught.value.do.startswith("check that Maven can reach its repository: ")


def test_a_download_that_hangs_is_a_failed_set_up(
    kit: Tools, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "_DOWNLOAD", 0.05)
    program("mvn", "exec cat /dev/zero > /dev/null")

    with pytest.raises(SetupFailed, match="took longer than"):
        kit.maven("kafka-1", ["org.example:kafka:1.0"])


def test_a_go_that_is_new_enough_is_used(
    kit: Tools, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(names: list[str], where: list[Path]) -> Path | None:
        return found_at if names == ["go"] else None

    found_at = program(
        "go", 'case $1 in version) echo go version go1.26.1;; *) cp "$0" "$GOBIN/nats-server";; esac'
    )
    monkeypatch.setattr(tools, "_find", found)

    assert (kit.go("nats-1", "example.org/nats@v1") / "nats-server").exists()


def test_an_old_go_is_replaced_by_a_newer_one_out_of_a_wheel(
    kit: Tools, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[tuple[str, ...]] = []

    def python(name: str, *requirements: str) -> Path:
        wanted.append((name, *requirements))
        return tmp_path / "venv" / "bin" / "python"

    old, new = program("old-go", "echo go version go1.19.8"), program("go", 'cp "$0" "$GOBIN/nats-server"')
    inside = tmp_path / "venv" / "lib" / "python3.11" / "site-packages" / "go" / "bin"
    inside.mkdir(parents=True)
    new.rename(inside / "go")

    def found(names: list[str], where: list[Path]) -> Path:
        return old

    monkeypatch.setattr(tools, "_find", found)
    monkeypatch.setattr(kit, "python", python)

    assert (kit.go("nats-1", "example.org/nats@v1") / "nats-server").exists()
    assert wanted == [("go", tools.GO_WHEEL)]


def test_the_last_lines_of_a_log_leave_out_the_empty_ones(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\n\ntwo\nthree\n\n", "utf-8")

    assert last_lines(log, 2) == "two | three"
