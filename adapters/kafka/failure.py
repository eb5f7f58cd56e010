"""
The client's errors as brokerkit's, in one place.
"""

import ssl

from brokerkit.adapters.kafka.client import Unwritten
from brokerkit.adapters.kafka.lib import errors as kafka
from brokerkit.errors import (
    BrokerkitError,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    PublishUnknown,
    SendError,
    Throttled,
    TooLarge,
    Unauthorised,
)

__all__ = ["connection_error", "send_error"]

_REFUSED = (
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.TransactionalIdAuthorizationFailed,
    kafka.SaslAuthenticationFailed,
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
    kafka.UnsupportedSaslMechanismError,
    kafka.IllegalSaslStateError,
)
_LARGE = (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)
_UNWRITTEN = (
    kafka.OutOfOrderSequenceNumber,
    kafka.UnknownProducerId,
    kafka.InvalidProducerEpoch,
    kafka.ProducerFenced,
    kafka.ProducerClosed,
)
_SETTINGS = (
    kafka.InvalidTopicError,
    kafka.InvalidConfigurationError,
    kafka.PolicyViolationError,
    kafka.InvalidReplicationFactorError,
    kafka.InvalidPartitionsError,
    kafka.InvalidSessionTimeoutError,
    kafka.InconsistentGroupProtocolError,
    kafka.UnsupportedVersionError,
    kafka.IncompatibleBrokerVersion,
    kafka.UnsupportedCodecError,
)
_THROTTLED = 89
_NO_BROKER = "fenced"


def send_error(error: BaseException, where: str) -> Exception:
    """Return what a failed send or request means; `Unwritten` where the record is certainly not in the log."""
    found: Exception
    if isinstance(error, SendError | ConfigurationError):
        return error
    if isinstance(error, _REFUSED):
        found = Unauthorised(f"{where}: the credentials are wrong or do not allow this ({_said(error)})")
    elif isinstance(error, _LARGE):
        found = TooLarge(f"{where}: the message is above the topic's max.message.bytes")
    elif isinstance(error, _UNWRITTEN):
        found = Unwritten(_said(error))
    elif isinstance(error, kafka.UnknownTopicOrPartitionError):
        found = NotFound(f"{where} does not exist")
    elif isinstance(error, kafka.InvalidReplicationFactorError) and _NO_BROKER in str(error):
        found = ConnectionLost(f"{where}: no broker is registered right now ({_said(error)})")
    elif isinstance(error, _SETTINGS):
        found = ConfigurationError(f"{where}: the broker refuses this ({_said(error)})")
    elif getattr(error, "errno", None) == _THROTTLED:
        found = Throttled(f"{where}: the broker asks us to slow down")
    elif isinstance(error, kafka.KafkaTimeoutError | kafka.RequestTimedOutError | TimeoutError):
        found = PublishUnknown(f"{where}: no answer in time")
    else:
        found = ConnectionLost(f"{where}: {_said(error)}")
    found.__cause__ = error
    return found


def connection_error(error: BaseException, where: str) -> BrokerkitError:
    """Return what a failed connection means; a certificate that is not trusted is no passing trouble."""
    found: BrokerkitError
    if (certificate := _certificate(error)) is not None:
        found = ConfigurationError(
            f"{where}: the server's certificate is not accepted ({certificate}); name its authority with tls_ca, or "
            "connect by the host name that the certificate is for"
        )
    elif isinstance(error, ssl.SSLError):
        found = ConfigurationError(f"{where}: TLS failed ({error}); does this port speak TLS?")
    elif isinstance(error, _REFUSED):
        found = Unauthorised(f"{where}: the credentials are refused ({_said(error)})")
    else:
        made = send_error(error, where)
        if isinstance(made, PublishUnknown):
            made = ConnectionLost(f"{where}: no answer in time")
        found = made if isinstance(made, BrokerkitError) else ConnectionLost(f"{where}: {_said(error)}")
    found.__cause__ = error
    return found


def _certificate(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message or str(error)
        error = error.__cause__ or error.__context__
    return None


def _said(error: BaseException) -> str:
    """Say an error in a line; the client's texts hold no credentials, but may hold a whole page of help."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
