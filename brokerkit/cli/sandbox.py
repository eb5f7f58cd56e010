"""
`brokerkit sandbox`: real brokers on this machine, in containers where an engine answers, else without.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from brokerkit.cli.commands import Group
from brokerkit.cli.exits import Exit, Failed, Refused, TimedOut, masked
from brokerkit.cli.output import Output, safe
from brokerkit.cli.settings import Choice, Settings, nearest, pass_settings

if TYPE_CHECKING:
    from brokerkit.sandbox import Sandbox, SandboxError, Status
    from brokerkit.sandbox.compose import Compose

__all__ = ["sandbox"]

_ENGINE: Final = "engine"
"""The file in the sandbox's folder that says which engine its servers run on."""

Engine = Literal["compose", "native"]


@click.group(
    cls=Group,
    examples=(
        ("brokerkit sandbox up kafka nats", "start two servers and wait until they answer"),
        ('eval "$(brokerkit sandbox env)"', "tell this shell where they are"),
        ("brokerkit sandbox down", "stop them; their data stay"),
    ),
)
def sandbox() -> None:
    """
    Run real brokers on this machine.

    Servers: kafka, rabbitmq, nats, sqs (ElasticMQ), sns (moto), postgres, redis; without a name all of them. In containers where
    docker compose and its engine answer, else the servers themselves, on loopback, on ports that were free.
    """


_servers = click.argument("servers", nargs=-1, metavar="[SERVER...]")
_folder = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIRECTORY",
    envvar="BROKERKIT_SANDBOX_FOLDER",
    default=Path(".brokerkit", "sandbox"),
    show_default=True,
    help="Where the servers keep everything.",
)


@sandbox.command(
    examples=(
        ("brokerkit sandbox up", "start all servers"),
        ("brokerkit sandbox up kafka --ephemeral", "start one whose data `down` deletes"),
        (
            "brokerkit sandbox up nats --setting nats.jetstream.sync_interval=always",
            "with a setting of its own",
        ),
    )
)
@_servers
@_folder
@click.option(
    "--engine",
    type=Choice(("auto", "compose", "native")),
    default="auto",
    show_default=True,
    help="Containers, the servers themselves, or whichever is there.",
)
@click.option("--ephemeral", is_flag=True, help="Let `down` delete the data.")
@click.option(
    "--setting",
    multiple=True,
    metavar="SERVER.KEY=VALUE",
    help="A line of the server's own configuration; repeatable, native only.",
)
@pass_settings
def up(
    settings: Settings,
    servers: tuple[str, ...],
    folder: Path,
    engine: str,
    ephemeral: bool,
    setting: tuple[str, ...],
) -> int:
    """
    Start servers and wait until they answer in their own protocol.

    What runs already is left alone. What is missing is downloaded, or installed where that is allowed; else the error
    says what to run.
    """
    names = _names(servers)
    given = _given(setting, names)
    chosen = _choose(folder, engine)
    if chosen == "compose":
        if given:
            message = "--setting changes servers that run natively; say --engine native"
            raise click.UsageError(message, click.get_current_context())
        return _up_in_containers(settings, folder, names)
    box = _box(settings, folder)

    def start(name: str) -> "Status":
        server = box.up(name, settings=given.get(name), ephemeral=ephemeral, timeout=settings.timeout)
        return server.status()

    _remember(folder, "native")
    with ThreadPoolExecutor(max_workers=len(names)) as pool:  # most of a start is waiting
        return _report(settings, "sandbox.up", names, lambda name: pool.submit(start, name).result)


@sandbox.command(
    examples=(
        ("brokerkit sandbox down", "stop everything; data stay"),
        ("brokerkit sandbox down kafka --ephemeral", "stop one and delete its data"),
    )
)
@_servers
@_folder
@click.option("--ephemeral", is_flag=True, help="Delete the data too.")
@pass_settings
def down(settings: Settings, servers: tuple[str, ...], folder: Path, ephemeral: bool) -> int:
    """
    Stop servers.

    Only what the sandbox has started is stopped. What does not run is left alone.
    """
    names = _names(servers) if servers else ()
    if _engine_of(folder) == "compose":
        stopped = _compose(settings).down(names, ephemeral=ephemeral)
    else:
        stopped = [server.name for server in _box(settings, folder).down(*names, ephemeral=ephemeral)]
    with Output(settings, "sandbox.down", ("SERVER", "RESULT")) as output:
        for name in names or stopped:
            result = "stopped" if name in stopped else "not_running"
            output.item({"server": name, "result": result}, (name, result))
    if not names and not stopped:
        settings.say("nothing runs")
    return Exit.DONE


