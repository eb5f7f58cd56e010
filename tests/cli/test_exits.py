import asyncio
from collections.abc import Coroutine
from typing import Final

import click
import pytest

from brokerkit import errors
from brokerkit.cli.exits import Exit, Failed, Refused, TimedOut, explain, masked
from tests.cli.conftest import PASSWORD, Brokerkit

CODES: Final[dict[type[errors.BrokerkitError], int]] = {
    errors.ConfigurationError: 2,
    errors.SignatureError: 2,
    errors.ChainError: 2,
    errors.BadName: 2,
    errors.BadHeader: 2,
    errors.BadKey: 2,
    errors.Unsupported: 6,
    errors.Unauthorised: 6,
    errors.Unroutable: 6,
    errors.ConnectionLost: 4,
    errors.Unavailable: 4,
    errors.PublishUnknown: 124,
}
"""Every other error of the family failed: 1."""


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_of_the_family_has_its_exit_code(name: str) -> None:
    kind: type[errors.BrokerkitError] = getattr(errors, name)
    code, text = explain(kind("what went wrong"))

    assert code == CODES.get(kind, 1)
    assert text.startswith("what went wrong")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (click.UsageError("no"), 2),
        (Failed("no"), 1),
        (Refused("no"), 6),
        (TimedOut("no"), 124),
        (TimeoutError(), 124),
        (click.Abort(), 130),
        (KeyboardInterrupt(), 130),
        (RuntimeError("no"), 1),
    ],
)
def test_other_errors_have_theirs(error: BaseException, code: int) -> None:
    assert explain(error)[0] == code


def test_the_codes_are_those_of_the_documentation() -> None:
    assert sorted(Exit) == [0, 1, 2, 3, 4, 6, 124, 130]


@pytest.mark.usefixtures("adapters")
def test_a_broker_that_cannot_be_reached_is_4_and_says_what_to_do(brokerkit: Brokerkit) -> None:
    done = brokerkit(
        "publish", "orders", "1", "--type", "t", "--url", "walled://host", "--timeout", "0.2", "-q"
    )

    assert done.code == 4
    assert "nobody answers" in done.err
    assert "--url" in done.err


@pytest.mark.usefixtures("adapters")
def test_a_broker_that_does_not_let_us_in_is_6(brokerkit: Brokerkit) -> None:
    assert brokerkit("dlq", "groups", "--url", "denied://host").code == 6


def test_a_command_without_a_broker_is_2_and_names_the_flag_and_the_variable(brokerkit: Brokerkit) -> None:
    done = brokerkit("tail", "orders")

    assert done.code == 2
    assert "--url" in done.err
    assert "BROKERKIT_URL" in done.err


def test_an_error_is_one_line_and_a_traceback_only_for_who_wants_it(
    brokerkit: Brokerkit, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    text = "first line\nsecond line \x1b[31m"

    def fail(main: Coroutine[object, object, object]) -> None:
        main.close()
        raise RuntimeError(text)

    monkeypatch.setattr(asyncio, "run", fail)
    quiet = brokerkit("dlq", "groups", "--url", url)
    loud = brokerkit("dlq", "groups", "--url", url, "-vv")

    assert quiet.code == loud.code == 1
    assert quiet.err.count("\n") == 1
    assert "\x1b" not in quiet.err
    assert "RuntimeError: first line second line" in quiet.err
    assert "Traceback" not in quiet.err
    assert "Traceback" in loud.err


@pytest.mark.parametrize(
    "text",
    [
        f"cannot reach amqp://shop:{PASSWORD}@host:5672/vhost",
        f"amqp://{PASSWORD}@host and again amqp://{PASSWORD}@host",
        f"kafka://host?sasl_user=a&sasl_password={PASSWORD}&x=1",
        f"AuthError('{PASSWORD}') for shop",
    ],
)
def test_a_secret_is_masked_wherever_it_stands(text: str) -> None:
    assert PASSWORD not in masked(text, f"amqp://shop:{PASSWORD}@host:5672/vhost")


def test_what_is_no_secret_stays() -> None:
    text = "cannot reach kafka://broker.example:9092/x?acks=all and left"

    assert masked(text) == "cannot reach kafka://broker.example:9092/x?acks=*** and left"
