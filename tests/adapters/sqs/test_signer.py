"""Our signature is botocore's, header by header."""

import datetime as dt
import random
import string
from typing import Any
from unittest.mock import patch

import botocore.auth  # type: ignore[import-untyped]
import pytest
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import Credentials  # type: ignore[import-untyped]

from brokerkit.adapters.sqs.signer import Keys, Signer

REGIONS = ("us-east-1", "eu-west-1", "cn-north-1", "us-gov-west-1", "ap-southeast-4", "eusc-de-east-1")
HOSTS = (
    "sqs.{}.amazonaws.com",
    "sqs.{}.amazonaws.com.cn",
    "sqs-fips.{}.amazonaws.com",
    "sqs.{}.api.aws",
    "localhost:9324",
    "[::1]:9324",
)
TARGETS = ("ReceiveMessage", "SendMessageBatch", "DeleteMessageBatch", "ChangeMessageVisibilityBatch")


def theirs(keys: Keys, region: str, service: str, headers: dict[str, str], body: bytes, now: float) -> str:
    """Let botocore sign the same request at the same moment."""
    request: Any = AWSRequest(method="POST", url=f"https://{headers['host']}/", data=body)
    for name in ("content-type", "x-amz-target", "x-amzn-query-mode"):
        request.headers[name] = headers[name]
    moment = dt.datetime.fromtimestamp(now, dt.UTC).replace(tzinfo=None)
    signer: Any = botocore.auth.SigV4Auth(Credentials(keys.key_id, keys.secret, keys.token), service, region)
    with patch.object(botocore.auth, "get_current_datetime", return_value=moment):
        signer.add_auth(request)
    return str(request.headers["Authorization"])


@pytest.mark.parametrize("seed", range(5))
def test_the_signature_of_two_hundred_random_requests_is_botocore_s(seed: int) -> None:
    chance = random.Random(seed)
    region = chance.choice(REGIONS)
    host = chance.choice(HOSTS).format(region)
    service = chance.choice(("sqs", "sns"))
    signer = Signer(host, region, service)
    text = string.ascii_letters + string.digits + "+/="
    keys = [
        Keys(
            "".join(chance.choices(text, k=20)),
            "".join(chance.choices(text, k=40)),
            None if number % 2 else "".join(chance.choices(text, k=chance.randrange(1, 900))),
        )
        for number in range(3)
    ]
    for _ in range(200):
        mine = chance.choice(keys)
        now = 1_700_000_000 + chance.random() * 92 * 86_400
        body = chance.randbytes(chance.randrange(0, 2000))
        target = f"AmazonSQS.{chance.choice(TARGETS)}"
        headers = signer.headers(mine, target, body, now)
        assert headers["authorization"] == theirs(mine, region, service, headers, body, now)
        assert headers.get("x-amz-security-token") == mine.token


def test_a_key_that_changes_in_the_middle_of_a_day_is_used_at_once() -> None:
    signer = Signer("localhost:9324", "eu-west-1")
    old, new = Keys("a", "one"), Keys("a", "two")
    for keys in (old, new, old):
        headers = signer.headers(keys, "AmazonSQS.ReceiveMessage", b"{}", 1_700_000_000.0)
        assert headers["authorization"] == theirs(keys, "eu-west-1", "sqs", headers, b"{}", 1_700_000_000.0)


def test_credentials_show_in_no_repr() -> None:
    assert "secret" not in repr(Keys("key", "secret", "token-secret"))
