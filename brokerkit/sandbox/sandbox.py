"""
The servers of one folder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from brokerkit.sandbox.cache import Cache
from brokerkit.sandbox.elasticmq import ElasticMQ
from brokerkit.sandbox.errors import SandboxError
from brokerkit.sandbox.kafka import Kafka
from brokerkit.sandbox.moto import Moto
from brokerkit.sandbox.nats import Nats
from brokerkit.sandbox.postgres import Postgres
from brokerkit.sandbox.rabbitmq import RabbitMQ
from brokerkit.sandbox.recipe import Recipe, Security
from brokerkit.sandbox.redis import Redis
from brokerkit.sandbox.server import Server, Status
from brokerkit.sandbox.tools import Tools

__all__ = ["DEFAULT_FOLDER", "SERVERS", "Sandbox"]

_RECIPES: Final[Mapping[str, Recipe]] = {
    each.name: each for each in (Kafka(), RabbitMQ(), Nats(), ElasticMQ(), Moto(), Postgres(), Redis())
}

SERVERS: Final[tuple[str, ...]] = tuple(_RECIPES)
"""The names of all servers that there are."""

DEFAULT_FOLDER: Final = Path(".brokerkit", "sandbox")
"""Where a project's servers live, below the current folder."""


def _silent(_: str) -> None:
    """Tell nobody."""


class Sandbox:
    """
    Real servers for one project, without containers, each on ports of its own on loopback.

    folder: their configuration, logs and data. cache: where downloads are kept for all sandboxes; None is the person's own
    (`BROKERKIT_CACHE`, `XDG_CACHE_HOME`). say: gets a line for everything that takes long or changes the
    machine. Servers are daemons: they outlive this object and this process, until `down`.
    """

    def __init__(
        self,
        folder: Path | str = DEFAULT_FOLDER,
        *,
        cache: Path | str | None = None,
        say: Callable[[str], None] = _silent,
    ) -> None:
        self.folder: Final = Path(folder).absolute()
        self._tools = Tools(Cache(None if cache is None else Path(cache)), say)

    def __repr__(self) -> str:
        return f"<Sandbox in {self.folder}>"

    def server(self, name: str) -> Server:
        """Return a server by name, up or not. Raises `SandboxError` for a name that is not in `SERVERS`."""
        if name not in _RECIPES:
            message = f"there is no server {name!r}; there are {', '.join(SERVERS)}"
            raise SandboxError(message)
        return Server(_RECIPES[name], self.folder / name, self._tools)

    def known(self) -> list[Server]:
        """Return the servers that have been up in this folder."""
        return [server for server in map(self.server, SERVERS) if server.known]

    def install(self, name: str) -> str:
        """Get everything that a server needs, and return its version. Raises `SetupFailed`."""
        return _RECIPES[self.server(name).name].install(self._tools).version

    def up(
        self,
        name: str,
        *,
        settings: Mapping[str, str] | None = None,
        security: Security | None = None,
        ephemeral: bool = False,
        timeout: float | None = None,
    ) -> Server:
        """
        Return a server that runs and answers in its own protocol; one that does so already is left alone.

        settings: lines for its own configuration, by its own names; None keeps those of the last time. security: TLS and a
        login; kept as well. ephemeral: `down` deletes its data. timeout: seconds for it to answer, generous by
        default. Raises `SetupFailed` if something is missing and cannot be installed here, `NotReady`, `SandboxError`.
        """
        server = self.server(name)
        server.up(settings=settings, security=security, ephemeral=ephemeral, timeout=timeout)
        return server

    def down(self, *names: str, ephemeral: bool = False) -> list[Server]:
        """
        Stop servers, all of them if none is named, and return those that ran.

        ephemeral: delete their data too, as for those that were brought up so.
        """
        wanted = [self.server(name) for name in names] if names else self.known()
        return [server for server, ran in zip(wanted, self._each(wanted, ephemeral), strict=True) if ran]

    def statuses(self, *names: str) -> list[Status]:
        """Return how the named servers are, or all that have been up in this folder."""
        wanted = [self.server(name) for name in names] if names else self.known()
        return [server.status() for server in wanted if server.known]

    def _each(self, servers: Sequence[Server], ephemeral: bool) -> Iterator[bool]:
        def take_down(server: Server) -> bool:
            if not server.known:
                return False
            ran = server.alive
            if ephemeral or server.ephemeral:
                server.remove()
            else:
                server.stop()
            return ran

        with ThreadPoolExecutor(max_workers=len(servers) or 1) as pool:
            yield from pool.map(take_down, servers)
