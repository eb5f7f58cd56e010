import brokerkit.errors
from brokerkit.errors import BrokerkitError, ConfigurationError, SendError, SettleError

FAMILY = [getattr(brokerkit.errors, name) for name in brokerkit.errors.__all__]


def test_every_error_is_of_the_family_and_listed() -> None:
    defined = {name for name, value in vars(brokerkit.errors).items() if isinstance(value, type)}

    assert defined == set(brokerkit.errors.__all__)
    assert all(issubclass(error, BrokerkitError) for error in FAMILY)


def test_every_code_is_a_stable_word_of_its_own() -> None:
    codes = {error.__name__: error.code for error in FAMILY}

    assert len(set(codes.values())) == len(codes)
    assert codes == {
        "BadHeader": "bad_header",
        "BadKey": "bad_key",
        "BadName": "bad_name",
        "BrokerkitError": "error",
        "ChainError": "chain",
        "Closed": "closed",
        "ConfigurationError": "configuration",
        "ConnectionLost": "connection_lost",
        "DecodeError": "decode_error",
        "DelayTooLong": "delay_too_long",
        "HandlerCancelled": "cancelled",
        "HandlerResultError": "result",
        "HandlerTimeout": "timeout",
        "LoopDetected": "loop",
        "NotFound": "not_found",
        "PublishUnknown": "unknown",
        "SendError": "send",
        "SettleError": "settle",
        "SignatureError": "signature",
        "Stale": "stale",
        "Throttled": "throttled",
        "TooLarge": "too_large",
        "Unauthorised": "unauthorised",
        "Unavailable": "unavailable",
        "Undone": "undone",
        "Unroutable": "unroutable",
        "Unsupported": "unsupported",
    }


def test_only_what_may_pass_by_itself_is_tried_again() -> None:
    assert {error.__name__ for error in FAMILY if error.retryable} == {
        "ConnectionLost",
        "HandlerCancelled",
        "HandlerTimeout",
        "PublishUnknown",
        "Throttled",
        "Unavailable",
        "Undone",
    }


def test_a_mistake_of_configuration_is_never_tried_again() -> None:
    assert not any(error.retryable for error in FAMILY if issubclass(error, ConfigurationError))
    assert {error.__name__ for error in FAMILY if issubclass(error, SettleError)} == {
        "SettleError",
        "Stale",
        "Unavailable",
    }
    assert not issubclass(SettleError, SendError)
