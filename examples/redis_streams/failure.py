"""What the client's errors mean, in one place."""

import ssl
from typing import TypeVar

from redis import exceptions

from brokerkit.errors import (
    ConfigurationError,
    ConnectionLost,
    PublishUnknown,
    SendError,
    Throttled,
    TooLarge,
    Unauthorised,
)

__all__ = ["Broken", "connecting", "refused", "sending", "using"]

E = TypeVar("E", bound=Exception)

_NOT_ALLOWED = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
    exceptions.NoPermissionError,
)
_NOT_NOW = (  # said by the server, before it has done anything
    exceptions.BusyLoadingError,
    exceptions.ReadOnlyError,
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
)
_FULL = ("OOM ", "MISCONF ", "NOREPLICAS ")  # nothing was stored


class Broken(Exception):
    """The connection was lost while a command was under way: it may have been carried out."""


def connecting(error: Exception, where: str) -> SendError | ConfigurationError:
    """Return what a failure to connect means."""
    cause = error.__cause__ or error.__context__ or error
    if isinstance(error, _NOT_ALLOWED) or refused(error) is not None:
        return _because(error, refused(error) or Unauthorised(f"{where}: {error}"))
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _because(error, Unauthorised(f"{where}: the certificate was refused: {cause.verify_message}"))
    if isinstance(error, exceptions.ResponseError) and not isinstance(error, _NOT_NOW):
        return _because(error, ConfigurationError(f"{where}: {error}"))
    return _because(error, ConnectionLost(f"{where} cannot be reached: {error}"))


def refused(error: Exception) -> SendError | None:
    """Return what an answer of the server means that leaves everything as it was, or None if it is none of these."""
    text = str(error)
    if isinstance(error, _NOT_ALLOWED) or text.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
        return _because(error, Unauthorised(f"the server says: {text}"))
    if isinstance(error, _NOT_NOW):
        return _because(error, ConnectionLost(f"the server says: {text}"))
    if isinstance(error, exceptions.OutOfMemoryError) or text.startswith(_FULL):
        return _because(error, Throttled(f"the server takes nothing more: {text}"))
    return None


def sending(error: Exception) -> SendError:
    """Return the outcome of messages whose publish has failed."""
    if isinstance(error, SendError):
        return error
    if isinstance(error, Broken):
        return _because(error, PublishUnknown(str(error)))
    if "invalid bulk length" in str(error) or "Protocol error" in str(error):
        return _because(error, TooLarge(f"above the server's proto-max-bulk-len: {error}"))
    return refused(error) or _because(error, PublishUnknown(f"the server says: {error}"))


def using(error: Exception) -> SendError:
    """Return what a failure means for somebody who only reads."""
    if isinstance(error, SendError):
        return error
    if isinstance(error, Broken):
        return _because(error, ConnectionLost(str(error)))
    return refused(error) or _because(error, ConnectionLost(f"the server says: {error}"))


def _because(error: Exception, meaning: E) -> E:
    meaning.__cause__ = error
    return meaning
