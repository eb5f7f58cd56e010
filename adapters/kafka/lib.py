"""
The names that the `aio` modules take out of aiokafka, which ships no types: here they become `Any`, and nowhere else.
"""

# pyright: basic
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener  # type: ignore[import-untyped]
from aiokafka import errors as _errors
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]
from aiokafka.conn import create_conn  # type: ignore[import-untyped]
from aiokafka.partitioner import murmur2 as _murmur2  # type: ignore[import-untyped]
from aiokafka.protocol.admin import CreateTopicsRequest  # type: ignore[import-untyped]
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest  # type: ignore[import-untyped]
from aiokafka.protocol.metadata import MetadataRequest  # type: ignore[import-untyped]
from aiokafka.structs import OffsetAndMetadata, TopicPartition  # type: ignore[import-untyped]

__all__ = [
    "AdminClient",
    "CommitRequest",
    "ConsumerClient",
    "CreateRequest",
    "FetchOffsetsRequest",
    "ListenerBase",
    "OffsetNote",
    "Partition",
    "ProducerClient",
    "Resource",
    "ResourceType",
    "TopicsRequest",
    "errors",
    "murmur2",
    "open_connection",
]

errors: Any = _errors
ConsumerClient: Any = AIOKafkaConsumer
ProducerClient: Any = AIOKafkaProducer
ListenerBase: Any = ConsumerRebalanceListener
AdminClient: Any = AIOKafkaAdminClient
Resource: Any = ConfigResource
ResourceType: Any = ConfigResourceType
CreateRequest: Any = CreateTopicsRequest
CommitRequest: Any = OffsetCommitRequest
FetchOffsetsRequest: Any = OffsetFetchRequest
TopicsRequest: Any = MetadataRequest
OffsetNote: Any = OffsetAndMetadata
Partition: Any = TopicPartition
murmur2: Any = _murmur2
open_connection: Any = create_conn
