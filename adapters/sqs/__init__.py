"""
`sqs://`: Amazon SQS, and servers that speak its protocol.

URL
    `sqs://eu-west-1` (a region) or `sqs://host:port` (an endpoint: plain HTTP on loopback, HTTPS elsewhere). Credentials
    by botocore's usual chain, or `sqs://KEYID:SECRET@...` (`token` for a session); on loopback dummies. Options in the
    query or as keywords, durations in seconds: `lease` (60), `poll` (5), `polls` (8), `groups_age` (5), `send_timeout`
    (10), `max_message` (1 MiB), `unrouted` (10,000), `provisioning` (`create` or `off`), `sns` (`off`, `on`, `fifo`),
    `sns_endpoint`, `region`, `profile`, `transport` (`aiohttp` or `botocore`), and those of TLS.

Mapping of channel and group
    Group `billing` of `orders` reads the queue `orders--billing` and its inlet `orders--billing--inlet`; its dead letters lie
    in `orders--billing--dead`. Publishers list the queues of a channel and send to each; with `sns` to a topic `orders`
    instead. Without any group: `orders--return--unrouted`. `native` adopts what exists.

Delivery
    At least once. A send is confirmed when the queue of every group has it; what only some have is `PublishUnknown`. What a
    member holds goes to others when it closes, or when its lease is not renewed. A standard queue may hand out again
    what was deleted (limit `acked-may-return`, at AWS).

Ordering
    `order="none"`: standard queues. `order="key"`: FIFO queues, the key as message group; the next message of a key comes
    when the last one is settled, up to ten of it at a time. One channel may have groups of both kinds. A queue is FIFO or
    it is not: a group never changes its order.

Delay
    Up to 15 minutes by the broker, the rest by visibility in the inlet, counted by the broker's clock. Never early, late by
    less than a second and load. At most 12 hours.

Attempts
    Not counted here. `arrivals` is the receive count, and polite returns raise it (limit `returns-count-as-arrivals`).

Limits
    1 MiB for a message with all that travels beside it, less 4 KiB; what is not UTF-8 text travels as base64, a third longer.
    A group begins with its creation (limit `no-replay`). Everything is forgotten after 14 days.

Native object
    The message as the receive brought it, a dict.
"""

from brokerkit.adapters.sqs.adapter import SqsAdapter

__all__ = ["SqsAdapter"]
