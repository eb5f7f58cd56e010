"""
Which lines there are, what they are compared with, and how high we aim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["AIMS", "BROKERS", "CLIENTS", "LINES", "MESSAGES", "SANDBOX", "Aim", "Line", "Verb"]

Verb = Literal["publish", "consume"]

BROKERS: Final = ("kafka", "rabbitmq", "nats", "sqs")
"""Those that are measured if none is named; `memory` and `sqlite` have no raw client to compare with."""

SANDBOX: Final = frozenset(BROKERS)
"""Brokers that are servers."""

MESSAGES: Final[Mapping[str, int]] = {
    "kafka": 100_000,
    "rabbitmq": 20_000,
    "nats": 50_000,
    "sqs": 5_000,
    "memory": 50_000,
    "sqlite": 20_000,
}
"""Messages of a line in each round, unless said otherwise: a second or more of the quickest client."""


@dataclass(frozen=True, slots=True)
class Line:
    """
    One client doing one thing.

    base: whether the others of its verb are shown as ratios to it. what: for people. waits: delayed retries wait meanwhile.
    """

    client: str
    verb: Verb
    what: str
    base: bool = False
    waits: bool = False

    @property
    def name(self) -> str:
        """Name it within its broker."""
        return f"{self.verb} {self.client}{' beside retries' if self.waits else ''}"


@dataclass(frozen=True, slots=True)
class Aim:
    """The median of the ratios of one line to another, round by round, is to be at least this (or above it)."""

    line: str
    base: str
    ratio: float


CLIENTS: Final[Mapping[tuple[str, str], tuple[str, str]]] = {
    ("kafka", "aiokafka"): ("kafka", "AioKafka"),
    ("kafka", "aiokafka-model"): ("kafka", "AioKafkaModel"),
    ("kafka", "faststream"): ("kafka", "FastStream"),
    ("kafka", "faststream-batch"): ("kafka", "FastStreamBatch"),
    ("rabbitmq", "aiormq"): ("rabbitmq", "Aiormq"),
    ("rabbitmq", "aio-pika"): ("rabbitmq", "AioPika"),
    ("rabbitmq", "aio-pika-model"): ("rabbitmq", "AioPikaModel"),
    ("rabbitmq", "faststream"): ("rabbitmq", "FastStream"),
    ("nats", "nats-py"): ("nats", "Pull"),
    ("nats", "nats-py-model"): ("nats", "PullModel"),
    ("nats", "fetch"): ("nats", "Fetch"),
    ("nats", "faststream"): ("nats", "FastStreamPull"),
    ("nats", "faststream-push"): ("nats", "FastStreamPush"),
    ("sqs", "botocore"): ("sqs", "Botocore"),
    **{
        (broker, client): ("bus", made)
        for broker in MESSAGES
        for client, made in (("brokerkit", "BusClient"), ("brokerkit-many", "BusManyClient"))
    },
}
"""Module and class of every client, by broker and client."""

_OURS: Final = (
    Line("brokerkit", "publish", "512 calls of bus.publish at once"),
    Line("brokerkit-many", "publish", "bus.publish_many, two batches of 256 at once"),
    Line("brokerkit", "consume", "a pydantic model, dedupe, retry, bulkhead, timeout; confirmed acks"),
    Line("brokerkit", "consume", "the same while delayed retries wait", waits=True),
)

LINES: Final[Mapping[str, Sequence[Line]]] = {
    "kafka": (
        Line("aiokafka", "publish", "512 futures at once, acks=all, idempotent", base=True),
        Line("aiokafka", "consume", "getmany(500), a commit every 200 ms", base=True),
        Line("aiokafka-model", "consume", "the same, bodies read into pydantic models"),
        *_OURS,
        Line("faststream", "publish", "512 calls of broker.publish at once, acks=all, idempotent"),
        Line("faststream", "consume", "a pydantic model, ACK_FIRST (its default)"),
        Line("faststream-batch", "consume", "the same, batch=True, 500 records a call"),
    ),
    "rabbitmq": (
        Line("aiormq", "publish", "512 confirms at once, persistent", base=True),
        Line("aio-pika", "consume", "a callback, one ack for each message, prefetch 512", base=True),
        Line("aio-pika-model", "consume", "the same, bodies read into pydantic models"),
        Line("aiormq", "consume", "one ack, multiple, for 100 messages or 5 ms, prefetch 512"),
        *_OURS,
        Line("faststream", "publish", "512 calls of broker.publish at once, persist=True"),
        Line("faststream", "consume", "a pydantic model, REJECT_ON_ERROR (its default), prefetch 512"),
    ),
    "nats": (
        Line("nats-py", "publish", "publish_async, 512 unconfirmed", base=True),
        Line("nats-py", "consume", "pull requests of 512 into one callback, acks without answer", base=True),
        Line("nats-py-model", "consume", "the same, bodies read into pydantic models"),
        Line("fetch", "consume", "fetch(500), acks without answer"),
        *_OURS,
        Line("faststream", "publish", "512 calls of broker.publish at once"),
        Line(
            "faststream", "consume", "a pydantic model, pull, batch_size=500, REJECT_ON_ERROR (its default)"
        ),
        Line("faststream-push", "consume", "the same, push"),
    ),
    "sqs": (
        Line("botocore", "publish", "8 threads, batches of 10", base=True),
        Line("botocore", "consume", "8 threads, receive and delete by 10", base=True),
        *_OURS,
    ),
    "memory": _OURS,
    "sqlite": _OURS,
}
"""The lines of every broker, in the order in which they take turns."""

_US: Final = "consume brokerkit"

AIMS: Final[Mapping[str, Sequence[Aim]]] = {
    "kafka": (
        Aim(_US, "consume aiokafka", 0.4),
        Aim(_US, "consume faststream", 1.0),
        Aim(_US, "consume faststream-batch", 1.0),
        Aim("publish brokerkit", "publish faststream", 1.0),
    ),
    "rabbitmq": (
        Aim(_US, "consume aio-pika", 1.2),
        Aim(_US, "consume faststream", 1.0),
        Aim("publish brokerkit", "publish faststream", 1.0),
    ),
    "nats": (
        Aim(_US, "consume nats-py", 0.4),
        Aim(_US, "consume fetch", 1.0),
        Aim(_US, "consume faststream", 1.0),
        Aim(_US, "consume faststream-push", 1.0),
        Aim("publish brokerkit", "publish faststream", 1.0),
    ),
    "sqs": (
        Aim(_US, "consume botocore", 1.5),
        Aim("publish brokerkit", "publish botocore", 1.5),
    ),
}
