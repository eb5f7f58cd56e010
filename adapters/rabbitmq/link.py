"""
A connection that is made when it is needed, and made again after it was lost: the one reconnect logic.

Nothing is retried here: one try for whoever asks, shared by all who ask meanwhile. The bus backs off.
"""

import asyncio
import ssl

from brokerkit.adapters.rabbitmq.client import Client, open_client
from brokerkit.adapters.rabbitmq.url import Options
from brokerkit.errors import Closed, ConnectionLost

__all__ = ["Link"]


class Link:
    """The way to one broker for one purpose."""

    def __init__(self, options: Options, context: ssl.SSLContext | None, name: str) -> None:
        self._options = options
        self._context = context
        self._name = name
        self._client: Client | None = None
        self._opening: asyncio.Task[Client] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def live(self) -> Client | None:
        """The connection, if there is one right now."""
        return self._client if self._client is not None and self._client.alive else None

    async def client(self) -> Client:
        """Return the connection, made now if there is none; raises `ConnectionLost`, `Unauthorised` and `Closed`."""
        if self._closed:
            message = f"{self._options.url.text} is closed"
            raise Closed(message)
        if (live := self.live) is not None:
            return live
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        await asyncio.wait({opening})
        if opening.cancelled():
            message = f"{self._options.url.text}: the connection was closed while it was made"
            raise ConnectionLost(message)
        return opening.result()

    async def _open(self) -> Client:
        if self._client is not None:
            self._leave(self._client)
        client = await open_client(self._options, self._context, self._name)
        if self._closed:
            await client.close()
            message = f"{self._options.url.text} is closed"
            raise Closed(message)
        self._client = client
        return client

    def _leave(self, client: Client) -> None:
        """Close what is lost beside the way: a broker that does not answer must hold nobody up."""
        task = asyncio.get_running_loop().create_task(client.close())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _opened(self, task: "asyncio.Task[Client]") -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        """Close for good, within about 2 s."""
        self._closed = True
        if self._opening is not None:
            opening = self._opening
            opening.cancel()
            await asyncio.wait({opening}, timeout=2.0)
        if self._client is not None:
            self._leave(self._client)
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=3.0)
