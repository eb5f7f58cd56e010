"""
The processes of a run: started, watched, started again when they die, and all gone at the end.

Only processes that were started here are ever signalled.
"""

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from brokerkit.cli.demo.plan import GROUPS, PACKAGE, Plan, python_module
from brokerkit.cli.exits import Failed

__all__ = ["Fleet", "Member", "Stopped", "chat_service", "cli", "run_to_end"]

_LOOK: Final = 0.05
_GRACE: Final = 45.0
_SHOWN: Final = 12
_MOST_CRASHES: Final = 40


class Stopped(Failed):
    """A process that the run needs has ended."""


@dataclass(slots=True)
class Member:
    """
    One of the two processes of a group, over all its lives.

    witness: the file that this life appends to. killed: the demo ended this life.
    """

    group: str
    number: int
    process: subprocess.Popen[bytes] | None = None
    witness: Path = field(default_factory=Path)
    log: Path = field(default_factory=Path)
    killed: bool = False

    @property
    def pid(self) -> int:
        """Return the process id, or 0 while it does not run."""
        return self.process.pid if self.process is not None and self.process.poll() is None else 0


class Fleet:
    """
    Two processes for each group, kept alive until they are told to stop.

    crashes: how often one ended without anybody asking it to.
    """

    def __init__(self, plan: Plan, chat: str, processes: int = 2) -> None:
        self.members = [Member(group, number) for group in GROUPS for number in range(processes)]
        self.crashes = 0
        self._plan = plan
        self._chat = chat
        self._lives = itertools.count(1)
        self._fixed = False
        self._keeping: asyncio.Task[None] | None = None
        (plan.folder / "crashes.ndjson").touch()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self, *, fixed: bool) -> None:
        """Start every process and keep it alive from here on; with `fixed`, the release that mends the poison."""
        self._fixed = fixed
        for member in self.members:
            self._start(member)
        self._keeping = asyncio.create_task(self._keep())

    def check(self) -> None:
        """Raise what has ended the keeping."""
        if self._keeping is not None and self._keeping.done():
            self._keeping.result()

    async def stop(self) -> None:
        """Let every process drain and end; one that does not within the grace is killed, which is a failure."""
        await self._stop_keeping()
        for member in self.members:
            if member.process is not None and member.pid:
                member.process.terminate()
        deadline = time.monotonic() + _GRACE
        while running := [member for member in self.members if member.pid]:
            if time.monotonic() > deadline:
                log = running[0].log
                message = f"{log.stem} did not end within {_GRACE:.0f} s of SIGTERM; the end of its log:\n{_tail(log)}"
                raise Stopped(message)
            await asyncio.sleep(_LOOK)

    async def close(self) -> None:
        """Kill whatever still runs."""
        await self._stop_keeping()
        for member in self.members:
            if member.process is not None:
                _end(member.process)

    async def _stop_keeping(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
            self._keeping = None

    async def _keep(self) -> None:
        while True:
            for member in self.members:
                if member.process is not None and member.process.poll() is not None:
                    self._died(member)
                    self._start(member)
            await asyncio.sleep(_LOOK)

    def _died(self, member: Member) -> None:
        if member.killed:
            return
        self.crashes += 1
        with (self._plan.folder / "crashes.ndjson").open("a", encoding="ascii") as record:
            record.write(json.dumps({"group": member.group, "witness": member.witness.name}) + "\n")
        if self.crashes > _MOST_CRASHES:
            message = f"{member.group} dies again and again; the end of {member.log}:\n{_tail(member.log)}"
            raise Stopped(message)

    def _start(self, member: Member) -> None:
        life = f"{member.group}-{member.number}-{next(self._lives):03d}"
        member.killed = False
        member.witness = self._plan.folder / "witness" / life
        member.log = self._plan.folder / "logs" / f"{life}.log"
        environment = self._plan.environment(fixed=self._fixed, chat=self._chat, witness=str(member.witness))
        target = f"{PACKAGE}.{member.group}:bus"
        with member.log.open("wb") as log:
            member.process = _spawn(cli("run", target), environment, log)


def cli(*arguments: str) -> Sequence[str]:
    """Return the command line of `brokerkit ...` with this interpreter."""
    return [sys.executable, "-c", "from brokerkit.cli import main; main()", *arguments]


async def run_to_end(command: Sequence[str], environment: Mapping[str, str], log: Path) -> bytes:
    """
    Run a process to its end and return its stdout.

    Raises `Stopped` with the end of its log if it fails; cancelled, it ends the process.
    """
    with log.open("ab") as errors:
        process = _spawn(command, environment, errors, stdout=subprocess.PIPE)
    try:
        output, _ = await asyncio.to_thread(process.communicate)
    finally:
        _end(process)
    if process.returncode != 0:
        message = f"{log.stem} ended with code {process.returncode}:\n{_tail(log)}"
        raise Stopped(message)
    return output


@contextlib.asynccontextmanager
async def chat_service(plan: Plan) -> AsyncGenerator[str]:
    """Run the chat service inside the block; yields its address."""
    log = plan.folder / "logs" / "chat.log"
    with log.open("wb") as errors:
        process = _spawn(python_module(f"{PACKAGE}.chat"), plan.environment(), errors, stdout=subprocess.PIPE)
    assert process.stdout is not None  # noqa: S101 - asked for
    try:
        address = (await asyncio.to_thread(process.stdout.readline)).decode().strip()
        if not address:
            message = f"the chat service did not start:\n{_tail(log)}"
            raise Stopped(message)
        yield address
    finally:
        _end(process)
        process.stdout.close()


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], *, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C reaches the demo alone."""
    return subprocess.Popen(  # noqa: S603 - our own interpreter and modules
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log if stdout is None else stdout,
        stderr=log,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-_SHOWN:])
