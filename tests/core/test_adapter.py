from importlib.metadata import EntryPoint
from typing import Any

import pytest

from brokerkit.adapter import open_adapter, redacted
from brokerkit.errors import ConfigurationError
from tests.core.deliveries import case


class Made:
    def __init__(self, url: str, **options: object) -> None:
        self.url = url
        self.options = options


class Strict:
    def __init__(self, url: str, *, depth: int = 1) -> None:
        self.url = url


def points(*entries: tuple[str, str]) -> Any:
    found = [EntryPoint(name, value, "brokerkit.adapters") for name, value in entries]

    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "brokerkit.adapters"
        return found

    return entry_points


class TestOpening:
    @pytest.mark.parametrize("url", ["mine://x?a=b", "mine:x", "MINE://x"])
    def test_the_scheme_names_the_adapter_and_the_options_are_handed_on(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "brokerkit.adapter.entry_points", points(("other", "nowhere:X"), ("mine", f"{__name__}:Made"))
        )

        made: Any = open_adapter(url, depth=3)

        assert (made.url, made.options) == (url, {"depth": 3})

    def test_an_unknown_scheme_names_the_known_ones_and_no_password(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("brokerkit.adapter.entry_points", points(("b", "x:X"), ("a", "x:X")))

        with pytest.raises(
            ConfigurationError, match=r"no adapter for 'ftp://\*\*\*@host': known are a://, b://$"
        ):
            open_adapter("ftp://shop:p4ss@host")

    @pytest.mark.parametrize("url", ["", "nothing", "://", "amqp://u:p[4ss@host", "\ud800://"], ids=case)
    def test_a_url_that_is_none_is_a_mistake_of_configuration(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("brokerkit.adapter.entry_points", points())

        with pytest.raises(ConfigurationError, match="known are none are installed") as caught:
            open_adapter(url)
        assert "4ss" not in str(caught.value)

    def test_a_client_library_that_is_missing_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("brokerkit.adapter.entry_points", points(("kafka", "no_such_client.kafka:X")))

        with pytest.raises(
            ConfigurationError, match=r"kafka:// cannot be imported .*; install brokerkit-bus\[kafka\]"
        ) as caught:
            open_adapter("kafka://shop:p4ss@host")
        assert isinstance(caught.value.__cause__, ImportError)
        assert "4ss" not in str(caught.value)

    def test_an_option_that_the_adapter_does_not_take_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("brokerkit.adapter.entry_points", points(("strict", f"{__name__}:Strict")))

        with pytest.raises(
            ConfigurationError, match=r"strict://\*\*\*@host: .*; options given: colour, depth"
        ):
            open_adapter("strict://shop:p4ss@host", depth=3, colour="red")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("memory://name?lease=30", "memory://name?lease=***"),
        ("sqlite:///var/events.db", "sqlite:///var/events.db"),
        ("amqp://host:5672/vhost", "amqp://host:5672/vhost"),
        ("amqp://shop:p4ss@host:5672/vhost", "amqp://***@host:5672/vhost"),
        ("amqp://shop@host", "amqp://***@host"),
        ("amqp://:p4ss@host", "amqp://***@host"),
        ("kafka://a:1,b:2,[::1]:3", "kafka://a:1,b:2,[::1]:3"),
        ("kafka://h:9092?user=a@b.c&password=p4ss", "kafka://h:9092?***"),
        ("kafka://h/topic?user=a@b.c", "kafka://h/topic?***"),
        ("sqs://?p4ss=x", "sqs://?p4ss=***"),
        ("nats://host#frag", "nats://host"),
    ],
    ids=case,
)
def test_a_url_is_shown_without_user_information_and_query_values(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize(
    "password",
    ["p4ss", "p@4ss", "p/4ss", "p?4ss", "p#4ss", "p[4ss", "p]4ss", "p:4ss", "p%404ss", "p4/ss?#@[", "p4&ss"],
)
@pytest.mark.parametrize(
    "shape",
    [
        "amqp://shop:{}@host",
        "shop:{}@host",
        "shop:{}@host:5672/v",
        "//shop:{}@host",
        "a_b://shop:{}@host/x?y=z",
    ],
)
def test_no_password_is_shown_whatever_it_holds_and_however_the_url_is_written(
    password: str, shape: str
) -> None:
    shown = redacted(shape.format(password))

    assert "4" not in shown.replace("5672", "")
    assert "shop" not in shown
    assert "ss" not in shown
    assert "host" in shown
