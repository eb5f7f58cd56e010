"""What the sandbox does with any server."""

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brokerkit.sandbox import NotReady, SandboxError, Security, Server
from brokerkit.sandbox.cache import Cache
from brokerkit.sandbox.ports import LOOPBACK
from brokerkit.sandbox.process import Process, gone
from brokerkit.sandbox.record import Record
from brokerkit.sandbox.tools import Tools
from tests.sandbox.recipes import Small

Open = Callable[[], Server]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Open the server as another process would: it shares nothing with the last one but the folder."""

    def server() -> Server:
        return Server(Small(), tmp_path / "box" / "small", Tools(Cache(tmp_path / "cache"), print))

    yield server
    server().remove()


@pytest.fixture
def server(opened: Open) -> Server:
    return opened()


def starts(server: Server) -> int:
    return len((server.folder / "data" / "starts").read_text("ascii"))


def record_of(server: Server) -> Record:
    record = Record.read(server.folder)
    assert record is not None
    return record


def test_a_server_that_is_up_answers(server: Server) -> None:
    server.up()

    assert server.status().state == "running"
    assert server.alive


def test_a_second_up_changes_nothing(server: Server, opened: Open) -> None:
    server.up()
    pid, url = server.pid, server.url
    opened().up()

    assert (opened().pid, opened().url) == (pid, url)
    assert starts(server) == 1


def test_a_stopped_server_starts_on_the_same_ports_with_its_data(server: Server, opened: Open) -> None:
    server.up()
    url = server.url
    assert server.stop()
    assert server.status().state == "stopped"

    opened().start()

    assert server.url == url
    assert starts(server) == 2


def test_a_stopped_server_takes_its_companions_along(server: Server) -> None:
    server.up()
    (companion,) = record_of(server).companions
    server.stop()

    assert gone([companion], 0)


def test_a_killed_server_has_crashed_and_can_be_started(server: Server) -> None:
    server.up()
    server.kill()
    assert server.status().state == "crashed"
    assert server.pid is None

    server.start()

    assert server.status().state == "running"


def test_a_server_that_ends_by_itself_has_crashed(server: Server) -> None:
    server.up()
    process = record_of(server).process
    assert process is not None
    process.signal(signal.SIGTERM)
    assert gone([process], 20)

    assert server.status().state == "crashed"


def test_a_frozen_server_runs_and_goes_on_after_it_was_thawed(server: Server) -> None:
    server.up()
    server.freeze()
    assert server.status().state == "frozen"
    assert server.alive

    server.thaw()

    assert server.status().state == "running"


def test_up_thaws_a_frozen_server(server: Server) -> None:
    server.up()
    server.freeze()
    server.up()

    assert server.status().state == "running"
    assert starts(server) == 1


def test_a_server_that_is_down_can_be_neither_frozen_nor_thawed(server: Server) -> None:
    server.up()
    server.stop()

    with pytest.raises(SandboxError, match="small does not run"):
        server.freeze()
    with pytest.raises(SandboxError, match="small does not run"):
        server.thaw()


def test_a_process_that_has_the_number_now_is_never_touched(server: Server) -> None:
    server.up()
    server.stop()
    record = record_of(server)
    with socket.socket():  # some other program: ourselves
        me = Process.of(1)
    assert me is not None
    record.process = Process(1, "of another boot")
    record.write(server.folder)

    assert server.status().state == "crashed"
    server.kill()
    server.stop()
    assert me.alive


def test_a_server_that_ends_while_it_starts_is_an_error_that_quotes_its_log(server: Server) -> None:
    with pytest.raises(SandboxError, match="small ended while it was starting: out of cheese"):
        server.up(settings={"mode": "ends"})


def test_a_server_that_runs_and_does_not_answer_is_not_ready(server: Server) -> None:
    with pytest.raises(NotReady, match="small runs and is not ready: GET / answers 503"):
        server.up(settings={"mode": "sick"}, timeout=1)

    assert server.status().state == "starting"
    server.stop()
    assert server.status().state == "stopped"


def test_settings_are_kept_until_others_are_given(server: Server, opened: Open) -> None:
    server.up(settings={"note": "one"})
    server.stop()
    server.up()
    assert record_of(server).settings == {"note": "one"}

    with pytest.raises(SandboxError, match="small runs with other settings: take it down first"):
        opened().up(settings={"note": "two"})


def test_a_port_that_somebody_else_has_taken_is_named(server: Server) -> None:
    server.up()
    server.stop()
    port = server.ports["other"]
    with (
        socket.create_server((LOOPBACK, port)),
        pytest.raises(SandboxError, match=f"port {port} of small is used by another program"),
    ):
        server.start()


def test_a_server_without_tls_refuses_to_be_secure(server: Server, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="small has neither TLS nor a login"):
        server.up(security=Security(tmp_path, tmp_path))


def test_what_has_never_been_up_has_no_address(server: Server) -> None:
    with pytest.raises(SandboxError, match="small has not been up"):
        _ = server.url
    assert not server.known


def test_removing_a_server_leaves_no_process_and_no_file(server: Server) -> None:
    server.up()
    record = record_of(server)
    server.remove()

    assert record.process is not None
    assert gone([record.process, *record.companions], 0)
    assert not server.folder.exists()


def test_a_folder_that_cannot_be_understood_can_be_removed(server: Server) -> None:
    server.folder.mkdir(parents=True)
    (server.folder / "server.json").write_text("{", "ascii")

    server.remove()

    assert not server.folder.exists()
