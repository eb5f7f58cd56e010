"""The harness of a broker that is a server, for both suites."""

import asyncio

from brokerkit.adapter import open_adapter
from brokerkit.sandbox import Server
from brokerkit.testing.conformance.live import UrlHarness
from brokerkit.testing.conformance.report import server_of
from tests.servers import RealServer

__all__ = ["RestartingHarness", "harness_of"]

PATIENCE = 60.0
"""Seconds: a busy machine may need them."""


class RestartingHarness(UrlHarness):
    """
    A server that is ours, and that a test may restart; other processes only get the URL.

    It is stopped politely for that: the fault tests kill it, too.
    """

    def __init__(self, url: str, limits: frozenset[str], server: Server) -> None:
        super().__init__(url, limits, PATIENCE)
        self._server = server

    async def restart(self) -> None:
        """Stop it, and start it again."""
        await asyncio.to_thread(self._server.stop)
        await asyncio.to_thread(self._server.start)

    def __reduce__(self) -> tuple[type[UrlHarness], tuple[str, frozenset[str], float]]:
        return UrlHarness, (self.url, self.limits, self.patience)


async def harness_of(server: RealServer, options: str) -> UrlHarness:
    """
    Return the harness of a server, with these options in the query of its URL.

    One that was lent to us may be of any version: what it falls short of is asked of it, and of ours known.
    """
    url = f"{server.url}?{options}"
    if server.own is None:
        _, limits = await server_of(url)
        return UrlHarness(url, limits, PATIENCE)
    return RestartingHarness(url, open_adapter(url).capabilities.limits, server.own)
