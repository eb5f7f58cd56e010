"""
Reading what the server sends: whole messages at once, and the rest as the client does it.
"""

from collections.abc import Callable
from typing import Any

from nats.errors import ProtocolError
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

__all__ = ["MessageParser", "read_headers"]

_VERSION = b"NATS/1.0"
_BLANKS = " \t\n\r\x0b\x0c"
_MSG, _HMSG = b"MSG ", b"HMSG "
_LARGE = 64 * 1024
"""Of what is larger the parts are better collected in the client's buffer than joined here each time."""


def read_headers(raw: bytes) -> dict[str, str]:
    """
    Return headers; `Status` and `Description` are those of the first line, which the server writes.

    As the client reads them, at a third of its cost: it looks at every character of every name.
    """
    found: dict[str, str] = {}
    first, _, rest = raw.partition(b"\r\n")
    if len(first) > len(_VERSION):
        status, _, text = first[len(_VERSION) :].decode("utf-8", "replace").strip(_BLANKS).partition(" ")
        found = {"Status": status, "Description": text} if text else {"Status": status}
    for line in rest.decode("utf-8", "replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon and name.isascii():
            name = name.strip(_BLANKS)
            if not (" " in name or "\t" in name):
                found[name] = value.strip(_BLANKS)
    return found


Take = Callable[[int, bytes, bytes, bytes, bytes | None], None]
"""Number of the subscription, subject, reply, data and headers of a message."""


class MessageParser(Parser):
    """
    Takes messages that are whole out of what was read, and leaves everything else to the client's parser.

    That one reads into a buffer, with a step of its state and up to seven patterns for each line.
    """

    def __init__(self, client: Any) -> None:
        self._part = b""
        self._take: Take = client.take
        super().__init__(client)  # pyright: ignore[reportUnknownMemberType] - the library has no types there

    def reset(self) -> None:
        """Forget what was read in part."""
        super().reset()
        self._part = b""

    async def parse(self, data: bytes = b"") -> None:
        """Pass on what is whole now. Raises `ProtocolError`."""
        if self.state == AWAITING_CONTROL_LINE:
            read = b"".join((self.buf, self._part, data)) if self.buf or self._part else data
            self.buf.clear()
            try:
                data = self._take_messages(read)
            except (ValueError, IndexError) as error:
                message = "nats: malformed MSG"
                raise ProtocolError(message) from error
            self._part = data if _is_part(data) else b""
            if self._part:
                return
        if data:
            await super().parse(data)

    def _take_messages(self, read: bytes) -> bytes:
        """Pass on the messages that it begins with, and return what is left."""
        at, take = 0, self._take
        while True:
            with_headers = read.startswith(_HMSG, at)
            if not (with_headers or read.startswith(_MSG, at)):
                break
            end = read.find(b"\r\n", at)
            if end < 0:
                break
            words = read[at:end].split()
            size, head = int(words[-1]), int(words[-2]) if with_headers else 0
            begin, over = end + 2, end + 2 + size
            if len(read) < over + 2:
                break
            _, subject, sid, *reply = words[: -2 if with_headers else -1]
            take(
                int(sid),
                subject,
                reply[0] if reply else b"",
                read[begin + head : over],
                read[begin : begin + head] if with_headers else None,
            )
            at = over + 2
        return read[at:] if at else read


def _is_part(data: bytes) -> bool:
    """Say whether a message has begun that is worth to be waited for here."""
    if data.startswith((_MSG, _HMSG)):
        return len(data) < _LARGE
    return bool(data) and (_MSG.startswith(data) or _HMSG.startswith(data))
