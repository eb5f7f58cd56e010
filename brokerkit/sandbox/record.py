"""
What the sandbox remembers of a server between commands, in one file beside its data.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from brokerkit.sandbox.errors import SandboxError
from brokerkit.sandbox.process import Process
from brokerkit.sandbox.recipe import Security

__all__ = ["Record"]

_FILE: Final = "server.json"
_VERSION: Final = 1


@dataclass(slots=True)
class Record:
    """
    One server's memory.

    version, programs: what it was last started from. process, companions: what runs, or ran, for it; none after an orderly
    stop. ephemeral: whether its data go when it is taken down.
    """

    version: str
    ports: dict[str, int]
    data: Path
    programs: dict[str, Path] = field(default_factory=dict[str, Path])
    settings: dict[str, str] = field(default_factory=dict[str, str])
    security: Security | None = None
    ephemeral: bool = False
    process: Process | None = None
    companions: list[Process] = field(default_factory=list[Process])

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """Return what is remembered there, or None. Raises `SandboxError` for a file that is not ours to understand."""
        file = folder / _FILE
        try:
            text = file.read_text("utf-8")
        except FileNotFoundError:
            return None
        try:
            return _record(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{file} cannot be understood; remove it with its folder: brokerkit sandbox reset --yes {folder.name}"
            raise SandboxError(message) from error

    def write(self, folder: Path) -> None:
        """Remember it; another process sees the old or the new, never a half."""
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{_FILE}.{os.getpid()}"
        unfinished.write_text(
            json.dumps({"schema": _VERSION, **asdict(self)}, default=str, indent=2), "utf-8"
        )
        unfinished.replace(folder / _FILE)


def _record(found: dict[str, Any]) -> Record:
    if found["schema"] != _VERSION:
        message = f"schema {found['schema']}"
        raise ValueError(message)
    security, process = found["security"], found["process"]
    return Record(
        version=found["version"],
        ports={str(name): int(port) for name, port in found["ports"].items()},
        data=Path(found["data"]),
        programs={str(name): Path(program) for name, program in found["programs"].items()},
        settings=dict(found["settings"]),
        security=None
        if security is None
        else Security(Path(security["certificate"]), Path(security["key"]), security["token"]),
        ephemeral=bool(found["ephemeral"]),
        process=None if process is None else Process(**process),
        companions=[Process(**each) for each in found["companions"]],
    )
