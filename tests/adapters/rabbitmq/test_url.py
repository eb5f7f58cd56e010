"""URLs and options: everything is checked before anything connects, and no secret is said."""

import pytest

from brokerkit.adapter import open_adapter
from brokerkit.adapters.rabbitmq import RabbitAdapter
from brokerkit.adapters.rabbitmq.url import read_url
from brokerkit.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "vhost", "hosts", "tls"),
    [
        ("amqp://localhost", "/", (("localhost", 5672),), False),
        ("amqp://u:p@localhost/", "/", (("localhost", 5672),), False),
        ("amqp://localhost:1/shop", "shop", (("localhost", 1),), False),
        ("amqp://localhost/%2F", "/", (("localhost", 5672),), False),
        ("amqp://localhost/a%2Fb", "a/b", (("localhost", 5672),), False),
        ("amqps://u:p@one,two:7,[::1]/", "/", (("one", 5671), ("two", 7), ("::1", 5671)), True),
        ("amqp://u:p@far?tls=on", "/", (("far", 5672),), True),
    ],
)
def test_a_url_is_read(url: str, vhost: str, hosts: tuple[tuple[str, int], ...], tls: bool) -> None:
    options = read_url(url, {})
    assert (options.vhost, options.url.hosts, options.url.tls) == (vhost, hosts, tls)


def test_a_keyword_wins_over_the_query_and_the_lease_follows_the_heartbeat() -> None:
    adapter = RabbitAdapter("amqp://localhost?heartbeat=5&max_message=2000", heartbeat=7)
    assert adapter.capabilities.lease == 21
    assert adapter.capabilities.max_message == 2000


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("amqp://localhost?heartbeat=0", "heartbeat"),
        ("amqp://localhost?heartbeat=soon", "heartbeat"),
        ("amqp://localhost?send_timeout=-1", "send_timeout"),
        ("amqp://localhost?partitions=1000", "partitions"),
        ("amqp://localhost?provisioning=maybe", "provisioning"),
        ("amqp://localhost?hartbeat=3", "heartbeat"),
        ("amqp://guest:s3cret@far.example.org", "unencrypted"),
        ("amqps://localhost?tls_ca=/no/such/file", "tls_ca"),
        ("amqps://localhost?tls=off", "tls=off"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_connected(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        RabbitAdapter(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_both_schemes_find_the_adapter(scheme: str) -> None:
    adapter = open_adapter(f"{scheme}://user:s3cret@localhost", heartbeat=3)
    assert isinstance(adapter, RabbitAdapter)
    assert "s3cret" not in repr(adapter)
