"""
moto's server, for SNS: topics whose subscribers are queues of the same server.
"""

import signal
from pathlib import Path
from typing import ClassVar, Final

from brokerkit.sandbox.ports import LOOPBACK
from brokerkit.sandbox.probe import http_ok
from brokerkit.sandbox.recipe import Installation, Launch, Site
from brokerkit.sandbox.tools import Tools

__all__ = ["Moto"]

VERSION: Final = "5.2.5"


class Moto:
    """
    SNS, and SQS beside it: a topic reaches queues at the same address only.

    It keeps everything in memory: a restart is an empty server. It checks no credentials.
    """

    name: ClassVar[str] = "sns"
    ports: ClassVar[tuple[str, ...]] = ("client",)
    patience: ClassVar[float] = 120.0
    stop_by: ClassVar[signal.Signals] = signal.SIGTERM
    secure: ClassVar[bool] = False

    def install(self, tools: Tools) -> Installation:
        """Make it an environment of its own: it wants much that nobody else does."""
        python = tools.python(f"moto-{VERSION}", f"moto[server,sns,sqs]=={VERSION}")
        return Installation(VERSION, {"python": python})

    def data(self, folder: Path) -> Path:
        """Return a folder that stays empty."""
        return folder / "data"

    def prepare(self, site: Site, installed: Installation) -> Launch:
        """Return how to start it; there is nothing to write."""
        options = [word for name, value in site.settings.items() for word in (f"--{name}", value)]
        where = ["-H", LOOPBACK, "-p", str(site.ports["client"])]
        # In isolation from the variables that steer Python and coverage measurements.
        return Launch([installed.programs["python"], "-I", "-m", "moto.server", *where, *options])

    def probe(self, site: Site, _: Installation) -> str | None:
        """Ask for its own page."""
        return http_ok(site.ports["client"], "/moto-api/")

    def url(self, site: Site) -> str:
        """Return the endpoint."""
        return f"http://{LOOPBACK}:{site.ports['client']}"
