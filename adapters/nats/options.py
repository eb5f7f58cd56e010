"""
What a NATS URL and the options beside it say, checked before anything connects.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from brokerkit.adapters.nats.names import check_token
from brokerkit.brokerurl import BrokerUrl, Option, parse_url
from brokerkit.errors import ConfigurationError

__all__ = ["Options", "read_options"]

_PORT = 4222
_KNOWN = frozenset(
    {
        "connect_timeout",
        "credentials",
        "dead_retention",
        "dedupe_window",
        "lease",
        "nkey",
        "partitions",
        "ping_interval",
        "provisioning",
        "replicas",
        "retention",
        "send_timeout",
        "token",
    }
)
_YEAR = 366 * 86_400.0
_MOST_PARTITIONS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    The options of the adapter, all durations in seconds.

    lease: how long a member that shows no sign of life keeps what it has (`ack_wait`, and the pin of a partition).
    retention: age at which a channel's messages are deleted. dead_retention: the same for dead letters; 0 keeps them.
    partitions, replicas, dedupe_window: of streams that are created. provisioning: `create`, or `off`.
    send_timeout: when an unconfirmed send is called unknown. connect_timeout: one try to connect.
    ping_interval: the server is asked so often whether it is there; the third silence ends the connection.
    token, credentials (a .creds file), nkey (a seed file): instead of user and password.
    native: what is adopted, by `channel` (a subject) and `channel/group` (a durable).
    """

    url: BrokerUrl
    lease: float
    retention: float
    dead_retention: float
    partitions: int
    replicas: int
    dedupe_window: float
    create: bool
    send_timeout: float
    connect_timeout: float
    ping_interval: float
    token: str | None = field(repr=False)
    credentials: str | None
    nkey: str | None
    native: Mapping[str, str]


def read_options(url: str, options: Mapping[str, Option | None], native: Mapping[str, str] | None) -> Options:
    """Return what a URL and keyword options give; raises `ConfigurationError` that names what is wrong."""
    read = parse_url(url, port=_PORT, known=_KNOWN, options=options, secrets=("token",))
    if read.scheme not in {"nats", "nats+tls"}:
        message = f"{read.text}: write nats://host:4222 or nats+tls://host:4222"
        raise ConfigurationError(message)
    if read.user and read.password is None:  # as NATS has it: a token in the user's place
        with_token = {**options, "token": read.user}
        read = parse_url(url, port=_PORT, known=_KNOWN, options=with_token, secrets=("token",))
        read = replace(read, user=None)
    _check_native(read, native or {})
    retention = read.number("retention", 604_800, least=1, most=10 * _YEAR)
    return Options(
        url=read,
        lease=read.number("lease", 30, least=0.5, most=3600),
        retention=retention,
        dead_retention=read.number("dead_retention", 0, least=0, most=100 * _YEAR),
        partitions=int(read.number("partitions", 8, least=1, most=_MOST_PARTITIONS)),
        replicas=int(read.number("replicas", 1, least=1, most=5)),
        dedupe_window=read.number("dedupe_window", min(120, retention), least=0.1, most=retention),
        create=read.text_of("provisioning", "create", choices=("create", "off")) == "create",
        send_timeout=read.number("send_timeout", 10, least=0.1, most=3600),
        connect_timeout=read.number("connect_timeout", 5, least=0.1, most=3600),
        ping_interval=read.number("ping_interval", 5, least=0.5, most=600),
        token=read.options.get("token"),
        credentials=read.options.get("credentials"),
        nkey=read.options.get("nkey"),
        native=dict(native or {}),
    )


def _check_native(url: BrokerUrl, native: Mapping[str, str]) -> None:
    for place, name in native.items():
        if "/" in place and not check_token(name):
            message = f"{url.text}: native[{place!r}] is the name of a durable, and {name!r} cannot be one"
            raise ConfigurationError(message)
        if not name or any(mark.isspace() for mark in name):
            message = f"{url.text}: native[{place!r}] is a subject, and {name!r} cannot be one"
            raise ConfigurationError(message)