@sandbox.command(
    examples=(
        ("brokerkit sandbox status", "how every server is that has been up"),
        ("brokerkit sandbox status kafka -q && echo it runs", "in a script"),
    )
)
@_servers
@_folder
@pass_settings
def status(settings: Settings, servers: tuple[str, ...], folder: Path) -> int:
    """
    Look at servers now: running, starting, frozen, crashed, stopped.

    Exits with 0 if all of them run, 3 if some do, 1 if none does.
    """
    names = _names(servers) if servers else ()
    found = _statuses(settings, folder, names)
    with Output(settings, "sandbox.status", ("SERVER", "STATE", "VERSION", "PID", "URL")) as output:
        for each in found:
            output.item(*_line(each))
        for name in names:
            if name not in {each.name for each in found}:
                output.item({"server": name, "state": "absent"}, (name, "absent", "-", "-", "-"))
    running = sum(each.state == "running" for each in found)
    if not names and not found:
        settings.say("nothing has been up here; brokerkit sandbox up starts it")
    if running == max(len(names), len(found)):
        return Exit.DONE
    return Exit.PARTIAL if running else Exit.FAILED


@sandbox.command(
    examples=(
        ('eval "$(brokerkit sandbox env)"', "set the variables in this shell"),
        ("brokerkit sandbox env kafka -o json", "for a program"),
    )
)
@_servers
@_folder
@pass_settings
def env(settings: Settings, servers: tuple[str, ...], folder: Path) -> int:
    """
    Print where the running servers are, as lines for a shell.

    BROKERKIT_KAFKA_URL and its like, with user and password: they are no secrets.
    """
    names = _names(servers) if servers else ()
    found = [each for each in _statuses(settings, folder, names) if each.state in {"running", "starting"}]
    absent = [name for name in names if name not in {each.name for each in found}]
    if absent or not found:
        what = f"{', '.join(absent)} does not run" if absent else "nothing runs"
        message = f"{what}; brokerkit sandbox up {' '.join(absent)}".rstrip()
        raise Failed(message)
    with Output(settings, "sandbox.env") as output:
        for each in found:
            variable = f"BROKERKIT_{each.name.upper()}_URL"
            if output.machine:
                output.item({"name": variable, "value": each.url})
            else:
                output.text(f"export {variable}={shlex.quote(each.url)}")
    return Exit.DONE


@sandbox.command(
    examples=(
        ("brokerkit sandbox logs kafka", "its last hundred lines"),
        ("brokerkit sandbox logs rabbitmq --lines 1000 | grep error", "more of it"),
    )
)
@click.argument("server", metavar="SERVER")
@_folder
@click.option(
    "--lines", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="The last N."
)
@pass_settings
def logs(settings: Settings, server: str, folder: Path, lines: int) -> int:
    """Print the end of a server's log."""
    (name,) = _names((server,))
    if _engine_of(folder) == "compose":
        text = _compose(settings).logs(name, lines)
    else:
        log = _box(settings, folder).server(name).log
        if not log.exists():
            message = f"{name} has no log: it has not been up in {folder}"
            raise Failed(message)
        text = log.read_text("utf-8", "replace")
    with Output(settings, "sandbox.logs") as output:
        for line in text.splitlines()[-lines:]:
            if output.machine:
                output.item({"server": name, "line": line})
            else:
                output.text(safe(line))
    return Exit.DONE


@sandbox.command(
    examples=(
        ("brokerkit sandbox reset --dry-run", "what would be deleted"),
        ("brokerkit sandbox reset kafka --yes", "delete one server's data"),
    )
)
@_servers
@_folder
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; a script has to say it.")
@pass_settings
def reset(settings: Settings, servers: tuple[str, ...], folder: Path, dry_run: bool, yes: bool) -> int:
    """Stop servers and delete their data: the next `up` makes new ones. Works on what cannot be read as well."""
    compose = _engine_of(folder) == "compose"
    there = [name for name in _names(servers) if compose or (folder / name).exists()]
    if there and not dry_run and not yes:
        _confirm(there)
    with Output(settings, "sandbox.reset", ("SERVER", "RESULT")) as output:
        if compose and there and not dry_run:
            _compose(settings).down(there if servers else (), ephemeral=True)
        for name in there:
            if not compose and not dry_run:
                _box(settings, folder).server(name).remove()
            result = "would_reset" if dry_run else "reset"
            output.item({"server": name, "result": result}, (name, result))
    if not there:
        settings.say("nothing to reset")
    return Exit.DONE


@sandbox.command(
    examples=(
        ("brokerkit sandbox install", "get everything that the servers need, and start nothing"),
        ("brokerkit sandbox install kafka nats", "for two of them"),
    )
)
@_servers
@pass_settings
def install(settings: Settings, servers: tuple[str, ...]) -> int:
    """Download or install what native servers need, so that a later `up` is quick and needs no network."""
    names = _names(servers)
    box = _box(settings, Path(".brokerkit", "sandbox"))
    done, failed = 0, list[str]()
    with Output(settings, "sandbox.install", ("SERVER", "VERSION")) as output:
        for name in names:
            try:
                version = box.install(name)
            except _sandbox_error() as error:
                failed.append(str(error))
                continue
            done += 1
            output.item({"server": name, "version": version}, (name, version))
    return _ending(settings, done, failed, timed_out=False)


