"""What a URL says, and what is wrong with it."""

import pytest

from brokerkit.adapter import open_adapter
from brokerkit.adapters.nats import NatsAdapter
from brokerkit.adapters.nats.options import read_options
from brokerkit.errors import ConfigurationError


def test_both_schemes_find_the_adapter() -> None:
    assert isinstance(open_adapter("nats://localhost"), NatsAdapter)
    assert isinstance(open_adapter("nats+tls://localhost"), NatsAdapter)


def test_query_and_keyword_mean_the_same_and_the_keyword_wins() -> None:
    assert read_options("nats://localhost?lease=5&partitions=3", {}, None).lease == 5
    made = read_options("nats://localhost?lease=5&partitions=3", {"lease": 7}, None)
    assert (made.lease, made.partitions) == (7, 3)


def test_what_is_not_said_is_safe() -> None:
    made = read_options("nats://localhost", {}, None)
    assert (made.lease, made.partitions, made.dead_retention, made.create) == (30, 8, 0, True)
    assert made.ping_interval <= 10


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nats://localhost?lease=0.1", "lease"),
        ("nats://localhost?lease=nan", "lease"),
        ("nats://localhost?partitions=0", "partitions"),
        ("nats://localhost?partitions=1000", "partitions"),
        ("nats://localhost?colour=red", "colour"),
        ("nats://localhost?provisioning=perhaps", "create, off"),
        ("nats://localhost?dedupe_window=60&retention=30", "dedupe_window"),
        ("nats://far.example?token=s3cret", "unencrypted"),
        ("nats://s3cret@far.example", "unencrypted"),
        ("nats://user:s3cret@far.example", "unencrypted"),
        ("amqp://localhost", "nats://"),
        ("nats+tls://localhost?tls_ca=/nowhere.pem", "tls_ca"),
    ],
)
def test_what_is_wrong_is_named_and_no_secret_is(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as raised:
        NatsAdapter(url)
    assert "s3cret" not in str(raised.value)


def test_a_secret_is_in_no_repr() -> None:
    for url in ("nats://user:s3cret@localhost", "nats://s3cret@localhost", "nats://localhost?token=s3cret"):
        adapter = NatsAdapter(url)
        assert "s3cret" not in repr(adapter.options) + adapter.url


def test_a_token_may_stand_in_the_user_s_place() -> None:
    made = read_options("nats://s3cret@localhost", {}, None)
    assert (made.token, made.url.user) == ("s3cret", None)


@pytest.mark.parametrize(
    "native", [{"orders": "a b"}, {"orders": ""}, {"orders/billing": "a.b"}, {"orders/billing": "*"}]
)
def test_what_cannot_be_adopted_is_refused(native: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="native"):
        NatsAdapter("nats://localhost", native=native)
