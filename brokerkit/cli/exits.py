"""
How a command ends: its exit code, and the one line on stderr that says why.

The only place that knows which error means which code.
"""

import re
import traceback
from collections.abc import Mapping
from enum import IntEnum
from typing import Final

import click

__all__ = ["Exit", "Failed", "Refused", "TimedOut", "explain", "masked", "trace_of"]


class Exit(IntEnum):
    """What a script can rely on."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    UNREACHABLE = 4
    REFUSED = 6
    TIMED_OUT = 124
    INTERRUPTED = 130


class Failed(click.ClickException):
    """The command could not do what it was asked for."""

    exit_code = Exit.FAILED


class Refused(click.ClickException):
    """Nothing was done: a confirmation is missing, or the broker or a rule does not allow it."""

    exit_code = Exit.REFUSED


class TimedOut(click.ClickException):
    """What was waited for did not come in time."""

    exit_code = Exit.TIMED_OUT


_OF_CODE: Final[Mapping[str, tuple[Exit, str]]] = {
    "configuration": (Exit.USAGE, ""),
    "signature": (Exit.USAGE, ""),
    "chain": (Exit.USAGE, ""),
    "bad_name": (Exit.USAGE, ""),
    "bad_header": (Exit.USAGE, ""),
    "bad_key": (Exit.USAGE, ""),
    "unsupported": (Exit.REFUSED, ""),
    "unauthorised": (Exit.REFUSED, "check user and password in --url, and what they may do"),
    "unroutable": (Exit.REFUSED, "start a consumer of the channel first, or leave --must-route out"),
    "not_found": (Exit.FAILED, "check the name, and --prefix"),
    "connection_lost": (Exit.UNREACHABLE, "check --url and that the broker runs"),
    "unavailable": (Exit.UNREACHABLE, "check --url and that the broker runs"),
    "unknown": (Exit.TIMED_OUT, "publish again with the same --id, or wait longer with --timeout"),
}
"""`BrokerkitError.code` to exit code and what to do; a code that is not here failed."""

_USER = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(?<=://)(\S*?)\?([^\s'\"]+)")
_VALUE = re.compile(r"=[^&]*")


def masked(text: str, url: str | None = None) -> str:
    """Return a text without user information and query values of URLs; those of `url` are found in any spelling."""
    if url and "://" in url:
        text = text.replace(url, _without_secrets(url))
        user = url.partition("://")[2].rpartition("@")[0]
        password = user.partition(":")[2] or user
        if password:
            text = text.replace(password, "***")
    return _without_secrets(text)


def _without_secrets(text: str) -> str:
    text = _USER.sub("***@", text)
    return _QUERY.sub(lambda found: f"{found[1]}?{_VALUE.sub('=***', found[2])}", text)


def explain(error: BaseException) -> tuple[Exit, str]:
    """Return the exit code of an error and the line that says what is wrong and what to do; secrets are still in."""
    if isinstance(error, click.UsageError):
        return Exit.USAGE, f"{_sentence(error)}; see {_help_of(error)}"
    if isinstance(error, click.ClickException):
        return Exit(error.exit_code), _sentence(error)
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return Exit.INTERRUPTED, "interrupted"
    code = getattr(error, "code", None)
    if _is_ours(error) and isinstance(code, str):
        found, hint = _OF_CODE.get(code, (Exit.FAILED, ""))
        return found, f"{error}; {hint}" if hint else str(error)
    if isinstance(error, TimeoutError):
        return Exit.TIMED_OUT, "timed out; wait longer with --timeout"
    return Exit.FAILED, f"{type(error).__name__}: {error}; -vv shows where"


def _is_ours(error: BaseException) -> bool:
    from brokerkit.errors import BrokerkitError

    return isinstance(error, BrokerkitError)


def _sentence(error: click.ClickException) -> str:
    text = error.format_message().strip().rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _help_of(error: click.UsageError) -> str:
    return f"'{error.ctx.command_path if error.ctx else 'brokerkit'} --help'"


def trace_of(error: BaseException) -> str:
    """Return the traceback, for -vv."""
    return "".join(traceback.format_exception(error))
