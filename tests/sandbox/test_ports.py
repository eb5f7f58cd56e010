import socket
from contextlib import ExitStack

import pytest

from brokerkit.sandbox import SandboxError, ports
from brokerkit.sandbox.ports import LOOPBACK, free_ports, is_free


def test_free_ports_are_different_and_can_be_bound() -> None:
    found = free_ports(20)

    assert len(set(found)) == 20
    assert all(map(is_free, found))


def test_a_port_on_which_something_listens_is_not_free() -> None:
    with socket.create_server((LOOPBACK, 0)) as listening:
        assert not is_free(listening.getsockname()[1])


def test_free_ports_lie_below_those_that_the_system_gives_to_connections() -> None:
    assert max(free_ports(200)) < 32_768


def test_ports_that_cannot_be_found_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def hold(held: ExitStack, port: int) -> bool:
        return False

    monkeypatch.setattr(ports, "_hold", hold)

    with pytest.raises(SandboxError, match="no 1 free ports"):
        free_ports(1)
