"""
Every error that brokerkit raises, as a small closed family.

Act on the class or on `code`, never on the text. The client's own error stays reachable as
`__cause__`. No error text ever holds a password: URLs are redacted before they get here.
"""

__all__ = [
    "BadHeader",
    "BadKey",
    "BadName",
    "BrokerkitError",
    "ChainError",
    "Closed",
    "ConfigurationError",
    "ConnectionLost",
    "DecodeError",
    "DelayTooLong",
    "HandlerCancelled",
    "HandlerResultError",
    "HandlerTimeout",
    "LoopDetected",
    "NotFound",
    "PublishUnknown",
    "SendError",
    "SettleError",
    "SignatureError",
    "Stale",
    "Throttled",
    "TooLarge",
    "Unauthorised",
    "Unavailable",
    "Undone",
    "Unroutable",
    "Unsupported",
]


class BrokerkitError(Exception):
    """
    The root of the family.

    `code` is a stable word for logs, metrics and programs; `retryable` says whether the same
    call may succeed later without anybody changing anything.
    """

    code: str = "error"
    retryable: bool = False


class ConfigurationError(BrokerkitError):
    """Something is set up wrongly; raised at decoration or at start, before anything moves."""

    code = "configuration"


class SignatureError(ConfigurationError):
    """A handler's parameters cannot be resolved; the text names the handler and the parameter."""

    code = "signature"


class ChainError(ConfigurationError):
    """A list of patterns breaks a stated inside / outside rule; the text names both."""

    code = "chain"


class BadName(ConfigurationError):
    """A channel, group or broker name is not allowed; raised before connecting."""

    code = "bad_name"


class DecodeError(BrokerkitError):
    """Bytes could not be read as what they claim to be. Never tried again: dead-lettered as they came."""

    code = "decode_error"


class HandlerTimeout(BrokerkitError):
    """A handler ran longer than its timeout and was cancelled. Counts as a failed handling."""

    code = "timeout"
    retryable = True


class HandlerCancelled(BrokerkitError):
    """A handler raised `CancelledError` although nobody had asked it to stop. Counts as a failed handling."""

    code = "cancelled"
    retryable = True


class HandlerResultError(BrokerkitError):
    """A handler returned something that is neither `None` nor a settlement; the text names the handler."""

    code = "result"


class Undone(BrokerkitError):
    """
    The database undid a handler's transaction behind its back (a deadlock, a full disk), and the handler went on.

    Nothing was kept. Counts as a failed handling and is tried again.
    """

    code = "undone"
    retryable = True


class SendError(BrokerkitError):
    """One message could not be sent; its neighbours in the batch are not touched."""

    code = "send"


class BadHeader(SendError):
    """A header's name or value cannot travel (control characters, wrong type, not encodable)."""

    code = "bad_header"


class BadKey(SendError):
    """A key is not text, cannot be encoded, or is longer than 1,024 bytes."""

    code = "bad_key"


class LoopDetected(SendError):
    """Handlers have published in answer to each other too many times in a row; the chain is cut here."""

    code = "loop"


class TooLarge(SendError):
    """The message is above the size limit, in bytes and with its headers; refused before the call."""

    code = "too_large"


class Unroutable(SendError):
    """No group has asked for this message and the publisher said that one must."""

    code = "unroutable"


class NotFound(SendError):
    """The channel, group or place does not exist and may not be created."""

    code = "not_found"


class DelayTooLong(SendError):
    """A delay is above what the broker can keep; refused at once, never cut."""

    code = "delay_too_long"


class Throttled(SendError):
    """The broker asks us to slow down; nothing was stored."""

    code = "throttled"
    retryable = True


class Unauthorised(SendError):
    """The credentials are wrong or do not allow this."""

    code = "unauthorised"


class ConnectionLost(SendError):
    """The broker cannot be reached; nothing of this call was stored, as far as can be known."""

    code = "connection_lost"
    retryable = True


class PublishUnknown(SendError):
    """
    The outcome of a publish is unknown: the message may or may not be stored.

    Publish it again with the same event id: dedupe and inbox absorb the second copy.
    """

    code = "unknown"
    retryable = True


class Closed(SendError):
    """The bus, adapter or subscription is closed."""

    code = "closed"


class Unsupported(ConfigurationError):
    """The broker cannot do what was asked; the text says which one can, or what to do instead."""

    code = "unsupported"


class SettleError(BrokerkitError):
    """One delivery could not be settled; its neighbours in the batch are not touched."""

    code = "settle"


class Stale(SettleError):
    """
    The delivery is no longer ours: its lease ran out or its partition moved.

    Somebody else handles it. Nothing was changed at the broker. Never tried again.
    """

    code = "stale"


class Unavailable(SettleError):
    """The broker could not be reached; the settlement is tried again until the lease ends."""

    code = "unavailable"
    retryable = True
