import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cli.conftest import Brokerkit, Result

APP: Final = '''
from brokerkit import Bus

bus = Bus("{url}", name="shop", prefix="eu")


@bus.subscriber("orders", group="billing")
async def charge(order: dict) -> None:
    """Charge."""


@bus.subscriber("orders", group="mailing", order="key", start="latest")
async def confirm(order: dict) -> None:
    """Confirm."""
'''


@pytest.fixture(name="brokerkit")
def anew(brokerkit: Brokerkit) -> Iterator[Brokerkit]:
    """Import app.py anew for each command, as another process would, and leave none behind."""

    def run(*arguments: str) -> Result:
        sys.modules.pop("app", None)
        return brokerkit(*arguments)

    yield run
    sys.modules.pop("app", None)


@pytest.fixture
def app(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("app.py").write_text(APP.format(url=url))


@pytest.mark.usefixtures("app")
def test_what_is_missing_is_named_and_then_created_and_then_there(brokerkit: Brokerkit) -> None:
    missing = brokerkit("provision", "app:bus", "--verify", "-o", "json")
    assert missing.code == 1
    names = [item["name"] for item in missing.items]
    assert {item["state"] for item in missing.items} == {"missing"}
    assert any("billing" in name for name in names)
    assert any("mailing" in name for name in names)

    created = brokerkit("provision", "app:bus", "-o", "json")
    assert created.code == 0
    assert [item["name"] for item in created.items] == names
    assert {item["state"] for item in created.items} == {"created"}

    assert brokerkit("provision", "app:bus", "--verify", "-o", "json").items == []
    assert brokerkit("provision", "app:bus", "--verify").code == 0


@pytest.mark.usefixtures("adapters")
def test_the_commands_that_an_operator_would_run_are_printed_and_the_broker_is_not_touched(
    brokerkit: Brokerkit,
) -> None:
    Path("app.py").write_text(APP.format(url="made://nobody-listens"))
    done = brokerkit("provision", "app:bus", "--print")
    assert done.code == 0
    assert done.out.splitlines() == [
        "make eu.orders/billing/inlet earliest none",
        "make eu.orders/mailing/inlet latest key",
    ]


@pytest.mark.usefixtures("app")
def test_where_nothing_has_to_be_made_there_is_nothing_to_print(brokerkit: Brokerkit) -> None:
    done = brokerkit("provision", "app:bus", "--print")
    assert (done.code, done.out) == (6, "")
    assert "nothing has to be made" in done.err


@pytest.mark.usefixtures("app")
def test_looking_and_printing_at_once_is_a_wrong_usage(brokerkit: Brokerkit) -> None:
    assert brokerkit("provision", "app:bus", "--print", "--verify").code == 2


@pytest.mark.usefixtures("adapters")
def test_a_broker_that_does_not_answer_is_unreachable(brokerkit: Brokerkit) -> None:
    Path("app.py").write_text(APP.format(url="walled://nobody"))
    assert brokerkit("provision", "app:bus", "--timeout", "0.2").code == 4
