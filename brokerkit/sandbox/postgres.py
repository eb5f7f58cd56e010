"""
Postgres as the system's package has it.
"""

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar, Final

from brokerkit.sandbox.errors import SandboxError
from brokerkit.sandbox.ports import LOOPBACK
from brokerkit.sandbox.process import Process
from brokerkit.sandbox.recipe import PASSWORD, USER, Installation, Launch, Site
from brokerkit.sandbox.tools import Tools

__all__ = ["Postgres"]

_PACKAGES: Final = Path("/usr/lib/postgresql")


class Postgres:
    """
    Postgres with a database `brokerkit`, user and password the same.

    It refuses to run as root. For root it runs as the user `postgres`, else `nobody`, and if that user cannot enter the
    sandbox's folder, its data are in the system's temporary folder. Settings are those of `postgresql.conf`.
    """

    name: ClassVar[str] = "postgres"
    ports: ClassVar[tuple[str, ...]] = ("client",)
    patience: ClassVar[float] = 120.0
    stop_by: ClassVar[signal.Signals] = signal.SIGINT  # TERM would wait for its clients to leave
    secure: ClassVar[bool] = False

    def install(self, tools: Tools) -> Installation:
        """Find the programs, the newest version first, or install the package."""
        # Debian keeps them off the PATH.
        versions = sorted(_PACKAGES.glob("*/bin"), key=lambda each: float(each.parent.name), reverse=True)
        names = ("initdb", "postgres", "pg_isready")
        try:
            programs = {name: tools.program(name, package="postgresql", where=versions) for name in names}
        except SandboxError:
            fresh = sorted(_PACKAGES.glob("*/bin"))
            if fresh == sorted(versions):
                raise
            return self.install(tools)  # it has just been installed, in a folder that was not there
        said = _run([programs["postgres"], "--version"], Path.cwd(), None)
        return Installation(said.split()[2], programs)

    def data(self, folder: Path) -> Path:
        """Return the folder of the cluster."""
        if _other_user() is None or _open_to_others(folder):
            return folder / "data"
        mark = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()).absolute() / f"brokerkit-postgres-{mark}"

    def prepare(self, site: Site, installed: Installation) -> Launch:
        """Make the cluster and the database if they are new."""
        user = _other_user()
        if user is not None:
            shutil.chown(site.data, user)
        cluster = site.data / "cluster"
        postgres = installed.programs["postgres"]
        if not (cluster / "brokerkit").exists():
            shutil.rmtree(cluster, ignore_errors=True)  # half made
            words: list[str | Path] = [
                "-D",
                cluster,
                "-U",
                USER,
                "-A",
                "scram-sha-256",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ]
            secret = site.data / "password"
            secret.write_text(PASSWORD, "ascii")
            if user is not None:
                shutil.chown(secret, user)
            _run([installed.programs["initdb"], *words, f"--pwfile={secret}"], site.data, user)
            single: list[str | Path] = [postgres, "--single", "-D", cluster, "-c", "fsync=off", "postgres"]
            _run(single, site.data, user, f"CREATE DATABASE {USER};\n")
            (cluster / "brokerkit").touch()
        _forget_the_dead(cluster / "postmaster.pid")
        options = {
            "port": str(site.ports["client"]),
            "listen_addresses": LOOPBACK,
            "unix_socket_directories": "",
            **site.settings,
        }
        given = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return Launch([postgres, "-D", cluster, *given], user=user)

    def probe(self, site: Site, installed: Installation) -> str | None:
        """Ask `pg_isready`."""
        asked = subprocess.run(  # noqa: S603 - our own words
            [installed.programs["pg_isready"], "-h", LOOPBACK, "-p", str(site.ports["client"]), "-d", USER],
            capture_output=True,
            text=True,
            check=False,
        )
        return None if asked.returncode == 0 else asked.stdout.strip() or asked.stderr.strip()

    def url(self, site: Site) -> str:
        """Return the address of the database."""
        return f"postgresql://{USER}:{PASSWORD}@{LOOPBACK}:{site.ports['client']}/{USER}"


def _other_user() -> str | None:
    """Return the user as whom to run, None for the one who asks."""
    if os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415 - not on every platform, and only root comes here

    users = {each.pw_name for each in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in users), None)


def _forget_the_dead(file: Path) -> None:
    """Remove the lock of a killed server. To Postgres its zombie is alive, and in a container nobody may ever reap it."""
    if file.exists():
        process = Process.of(int(file.read_text("ascii").split()[0]))
        if process is None or not process.alive:
            file.unlink()


def _open_to_others(folder: Path) -> bool:
    """Return whether any user can get to a folder: each one above it lets others through."""
    above = [each for each in (folder, *folder.parents) if each.exists()]
    return all(each.stat().st_mode & stat.S_IXOTH for each in above)


def _run(words: list[str | Path], folder: Path, user: str | None, stdin: str = "") -> str:
    done = subprocess.run(  # noqa: S603 - our own words
        words,
        cwd=folder,
        user=user,
        extra_groups=None if user is None else [],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if done.returncode:
        message = f"postgres: {words[0]} failed: {' | '.join((done.stderr or done.stdout).splitlines()[-5:])}"
        raise SandboxError(message)
    return done.stdout
