from typing import Final

import pytest

from tests.cli.conftest import PASSWORD, TOKEN, Brokerkit

URL: Final = f"//shop:{PASSWORD}@broker.example:5672/place?token={TOKEN}"

COMMANDS: Final = [
    ("publish", "orders", "{}", "--type", "t"),
    ("publish", "orders", "--from-ndjson", "-"),
    ("tail", "orders", "--no-follow"),
    ("dlq", "groups"),
    ("dlq", "list"),
    ("dlq", "list", "-o", "json"),
    ("dlq", "show", "x"),
    ("dlq", "redrive", "--channel", "orders", "--group", "billing", "--all", "--yes"),
    ("dlq", "discard", "--channel", "orders", "--group", "billing", "x", "--dry-run"),
]


@pytest.mark.usefixtures("adapters")
@pytest.mark.parametrize("scheme", ["walled", "denied", "unknown"])
@pytest.mark.parametrize("verbosity", ["-q", "-v", "-vv"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_prints_a_secret_of_the_url(
    command: tuple[str, ...],
    verbosity: str,
    scheme: str,
    brokerkit: Brokerkit,
    capfd: pytest.CaptureFixture[str],
) -> None:
    done = brokerkit(*command, "--url", f"{scheme}:{URL}", "--timeout", "0.05", verbosity, stdin="")
    logged = capfd.readouterr()
    everything = done.out + done.err + logged.out + logged.err

    assert done.code in {2, 4, 6}
    assert scheme in everything
    assert PASSWORD not in everything
    assert TOKEN not in everything
