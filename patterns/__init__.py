"""What can be wrapped around a handler, one pattern a module; imported as brokerkit.patterns."""

from brokerkit.patterns.bulkhead import bulkhead
from brokerkit.patterns.dead_letter import DeadLetters, Letter, LetterOutcome
from brokerkit.patterns.dedupe import MemoryStore, dedupe, sql_store
from brokerkit.patterns.inbox import inbox
from brokerkit.patterns.retry import retry
from brokerkit.patterns.timeout import timeout

__all__ = [
    "DeadLetters",
    "Letter",
    "LetterOutcome",
    "MemoryStore",
    "bulkhead",
    "dedupe",
    "inbox",
    "retry",
    "sql_store",
    "timeout",
]
