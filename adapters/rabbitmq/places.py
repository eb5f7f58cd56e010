"""
Sees to it that what an address needs is there, when it is first used on a connection.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from brokerkit.adapter import Order, Start
from brokerkit.adapters.rabbitmq import names
from brokerkit.adapters.rabbitmq.client import Client
from brokerkit.adapters.rabbitmq.provisioner import Provisioner
from brokerkit.adapters.rabbitmq.topology import Exchange, Plan, Queue, Topology
from brokerkit.adapters.rabbitmq.url import Options
from brokerkit.errors import ConfigurationError, NotFound
from brokerkit.message import Address

__all__ = ["Places"]

_log = logging.getLogger(__name__)
_NEWEST = (4, 0)


class Places:
    """Looks first, and makes only what is missing: without the right to make things, what exists can be used."""

    def __init__(self, options: Options, topology: Topology, provisioner: Provisioner) -> None:
        self._options = options
        self._topology = topology
        self._provisioner = provisioner
        self._lock = asyncio.Lock()

    async def ready_to_send(self, client: Client, to: Address, exchange: str) -> None:
        """
        See that the exchange exists; a channel's is made if need be, a group's is the group's business.

        Raises `NotFound`, `Unauthorised` and `ConnectionLost`.
        """
        if exchange in client.known:
            return
        async with self._lock:
            if exchange in client.known:
                return
            if to.group is None:
                await self._make(client, self._topology.channel(to.channel, client.version))
            missing = await self._provisioner.missing(client, Plan([Exchange(exchange, "")]))
            if missing.exchanges:
                what = "the group of" if to.group else "the exchange of"
                reason = f"{what} {to} does not exist"
                raise NotFound(reason)
            client.known.add(exchange)

    async def ready_to_consume(self, client: Client, at: Address, order: Order) -> Sequence[str]:
        """See that everything for consuming a place exists, and return its queues."""
        async with self._lock:
            if at.place == "dead":
                await self._make(client, self._topology.dead(at, client.version))
                return [names.dead_queue(at.channel, at.group or "")]
            plan, parts = await self._group(client, at, order)
            await self._make(client, plan)
            return self._topology.inlets(at, order, parts)

    async def provision(self, client: Client, at: Address, order: Order, *, create: bool) -> Sequence[str]:
        """Make what is missing for an address, or only name it; return the names that were missing."""
        async with self._lock:
            plan = self._topology.channel(at.channel, client.version)
            if at.place == "inlet":
                plan += (await self._group(client, at, order))[0]
                plan += self._topology.ladder(at, client.version)
            if at.group is not None:
                plan += self._topology.dead(at, client.version)
            missing = await self._provisioner.missing(client, plan)
            if create:
                await self._provisioner.make(missing, plan.bindings)
            return [
                *(f"exchange {each.name}" for each in dict.fromkeys(missing.exchanges)),
                *(f"queue {each.name}" for each in dict.fromkeys(missing.queues)),
            ]

    def commands(self, places: Sequence[tuple[Address, Start, Order]]) -> Sequence[str]:
        """Return what an operator would run."""
        lines: list[str] = []
        for at, _, order in places:
            names.check_address(at)
            plan = self._topology.channel(at.channel, _NEWEST)
            if at.place == "inlet":
                parts = self._options.partitions
                plan += self._topology.inlet(at, order, parts, _NEWEST, split=parts > 1)
                plan += self._topology.ladder(at, _NEWEST)
            if at.group is not None:
                plan += self._topology.dead(at, _NEWEST)
            lines += plan.commands()
        return list(dict.fromkeys(lines))

    async def _group(self, client: Client, at: Address, order: Order) -> tuple[Plan, int]:
        """Plan a group: its channel, its own queue or as many partitions as it has, and its dead place."""
        parts = await self._parts(client, at, order)
        split = parts > 1
        plan = self._topology.channel(at.channel, client.version)
        plan += self._topology.inlet(at, order, parts, client.version, split=split)
        plan += self._topology.dead(at, client.version)
        return plan, parts

    async def _parts(self, client: Client, at: Address, order: Order) -> int:
        """Return how many partitions a group has, or will have. The mode of a group that exists is not changed."""
        channel, group = at.channel, at.group or ""
        if self._topology.adopted_queue(at) is not None:
            return 1
        there = await self._provisioner.count_parts(client, partial(names.part_queue, channel, group))
        if order == "none":
            if there:
                message = f"{at} exists with order='key' ({there} partitions); its members use one mode"
                raise ConfigurationError(message)
            return 0
        if there:
            return there
        plain = names.queue(channel, group)
        if not (await self._provisioner.missing(client, Plan((), [Queue(plain)]))).queues:
            message = f"{at} exists with order='none' (queue {plain!r}); its members use one mode"
            raise ConfigurationError(message)
        if self._options.partitions > 1 and await self._provisioner.splits():
            return self._options.partitions
        return 1

    async def _make(self, client: Client, plan: Plan) -> None:
        missing = await self._provisioner.missing(client, plan)
        if not self._options.create:
            lacks = [each.name for each in missing.exchanges] + [each.name for each in missing.queues]
            if lacks:
                message = f"missing, and provisioning is off: {', '.join(dict.fromkeys(lacks))}"
                raise NotFound(message)
            return
        await self._provisioner.make(missing, plan.bindings)
