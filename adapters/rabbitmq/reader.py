"""
What comes from the socket: deliveries go straight to whoever consumes, all else to the client.

The client reads every frame in three steps under a lock, three frames to a message, and gives each message a task. Of a channel
that is consumed the frames of a delivery are taken out before it sees them, as many as are there in one go. It counts on
hearing from the broker, so it gets a heartbeat for them once a second.
"""

import asyncio
import logging
import struct
from collections.abc import Callable
from typing import Any

import aiormq.abc
from pamqp import commands, header

from brokerkit.adapters.rabbitmq.frames import mended

__all__ = ["Intake", "Reader"]

_log = logging.getLogger(__name__)

_METHOD, _HEADER, _BODY = 1, 2, 3
_HEAD = struct.Struct(">BHI")
_DELIVER = b"\x00\x3c\x00\x3c"
_END = 0xCE
_HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_SILENCE = 1.0
_CHUNK = 65_536


class Reader:
    """Stands between the socket's reader and the client, which reads every frame in three steps: kind, head, rest."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._at = 0
        self._step = 0
        self._kind = 0
        self._intakes: dict[int, Intake] = {}
        self._passed = self._loop.time()
        self._owed = False
        self._heard = False

    def give(self, number: int, intake: "Intake") -> None:
        """Give the deliveries of a channel to an intake from now on."""
        self._intakes[number] = intake

    def take(self, number: int, intake: "Intake") -> None:
        """Leave them to the client again, unless the number is another channel's already."""
        if self._intakes.get(number) is intake:
            del self._intakes[number]

    def at_eof(self) -> bool:
        """Say whether nothing more comes."""
        return self._at >= len(self._buffer) and self._reader.at_eof()

    async def read(self, count: int = -1) -> bytes:
        """Read what is there."""
        data, self._buffer, self._at = self._buffer[self._at :], b"", 0
        return data or await self._reader.read(count)

    async def readexactly(self, count: int) -> bytes:
        """Read the next part of a frame for the client."""
        if self._step == 0 and self._intakes:
            await self._take_in()
        await self._have(count)
        data = self._buffer[self._at : self._at + count]
        self._at += count
        if self._step == 0:
            self._kind = data[0]
        elif self._step == 2:  # noqa: PLR2004 - kind, head, rest
            data = mended(self._kind, data)
        self._step = (self._step + 1) % 3
        return data

    async def _have(self, count: int) -> None:
        while len(self._buffer) - self._at < count:
            more = await self._reader.read(_CHUNK)
            if not more:
                raise asyncio.IncompleteReadError(self._buffer[self._at :], count)
            self._buffer = self._buffer[self._at :] + more
            self._at = 0
            self._heard = True

    async def _take_in(self) -> None:
        """Take frames out until one comes that is the client's."""
        while True:
            if self._owed and self._heard:  # once for what was read, not for each frame of it
                self._heard = False
                self._pay()
            await self._have(_HEAD.size)
            kind, number, size = _HEAD.unpack_from(self._buffer, self._at)
            intake = self._intakes.get(number)
            if intake is None or kind > _BODY:
                break
            await self._have(size + 8)
            begin, end = self._at + 7, self._at + 8 + size
            if self._buffer[end - 1] != _END or not intake.wants(kind, self._buffer[begin : begin + 4]):
                break
            self._at = end
            self._owed = True
            intake.take(kind, self._buffer[begin:end])
        self._passed = self._loop.time()
        self._owed = False

    def _pay(self) -> None:
        if self._loop.time() - self._passed > _SILENCE:
            self._buffer = _HEARTBEAT + self._buffer[self._at :]
            self._at = 0


class Intake:
    """Puts the deliveries of one channel together."""

    def __init__(self, channel: aiormq.abc.AbstractChannel, on_message: Callable[[Any], None]) -> None:
        self._channel = channel
        self._on_message = on_message
        self._deliver: commands.Basic.Deliver | None = None
        self._header: header.ContentHeader | None = None
        self._pieces: list[bytes] = []
        self._left = 0

    def wants(self, kind: int, begin: bytes) -> bool:
        """Say whether a frame belongs to a delivery."""
        return begin == _DELIVER if kind == _METHOD else self._deliver is not None

    def take(self, kind: int, rest: bytes) -> None:
        """Take the rest of a frame, its end included."""
        if kind == _METHOD:
            self._deliver = _deliver_of(mended(kind, rest))
            return
        if kind == _HEADER:
            self._header = header.ContentHeader()
            self._header.unmarshal(mended(kind, rest)[:-1])
            self._left = self._header.body_size
            self._pieces = []
        else:
            self._pieces.append(rest[:-1])
            self._left -= len(rest) - 1
        if self._left <= 0:
            self._complete()

    def _complete(self) -> None:
        deliver, head = self._deliver, self._header
        self._deliver = self._header = None
        if deliver is None or head is None:
            return
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        try:
            self._on_message(aiormq.abc.DeliveredMessage(deliver, head, body, self._channel))
        except Exception:  # noqa: BLE001 - the connection is not to blame, and others use it
            _log.exception("a delivery could not be taken")


def _deliver_of(rest: bytes) -> commands.Basic.Deliver:
    at = 5 + rest[4]
    consumer = rest[5:at].decode()
    tag = int.from_bytes(rest[at : at + 8], "big")
    redelivered = bool(rest[at + 8] & 1)
    start = at + 10
    at = start + rest[start - 1]
    exchange = rest[start:at].decode()
    key = rest[at + 1 : at + 1 + rest[at]].decode()
    return commands.Basic.Deliver(consumer, tag, redelivered, exchange, key)
