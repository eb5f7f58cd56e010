"""
Headers that a broker cannot carry as they are: packed into one, and unpacked again.

Brokers differ in what a header may be (no bytes, no name twice, ten at most). What a broker carries natively stays where
its neighbours can read it; the rest goes into one header of printable ASCII, each with its index, so that order,
repetition and bytes come back as they were sent.
"""

import base64
import json
from binascii import Error
from collections.abc import Callable, Sequence
from typing import Any, cast

from brokerkit.message import Header

__all__ = ["NAME", "pack", "unpack"]

NAME = "bk-packed"
"""The one header; it is the adapter's, and never shown to a handler."""


def pack(
    headers: Sequence[Header], carried: Callable[[str, str], bool]
) -> tuple[list[tuple[str, str]], str | None]:
    """
    Return what travels natively, and the rest as one text, or None if there is no rest.

    carried: says of a name and a text whether the broker brings it back unchanged. Bytes, a second header of a name
    (compared without case: some brokers do) and our own name are never native.
    """
    native: list[tuple[str, str]] = []
    packed: list[list[Any]] = []
    seen = {NAME}
    for index, (name, value) in enumerate(headers):
        if isinstance(value, str) and name.lower() not in seen and carried(name, value):
            seen.add(name.lower())
            native.append((name, value))
        elif isinstance(value, str):
            packed.append([index, name, value])
        else:
            packed.append([index, name, {"b": base64.b64encode(value).decode()}])
    return native, json.dumps(packed, separators=(",", ":")) if packed else None


def unpack(native: Sequence[Header], packed: str | bytes | None) -> tuple[Header, ...]:
    """
    Return the headers as they were sent; what a stranger has put under our name, and is none of ours, stays a header.

    Nothing is believed on the strength of it: a packed header counts like any other that the sender may write.
    """
    if packed is None:
        return tuple(native)
    entries = _entries(packed)
    if entries is None:
        return (*native, (NAME, packed))
    headers = list(native)
    for index, name, value in entries:
        headers.insert(index, (name, value))
    return tuple(headers)


def _entries(packed: str | bytes) -> list[tuple[int, str, str | bytes]] | None:
    try:
        loaded = json.loads(packed)
    except (ValueError, RecursionError):
        return None
    if not isinstance(loaded, list):
        return None
    entries: list[tuple[int, str, str | bytes]] = []
    for entry in cast("list[object]", loaded):
        read = _entry(entry)
        if read is None:
            return None
        entries.append(read)
    return entries


def _entry(entry: object) -> tuple[int, str, str | bytes] | None:
    match entry:
        case [int(index), str(name), str(value)] if index >= 0 and not isinstance(index, bool):
            return index, name, value
        case [int(index), str(name), {"b": str(text)}] if index >= 0 and not isinstance(index, bool):
            try:
                return index, name, base64.b64decode(text, validate=True)
            except (Error, ValueError):
                return None
        case _:
            return None
