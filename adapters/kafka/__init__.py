"""
`kafka://`: channels are topics, groups are consumer groups; aiokafka behind a seam of a few methods.

URL
    `kafka://host:port,host:port`, `kafka+tls://user:password@host`. Options in the query or as keywords, see `options.Options`.

Mapping of channel and group
    A channel is a topic, a group the consumer group `<channel>--<group>`. Beside it a group has topics of its own: an
    inlet, seven retry rungs and a dead place (see `names.Names`), made when they are missing. One consumer reads all
    but the dead place.

Delivery
    At least once. A send is confirmed by all in-sync replicas. A commit follows progress by 20 ms and never passes an
    unfinished offset; its metadata holds which later ones are done, so an orderly change of owner repeats nothing. What a
    member holds goes to others when it leaves (a polite return), when it drains for a rebalance, or after a session of
    silence.

Ordering
    `order="none"`: a partition has one owner, whose deliveries may end in any order. `order="key"`: the same, and lanes.

Delay
    The largest rung that fits, hops, the last second in memory; by the broker's clock (LogAppendTime) as estimated from
    confirmations. Never early by that clock. At most 12 hours, or half the retention of the retry topics.

Attempts
    Not counted here. `arrivals`, polite `returns` and marks live in the commit's metadata; after a crash `arrivals` may be
    one too many for what its last owner had only read.

Limits
    1,000,000 bytes for a message unless `max_message` says otherwise and the topic agrees; 4,096 characters of
    metadata for a partition.

Native object
    The client's record with `records=on`, else None. `position` is ("<topic>-<partition>", offset).
"""

from brokerkit.adapters.kafka.adapter import KafkaAdapter

__all__ = ["KafkaAdapter"]
