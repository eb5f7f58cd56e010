"""
Unkindness as data: what a broker may do within its contract and seldom does on a developer's machine.
"""

import random
from dataclasses import dataclass, fields

from brokerkit.errors import ConfigurationError

__all__ = ["Dice", "Unkind"]

_HALF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Unkind:
    """
    Chances between 0 and 1, rolled from `seed`: the same calls in the same order meet the same faults.

    redeliver: a confirmed ack is forgotten and the message arrives once more.
    reorder: two neighbours of a batch change places, if their keys differ or they have none.
    lose_lease: a settlement finds its lease lost (with `order="key"` that of the whole slot): `Stale`,
        `on_lost`, and the message arrives again.
    refuse_settle: a settlement is `Unavailable`; nothing has changed.
    drop_connection: a `receive` finds the connection of its adapter cut.
    refuse_send: a message is `ConnectionLost`, not stored.
    unknown_send: a message is `PublishUnknown`; every second one is stored.
    """

    seed: int
    redeliver: float = 0.0
    reorder: float = 0.0
    lose_lease: float = 0.0
    refuse_settle: float = 0.0
    drop_connection: float = 0.0
    refuse_send: float = 0.0
    unknown_send: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            chance = getattr(self, field.name)
            if field.name != "seed" and not 0.0 <= chance <= 1.0:
                message = f"Unkind({field.name}={chance!r}): a chance is between 0 and 1"
                raise ConfigurationError(message)


class Dice:
    """The rolls of one adapter. A chance of 0 costs no roll, so it does not move the others."""

    def __init__(self, unkind: Unkind) -> None:
        self.unkind = unkind
        self._random = random.Random(unkind.seed)  # noqa: S311 - faults are repeatable, not secret

    def hit(self, fault: str) -> bool:
        """Return whether the fault of this name happens this time."""
        chance: float = getattr(self.unkind, fault)
        return chance > 0.0 and self._random.random() < chance

    def coin(self) -> bool:
        """Return one of two, evenly."""
        return self._random.random() < _HALF
