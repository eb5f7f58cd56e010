"""
What a `sqs://` URL and the keyword options say.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from brokerkit.brokerurl import BrokerUrl, parse_url
from brokerkit.errors import ConfigurationError

__all__ = ["Options", "read_url"]

MiB = 1024 * 1024
_REGION = re.compile(r"[a-z]{2,3}(-[a-z]+){1,3}-\d{1,2}")
_MARGIN = 1.0  # nobody documents how soon a listing shows the same to all
_NEAR_REGION = "us-east-1"
_KNOWN = (
    "groups_age",
    "lease",
    "max_message",
    "poll",
    "polls",
    "profile",
    "provisioning",
    "region",
    "send_timeout",
    "sns",
    "sns_endpoint",
    "token",
    "transport",
    "unrouted",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    What was asked for; durations in seconds.

    text: the URL without its secrets. endpoint: None lets botocore find it. region: None takes it from the environment or
    the profile. lease: visibility time of what is held. poll: how long one poll waits; 0 does not wait, and asks again.
    polls: most polls of one queue at once. groups_age: how old a publisher's list of a channel's groups may be, and how
    long a new group waits for all publishers to know it: the same for all who share a channel. sns: `off`, `on` (standard
    topics) or `fifo`. unrouted: how many messages without a group are kept for each channel. provisioning: `create` or `off`.
    """

    url: BrokerUrl
    endpoint: str | None
    near: bool
    region: str | None
    lease: int
    poll: int
    polls: int
    groups_age: float
    send_timeout: float
    max_message: int
    sns: str
    sns_endpoint: str | None
    transport: str
    unrouted: int
    provisioning: str
    profile: str | None

    @property
    def text(self) -> str:
        """Return the URL without its secrets."""
        return self.url.text

    @property
    def settling(self) -> float:
        """Return after how many seconds every publisher knows a new group."""
        return self.groups_age + (0.0 if self.near else _MARGIN)

    @property
    def credentials(self) -> tuple[str, str, str | None] | None:
        """Return key id, secret and session token out of the URL; dummies on loopback, None for the usual chain."""
        url = self.url
        if url.user is not None and url.password is not None:
            return url.user, url.password, url.options.get("token")
        return ("brokerkit", "brokerkit", None) if self.near and self.profile is None else None


def read_url(url: str, options: Mapping[str, str | int | float | bool | None]) -> Options:
    """
    Read `sqs://region` or `sqs://host:port`, and the options; a keyword wins over the query.

    Raises `ConfigurationError` for an unknown option, a value out of range, and a lease shorter than a poll.
    """
    first = parse_url(url, port=0, known=_KNOWN, options={**options, "insecure": True}, secrets=["token"])
    if first.scheme != "sqs" or len(first.hosts) != 1 or first.path:
        message = f"{first.text}: write sqs://eu-west-1 (a region) or sqs://host:port (an endpoint)"
        raise ConfigurationError(message)
    host, port = first.hosts[0]
    regional = bool(_REGION.fullmatch(host)) and not port
    near = not regional and _is_near(host)
    tls = first.flag("tls", default=not near)
    read = parse_url(url, port=0, known=_KNOWN, options={**options, "tls": tls}, secrets=["token"])
    if (read.user is None) != (read.password is None):
        message = f"{read.text}: give both key id and secret, or neither"
        raise ConfigurationError(message)
    if read.options.get("token") and read.user is None:
        message = f"{read.text}: option token goes with key id and secret in the URL"
        raise ConfigurationError(message)
    made = _made(
        read, _endpoint(host, port, tls=tls) if not regional else None, host if regional else None, near
    )
    if made.lease <= made.poll:
        message = (
            f"{made.text}: option lease ({made.lease} s) has to be longer than option poll ({made.poll} s)"
        )
        raise ConfigurationError(message)
    return made


def _made(url: BrokerUrl, endpoint: str | None, region: str | None, near: bool) -> Options:
    given = url.text_of("region") or region or (_NEAR_REGION if near else None)
    return Options(
        url=url,
        endpoint=endpoint,
        near=near,
        region=given,
        lease=_whole(url, "lease", 60, 2, 39_600),
        poll=_whole(url, "poll", 5, 0, 20),
        polls=_whole(url, "polls", 8, 1, 64),
        groups_age=url.number("groups_age", 5.0, least=0.02, most=300.0),
        send_timeout=url.number("send_timeout", 10.0, least=0.5, most=300.0),
        max_message=_whole(url, "max_message", MiB, 1024, MiB),
        sns=url.text_of("sns", "off", choices=("off", "on", "fifo")),
        sns_endpoint=url.text_of("sns_endpoint") or None,
        transport=url.text_of("transport", "aiohttp", choices=("aiohttp", "botocore")),
        unrouted=_whole(url, "unrouted", 10_000, 0, 10_000_000),
        provisioning=url.text_of("provisioning", "create", choices=("create", "off")),
        profile=url.text_of("profile") or None,
    )


def _whole(url: BrokerUrl, name: str, default: int, least: int, most: int) -> int:
    number = url.number(name, default, least=least, most=most)
    if number != int(number):
        message = f"{url.text}: option {name} is a whole number from {least} to {most}"
        raise ConfigurationError(message)
    return int(number)


def _endpoint(host: str, port: int, *, tls: bool) -> str:
    place = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{place}{f':{port}' if port else ''}"


def _is_near(host: str) -> bool:
    return host in {"localhost", "::1"} or host.startswith("127.")
