"""
What a `kafka://` URL and the Python options say, checked before anything connects.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from brokerkit.brokerurl import BrokerUrl, parse_url
from brokerkit.errors import ConfigurationError

__all__ = ["Options", "read_options"]

_SCHEMES = ("kafka", "kafka+tls")
_KNOWN = (
    "client_id",
    "compression",
    "drain",
    "heartbeat",
    "instance",
    "max_message",
    "max_poll",
    "partitions",
    "provisioning",
    "rebalance",
    "records",
    "request_timeout",
    "retention",
    "sasl",
    "send_timeout",
    "session",
)
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
_MARGIN = 5.0
_DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    The options of the adapter; durations in seconds, sizes in bytes.

    session: how long a member that is not heard of keeps its partitions; it is the lease. heartbeat: how often it is heard
    of, and how soon it learns of a rebalance. drain: how long handlers have to finish when partitions are taken away.
    rebalance: how long the group waits for a member that drains; at least heartbeat + drain + 5. max_poll: how long
    the client lets its owner not ask for records; this adapter always asks. send_timeout: how long one send may take.
    request_timeout: how long one request may. max_message: size limit of a message with its headers. partitions: of a
    channel that is created (-1: the broker's default). retention: of inlets and retry topics. instance: the name of a static
    member, or empty. sasl: the mechanism used with a user and a password. provisioning: `off` never creates a topic.
    records: `on` keeps the client's record as `Delivery.native`, which costs about a quarter of the speed.
    """

    url: BrokerUrl
    session: float
    heartbeat: float
    drain: float
    rebalance: float
    max_poll: float
    send_timeout: float
    request_timeout: float
    max_message: int
    partitions: int
    retention: float
    instance: str
    client_id: str
    sasl: str
    compression: str | None
    provisioning: bool
    records: bool

    @property
    def servers(self) -> list[str]:
        """Return the hosts as clients want them."""
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.url.hosts]

    @property
    def max_delay(self) -> float:
        """Return the longest delay that is kept: 12 hours, or half of what retry topics keep."""
        return min(43_200.0, self.retention / 2)


def read_options(url: str, options: Mapping[str, object]) -> Options:
    """Return what a URL and keyword options give; raises `ConfigurationError` that names the option and its range."""
    given = {
        name: value
        for name, value in options.items()
        if isinstance(value, str | int | float) or value is None
    }
    if wrong := sorted(options.keys() - given.keys()):
        message = f"option {wrong[0]} is a text, a number or a switch"
        raise ConfigurationError(message)
    read = parse_url(url, port=9092, known=_KNOWN, options=given)
    if read.scheme not in _SCHEMES:
        message = f"{read.text} is not a Kafka URL: write kafka://host:9092 or kafka+tls://host:9093"
        raise ConfigurationError(message)
    if read.path.strip("/"):
        message = f"{read.text}: a Kafka URL has no path; channels are named where they are used"
        raise ConfigurationError(message)
    session = read.number("session", 10.0, least=1.0, most=1800.0)
    heartbeat = read.number("heartbeat", min(0.5, session / 5), least=0.05, most=session / 3)
    drain = read.number("drain", 30.0, least=0.0, most=3600.0)
    least = heartbeat + drain + _MARGIN
    codec = read.text_of("compression", "none", choices=_CODECS)
    return Options(
        url=read,
        session=session,
        heartbeat=heartbeat,
        drain=drain,
        rebalance=read.number("rebalance", max(least, session), least=least, most=7200.0),
        max_poll=read.number("max_poll", 300.0, least=1.0, most=86_400.0),
        send_timeout=read.number("send_timeout", 10.0, least=0.1, most=600.0),
        request_timeout=read.number("request_timeout", 15.0, least=1.0, most=600.0),
        max_message=int(read.number("max_message", 1_000_000, least=1024, most=1 << 30)),
        partitions=_partitions(read),
        retention=read.number("retention", 14 * _DAY, least=60.0, most=3650 * _DAY),
        instance=read.text_of("instance"),
        client_id=read.text_of("client_id", "brokerkit"),
        sasl=read.text_of("sasl", "PLAIN", choices=_MECHANISMS),
        compression=None if codec == "none" else codec,
        provisioning=read.text_of("provisioning", "create", choices=("create", "off")) == "create",
        records=read.flag("records"),
    )


def _partitions(read: BrokerUrl) -> int:
    number = int(read.number("partitions", 6, least=-1, most=10_000))
    if number == 0:
        message = f"{read.text}: option partitions is -1 (the broker's default) or from 1 to 10000"
        raise ConfigurationError(message)
    return number
