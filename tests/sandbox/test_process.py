import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brokerkit.sandbox.errors import SandboxError
from brokerkit.sandbox.process import Process, end, gone, kill, launch

LISTENS = "import signal, sys, time; print('up', flush=True); time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {LISTENS}"

Start = Callable[[str], Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a Python program as a daemon and wait until it says that it is up."""
    started: list[Process] = []

    def run(program: str) -> Process:
        log = tmp_path / f"log-{len(started)}"
        started.append(launch([sys.executable, "-c", program], folder=tmp_path, log=log))
        until(lambda: "up" in log.read_text("utf-8"))
        return started[-1]

    yield run
    kill(started)


def until(so: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_launched_program_is_no_child_of_ours(start: Start) -> None:
    process = start(LISTENS)

    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    assert process.alive


def test_a_number_that_another_process_has_now_is_not_the_same_process(start: Start) -> None:
    process = start(LISTENS)
    before = Process(process.pid, "of another time")

    assert not before.alive
    assert not before.signal(signal.SIGKILL)
    assert process.alive


def test_a_process_that_has_gone_gets_no_signal(start: Start) -> None:
    process = start(LISTENS)
    kill([process])

    assert not process.signal(signal.SIGTERM)
    assert not process.frozen


def test_a_number_that_nobody_has_is_no_process() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()

    assert Process.of(child.pid) is None


def test_a_zombie_does_not_run() -> None:
    with subprocess.Popen(["true"]) as child:
        until(lambda: (found := Process.of(child.pid)) is None or not found.alive)
        assert child.returncode is None


def test_a_process_is_asked_first(start: Start) -> None:
    process = start(LISTENS)

    assert end(process, grace=20)
    assert not process.alive


def test_a_process_that_does_not_listen_is_killed_after_the_grace(start: Start) -> None:
    process = start(DEAF)

    assert not end(process, grace=0.1)
    assert not process.alive


def test_a_frozen_process_can_be_ended_in_order(start: Start) -> None:
    process = start(LISTENS)
    process.signal(signal.SIGSTOP)
    until(lambda: process.frozen)

    assert end(process, grace=20)


def test_the_children_of_a_killed_process_go_with_it(start: Start) -> None:
    process = start(f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {DEAF!r}])\n{LISTENS}")
    until(lambda: len(process.tree()) == 2)
    tree = process.tree()

    assert tree[0] == process
    end(process, grace=0.5)
    assert gone(tree, 0)


def test_waiting_for_a_process_that_stays_ends_with_no(start: Start) -> None:
    assert not gone([start(LISTENS)], 0.05)


def test_what_a_program_prints_is_in_its_log(start: Start, tmp_path: Path) -> None:
    start(LISTENS)

    assert (tmp_path / "log-0").read_text("utf-8") == "up\n"


def test_a_program_that_is_not_there_says_so_in_the_log(tmp_path: Path) -> None:
    with contextlib.suppress(SandboxError):  # what has ended before it is looked at is refused at once
        process = launch([tmp_path / "none"], folder=tmp_path, log=tmp_path / "log")
        assert gone([process], 20)
    assert "none" in (tmp_path / "log").read_text("utf-8")
