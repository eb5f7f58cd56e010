"""`nats://`: NATS JetStream."""

from brokerkit.adapters.nats.adapter import NatsAdapter

__all__ = ["NatsAdapter"]
