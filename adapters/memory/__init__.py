"""
`memory://`: a broker inside this process, whole in its contract and unkind on request.

URL
    `memory://` belongs to one adapter alone. `memory://name` is shared by every adapter of that name in this
    process, whatever event loop or thread it runs on; each adapter then stands for a process of its own. It
    lives until `forget(name)`. Options, in the query or as keywords: `lease` (seconds, none by default) and
    `max_message` (bytes); as a keyword only: `unkind` (an `Unkind`).

Mapping of channel and group
    A channel keeps each message until all its groups are done with it, at most 7 days; without groups it just
    keeps them. A group has one queue, fed by the channel and by copies sent to its inlet, and a dead place.

Delivery
    At least once. What a subscription has been handed comes back when it closes (a polite return), when its
    connection is cut or when its lease runs out (both impolite). Nothing survives the process.

Ordering
    `order="none"`: competing consumers; what comes back is handed out before what is new. `order="key"`: 64
    slots by CRC-32 of the key, one owner for each; a member has at most ceil(64 / members) and a slot moves
    only when nothing of it is out, so the next owner sees the unsettled ones first and in order. Messages
    without a key are spread over the slots.

Delay
    Held in a heap and handed out by `loop.time()` of the running loop, so a virtual loop moves it. All loops
    of one broker must agree on that clock. Never early; late by what the loop is late. At most 12 hours.

Attempts
    Not counted here. `arrivals` counts hand-outs of this copy, `returns` the polite ones among their ends;
    marks live beside the message and are gone when it is settled for good.

Limits
    64 MiB for a message, all of them together bounded by memory only. No persistence, one process.

Native object
    None. `position` is ("0", n), n being the message's place among all that this broker has taken.
"""

from brokerkit.adapters.memory.adapter import MemoryAdapter
from brokerkit.adapters.memory.broker import Broker, forget
from brokerkit.adapters.memory.unkind import Unkind

__all__ = ["Broker", "MemoryAdapter", "Unkind", "forget"]
