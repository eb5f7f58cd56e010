"""
A chat service as others run it, and a client for it.

The service is a stand-in for somebody else's: it refuses some calls, leaves some without an answer, and notes every call that
it gets in a ledger of its own. It knows idempotency keys and ignores them, so that each repeated call shows.
"""

import asyncio
import contextlib
import json
import sqlite3
import sys
import time
from asyncio import Queue, StreamReader, StreamWriter
from typing import Final

from brokerkit.examples.github_webhooks import trouble
from brokerkit.examples.github_webhooks.settings import CHAT, database

__all__ = ["Chat", "ChatUnavailable", "serve"]

_TAKEN: Final = 200
_REFUSED: Final = 503
_STALLED: Final = 0
_SILENCE: Final = 30.0

Connection = tuple[StreamReader, StreamWriter]


class ChatUnavailable(Exception):
    """The service did not take the message; it may later."""


class Chat:
    """
    A client that keeps its connections.

    At most `connections` calls run at once; one that is cancelled or fails gives up its connection.
    """

    def __init__(self, address: str, *, connections: int) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self._free: Queue[Connection | None] = Queue()
        for _ in range(connections):
            self._free.put_nowait(None)

    async def post(self, text: str, *, event_id: str, idempotency_key: str) -> None:
        """Post a message. Raises `ChatUnavailable` if it was refused, `OSError` if the service cannot be reached."""
        connection = await self._free.get()
        try:
            if connection is None:
                connection = await asyncio.open_connection(self._host, self._port)
            status = await _call(connection, {"text": text, "event": event_id}, idempotency_key)
        except BaseException:
            if connection is not None:
                connection[1].close()
            self._free.put_nowait(None)
            raise
        self._free.put_nowait(connection)
        if status != _TAKEN:
            message = f"the chat service answered {status}"
            raise ChatUnavailable(message)

    async def close(self) -> None:
        """Close the connections that no call uses."""
        while not self._free.empty():
            connection = self._free.get_nowait()
            if connection is not None:
                connection[1].close()


async def _call(connection: Connection, body: dict[str, str], idempotency_key: str) -> int:
    reader, writer = connection
    data = json.dumps(body).encode()
    head = (
        f"POST /messages HTTP/1.1\r\nHost: chat\r\nIdempotency-Key: {idempotency_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    answer = await _read_head(reader)
    if answer is None:
        message = "the chat service closed the connection"
        raise ConnectionError(message)
    return int(answer[0].split()[1])


async def _read_head(reader: StreamReader) -> list[str] | None:
    """Return the lines before the body, or None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    return head.decode("latin-1").split("\r\n")


class _Service:
    """
    The service; one ledger row for each call: when, about which event, under which key, and what it was answered.

    A call that is taken is in the ledger before it is answered.
    """

    def __init__(self) -> None:
        self._ledger = sqlite3.connect(database("chat"), isolation_level=None)
        self._ledger.execute("PRAGMA journal_mode = WAL")
        self._ledger.execute("PRAGMA synchronous = OFF")
        self._ledger.execute(
            "CREATE TABLE IF NOT EXISTS ledger"
            "(at REAL NOT NULL, event_id TEXT NOT NULL, idempotency_key TEXT NOT NULL, answer INTEGER NOT NULL)"
        )
        self._calls: dict[str, int] = {}

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Answer the calls of one connection."""
        try:
            while (head := await _read_head(reader)) is not None:
                await self._answer(head, reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: list[str], reader: StreamReader, writer: StreamWriter) -> None:
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}
        body = json.loads(await reader.readexactly(int(fields["content-length"])))
        event_id, key = body["event"], fields["idempotency-key"]
        status = self._decide(event_id)
        self._ledger.execute("INSERT INTO ledger VALUES(?, ?, ?, ?)", (time.time(), event_id, key, status))
        if status == _STALLED:
            await asyncio.sleep(_SILENCE)
            return
        writer.write(f"HTTP/1.1 {status} -\r\nContent-Length: 0\r\n\r\n".encode())

    def _decide(self, event_id: str) -> int:
        calls = self._calls[event_id] = self._calls.get(event_id, 0) + 1
        if calls == 1 and trouble.stalls(event_id):
            return _STALLED
        return _REFUSED if calls <= trouble.refusals(event_id) else _TAKEN


async def serve() -> None:
    """Serve until cancelled; the address goes to stdout as soon as calls are taken."""
    host, _, port = CHAT.rpartition(":")
    server = await asyncio.start_server(_Service().serve, host, int(port))
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        sys.stdout.write(f"{host}:{port}\n")
        sys.stdout.flush()
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
