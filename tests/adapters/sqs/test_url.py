"""What a URL says, and what it must not."""

import pytest

from brokerkit.adapters.sqs import SqsAdapter
from brokerkit.adapters.sqs.url import read_url
from brokerkit.errors import ConfigurationError
from brokerkit.message import Address


def test_a_region_leaves_the_endpoint_to_botocore() -> None:
    options = read_url("sqs://eu-west-1", {})
    assert (options.region, options.endpoint, options.url.tls) == ("eu-west-1", None, True)
    assert options.credentials is None


def test_an_endpoint_on_loopback_is_plain_http_with_dummy_credentials() -> None:
    options = read_url("sqs://127.0.0.1:9324", {})
    assert (options.region, options.endpoint) == ("us-east-1", "http://127.0.0.1:9324")
    assert options.credentials == ("brokerkit", "brokerkit", None)
    assert read_url("sqs://[::1]:9324?region=eu-west-1", {}).endpoint == "http://[::1]:9324"


def test_an_endpoint_elsewhere_is_https() -> None:
    options = read_url("sqs://vpce-1.sqs.eu-west-1.vpce.amazonaws.com?region=eu-west-1", {})
    assert options.endpoint == "https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com"
    assert options.credentials is None


def test_a_region_with_credentials_is_encrypted_and_so_allowed() -> None:
    options = read_url("sqs://AKIA:se%2Fcret@eu-west-1?token=t", {})
    assert options.credentials == ("AKIA", "se/cret", "t")
    assert "se/cret" not in repr(options)
    assert "se%2Fcret" not in repr(options)


def test_credentials_over_plain_http_to_another_machine_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="unencrypted") as error:
        read_url("sqs://AKIA:secret@broker:9324?tls=off", {})
    assert "secret" not in str(error.value)
    read_url("sqs://AKIA:secret@broker:9324?tls=off&insecure=on", {})


def test_a_keyword_wins_over_the_query() -> None:
    assert read_url("sqs://eu-west-1?lease=30", {"lease": 40}).lease == 40


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqs://eu-west-1?vissibility=3", "no option 'vissibility'"),
        ("sqs://eu-west-1?lease=1", "option lease"),
        ("sqs://eu-west-1?lease=2.5", "whole number"),
        ("sqs://eu-west-1?lease=5&poll=5", "longer than option poll"),
        ("sqs://eu-west-1?poll=21", "option poll"),
        ("sqs://eu-west-1?max_message=2000000", "option max_message"),
        ("sqs://eu-west-1?transport=curl", "aiohttp, botocore"),
        ("sqs://eu-west-1?sns=yes", "off, on, fifo"),
        ("sqs://eu-west-1/orders", "write sqs://"),
        ("sqs://one:1,two:2", "write sqs://"),
        ("sqs://AKIA@eu-west-1", "both key id and secret"),
        ("sqs://eu-west-1?token=t", "goes with key id"),
    ],
)
def test_what_is_wrong_is_named(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        SqsAdapter(url)


def test_the_commands_an_operator_would_run_need_no_connection() -> None:
    adapter = SqsAdapter("sqs://eu-west-1?lease=30")
    lines = adapter.commands([(Address("orders", "billing", "inlet"), "earliest", "key")])
    assert [line.split(" --attributes ")[0] for line in lines] == [
        "aws sqs create-queue --queue-name orders--billing.fifo",
        "aws sqs create-queue --queue-name orders--billing--inlet.fifo",
        "aws sqs create-queue --queue-name orders--billing--dead",
    ]
    assert '"VisibilityTimeout":"30"' in lines[0]
    assert '"FifoQueue":"true"' in lines[0]
    assert "FifoQueue" not in lines[2]
