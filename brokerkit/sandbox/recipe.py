"""
What the sandbox has to know about one kind of server.
"""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol

from brokerkit.sandbox.tools import Tools

__all__ = ["PASSWORD", "USER", "Installation", "Launch", "Recipe", "Security", "Site"]

USER: Final = "brokerkit"
PASSWORD: Final = "brokerkit"  # noqa: S105 - well known on purpose: the servers listen on loopback only


@dataclass(frozen=True, slots=True)
class Security:
    """
    TLS and a login for a server; without it there is no TLS, and a login only where the server insists.

    certificate, key: PEM files of the server; the key as PKCS#8 (`BEGIN PRIVATE KEY`), the only form that Kafka reads.
    token: NATS only, a token in place of user and password.
    """

    certificate: Path
    key: Path
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the programs of a server are, and which version they are."""

    version: str
    programs: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Site:
    """
    One server's place on this machine.

    folder: its configuration and log. data: what has to survive a restart. ports: by the names that its recipe gives.
    settings: lines for its own configuration. security: TLS and login, if wanted.
    """

    folder: Path
    data: Path
    ports: Mapping[str, int]
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    security: Security | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """
    How to start a server.

    before: programs that have to run already; they live and end with it. user: whose rights it gets, if not ours.
    """

    command: Sequence[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    before: Sequence[Sequence[str | Path]] = ()
    user: str | None = None


class Recipe(Protocol):
    """One kind of server: how to get it, start it, reach it, and see that it works."""

    name: ClassVar[str]
    """As the command line calls it."""

    ports: ClassVar[tuple[str, ...]]
    """Names of the ports that it listens on; clients use the one called `client`."""

    patience: ClassVar[float]
    """Seconds after which a start has failed, generous: a loaded laptop is slow."""

    stop_by: ClassVar[signal.Signals]
    """The signal for an orderly end."""

    secure: ClassVar[bool]
    """Whether it can have TLS and a login."""

    def install(self, tools: Tools) -> Installation:
        """Find its programs; get what is missing. Raises `SetupFailed`."""
        ...

    def data(self, folder: Path) -> Path:
        """Return where its data are, under its folder if that is possible."""
        ...

    def prepare(self, site: Site, installed: Installation) -> Launch:
        """Write its configuration, make its data folder if it is new, and return how to start it."""
        ...

    def probe(self, site: Site, installed: Installation, /) -> str | None:
        """Return None if it answers in its own protocol, else the reason why it is not ready."""
        ...

    def url(self, site: Site) -> str:
        """Return where clients reach it."""
        ...
