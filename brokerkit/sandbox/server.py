"""
One server of a sandbox: started, stopped, killed, frozen.
"""

import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from brokerkit.sandbox.errors import NotReady, SandboxError
from brokerkit.sandbox.lock import locked
from brokerkit.sandbox.ports import free_ports, is_free
from brokerkit.sandbox.process import Process, end, kill, launch
from brokerkit.sandbox.recipe import Installation, Launch, Recipe, Security, Site
from brokerkit.sandbox.record import Record
from brokerkit.sandbox.tools import Tools, last_lines

__all__ = ["Server", "State", "Status"]

State = Literal["running", "starting", "frozen", "crashed", "stopped"]
"""
starting: it runs and does not answer. crashed: it ended, and nobody asked it to through the sandbox.
"""

_GRACE: Final = 20.0
"""Seconds for an orderly end; a broker with open files needs one or two."""

_POLL: Final = 0.05


@dataclass(frozen=True, slots=True)
class Status:
    """What is so about a server at one moment. reason: why it does not answer, if it runs and does not."""

    name: str
    state: State
    url: str
    version: str
    pid: int | None
    reason: str | None = None


class Server:
    """
    A real server on its own loopback ports, with its own data.

    It is the same server in every process that opens the same folder, and outlives them all. Ports and data
    stay the same over `stop` or `kill` and `start`. Its methods block; from asyncio call them with `asyncio.to_thread`.
    Only processes that the sandbox itself has started are ever signalled.
    """

    def __init__(self, recipe: Recipe, folder: Path, tools: Tools) -> None:
        self.name: Final = recipe.name
        self.folder: Final = folder
        """Its configuration, log and, as a rule, data."""
        self._recipe = recipe
        self._tools = tools

    def __repr__(self) -> str:
        return f"<Server {self.name} in {self.folder}>"

    @property
    def url(self) -> str:
        """Where clients reach it, login included. Raises `SandboxError` if it has never been up."""
        return self._recipe.url(self._site(self._record()))

    @property
    def version(self) -> str:
        """The server's own version."""
        return self._record().version

    @property
    def ports(self) -> Mapping[str, int]:
        """Its ports by name; clients use the one called `client`."""
        return dict(self._record().ports)

    @property
    def pid(self) -> int | None:
        """The number of the server's process (RabbitMQ: the Erlang machine), None while it does not run."""
        process = self._record().process
        return process.pid if process and process.alive else None

    @property
    def alive(self) -> bool:
        """Whether its process runs; a frozen one does."""
        return self.pid is not None

    @property
    def log(self) -> Path:
        """The file that has its output of all starts."""
        return self.folder / "log"

    @property
    def ephemeral(self) -> bool:
        """Whether its data go when it is taken down."""
        return self._record().ephemeral

    @property
    def known(self) -> bool:
        """Whether it has ever been up in this folder, and not been removed."""
        return Record.read(self.folder) is not None

    def up(
        self,
        *,
        settings: Mapping[str, str] | None = None,
        security: Security | None = None,
        ephemeral: bool = False,
        timeout: float | None = None,
    ) -> None:
        """
        Make sure that it runs and answers; the first time with new ports and data.

        settings: lines of its own configuration; None keeps what it had. security: TLS and a login; stays once given.
        timeout: seconds for it to answer. Raises `SetupFailed` if something that it needs is missing, `NotReady`, and
        `SandboxError` if it ended, or runs with other settings than those now wanted.
        """
        if security and not self._recipe.secure:
            message = f"{self.name} has neither TLS nor a login"
            raise SandboxError(message)
        installed = self._recipe.install(self._tools)
        with self._locked():
            record = Record.read(self.folder)
            if record is None:
                ports = free_ports(len(self._recipe.ports))
                record = Record(
                    version=installed.version,
                    ports=dict(zip(self._recipe.ports, ports, strict=True)),
                    data=self._recipe.data(self.folder),
                )
            wanted = (
                record.settings if settings is None else dict(settings),
                record.security if security is None else security,
            )
            runs = record.process is not None and record.process.alive
            if runs and wanted != (record.settings, record.security):
                message = f"{self.name} runs with other settings: take it down first"
                raise SandboxError(message)
            record.settings, record.security = wanted
            record.ephemeral = record.ephemeral or ephemeral
            record.version, record.programs = installed.version, dict(installed.programs)
            self._run(record, installed, timeout)

    def start(self, timeout: float | None = None) -> None:
        """
        Start it again, on the same ports and data, and wait until it answers; nothing if it runs.

        Raises as `up` does.
        """
        self._record()
        self.up(timeout=timeout)

    def stop(self, grace: float = _GRACE) -> bool:
        """End it in order, within `grace` seconds, else for good; return whether it went by itself. Nothing if it is down."""
        with self._locked():
            record = self._record()
            went = True
            if record.process is not None:
                went = end(record.process, by=self._recipe.stop_by, grace=grace, also=record.companions)
            record.process, record.companions = None, []
            record.write(self.folder)
        return went

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would, and wait until it is gone. Its state is then `crashed`."""
        with self._locked():
            record = self._record()
            if record.process is not None and record.process.alive:
                kill(record.process.tree())

    def freeze(self) -> None:
        """Stop its clock, with SIGSTOP: it keeps its connections and answers nobody. Raises `SandboxError` if it is down."""
        process = self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + _POLL * 100
        while not process.frozen:  # a signal is on its way for a moment
            if time.monotonic() >= deadline:
                message = f"{self.name} does not stop"
                raise SandboxError(message)
            time.sleep(_POLL / 10)

    def thaw(self) -> None:
        """Let a frozen one go on. Raises `SandboxError` if it is down."""
        self._signal(signal.SIGCONT)

    def status(self) -> Status:
        """Look at it now. Raises `SandboxError` if it has never been up."""
        record = self._record()
        process = record.process
        state: State = "stopped"
        reason: str | None = None
        if process is not None:
            state = "frozen" if process.frozen else "running" if process.alive else "crashed"
        if state == "running":
            installed = Installation(record.version, record.programs)  # as it was: a look installs nothing
            reason = self._recipe.probe(self._site(record), installed)
        return Status(
            name=self.name,
            state="starting" if reason else state,
            url=self._recipe.url(self._site(record)),
            version=record.version,
            pid=process.pid if process and process.alive else None,
            reason=reason,
        )

    def remove(self) -> None:
        """
        End it and delete its data, configuration and log.

        At once, with SIGKILL: an orderly end would save what is deleted. Works where the record cannot be understood as well.
        """
        with self._locked():
            try:
                record = Record.read(self.folder)
            except SandboxError:
                record = None
            if record is not None:
                kill(
                    each
                    for process in (record.process, *record.companions)
                    if process is not None and process.alive
                    for each in process.tree()
                )
                shutil.rmtree(record.data, ignore_errors=True)
            if self.folder.exists():
                shutil.rmtree(self.folder)

    def _run(self, record: Record, installed: Installation, timeout: float | None) -> None:
        """Start what does not run, wait for the answer, remember."""
        deadline = time.monotonic() + (self._recipe.patience if timeout is None else timeout)
        process = record.process
        if process is None or not process.alive:
            process = self._launch(record, installed)
        site = self._site(record)
        if process.frozen:
            process.signal(signal.SIGCONT)
        while (reason := self._recipe.probe(site, installed)) is not None:
            if not process.alive:
                message = (
                    f"{self.name} ended while it was starting: {last_lines(self.log)} (all of it: {self.log})"
                )
                raise SandboxError(message)
            if time.monotonic() >= deadline:
                message = f"{self.name} runs and is not ready: {reason}; its log is {self.log}"
                raise NotReady(message)
            time.sleep(_POLL)
        record.write(self.folder)

    def _launch(self, record: Record, installed: Installation) -> Process:
        for each in record.companions:
            end(each, grace=_GRACE)
        taken = [port for port in record.ports.values() if not is_free(port)]
        if taken:
            message = (
                f"port {taken[0]} of {self.name} is used by another program; stop it, or reset {self.name}"
            )
            raise SandboxError(message)
        record.data.mkdir(parents=True, exist_ok=True)
        record.write(self.folder)
        site = self._site(record)
        plan = self._recipe.prepare(site, installed)
        record.companions = [self._daemon(words, plan) for words in plan.before]
        record.process = self._daemon(plan.command, plan)
        record.write(self.folder)  # before it is ready: whoever comes now has to know what to stop
        return record.process

    def _daemon(self, words: Sequence[str | Path], plan: Launch) -> Process:
        return launch(words, folder=self.folder, log=self.log, environment=plan.environment, user=plan.user)

    def _site(self, record: Record) -> Site:
        return Site(self.folder, record.data, record.ports, record.settings, record.security)

    def _signal(self, number: signal.Signals) -> Process:
        process = self._record().process
        if process is None or not process.alive:
            message = f"{self.name} does not run"
            raise SandboxError(message)
        for each in process.tree():
            each.signal(number)
        return process

    def _record(self) -> Record:
        record = Record.read(self.folder)
        if record is None:
            message = f"{self.name} has not been up in {self.folder.parent}"
            raise SandboxError(message)
        return record

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.folder.parent / f"{self.name}.lock")
