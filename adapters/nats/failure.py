"""
What the client's and the server's errors mean in brokerkit's own family.
"""

import ssl

import nats.errors

from brokerkit.errors import (
    BrokerkitError,
    ConfigurationError,
    ConnectionLost,
    SendError,
    Unauthorised,
    Unsupported,
)

__all__ = [
    "CONSUMER_MISSING",
    "NO_MESSAGE",
    "STREAM_MISSING",
    "ApiError",
    "NoAnswer",
    "as_send_error",
    "meaning",
    "meaning_of_api",
]

CONSUMER_MISSING = 10014
NO_MESSAGE = 10037
STREAM_MISSING = 10059
_NOT_ENABLED = {10039, 10076}
_OVERLAP = 10065
_BUSY = {10008, 10009, 10023, 10074}
"""Cluster without a leader, without resources, too busy: wait, and try again."""


class ApiError(Exception):
    """The server refused a request of the JetStream API: `code` as in HTTP, `reason` the server's own number."""

    def __init__(self, code: int, reason: int, text: str) -> None:
        super().__init__(f"{text} ({code}, {reason})")
        self.code = code
        self.reason = reason
        self.text = text


class NoAnswer(Exception):
    """
    No answer came in time, or the connection broke.

    responders: False if the server says that nothing listens on the subject. written: False if nothing was sent at all.
    """

    def __init__(self, text: str, *, responders: bool = True, written: bool = True) -> None:
        super().__init__(text)
        self.responders = responders
        self.written = written


def meaning(error: BaseException, where: str) -> BrokerkitError:
    """Return the error to raise for what the client raised; `where` is a redacted URL."""
    made: BrokerkitError
    text = str(error) or type(error).__name__
    if isinstance(error, BrokerkitError):
        return error
    if isinstance(error, ApiError):
        made = meaning_of_api(error, where)
    elif isinstance(error, ssl.SSLCertVerificationError):
        made = ConfigurationError(
            f"{where}: the server's certificate is not accepted ({error.verify_message}); give tls_ca=, and the host name "
            "that the certificate was made for"
        )
    elif isinstance(error, ssl.SSLError):
        made = ConnectionLost(
            f"{where}: TLS failed ({error.reason}); the server may want a client certificate, or no TLS"
        )
    elif "authorization violation" in text.lower() or "authentication" in text.lower():
        made = Unauthorised(f"{where}: the server refuses the credentials")
    elif "permissions violation" in text.lower():
        made = Unauthorised(f"{where}: {text}")
    elif isinstance(error, nats.errors.Error | OSError | TimeoutError | NoAnswer):
        made = ConnectionLost(f"{where}: {text}")
    else:
        made = ConnectionLost(f"{where}: {error!r}")
    made.__cause__ = error
    return made


def meaning_of_api(error: ApiError, where: str) -> BrokerkitError:
    """Return what a refusal of the JetStream API means to whoever provisions, subscribes or sends."""
    if error.reason in _NOT_ENABLED:
        return ConfigurationError(f"{where}: JetStream is not enabled for this account ({error.text})")
    if error.reason == _OVERLAP:
        return ConfigurationError(
            f"{where}: {error.text}; adopt that stream with native=, or choose another name"
        )
    if error.code == 503 or error.reason in _BUSY:  # noqa: PLR2004 - as in HTTP
        return ConnectionLost(f"{where}: {error}")
    if error.code == 401 or error.code == 403:  # noqa: PLR1714, PLR2004
        return Unauthorised(f"{where}: {error}")
    if error.code == 404:  # noqa: PLR2004
        return ConnectionLost(f"{where}: {error}")
    if error.code == 400 and "priority" in error.text:  # noqa: PLR2004
        return Unsupported(f"{where}: {error}")
    return ConfigurationError(f"{where}: {error}")


def as_send_error(error: BrokerkitError) -> SendError:
    """Return an error that a message's outcome may be."""
    if isinstance(error, SendError):
        return error
    made = SendError(str(error))
    made.__cause__ = error
    return made
