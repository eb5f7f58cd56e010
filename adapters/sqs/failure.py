"""
What a failed call means in our words. No text holds a secret: neither requests nor credentials are quoted.
"""

from typing import Any, TypeVar

from brokerkit.adapters.sqs.calls import CallFailed
from brokerkit.errors import (
    BadHeader,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    PublishUnknown,
    SendError,
    SettleError,
    Stale,
    Throttled,
    TooLarge,
    Unauthorised,
    Unavailable,
)

__all__ = ["MISSING", "entry_error", "is_missing", "lost", "send_error", "settle_error", "short"]

MISSING = frozenset({"NonExistentQueue", "QueueDoesNotExist", "NotFound", "NotFoundException"})
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthorizationError",
        "AuthorizationErrorException",
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "NoCredentials",
        "NotAuthorized",
        "OptInRequired",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_THROTTLED = frozenset(
    {
        "KmsThrottled",
        "LimitExceededException",
        "OverLimit",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "Throttled",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_LARGE = frozenset({"BatchRequestTooLong", "MessageTooLong"})
_GONE = frozenset(
    {
        "InvalidParameterValue",
        "InvalidIdFormat",
        "MessageNotInflight",
        "ReceiptHandleIsInvalid",
        *MISSING,
    }
)
_SERVER = 500

Error = TypeVar("Error", bound=Exception)


def short(code: str) -> str:
    """Return a code in the form that all versions of the protocol share: what stands after the last `#` and dot."""
    return code.rpartition("#")[2].rpartition(".")[2]


def is_missing(error: CallFailed) -> bool:
    """Say whether the queue or topic does not exist."""
    return error.code in MISSING


def send_error(error: CallFailed, what: str) -> SendError:
    """Return the error of a message that one call was to store."""
    return _caused(_send_error(error, what), error)


def _send_error(error: CallFailed, what: str) -> SendError:
    text = f"{what}: {error}"
    if error.code == "certificate":
        return ConnectionLost(text)
    if error.code in _DENIED:
        return Unauthorised(text)
    if error.code in MISSING:
        return NotFound(text)
    if error.code in _THROTTLED:
        return Throttled(text)
    if error.code in _LARGE:
        return TooLarge(text)
    if error.code == "InvalidMessageContents":
        return BadHeader(text)
    if error.sent or error.status >= _SERVER:
        return PublishUnknown(text)
    if not error.status:
        return ConnectionLost(text)
    return SendError(text)


def lost(error: CallFailed, what: str) -> Exception:
    """Return the error of a call that changes nothing: connecting, describing, receiving."""
    text = f"{what}: {error}"
    if error.code == "certificate":
        return _caused(ConfigurationError(text), error)
    if error.code in _DENIED:
        return _caused(Unauthorised(text), error)
    if error.code in MISSING:
        return _caused(NotFound(text), error)
    if error.code in _THROTTLED or error.sent or not error.status or error.status >= _SERVER:
        return _caused(ConnectionLost(text), error)
    return _caused(ConfigurationError(text), error)


def entry_error(failed: dict[str, Any], what: str) -> SendError:
    """Return the error of one message of a batch whose others may have been stored."""
    code = short(str(failed.get("Code", "unknown")))
    status = 400 if failed.get("SenderFault") else _SERVER
    return send_error(CallFailed(str(failed.get("Message", ""))[:500], code=code, status=status), what)


def settle_error(failed: dict[str, Any] | CallFailed, what: str) -> SettleError:
    """Return the error of a settlement: stale if the service will never take it, else to be tried again."""
    if isinstance(failed, CallFailed):
        code, text, fault = failed.code, str(failed), False
    else:
        code = short(str(failed.get("Code", "unknown")))
        text, fault = f"{code}: {str(failed.get('Message', ''))[:500]}", bool(failed.get("SenderFault"))
    if code in _GONE or (fault and code not in _THROTTLED and code not in _DENIED):
        return Stale(f"{what}: {text}")
    found = Unavailable(f"{what}: {text}")
    if isinstance(failed, CallFailed):
        found.__cause__ = failed
    return found


def _caused(error: Error, cause: CallFailed) -> Error:
    error.__cause__ = cause
    return error
