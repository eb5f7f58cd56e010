"""
What the errors of the client and the broker mean in our words. The client's own error stays the cause.
"""

import re
import ssl
from collections.abc import Iterator

import aiormq.exceptions as amqp

from brokerkit.adapters.rabbitmq.parcels import Parcel
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

__all__ = ["at_connect", "at_publish", "meaning"]

_OTHER_HOST = (62, 64)
"""What OpenSSL says of a host name, and of an address, that is not in the certificate."""

_LARGEST = re.compile(r"larger than configured max size (\d+)")


def at_connect(error: BaseException, place: str) -> BrokerkitError:
    """
    Return what a failed connect to a place (without secrets) means.

    A certificate that cannot be verified is `ConfigurationError`: nobody gets further by trying again.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _OTHER_HOST:
            reason = f"{place}: the server's certificate is for another host ({cause.verify_message}); use a name that is in it"
            return _because(ConfigurationError(reason), error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = (
                f"{place}: the server's certificate is not trusted ({cause.verify_message}); name its authority with "
                "tls_ca=FILE"
            )
            return _because(ConfigurationError(reason), error)
        if isinstance(cause, ssl.SSLError):
            reason = f"{place}: no TLS connection ({cause.reason}); does this port speak TLS, and this client certificate suit?"
            return _because(ConfigurationError(reason), error)
    text = _text(error)
    if isinstance(error, amqp.AuthenticationError | amqp.ProbableAuthenticationError):
        found: BrokerkitError = Unauthorised(f"{place}: the broker refuses these credentials")
    elif isinstance(error, amqp.InvalidFrameError) and "OpenOk" in text:
        # the client loses the broker's own words here
        reason = "the broker refuses the virtual host in the URL's path: it does not exist, or the credentials do not allow it"
        found = Unauthorised(f"{place}: {reason}")
    elif isinstance(error, TimeoutError):
        found = ConnectionLost(f"{place}: no answer in time")
    else:
        found = ConnectionLost(f"{place}: cannot be reached ({text})")
    return _because(found, error)


def meaning(error: BaseException, what: str) -> BrokerkitError:
    """Return what a failed call on an open connection means; `what` was tried."""
    if isinstance(error, BrokerkitError):
        return error
    text = _text(error)
    if isinstance(error, amqp.ChannelNotFoundEntity):
        found: BrokerkitError = NotFound(f"{what}: it does not exist ({text})")
    elif isinstance(error, amqp.ChannelAccessRefused):
        found = Unauthorised(f"{what}: the credentials do not allow it ({text})")
    elif isinstance(error, amqp.ChannelPreconditionFailed | amqp.ChannelLockedResource):
        found = ConfigurationError(f"{what}: it exists with other properties ({text})")
    elif isinstance(error, amqp.ConnectionCommandInvalid):
        found = ConfigurationError(f"{what}: the broker does not know it; is its plugin on? ({text})")
    else:
        found = ConnectionLost(f"{what}: the connection was lost ({text})")
    return _because(found, error)


def at_publish(error: BaseException | None, parcel: Parcel) -> SendError:
    """
    Return what became of one message whose publish has failed, or was cut off with its channel or connection.

    None or anything that does not say more of this message is `PublishUnknown`: it may be stored.
    """
    size = len(parcel.body)
    if isinstance(error, amqp.PublishError):
        found: SendError = NotFound("the broker has returned it: no queue takes it")
    elif isinstance(error, amqp.DeliveryError):
        found = Throttled(
            "the broker has refused to store it: a queue that takes it is full (`unrouted`, or a limit set by a policy)"
        )
    elif (limit := _LARGEST.search(_text(error))) and size > int(limit.group(1)):
        found = TooLarge(f"{size} bytes; this broker takes at most {limit.group(1)} (its max_message_size)")
    elif isinstance(error, amqp.ChannelAccessRefused) and _is_about(_text(error), parcel):
        found = Unauthorised(f"the credentials do not allow to publish ({_text(error)})")
    elif isinstance(error, amqp.ChannelAccessRefused):
        found = PublishUnknown(f"another publish that was out with it was refused ({_text(error)})")
    elif isinstance(error, amqp.ChannelNotFoundEntity):
        found = PublishUnknown(f"an exchange has been deleted ({_text(error)})")
    else:
        found = PublishUnknown("the connection was lost before the broker had confirmed")
    if error is not None:
        _because(found, error)
    return found


def _is_about(refusal: str, parcel: Parcel) -> bool:
    """Whether the broker's refusal names where this message goes: the channel ends for all, the others may be stored."""
    if f"exchange '{parcel.exchange}'" not in refusal:
        return False
    return "to topic '" not in refusal or f"to topic '{parcel.key}'" in refusal


def _because(found: BrokerkitError, error: BaseException) -> BrokerkitError:
    found.__cause__ = error
    return found


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _text(error: BaseException | None) -> str:
    if error is None:
        return ""
    return ", ".join(str(each) for each in error.args if each) or type(error).__name__
