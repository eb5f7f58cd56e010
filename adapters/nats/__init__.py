"""
`nats://`: NATS JetStream, from server 2.10; order by key as described from 2.11.

URL
    `nats://user:password@host:4222,host:4222`, `nats+tls://...`; a token in the user's place or as `token=`. Options in the
    query or as keywords: `brokerkit.adapters.nats.options.Options` names them; `native=` adopts streams and durables.

Mapping of channel and group
    A channel is a stream with one subject for each partition; a group is a durable on it, or with order by key a durable for
    each subject. The inlets of a channel's groups share a work-queue stream, their dead letters a stream that keeps them.

Delivery
    At least once. A send is confirmed when the stream has stored it. Pulled by requests whose answers come to one inbox;
    settlements go in batches, the server's answer to the last confirms all. Leases are renewed every third of `lease` and
    are over here before they are over at the server. Reconnects for ever; a lease survives a short break.

Ordering
    `order="none"`: competing consumers. `order="key"`: a partition by CRC-32 of the key, one pinned owner for each, shared
    evenly; the next owner takes back all that was out, in order, before it starts anything.

Delay
    Given back until the time is over that is counted from the server's own stamp, by the server's clock. Late by milliseconds,
    never early. At most 12 hours.

Attempts
    Not counted here. `arrivals` is the server's count of deliveries, `returns` the polite ones that this process knows of.
    No marks.

Limits
    The server's `max_payload` less 16 KiB. Polite returns of other processes count as arrivals. Before 2.11 one message of a
    partition is out at a time.

Native object
    `brokerkit.adapters.nats.client.Incoming`: subject, reply, data, headers; when browsed, the server's JSON.
"""

from brokerkit.adapters.nats.adapter import NatsAdapter

__all__ = ["NatsAdapter"]
