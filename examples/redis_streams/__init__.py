"""An adapter for Redis Streams, as somebody outside the project would write it: from docs/adapters.md alone."""

from brokerkit.examples.redis_streams.adapter import RedisAdapter

__all__ = ["RedisAdapter"]
