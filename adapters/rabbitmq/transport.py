"""
The socket of a connection, within reach.
"""

import asyncio
import ssl
from typing import Any

from aiormq.connection import TransportFactory
from yarl import URL

from brokerkit.adapters.rabbitmq.reader import Reader

__all__ = ["Transport"]


class Transport(TransportFactory):
    """Opens the socket, so that it can be written to past the client's queue, and aborted when the broker does not answer."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._place = (host, port)
        self._context = context
        self.writer: asyncio.StreamWriter | None = None
        self.reader: Reader | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect."""
        del url, kwargs
        reader, writer = await asyncio.open_connection(*self._place, ssl=self._context)
        self.writer = writer
        self.reader = Reader(reader)
        ours: Any = self.reader
        return ours, writer

    def abort(self) -> None:
        """Cut the connection."""
        if self.writer is not None:
            self.writer.transport.abort()
