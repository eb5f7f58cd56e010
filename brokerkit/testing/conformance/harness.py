"""
What an adapter author gives the suite, and the closed list of what a broker may fall short of.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from brokerkit.adapter import Adapter

__all__ = ["LIMITS", "Harness", "Restarts"]

LIMITS: Mapping[str, str] = MappingProxyType(
    {
        "no-replay": "a new group begins at its creation, whatever `start` says (RabbitMQ and SNS keep no log)",
        "acked-may-return": "a confirmed ack may be forgotten (SQS standard queues are at least once)",
        "early-after-restart": "a delayed copy may come early when broker or consumer die (NATS within a second of a nak)",
        "order-in-one-process": "order by key holds with one member at a time (NATS servers before 2.11)",
        "returns-count-as-arrivals": "a polite return cannot be told from a crash (the broker counts both, we cannot write)",
    }
)
"""Every shortfall that a harness may claim, with its evidence. A new one needs an entry here first."""


class Harness(Protocol):
    """
    One broker under test.

    url: what the adapters are made from, for messages. limits: names out of `LIMITS`. patience: seconds to
    wait for anything that should happen, generous; only a failing test spends them.
    """

    url: str
    limits: frozenset[str]
    patience: float

    async def adapter(self) -> Adapter:
        """
        Return a new, connected adapter on the same broker: to the broker it is another process.

        Called on the loop where it will be used, which may run in another thread.
        """
        ...


@runtime_checkable
class Restarts(Protocol):
    """Optional, on a harness: the broker can be restarted."""

    async def restart(self) -> None:
        """Stop the broker and start it again; return when it can be connected to."""
        ...
