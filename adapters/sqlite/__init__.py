"""
`sqlite://`: the durable broker in one file, shared by the processes of one machine; no server, no dependency.

URL
    `sqlite:///file.db` (relative), `sqlite:////var/lib/file.db` (absolute), also `sqlite://file.db` (relative).
    Options in the query or as keywords, durations in seconds: `lease` (10), `retention` (7 days),
    `dead_retention` (0: dead letters are kept until somebody removes them), `lock_timeout` (10) and
    `max_message` (64 MiB, in bytes). Beside the file lie `file.db-wal`, `file.db-shm`, `file.db.lock` and one
    `file.db.member-N` for each living subscription: local file systems only, and never copy or remove one alone.

Mapping of channel and group
    A channel is a log: one row for each message, whatever the number of groups. A group is a place with a
    cursor into that log (its inlet, which also takes copies) and a place for its dead letters; both are made
    when it is first subscribed or provisioned. Rows are deleted when all groups are done with them, or when
    they are older than the retention.

Delivery
    At least once. A send is confirmed when it is on the disk; claims and settlements survive the death of every
    process, and a power cut at worst repeats them. What a member holds goes to others when it closes (a polite
    return), when its process ends (noticed within 50 ms), or when it shows no sign of life for a lease, by the
    clock of those who watch. A frozen member finds its settlements `Stale`, is told what it lost, and joins again.

Ordering
    `order="none"`: competing consumers; what comes back is handed out before what is new. `order="key"`: 64
    slots by CRC-32 of the key, one owner for each, ceil(64 / members) at the most; a slot moves only when
    nothing of it is out, and the next owner gets everything unsettled in order before anything newer. Messages
    without a key are spread over the slots. All members of a group use one mode.

Delay
    A due time in the row, by the wall clock. Never early, late by milliseconds. At most 12 hours, or half the
    retention.

Attempts
    Not counted here. `arrivals` counts hand-outs of this copy, `returns` the polite ones among their ends;
    marks live in the row and are gone when it is settled for good.

Limits
    64 MiB for a message. One writer at a time: tens of thousands of messages a second in batches, however many
    processes. A process that is stopped (not killed) in the middle of a transaction holds the file, and the
    calls of all others fail with `ConnectionLost` after `lock_timeout` until it goes on.

Native object
    None.
"""

from brokerkit.adapters.sqlite.adapter import SqliteAdapter

__all__ = ["SqliteAdapter"]
