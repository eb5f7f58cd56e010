"""
What an `amqp://` or `amqps://` URL and the Python options say, checked before anything connects.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from brokerkit.brokerurl import BrokerUrl, parse_url

__all__ = ["Options", "read_url"]

_MAX_MESSAGE = 16 * 1024 * 1024
_MOST = 512 * 1024 * 1024
_HOUR = 3600.0
_PORTS = {"amqps": 5671}
_KNOWN = (
    "connect_timeout",
    "heartbeat",
    "max_message",
    "max_unrouted",
    "partitions",
    "provisioning",
    "send_timeout",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    The options of the adapter, all durations in seconds.

    heartbeat: interval that is agreed with the broker; one that is silent for about three of them is dead.
    connect_timeout: for one try at one host. send_timeout: for a send as a whole.
    max_message: size limit in bytes. max_unrouted: about how many messages are kept that no group has asked for.
    partitions: how many a new group with `order="key"` has where the broker can split.
    create: whether what is missing is made when it is needed.
    """

    url: BrokerUrl = field(repr=False)
    vhost: str
    heartbeat: int
    connect_timeout: float
    send_timeout: float
    max_message: int
    max_unrouted: int
    partitions: int
    create: bool

    @property
    def lease(self) -> float:
        """Seconds after which a silent consumer's deliveries go to others."""
        return 3.0 * self.heartbeat


def read_url(url: str, options: Mapping[str, str | int | float | bool | None]) -> Options:
    """
    Return what URL and keyword arguments give; a keyword wins over the query.

    Raises `ConfigurationError` for an option that does not exist or is out of range, and for credentials that would
    travel unencrypted.
    """
    read = parse_url(url, port=_PORTS.get(url.partition(":")[0].lower(), 5672), known=_KNOWN, options=options)
    return Options(
        url=read,
        vhost=read.path or "/",
        heartbeat=int(read.number("heartbeat", 10, least=1, most=600)),
        connect_timeout=read.number("connect_timeout", 10, least=0.1, most=_HOUR),
        send_timeout=read.number("send_timeout", 10, least=0.1, most=_HOUR),
        max_message=int(read.number("max_message", _MAX_MESSAGE, least=1024, most=_MOST)),
        max_unrouted=int(read.number("max_unrouted", 10_000, least=1, most=10_000_000)),
        partitions=int(read.number("partitions", 8, least=1, most=64)),
        create=read.text_of("provisioning", "create", choices=("create", "off")) == "create",
    )
