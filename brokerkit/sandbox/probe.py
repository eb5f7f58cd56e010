"""
Whether a server answers in its own protocol. An open port proves nothing: it opens long before the server works.

Each probe returns None if the server is ready, else the reason why it is not.
"""

import base64
import http.client
import socket
import struct
from typing import Final

from brokerkit.sandbox.ports import LOOPBACK

__all__ = ["http_ok", "kafka_lists_itself", "redis_answers"]

_SECONDS: Final = 2.0
_METADATA: Final = 3
_METADATA_VERSION: Final = 4


def http_ok(port: int, path: str, *, user: str = "", password: str = "") -> str | None:
    """Probe a server that says by an answer of 200 that it works."""
    headers = dict[str, str]()
    if user:
        headers["Authorization"] = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return None if status == http.client.OK else f"GET {path} answers {status}"


def kafka_lists_itself(port: int) -> str | None:
    """
    Probe Kafka with a metadata request: it is ready when it lists a broker at this very port.

    A broker that has started and may not serve yet (it is fenced) lists nobody.
    """
    client = b"brokerkit"
    head = struct.pack(f">hhih{len(client)}s", _METADATA, _METADATA_VERSION, 1, len(client), client)
    request = head + struct.pack(">i?", 0, False)  # noqa: FBT003 - no topics, and none to be created
    try:
        with socket.create_connection((LOOPBACK, port), timeout=_SECONDS) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = _read(connection, struct.unpack(">i", _read(connection, 4))[0])
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    correlation, _, brokers = struct.unpack_from(">iii", answer)
    at, ports = 12, list[int]()
    for _ in range(brokers):
        (host,) = struct.unpack_from(">h", answer, at + 4)
        at += 6 + host
        listed, rack = struct.unpack_from(">ih", answer, at)
        ports.append(listed)
        at += 6 + max(rack, 0)
    if correlation != 1 or port not in ports:
        return f"the metadata lists brokers at {ports}, and not at {port}"
    return None


def redis_answers(port: int) -> str | None:
    """Probe Redis or Valkey: PING, PONG. While it reads its data it answers with an error."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=_SECONDS) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(200)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None if answer == b"+PONG\r\n" else f"PING answers {answer!r}"


def _read(connection: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        part = connection.recv(size - len(got))
        if not part:
            message = "the server closed the connection"
            raise ConnectionError(message)
        got += part
    return got
