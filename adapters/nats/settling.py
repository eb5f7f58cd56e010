"""
Settling and holding: what the engine says of deliveries, told to the server by consumer, and what it answered.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from brokerkit.adapter import Settled
from brokerkit.adapters.nats.failure import ApiError, NoAnswer
from brokerkit.adapters.nats.held import Held
from brokerkit.adapters.nats.source import ACK, Source, nak
from brokerkit.delivery import Delivery
from brokerkit.errors import SettleError, Stale, Unavailable
from brokerkit.settlement import Ack, Retry

if TYPE_CHECKING:
    from brokerkit.adapters.nats.member import Member

__all__ = ["hold", "settle"]

_Part = list[tuple[int, Held, Ack | Retry]]


async def settle(member: "Member", settled: Sequence[Settled]) -> list[SettleError | None]:
    """Settle some deliveries of a member and return an outcome for each."""
    now = asyncio.get_running_loop().time()
    outcomes: list[SettleError | None] = [None] * len(settled)
    parts: dict[Source, _Part] = {}
    chosen: set[int] = set()
    for index, (delivery, settlement) in enumerate(settled):
        held = _held_of(member, delivery)
        if held is None or id(held) in chosen:
            outcomes[index] = _stale(delivery)
        elif held.returned:
            # written before, and its answer was lost: a second one would take it from whoever has it by now
            member.drop(held)
            outcomes[index] = None if isinstance(settlement, Retry) else _stale(delivery)
        elif not member.ours(held, now):
            outcomes[index] = _stale(delivery)
            member.check_leases(now)
        else:
            chosen.add(id(held))
            parts.setdefault(held.source, []).append((index, held, settlement))
    results = await asyncio.gather(*(_settle_at(member, source, part) for source, part in parts.items()))
    for part, error in zip(parts.values(), results, strict=True):
        for index, _, _ in part:
            outcomes[index] = error
    return outcomes


async def _settle_at(member: "Member", source: Source, part: _Part) -> SettleError | None:
    written = [
        (held.reply, ACK if isinstance(settlement, Ack) else nak(settlement.after))
        for _, held, settlement in part
    ]
    returns = member.site.returns
    try:
        await member.before_acks(
            source, [held for _, held, settlement in part if isinstance(settlement, Ack)]
        )
        for _, held, settlement in part:
            if isinstance(
                settlement, Retry
            ):  # noted only now: what comes before may fail, and then none is written
                held.returned = True
                returns.add(source.stream, source.name, held.identity)
        await source.send(written)
    except (NoAnswer, ApiError) as error:
        if isinstance(error, NoAnswer) and not error.written:
            _not_returned(member, source, part)
        return Unavailable(f"{member.site.link.where}: {error}")
    for _, held, settlement in part:
        if member.holds(held):
            member.drop(held)
        if isinstance(settlement, Ack):
            returns.forget(source.stream, source.name, held.identity)
    return None


def _not_returned(member: "Member", source: Source, part: _Part) -> None:
    for _, held, settlement in part:
        if isinstance(settlement, Retry) and held.returned:
            held.returned = False
            member.site.returns.take_back(source.stream, source.name, held.identity)


async def hold(member: "Member", deliveries: Sequence[Delivery]) -> list[SettleError | None]:
    """Renew the leases of some deliveries of a member and return an outcome for each."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    member.check_leases(now)
    parts: dict[Source, list[Held]] = {}
    for delivery in deliveries:
        held = _held_of(member, delivery)
        if held is not None:
            parts.setdefault(held.source, []).append(held)
    answers = await asyncio.gather(*(member.renew_at(source, part, now) for source, part in parts.items()))
    answered = dict(zip(parts, answers, strict=True))
    outcomes: list[SettleError | None] = []
    for delivery in deliveries:
        held = _held_of(member, delivery)
        if held is None or not member.ours(held, loop.time()):
            outcomes.append(_stale(delivery))
        elif answered.get(held.source):
            outcomes.append(None)
        else:
            outcomes.append(Unavailable(f"{member.site.link.where}: the lease could not be renewed"))
    return outcomes


def _held_of(member: "Member", delivery: Delivery) -> Held | None:
    held = delivery.receipt
    return held if isinstance(held, Held) and member.holds(held) else None


def _stale(delivery: Delivery) -> Stale:
    return Stale(f"{delivery!r} is no longer held by this subscription")
