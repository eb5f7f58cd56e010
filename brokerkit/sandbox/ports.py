"""
Ports that are free now, and will still be when the server binds them.
"""

import random
import socket
from contextlib import ExitStack
from typing import Final

from brokerkit.sandbox.errors import SandboxError

__all__ = ["LOOPBACK", "free_ports", "is_free"]

LOOPBACK: Final = "127.0.0.1"

_FIRST: Final = 12_000
_LAST: Final = 32_000
"""Below the range out of which systems give ports to outgoing connections: one of those could be faster than the server."""

_TRIES: Final = 1_000


def free_ports(number: int, *, without: frozenset[int] = frozenset()) -> list[int]:
    """
    Return so many different loopback ports that nothing listens on, none of them in `without`.

    Raises `SandboxError` if they cannot be found.
    """
    found: list[int] = []
    with ExitStack() as held:
        for port in random.sample(range(_FIRST, _LAST), _TRIES):
            if len(found) == number:
                break
            if port not in without and _hold(held, port):
                found.append(port)
    if len(found) < number:
        message = f"no {number} free ports between {_FIRST} and {_LAST}"
        raise SandboxError(message)
    return found


def is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    with ExitStack() as held:
        return _hold(held, port)


def _hold(held: ExitStack, port: int) -> bool:
    """Bind a port until the stack is left, as a server does: what a stopped one left in TIME_WAIT is no obstacle."""
    bound = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((LOOPBACK, port))
    except OSError:
        return False
    return True