def _report(
    settings: Settings,
    schema: str,
    names: Sequence[str],
    begin: "Callable[[str], Callable[[], Status]]",
) -> int:
    """Begin all, then wait for each; one that fails harms no other."""
    waiting = [begin(name) for name in names]
    started, failed, late = 0, list[str](), False
    with Output(settings, schema, ("SERVER", "STATE", "VERSION", "PID", "URL")) as output:
        for wait in waiting:
            try:
                found = wait()
            except _sandbox_error() as error:
                failed.append(str(error))
                late = late or error.code == "not_ready"
                continue
            started += 1
            output.item(*_line(found))
    return _ending(settings, started, failed, timed_out=late)


def _ending(settings: Settings, done: int, failed: Sequence[str], *, timed_out: bool) -> int:
    if not failed:
        return Exit.DONE
    if done or len(failed) > 1:
        for each in failed:
            settings.warn(f"brokerkit: {each}")
        return Exit.PARTIAL if done else Exit.FAILED
    if timed_out:
        raise TimedOut(failed[0])
    raise Failed(failed[0])


def _up_in_containers(settings: Settings, folder: Path, names: Sequence[str]) -> int:
    compose = _compose(settings)
    _remember(folder, "compose")

    def start(name: str) -> "Status":
        compose.up(name, settings.timeout)
        return compose.statuses(name)[0]

    return _report(settings, "sandbox.up", names, lambda name: lambda: start(name))


def _line(status: "Status") -> tuple[dict[str, Any], Sequence[str]]:
    url = masked(status.url)
    record = {
        "server": status.name,
        "state": status.state,
        "version": status.version,
        "pid": status.pid,
        "url": url,
        "reason": status.reason,
    }
    return record, (status.name, status.state, status.version, str(status.pid or "-"), url)


def _statuses(settings: Settings, folder: Path, names: Sequence[str]) -> "list[Status]":
    if _engine_of(folder) == "compose":
        return _compose(settings).statuses(*names)
    return _box(settings, folder).statuses(*names)


def _names(servers: Sequence[str]) -> tuple[str, ...]:
    """Return the names, all of them if none is given; a usage error for one that there is not."""
    from brokerkit.sandbox import SERVERS

    for name in servers:
        if name not in SERVERS:
            hint = nearest(name, SERVERS) or f"; there are {', '.join(SERVERS)}"
            message = f"no server {name!r}{hint}"
            raise click.UsageError(message, click.get_current_context())
    return tuple(dict.fromkeys(servers)) or SERVERS


def _given(pairs: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    given: dict[str, dict[str, str]] = {}
    for pair in pairs:
        place, equals, value = pair.partition("=")
        name, dot, key = place.partition(".")
        if not equals or not dot or not key or name not in names:
            message = f"--setting {pair!r}: write SERVER.KEY=VALUE, with a server that is started: {', '.join(names)}"
            raise click.UsageError(message, click.get_current_context())
        given.setdefault(name, {})[key] = value
    return given


def _choose(folder: Path, engine: str) -> Engine:
    """Return the engine to use: as asked, else what this folder's servers run on, else containers where they can be had."""
    from brokerkit.sandbox.compose import Compose

    if engine == "native":
        return "native"
    if engine == "compose":
        if not Compose.answers():
            message = (
                "docker compose or the engine behind it does not answer; start it, or say --engine native"
            )
            raise Refused(message)
        return "compose"
    if (folder / _ENGINE).exists():
        return _engine_of(folder)
    return "compose" if Compose.answers() else "native"


def _engine_of(folder: Path) -> Engine:
    file = folder / _ENGINE
    return "compose" if file.exists() and file.read_text("ascii").strip() == "compose" else "native"


def _remember(folder: Path, engine: Engine) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve().parent.name == ".brokerkit":  # ours alone, and nothing for a repository
        (folder.parent / ".gitignore").write_text("*\n", "ascii")
    (folder / _ENGINE).write_text(f"{engine}\n", "ascii")


def _confirm(names: Sequence[str]) -> None:
    what = f"delete everything of {', '.join(names)}"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        message = f"to {what} say --yes"
        raise Refused(message)
    click.confirm(f"{what}?", abort=True, err=True)


def _box(settings: Settings, folder: Path) -> "Sandbox":
    from brokerkit.sandbox import Sandbox

    return Sandbox(folder, say=settings.say)


def _compose(settings: Settings) -> "Compose":
    from brokerkit.sandbox.compose import Compose

    return Compose(settings.say)


def _sandbox_error() -> "type[SandboxError]":
    from brokerkit.sandbox import SandboxError

    return SandboxError
