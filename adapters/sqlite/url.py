"""
What a `sqlite://` URL and the Python options say, checked before any file is touched.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from brokerkit.errors import ConfigurationError

__all__ = ["Options", "read_url"]

_SCHEME = "sqlite://"
_MAX_MESSAGE = 64 * 1024 * 1024
_SHORTEST_LEASE = 0.2
_LONGEST_BLOB = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    The options of the adapter, all durations in seconds.

    path: the database file; the lock file and the members' lock files lie beside it.
    lease: how long a member that shows no sign of life keeps what it has.
    retention: age at which a message is deleted although a group is not done with it.
    dead_retention: the same for dead letters; 0 keeps them until somebody removes them.
    lock_timeout: how long a call waits for the file before it fails with `ConnectionLost`.
    max_message: size limit in bytes.
    """

    path: Path
    lease: float = 10.0
    retention: float = 604_800.0
    dead_retention: float = 0.0
    lock_timeout: float = 10.0
    max_message: int = _MAX_MESSAGE


def read_url(url: str, options: Mapping[str, object]) -> Options:
    """
    Return the options that a URL and keyword arguments give; a keyword argument wins over the query.

    Raises `ConfigurationError` for an option that does not exist, a value out of range and a path at which
    no file can be.
    """
    if not url.startswith(_SCHEME):
        message = f"{url!r} is not a sqlite URL: write sqlite:///file.db, or sqlite:////absolute/file.db"
        raise ConfigurationError(message)
    place, _, query = url.removeprefix(_SCHEME).partition("?")
    values: dict[str, object] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in values:
            message = f"option {name!r} is given twice in the URL"
            raise ConfigurationError(message)
        values[name] = value
    numbers = {name: _number(name, value) for name, value in (values | dict(options)).items()}
    _check_ranges(numbers)
    limit = int(numbers.pop("max_message", _MAX_MESSAGE))
    return Options(path=_path(unquote(place)), max_message=limit, **numbers)


def _path(text: str) -> Path:
    text = text.removeprefix("/")
    if not text or text.endswith("/") or "\0" in text or text == ":memory:":
        message = f"{text!r} is no path of a file; write sqlite:///file.db (memory:// needs no file)"
        raise ConfigurationError(message)
    path = Path(text).absolute()
    if path.is_dir():
        message = f"{path} is a directory; name the file in it"
        raise ConfigurationError(message)
    if not path.parent.is_dir():
        message = f"the directory {path.parent} does not exist; create it first"
        raise ConfigurationError(message)
    # Two names of one file must share one lock file, and SQLite itself follows links.
    return Path(os.path.realpath(path))


def _number(name: str, value: object) -> float:
    known = [field.name for field in fields(Options) if field.name != "path"]
    if name not in known:
        message = f"sqlite:// has no option {name!r}; there are {', '.join(known)}"
        raise ConfigurationError(message)
    try:
        number = (
            float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        )
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        message = f"option {name}={value!r} is not a number"
        raise ConfigurationError(message)
    return number


def _check_ranges(numbers: Mapping[str, float]) -> None:
    least = {
        "lease": _SHORTEST_LEASE,
        "retention": 1.0,
        "dead_retention": 0.0,
        "lock_timeout": 0.01,
        "max_message": 1,
    }
    for name, number in numbers.items():
        if number < least[name]:
            message = f"option {name}={number:g} is too small; at least {least[name]:g}"
            raise ConfigurationError(message)
    if numbers.get("max_message", 0) > _LONGEST_BLOB:
        message = f"option max_message is above {_LONGEST_BLOB}, the most that SQLite stores in a row"
        raise ConfigurationError(message)
