import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from brokerkit.sandbox.ports import LOOPBACK, free_ports
from brokerkit.sandbox.probe import http_ok, kafka_lists_itself, redis_answers

Answering = Callable[[bytes], int]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """Listen, answer the first request with these bytes and close; returns the port."""
    threads: list[threading.Thread] = []

    def start(answer: bytes) -> int:
        listening = socket.create_server((LOOPBACK, 0))

        def serve() -> None:
            with listening:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(10_000)
                    connection.sendall(answer)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return int(listening.getsockname()[1])

    yield start
    for thread in threads:
        thread.join()


def metadata(*ports: int) -> bytes:
    brokers = b"".join(struct.pack(">ih9sih", 1, 9, b"127.0.0.1", port, -1) for port in ports)
    body = struct.pack(">iii", 1, 0, len(ports)) + brokers + b"\0" * 12
    return struct.pack(">i", len(body)) + body


def web(port: int) -> str | None:
    return http_ok(port, "/")


@pytest.mark.parametrize("probe", [kafka_lists_itself, redis_answers, web])
def test_where_nothing_listens_nothing_is_ready(probe: Callable[[int], str | None]) -> None:
    assert "ConnectionRefusedError" in (probe(free_ports(1)[0]) or "")


@pytest.mark.parametrize("probe", [kafka_lists_itself, redis_answers, web])
def test_an_open_port_alone_is_not_ready(probe: Callable[[int], str | None], answering: Answering) -> None:
    assert probe(answering(b"")) is not None


def test_a_kafka_that_lists_no_broker_is_not_ready(answering: Answering) -> None:
    assert "lists brokers at []" in (kafka_lists_itself(answering(metadata())) or "")


def test_a_kafka_that_lists_a_broker_elsewhere_is_not_ready(answering: Answering) -> None:
    assert "lists brokers at [1, 2]" in (kafka_lists_itself(answering(metadata(1, 2))) or "")


@pytest.mark.parametrize(("status", "ready"), [("200 OK", True), ("503 No", False), ("401 No", False)])
def test_only_an_answer_of_200_is_ready(status: str, ready: bool, answering: Answering) -> None:
    port = answering(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    assert (http_ok(port, "/health", user="u", password="p") is None) == ready


@pytest.mark.parametrize(("said", "ready"), [(b"+PONG\r\n", True), (b"-LOADING reading\r\n", False)])
def test_a_redis_that_still_reads_its_data_is_not_ready(
    said: bytes, ready: bool, answering: Answering
) -> None:
    assert (redis_answers(answering(said)) is None) == ready
