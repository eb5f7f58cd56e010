"""
Frames that the client cannot read, made readable.

AMQP lets a publisher put any bytes into names, routing keys and short properties, and any number into a time. The client takes
such a frame for a broken connection, and after each reconnect the message is there again: one message of a stranger would
stop every group of the process for good. So what comes is looked at before the client sees it; bytes that are no text become `?`,
in place, and nothing else changes. Bodies and text values are never touched.
"""

import logging

__all__ = ["mended"]

_log = logging.getLogger(__name__)

_METHOD, _HEADER = 1, 2
_DELIVER = b"\x00\x3c\x00\x3c"
_SIZES = {
    "t": 1,
    "b": 1,
    "B": 1,
    "s": 2,
    "U": 2,
    "u": 2,
    "I": 4,
    "i": 4,
    "L": 8,
    "l": 8,
    "f": 4,
    "d": 8,
    "D": 5,
    "V": 0,
}
_LONG = "Sx"
_DEEPEST = 50
"""Tables and lists within each other; the client's own limit depends on how deep it stands itself."""
_LAST_TIME = 253_402_300_799
"""The last second of the year 9999."""

# What may stand in a content header, in order: flag, and `s`hort text, `F` table, `1` byte, or `T`ime.
_PROPERTIES = (
    (0x8000, "s"), (0x4000, "s"), (0x2000, "F"), (0x1000, "1"), (0x0800, "1"), (0x0400, "s"), (0x0200, "s"),
    (0x0100, "s"), (0x0080, "s"), (0x0040, "T"), (0x0020, "s"), (0x0010, "s"), (0x0008, "s"), (0x0004, "s"),
)  # fmt: skip


def mended(kind: int, rest: bytes) -> bytes:
    """Return the rest of a frame, of the same length, as the client can read it."""
    try:
        if kind == _HEADER:
            return _mended_header(rest)
        if kind == _METHOD and rest.startswith(_DELIVER):
            return _mended_deliver(rest)
    except (IndexError, KeyError, RecursionError):
        _log.warning("a message came with properties that cannot be read; they are left out")
        return rest[:12] + bytes(len(rest) - 13) + rest[-1:] if kind == _HEADER else rest
    return rest


def _mended_deliver(rest: bytes) -> bytes:
    patch = _Patch(rest)
    offset = patch.short(4) + 9
    patch.short(patch.short(offset))
    return patch.done()


def _mended_header(rest: bytes) -> bytes:
    patch = _Patch(rest)
    flags = int.from_bytes(rest[12:14], "big")
    offset = 14
    for flag, what in _PROPERTIES:
        if flags & flag:
            offset = patch.property(what, offset)
    return patch.done()


class _Patch:
    """Walks over bytes and writes only where something has to be mended."""

    def __init__(self, data: bytes) -> None:
        self._data: bytes | bytearray = data
        self._depth = 0

    def done(self) -> bytes:
        """Return the bytes, the very same object if nothing had to be mended."""
        return self._data if isinstance(self._data, bytes) else bytes(self._data)

    def property(self, what: str, offset: int) -> int:
        """Mend one property and return where the next begins."""
        if what == "s":
            return self.short(offset)
        if what == "F":
            return self._table(offset)
        if what == "T":
            return self._time(offset)
        return offset + 1

    def short(self, offset: int) -> int:
        """Mend a text with one byte of length."""
        end = offset + 1 + self._data[offset]
        text = self._data[offset + 1 : end]
        if not text.isascii():
            try:
                text.decode()
            except UnicodeDecodeError:
                self._write(offset + 1, bytes(byte if byte < 0x80 else 0x3F for byte in text))  # noqa: PLR2004
        return end

    def _time(self, offset: int) -> int:
        if int.from_bytes(self._data[offset : offset + 8], "big") > _LAST_TIME:
            self._write(offset, bytes(8))
        return offset + 8

    def _long(self, offset: int) -> int:
        if offset + 4 > len(self._data):
            raise IndexError
        end = offset + 4 + int.from_bytes(self._data[offset : offset + 4], "big")
        if end > len(self._data):
            raise IndexError
        return end

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise RecursionError

    def _table(self, offset: int) -> int:
        self._enter()
        end = self._long(offset)
        offset += 4
        while offset < end:
            offset = self._value(self.short(offset))
        self._depth -= 1
        return end

    def _value(self, offset: int) -> int:
        kind = chr(self._data[offset])
        offset += 1
        if kind in _LONG:
            return self._long(offset)
        if kind == "F":
            return self._table(offset)
        if kind == "T":
            return self._time(offset)
        if kind != "A":
            return offset + _SIZES[kind]
        self._enter()
        end = self._long(offset)
        offset += 4
        while offset < end:
            offset = self._value(offset)
        self._depth -= 1
        return end

    def _write(self, offset: int, data: bytes) -> None:
        if isinstance(self._data, bytes):
            self._data = bytearray(self._data)
            _log.warning(
                "a message came with names or properties that are no text; '?' stands for what cannot be read"
            )
        self._data[offset : offset + len(data)] = data
