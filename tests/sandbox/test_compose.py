"""Containers: the file is right, and docker is asked the right things. No engine is needed."""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from brokerkit.sandbox import SERVERS, NotReady, SandboxError, elasticmq, kafka, moto
from brokerkit.sandbox import nats as nats_server
from brokerkit.sandbox.compose import FILE, URLS, Compose

ROOT = Path(__file__).parents[2]

TEXT = FILE.read_text("utf-8")


def service(name: str) -> str:
    """Return the part of the file that describes a service."""
    found = re.search(rf"^  {name}:.*?(?=^  \w+:|^\w+:)", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0]


def test_the_file_at_the_root_is_the_one_that_ships() -> None:
    assert (ROOT / "docker-compose.yml").read_text("utf-8") == TEXT


def test_the_file_keeps_the_schema_of_compose() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", FILE],
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_a_service_on_loopback_with_a_health_check_at_the_address_that_is_told(name: str) -> None:
    (host, port) = re.findall(r"([\d.]+):(\d+)", URLS[name])[0]

    assert f'"{host}:{port}:' in service(name)
    assert host == "127.0.0.1"
    assert "healthcheck:" in service(name)
    assert f"profiles: [{name}, all]" in service(name)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("kafka", kafka.VERSION),
        ("nats", nats_server.VERSION),
        ("sqs", elasticmq.VERSION),
        ("sns", moto.VERSION),
    ],
)
def test_the_image_and_the_native_server_have_the_same_version(name: str, version: str) -> None:
    assert re.search(rf"image: \S+:{re.escape(version)}(-alpine)?\s", service(name))


Docker = Callable[[str], Path]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    """Put a docker on the PATH that notes its arguments, one call a line, and then does what the script says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(folder))

    def write(script: str) -> Path:
        calls = tmp_path / "calls"
        program = folder / "docker"
        program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\n{script}\n', "utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return calls

    return write


def listing(**more: str) -> str:
    return json.dumps(
        {"Service": "nats", "State": "running", "Health": "healthy", "Image": "nats:2.15.2-alpine", **more}
    )


def test_without_docker_no_engine_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert not Compose.answers()
    with pytest.raises(SandboxError, match="docker is missing; install a container engine"):
        Compose(print).statuses()


@pytest.mark.parametrize(
    ("script", "answers"),
    [
        ("exit 0", True),
        ("exit 1", False),
        ('[ "$1" = compose ]', False),  # a client without an engine
        ('[ "$1" = version ]', False),  # an engine without compose
    ],
)
def test_an_engine_answers_if_both_compose_and_engine_do(script: str, answers: bool, docker: Docker) -> None:
    docker(script)

    assert Compose.answers() == answers


def test_up_waits_for_the_health_check(docker: Docker) -> None:
    calls = docker("exit 0")
    Compose(print).up("nats", 7)

    expected = f"compose --file {FILE} --profile all up --detach --wait --wait-timeout 7 nats\n"
    assert calls.read_text("utf-8") == expected


def test_a_container_that_does_not_become_healthy_is_not_ready(docker: Docker) -> None:
    docker("echo 'container nats is unhealthy' >&2; exit 1")

    with pytest.raises(
        NotReady, match="nats did not become healthy in a container: container nats is unhealthy"
    ):
        Compose(print).up("nats")


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (listing(), "running"),
        (f"[{listing()}]", "running"),
        (listing(Health="starting"), "starting"),
        (listing(State="paused"), "frozen"),
        (json.dumps({**json.loads(listing(State="exited")), "ExitCode": 137}), "crashed"),
        (json.dumps({**json.loads(listing(State="exited")), "ExitCode": 0}), "stopped"),
    ],
)
def test_a_container_is_told_of_as_a_server(said: str, state: str, docker: Docker) -> None:
    docker(f"echo '{said}'")
    (status,) = Compose(print).statuses()

    assert (status.name, status.state, status.url) == ("nats", state, URLS["nats"])
    assert status.version == "2.15.2-alpine"


def test_down_names_those_that_ran_and_keeps_the_volumes_unless_told_otherwise(docker: Docker) -> None:
    calls = docker(f"case \"$*\" in *' ps '*) echo '{listing()}';; esac")
    compose = Compose(print)

    assert compose.down((), ephemeral=False) == ["nats"]
    compose.down((), ephemeral=True)
    compose.down(("nats",), ephemeral=True)

    assert [call.partition("--profile all ")[2] for call in calls.read_text("utf-8").splitlines()[1::2]] == [
        "down",
        "down --volumes",
        "rm --stop --force --volumes nats",
    ]


def test_what_docker_refuses_is_an_error_with_its_words(docker: Docker) -> None:
    docker("echo 'no such service' >&2; exit 1")

    with pytest.raises(SandboxError, match="docker compose logs failed: no such service"):
        Compose(print).logs("nats", 5)
