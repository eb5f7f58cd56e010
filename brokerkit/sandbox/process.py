"""
A process that outlives whoever started it, told apart from a later one that got its number.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from brokerkit.sandbox.errors import SandboxError

__all__ = ["Process", "end", "gone", "kill", "launch"]

_PROC: Final = Path("/proc")
_POLL: Final = 0.02
_DAEMON: Final = 'exec "$@" >&2 </dev/null & echo $!'
"""The shell ends at once, so the program is nobody's child but init's: it leaves us no zombie, and no warning when we end."""


class _Look(NamedTuple):
    """
    What the system says about a process: one letter, its parent, and since when it runs.

    A killed process is a zombie while its other threads still hold its ports: that is not the end, and the letter is then `K`.
    """

    state: str
    parent: int
    started: str


@dataclass(frozen=True, slots=True)
class Process:
    """
    One process. Its number alone would not do: numbers are given again.

    pid: its number. started: an opaque text made of its start time and of the boot that counts it.
    """

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """Return the process that has this number now, or None."""
        look = _look(pid)
        return None if look is None else cls(pid, look.started)

    @property
    def alive(self) -> bool:
        """Whether this very process runs; a zombie does not, a frozen one does."""
        look = _look(self.pid)
        return look is not None and look.started == self.started and look.state not in "ZX"

    @property
    def frozen(self) -> bool:
        """Whether it is stopped by SIGSTOP."""
        look = _look(self.pid)
        return look is not None and look.started == self.started and look.state == "T"

    def signal(self, number: signal.Signals) -> bool:
        """
        Send a signal to this process and to no other; return whether it was there to get it.

        On Linux the process is held by a descriptor while it is compared, so that not even a number given again in between
        is hit.
        """
        try:
            if sys.platform != "linux":
                if not self.alive:
                    return False
                os.kill(self.pid, number)
                return True
            held = os.pidfd_open(self.pid)
            try:
                if not self.alive:
                    return False
                signal.pidfd_send_signal(held, number)
            finally:
                os.close(held)
        except ProcessLookupError:
            return False
        return True

    def tree(self) -> "list[Process]":
        """Return itself and everything that descends from it, itself first."""
        looks = {pid: look for pid in _pids() if (look := _look(pid)) is not None}
        found: list[Process] = [self]
        for each in found:
            found += [Process(pid, look.started) for pid, look in looks.items() if look.parent == each.pid]
        return found


def launch(
    command: Sequence[str | Path],
    *,
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
) -> Process:
    """
    Start a program as a daemon in a session of its own and return it.

    folder: its working directory. log: gets stdout and stderr, appended. environment: on top of ours. user: whose rights it
    gets, for a program that refuses root. Raises `SandboxError` if it ended at once.
    """
    with log.open("ab") as file:  # by us: the other user may not be able to reach it
        started = subprocess.run(  # noqa: S603 - the recipes' own commands
            ["/bin/sh", "-c", _DAEMON, "sh", *command],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            start_new_session=True,
            user=user,
            group=None if user is None else _group_of(user),
            extra_groups=None if user is None else [],
            check=True,
            text=True,
        )
    process = Process.of(int(started.stdout))
    if process is None:
        message = f"{command[0]} ended at once; {log} may say why"
        raise SandboxError(message)
    return process


def gone(processes: Iterable[Process], seconds: float) -> bool:
    """Wait until none of the processes runs, at most so many seconds; return whether that was reached."""
    deadline = time.monotonic() + seconds
    left = list(processes)
    while left := [each for each in left if each.alive]:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True


def end(
    process: Process, *, by: signal.Signals = signal.SIGTERM, grace: float, also: Iterable[Process] = ()
) -> bool:
    """
    Ask a process to end; after `grace` seconds end it and its descendants for good. Return whether it went by itself.

    also: processes of its own that it cannot take along. Raises `SandboxError` if something is left five seconds
    after a SIGKILL: then it hangs in the kernel, and nobody can help.
    """
    tree = process.tree() if process.alive else []
    process.signal(by)
    for each in tree:
        each.signal(signal.SIGCONT)  # a frozen one would never read the first
    went = gone([process], grace)
    for each in also:
        each.signal(signal.SIGTERM)
    left = [*tree, *also]
    if went and gone(left, grace):
        return True
    kill(left)
    return False


def kill(processes: Iterable[Process]) -> None:
    """End processes for good, in this order, and wait until they are gone. Raises `SandboxError` if one is not."""
    left = list(processes)
    for each in left:
        each.signal(signal.SIGKILL)
    if not gone(left, 5):
        message = f"process {next(each.pid for each in left if each.alive)} survives SIGKILL"
        raise SandboxError(message)


def _group_of(user: str) -> int:
    import pwd  # noqa: PLC0415 - not on every platform, and only root comes here

    return pwd.getpwnam(user).pw_gid


def _pids() -> list[int]:
    if _PROC.joinpath("self", "stat").exists():
        return [int(each.name) for each in _PROC.iterdir() if each.name.isdecimal()]
    listed = subprocess.run(["ps", "-A", "-o", "pid="], capture_output=True, text=True, check=True)  # noqa: S607 - found on the PATH everywhere
    return [int(pid) for pid in listed.stdout.split()]


def _look(pid: int) -> _Look | None:
    if not _PROC.joinpath("self", "stat").exists():
        return _look_with_ps(pid)
    try:
        stat = _PROC.joinpath(str(pid), "stat").read_text("utf-8", "replace")
        boot = _PROC.joinpath("sys", "kernel", "random", "boot_id").read_text("ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold blanks and brackets
    state = "K" if fields[0] == "Z" and int(fields[17]) > 1 else fields[0]
    return _Look(state, int(fields[1]), f"{boot}/{fields[19]}")


def _look_with_ps(pid: int) -> _Look | None:
    asked = subprocess.run(  # noqa: S603 - a number
        ["ps", "-o", "stat=", "-o", "ppid=", "-o", "lstart=", "-p", str(pid)],  # noqa: S607 - found on the PATH everywhere
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    state, _, rest = asked.stdout.strip().partition(" ")
    if not state:
        return None
    parent, _, started = rest.strip().partition(" ")
    return _Look(state[0], int(parent), started.strip())
