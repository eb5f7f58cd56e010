"""
Hints between processes that there is something to look at: datagrams on 127.0.0.1.

A datagram carries no data, only the number of a member and a secret of the one it is for; a lost one costs the
50 ms after which everybody looks anyway, a forged one is dropped.
"""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable

__all__ = ["Listener", "Sender"]

_HOST = "127.0.0.1"
_SECRET = 8
_NUMBER = 8


class Listener(asyncio.DatagramProtocol):
    """Hears hints in the event loop, and passes on the number of the member that each is for."""

    def __init__(self, hear: Callable[[int], None]) -> None:
        self._hear = hear
        self._secret = secrets.token_bytes(_SECRET)
        self._transport: asyncio.DatagramTransport | None = None
        self.address = ""

    async def open(self) -> None:
        """Listen. Where there is no network at all, `address` stays empty and nobody sends."""
        with contextlib.suppress(OSError):
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: self, local_addr=(_HOST, 0)
            )
            self._transport = transport
            self.address = f"{transport.get_extra_info('sockname')[1]}:{self._secret.hex()}"

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        """Pass on a hint that knows the secret."""
        del addr
        if len(data) == _SECRET + _NUMBER and secrets.compare_digest(data[:_SECRET], self._secret):
            self._hear(int.from_bytes(data[_SECRET:], "big"))

    def error_received(self, exc: Exception) -> None:
        """Do nothing: an error of a hint means that a hint is lost."""

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._transport is not None:
            self._transport.close()


class Sender:
    """Sends hints. For one thread."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def send(self, member: int, address: str) -> None:
        """Send a hint to a member that listens at `address`; it may get lost."""
        port, _, secret = address.partition(":")
        # A full buffer, no network, nonsense in the table: whoever is not told looks by himself soon.
        with contextlib.suppress(OSError, ValueError, OverflowError):
            if self._socket is None:
                self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._socket.settimeout(0)
            self._socket.sendto(bytes.fromhex(secret) + member.to_bytes(_NUMBER, "big"), (_HOST, int(port)))

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
