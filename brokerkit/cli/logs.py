"""
Logging of a command: to stderr, without secrets.
"""

import logging
import sys

from brokerkit.cli.exits import masked
from brokerkit.cli.settings import Settings

__all__ = ["flush_logs", "set_up_logging"]

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class _Masking(logging.Formatter):
    """Masks what is secret in the finished text, the traceback included."""

    def __init__(self, url: str | None) -> None:
        super().__init__(_FORMAT)
        self._url = url

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record), self._url)


def set_up_logging(settings: Settings, usual: int = logging.WARNING) -> None:
    """
    Write the log to stderr, from the usual level; each -v or -q moves it by one, the first -v only brokerkit's own.

    An application that has set up logging itself keeps what it has.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Masking(settings.url))
    root.addHandler(handler)
    verbosity = settings.verbosity
    logging.getLogger("brokerkit").setLevel(_level(usual, verbosity))
    root.setLevel(_level(usual, verbosity - 1 if verbosity > 0 else verbosity))


def _level(usual: int, verbosity: int) -> int:
    return min(max(usual - 10 * verbosity, logging.DEBUG), logging.CRITICAL)


def flush_logs() -> None:
    """Write out what is still buffered."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stdout.flush()
    sys.stderr.flush()
