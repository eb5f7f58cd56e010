"""
The same servers in containers, by docker compose, where a container engine answers.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from brokerkit.sandbox.errors import NotReady, SandboxError, SetupFailed
from brokerkit.sandbox.recipe import PASSWORD, USER
from brokerkit.sandbox.server import State, Status

__all__ = ["FILE", "URLS", "Compose"]

FILE: Final = Path(__file__).with_name("docker-compose.yml")
"""The file that ships with the package; the project has the same at its root."""

URLS: Final = {
    "kafka": "kafka://127.0.0.1:9092",
    "rabbitmq": f"amqp://{USER}:{PASSWORD}@127.0.0.1:5672/",
    "nats": "nats://127.0.0.1:4222",
    "sqs": "sqs://127.0.0.1:9324",
    "sns": "http://127.0.0.1:5000",
    "postgres": f"postgresql://{USER}:{PASSWORD}@127.0.0.1:5432/{USER}",
    "redis": "redis://127.0.0.1:6379/0",
}
"""Where the services of the file are reached; its ports are fixed."""

_PATIENCE: Final = 300
"""Seconds for a start, with the download of an image."""

_QUESTION: Final = 20.0
"""Seconds for an answer of the engine itself; one that hangs is one that is not there."""


class Compose:
    """
    The services of our `docker-compose.yml`.

    say: gets a line before what takes long. Every method raises `SandboxError` with the last words of docker.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    @staticmethod
    def answers() -> bool:
        """Return whether docker, its compose, and the engine behind it are all there; a client alone is not enough."""
        docker = shutil.which("docker")
        if docker is None:
            return False
        for words in (("compose", "version"), ("version", "--format", "{{.Server.Version}}")):
            try:
                asked = subprocess.run(  # noqa: S603 - our own words
                    [docker, *words],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                    timeout=_QUESTION,
                )
            except subprocess.TimeoutExpired:
                return False
            if asked.returncode:
                return False
        return True

    def up(self, name: str, timeout: float | None = None) -> None:
        """Start a service and wait until its health check passes. Raises `NotReady` if that takes too long."""
        seconds = _PATIENCE if timeout is None else max(1, round(timeout))
        self._say(f"starting {name} in a container")
        done = self._docker("up", "--detach", "--wait", "--wait-timeout", str(seconds), name)
        if done.returncode:
            message = f"{name} did not become healthy in a container: {_last(done.stderr)}"
            raise NotReady(message)

    def down(self, names: Sequence[str], *, ephemeral: bool) -> list[str]:
        """Stop and remove containers, with `ephemeral` their volumes too; return the names of those that ran."""
        ran = [each.name for each in self.statuses(*names) if each.state in {"running", "starting", "frozen"}]
        if names:
            words = ["rm", "--stop", "--force", *(["--volumes"] if ephemeral else []), *names]
        else:
            words = ["down", *(["--volumes"] if ephemeral else [])]
        self._checked(*words)
        return ran

    def statuses(self, *names: str) -> list[Status]:
        """Return how the named services are, or all that have a container."""
        listed = self._checked("ps", "--all", "--format", "json")
        found = {each["Service"]: each for each in _objects(listed)}
        return [_status(name, found[name]) for name in (names or URLS) if name in found]

    def logs(self, name: str, lines: int) -> str:
        """Return the last lines of a service's log."""
        return self._checked("logs", "--no-color", "--no-log-prefix", "--tail", str(lines), name)

    def _checked(self, *words: str) -> str:
        done = self._docker(*words)
        if done.returncode:
            message = f"docker compose {words[0]} failed: {_last(done.stderr)}"
            raise SandboxError(message)
        return done.stdout

    def _docker(self, *words: str) -> subprocess.CompletedProcess[str]:
        docker = shutil.which("docker")
        if docker is None:
            what = "docker is missing"
            raise SetupFailed(what, "install a container engine with compose, or use --engine native")
        return subprocess.run(  # noqa: S603 - our own words
            [docker, "compose", "--file", FILE, "--profile", "all", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


def _objects(text: str) -> list[dict[str, Any]]:
    """Return what `ps --format json` listed: one array, or, in newer versions, one object a line."""
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _status(name: str, listed: dict[str, Any]) -> Status:
    states: dict[str, State] = {"running": "running", "paused": "frozen", "created": "stopped"}
    state: State = states.get(
        listed["State"], "stopped" if listed.get("ExitCode") in {0, 130, 143} else "crashed"
    )
    health = listed.get("Health")
    if state == "running" and health not in {"healthy", "", None}:
        state = "starting"
    image = str(listed.get("Image", ""))
    return Status(
        name=name,
        state=state,
        url=URLS[name],
        version=image.rpartition(":")[2] or "unknown",
        pid=None,
        reason=f"its health check says {health}" if state == "starting" else None,
    )


def _last(text: str) -> str:
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-3:])
