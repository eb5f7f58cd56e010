"""
`amqp://`, `amqps://`: RabbitMQ 3.10 and later, with quorum queues.

URL
    `amqp://user:password@host:5672,other/vhost`. Options in the query or as keywords, durations in seconds: `heartbeat` (10),
    `send_timeout` (10), `connect_timeout` (10), `max_message` (16 MiB, in bytes), `partitions` (8), `max_unrouted` (10,000
    messages), `provisioning` (`create` or `off`), and those that all network adapters have (`tls_ca` and its kin,
    `insecure`). `native={"orders": "their.exchange", "orders/billing": "their.queue"}` adopts what is there.

Mapping of channel and group
    A channel is a topic exchange (and a twin for `must_route`), a group a quorum queue bound to both. What no group has asked
    for goes to a bounded queue. Each group has an exchange of its own for its copies, a queue for its dead letters, and a
    queue for each rung of the retry ladder. docs/guide/rabbitmq.md has the table.

Delivery
    At least once. A send is confirmed when a majority of the queue's nodes has it. Acks are written, in order; the broker
    confirms none. A closed channel or a lost connection puts what was unsettled back at the head of the queue. A process that
    stands still for about three heartbeats loses what it holds, and asks before it settles anything after that.

Ordering
    `order="none"`: competing consumers. `order="key"`: single-active-consumer queues, several behind a consistent-hash exchange
    where the broker has that plugin, shared among the members. A partition moves only when nothing of it is out, or
    when its owner is gone.

Delay
    Queues of 1, 5, 30 s, 2, 10 min, 1 and 6 h, and the last second in a consumer's memory. Never early, late by
    milliseconds plus load. At most 12 hours.

Attempts
    Not counted here. `arrivals` is the broker's count: restarts and lost connections raise it, polite returns held in
    memory do not. No marks.

Limits
    A new group sees what comes after its creation. 16 MiB for a message, 120,000 bytes for its headers on the wire. No
    depth, no browsing.

Native object
    `aiormq.abc.DeliveredMessage`.
"""

from brokerkit.adapters.rabbitmq.adapter import RabbitAdapter

__all__ = ["RabbitAdapter"]
