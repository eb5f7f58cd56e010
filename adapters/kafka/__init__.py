"""
`kafka://`: channels are topics, groups are consumer groups.
"""

from brokerkit.adapters.kafka.adapter import KafkaAdapter

__all__ = ["KafkaAdapter"]
