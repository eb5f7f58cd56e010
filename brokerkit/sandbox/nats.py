"""
The NATS server with JetStream, built by Go.
"""

import json
import signal
from pathlib import Path
from typing import ClassVar, Final

from brokerkit.sandbox.ports import LOOPBACK
from brokerkit.sandbox.probe import http_ok
from brokerkit.sandbox.recipe import PASSWORD, USER, Installation, Launch, Site
from brokerkit.sandbox.tools import Tools

__all__ = ["Nats"]

VERSION: Final = "2.15.2"

_JETSTREAM: Final = "jetstream."


class Nats:
    """
    NATS JetStream.

    A setting that begins with `jetstream.` goes into that block: `jetstream.sync_interval` says how often it syncs to the
    disk (`2m` by default, `always` for every message). With security: TLS, and user and password or, if one is
    given, the token.
    """

    name: ClassVar[str] = "nats"
    ports: ClassVar[tuple[str, ...]] = ("client", "monitoring")
    patience: ClassVar[float] = 120.0
    stop_by: ClassVar[signal.Signals] = signal.SIGTERM
    secure: ClassVar[bool] = True

    def install(self, tools: Tools) -> Installation:
        """Build the pinned version; the system's packages are years behind."""
        name = f"nats-server-{VERSION}"
        folder = tools.go(name, f"github.com/nats-io/nats-server/v2@v{VERSION}")
        return Installation(VERSION, {"server": folder / "nats-server"})

    def data(self, folder: Path) -> Path:
        """Return the folder of JetStream."""
        return folder / "data"

    def prepare(self, site: Site, installed: Installation) -> Launch:
        """Write `nats.conf`."""
        jetstream = {"store_dir": json.dumps(str(site.data))}
        top = {
            "host": json.dumps(LOOPBACK),
            "port": str(site.ports["client"]),
            "http": json.dumps(f"{LOOPBACK}:{site.ports['monitoring']}"),
            "server_name": "brokerkit",
        }
        for name, value in site.settings.items():
            block = jetstream if name.startswith(_JETSTREAM) else top
            block[name.removeprefix(_JETSTREAM)] = value
        text = f"{_lines(top)}jetstream {{\n{_lines(jetstream)}}}\n"
        if security := site.security:
            files = {"cert_file": str(security.certificate), "key_file": str(security.key)}
            login = {"token": security.token} if security.token else {"user": USER, "password": PASSWORD}
            for title, values in (("tls", files), ("authorization", login)):
                quoted = {name: json.dumps(value) for name, value in values.items()}
                text += f"{title} {{\n{_lines(quoted)}}}\n"
        config = site.folder / "nats.conf"
        config.write_text(text, "utf-8")
        config.chmod(0o600)
        return Launch([installed.programs["server"], "-c", config])

    def probe(self, site: Site, _: Installation) -> str | None:
        """Ask for the health of the server and of JetStream."""
        return http_ok(site.ports["monitoring"], "/healthz?js-enabled-only=true")

    def url(self, site: Site) -> str:
        """Return the address; with security it holds the login, or the token in its place."""
        scheme, login = "nats", ""
        if site.security:
            scheme = "nats+tls"
            login = f"{site.security.token}@" if site.security.token else f"{USER}:{PASSWORD}@"
        return f"{scheme}://{login}{LOOPBACK}:{site.ports['client']}"


def _lines(values: dict[str, str]) -> str:
    return "".join(f"{name}: {value}\n" for name, value in values.items())
