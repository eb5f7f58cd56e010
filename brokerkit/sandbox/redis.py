"""
Redis or Valkey, whichever the system has.
"""

import re
import signal
import subprocess
from pathlib import Path
from typing import ClassVar

from brokerkit.sandbox.ports import LOOPBACK
from brokerkit.sandbox.probe import redis_answers
from brokerkit.sandbox.recipe import Installation, Launch, Site
from brokerkit.sandbox.tools import Tools

__all__ = ["Redis"]


class Redis:
    """
    Redis, with its append-only file, so that a restart keeps the data.

    Settings are those of `redis.conf`.
    """

    name: ClassVar[str] = "redis"
    ports: ClassVar[tuple[str, ...]] = ("client",)
    patience: ClassVar[float] = 120.0
    stop_by: ClassVar[signal.Signals] = signal.SIGTERM
    secure: ClassVar[bool] = False

    def install(self, tools: Tools) -> Installation:
        """Find the server, or install the package."""
        server = tools.program("valkey-server", "redis-server", package="redis-server")
        said = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603 - the program just found
        version = re.search(r"v=(\S+)", said)
        return Installation(version[1] if version else "unknown", {"server": server})

    def data(self, folder: Path) -> Path:
        """Return the folder of the append-only file."""
        return folder / "data"

    def prepare(self, site: Site, installed: Installation) -> Launch:
        """Return how to start it; everything is said on its command line."""
        options = {
            "bind": LOOPBACK,
            "port": str(site.ports["client"]),
            "dir": str(site.data),
            "appendonly": "yes",
            "save": "",
            "daemonize": "no",
            **site.settings,
        }
        given = [word for name, value in options.items() for word in (f"--{name}", value)]
        return Launch([installed.programs["server"], *given])

    def probe(self, site: Site, _: Installation) -> str | None:
        """Ask it to answer a PING."""
        return redis_answers(site.ports["client"])

    def url(self, site: Site) -> str:
        """Return the address of its first database."""
        return f"redis://{LOOPBACK}:{site.ports['client']}/0"
