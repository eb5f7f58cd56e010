"""
From `MODULE:BUS` to the bus: importing it, and saying what is wrong when that does not work.
"""

import importlib
import inspect
import pkgutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from brokerkit.bus import Bus
from brokerkit.cli.exits import Failed
from brokerkit.cli.settings import nearest
from brokerkit.errors import BrokerkitError
from brokerkit.router import Subscriber

__all__ = ["leave_out", "load", "set_concurrency"]


def load(target: str, app_dir: Path, *, factory: bool) -> Bus:
    """
    Import a module and return its bus.

    Raises `UsageError` for what the arguments name wrongly, with the nearest name; `Failed` for what the module
    itself raises, with the line.
    """
    name, colon, attribute = target.partition(":")
    if "/" in name or name.endswith(".py"):
        dotted = name.removesuffix(".py").strip("./").replace("/", ".")
        message = f"MODULE:BUS {target!r} names a file; name the module: {dotted}:{attribute or 'bus'}"
        raise click.UsageError(message, _here())
    _check_spelling(target, name)
    sys.path.insert(0, str(app_dir.resolve()))
    module = _import(name, app_dir)
    if not colon or not attribute:
        message = f"MODULE:BUS {target!r} names no bus{_buses(module, name, attribute)}"
        raise click.UsageError(message, _here())
    return _bus(_attribute(module, name, attribute), target, factory=factory)


def _check_spelling(target: str, name: str) -> None:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        message = f"MODULE:BUS {target!r}: give a module and a name in it, for example app:bus"
        raise click.UsageError(message, _here())


def _import(name: str, app_dir: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _broken(name, error) from error
        message = (
            f"no module {error.name!r} in --app-dir {str(app_dir)!r} or on the path"
            f"{nearest(error.name, _modules(app_dir))}"
        )
        raise click.UsageError(message, _here()) from error
    except (BrokerkitError, click.ClickException):
        raise
    except Exception as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> Failed:
    """Return what to say when the module is there and importing it fails: the error, and the innermost line of code."""
    frames = [frame for frame in inspect.getinnerframes(_trace(error)) if "importlib" not in frame.filename]
    last = frames[-1] if frames else None
    line = f" ({last.filename}, line {last.lineno})" if last else ""
    return Failed(f"importing {name!r} failed: {type(error).__name__}: {error}{line}")


def _trace(error: Exception) -> Any:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _modules(app_dir: Path) -> list[str]:
    return [module.name for module in pkgutil.iter_modules([str(app_dir)])]


def _attribute(module: ModuleType, name: str, attribute: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            message = f"module {name!r} has no {attribute!r}{_buses(module, name, attribute)}"
            raise click.UsageError(message, _here())
        found = getattr(found, part)
    return found


def _buses(module: ModuleType, name: str, wanted: str) -> str:
    """Return `; did you mean app:bus?` for the bus that the module has, else for the nearest name."""
    members: dict[str, Any] = vars(module)
    buses = [f"{name}:{member}" for member, value in members.items() if isinstance(value, Bus)]
    if buses:
        return f"; it has {', '.join(buses)}"
    return nearest(wanted, [each for each in members if not each.startswith("_")]) if wanted else ""


def _bus(found: Any, target: str, *, factory: bool) -> Bus:
    if factory:
        if not callable(found) or inspect.iscoroutinefunction(found):
            message = f"{target!r} is {_kind(found)}; --factory wants a plain function that returns a Bus"
            raise click.UsageError(message, _here())
        found = found()
    if isinstance(found, Bus):
        return found
    hint = "; if it makes a bus, say --factory" if callable(found) and not factory else ""
    message = f"{target!r} is {_kind(found)}, not a Bus{hint}"
    raise click.UsageError(message, _here())


def _kind(value: Any) -> str:
    if inspect.iscoroutinefunction(value):
        return "a coroutine function"
    return "a function" if inspect.isroutine(value) else f"an instance of {type(value).__name__}"


def leave_out(bus: Bus, only: tuple[str, ...], exclude: tuple[str, ...]) -> None:
    """
    Keep the handlers that `--only` names, less those that `--exclude` names.

    Raises `UsageError` for a name that fits nothing, when nothing is left, and when a part of a group would be left: it
    would dead-letter what its other handlers take.
    """
    chosen = {id(each) for each in bus.subscribers}
    if only:
        chosen = _named(bus, "--only", only)
    chosen -= _named(bus, "--exclude", exclude)
    kept = [each for each in bus.subscribers if id(each) in chosen]
    for gone in bus.subscribers:
        left = next((each for each in kept if _group(each) == _group(gone)), None)
        if id(gone) not in chosen and left is not None:
            message = (
                f"{_group(gone)} would run {left.endpoint.name} without {gone.endpoint.name}, and dead-letter "
                f"what that one takes; name the whole group: {_group(gone)}"
            )
            raise click.UsageError(message, _here())
    if not kept:
        message = "--only and --exclude leave no handler to run"
        raise click.UsageError(message, _here())
    bus.subscribers[:] = kept


def _named(bus: Bus, flag: str, names: tuple[str, ...]) -> set[int]:
    found: set[int] = set()
    for name in names:
        fits = {id(each) for each in bus.subscribers if name in _names(each)}
        if not fits:
            known = sorted({each for subscriber in bus.subscribers for each in _names(subscriber)})
            near = nearest(name, known) or f"; there are {', '.join(sorted(map(_group, bus.subscribers)))}"
            message = f"{flag} {name!r} names no CHANNEL/GROUP and no handler{near}"
            raise click.UsageError(message, _here())
        found |= fits
    return found


def _names(subscriber: Subscriber) -> tuple[str, str, str]:
    """Return every way to name a handler: its group, its full name, its function's name."""
    name = subscriber.endpoint.name
    return _group(subscriber), name, name.rpartition(".")[2]


def _group(subscriber: Subscriber) -> str:
    return f"{subscriber.channel}/{subscriber.group}"


def set_concurrency(bus: Bus, concurrency: int) -> None:
    """Let every group run so many handlers at once, and take twice as many messages ahead."""
    bus.subscribers[:] = [
        replace(each, settings=replace(each.settings, concurrency=concurrency, prefetch=2 * concurrency))
        for each in bus.subscribers
    ]


def _here() -> click.Context | None:
    return click.get_current_context(silent=True)
