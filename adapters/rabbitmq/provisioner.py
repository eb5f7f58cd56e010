"""
Looks whether things exist at the broker, and makes what is missing.

A failed declaration closes its channel, and one of an unknown type of exchange closes the connection: looking happens on
throw-away channels, making on a throw-away connection.
"""

import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence

from brokerkit.adapters.rabbitmq.channel import Channel
from brokerkit.adapters.rabbitmq.client import Client, open_client
from brokerkit.adapters.rabbitmq.topology import Binding, Plan
from brokerkit.adapters.rabbitmq.url import Options
from brokerkit.errors import ConfigurationError, ConnectionLost, NotFound, Unauthorised

__all__ = ["Provisioner"]

_log = logging.getLogger(__name__)


class Provisioner:
    """Sees and makes what plans say. Several at once are no harm: every declaration may be repeated."""

    def __init__(self, options: Options, context: ssl.SSLContext | None) -> None:
        self._options = options
        self._context = context
        self._splits: bool | None = None

    async def missing(self, client: Client, plan: Plan) -> Plan:
        """Return the part of a plan that does not exist; bindings cannot be asked for."""
        look = _Look(client)
        try:
            exchanges = [each for each in plan.exchanges if not await look.exchange(each.name)]
            queues = [each for each in plan.queues if not await look.queue(each.name)]
        finally:
            await look.close()
        return Plan(exchanges, queues)

    async def count_parts(self, client: Client, name: Callable[[int], str]) -> int:
        """Return how many partitions exist."""
        look = _Look(client)
        count = 0
        try:
            while await look.queue(name(count)):
                count += 1
        finally:
            await look.close()
        return count

    async def make(self, missing: Plan, bindings: Sequence[Binding]) -> None:
        """
        Make what is missing, then all bindings: a member that died between the two has left a queue that gets nothing.

        Raises `ConfigurationError` if something exists with other properties, `Unauthorised` without the right to make
        something that is missing. A binding that may not be made is taken for made by an operator.
        """
        client = await open_client(self._options, self._context, "brokerkit provisioning")
        try:
            channel = await client.channel()
            for exchange in missing.exchanges:
                await channel.declare_exchange(exchange.name, exchange.kind, exchange.arguments)
            for queue in missing.queues:
                await channel.declare_queue(queue.name, queue.arguments)
            for binding in bindings:
                channel = await self._bind(client, channel, binding)
        finally:
            await client.close()

    async def _bind(self, client: Client, channel: Channel, binding: Binding) -> Channel:
        try:
            bind = channel.bind_exchange if binding.split else channel.bind_queue
            await bind(binding.destination, binding.source, binding.key)
        except Unauthorised as error:
            _log.info("%s: taken for made by an operator", error)
            return await client.channel()
        return channel

    async def splits(self) -> bool:
        """Say whether the broker has the consistent-hash exchange, tried once on a connection of its own."""
        if self._splits is None:
            client = await open_client(self._options, self._context, "brokerkit provisioning")
            try:
                channel = await client.channel()
                self._splits = await _knows_hash(channel)
            finally:
                await client.close()
        return self._splits


async def _knows_hash(channel: Channel) -> bool:
    """A server-named exchange cannot be had: a name with `amq.` is refused by name, but an unknown type before that."""
    try:
        await channel.declare_exchange("amq.brokerkit-probe", "x-consistent-hash")
    except Unauthorised:
        return True
    except (ConfigurationError, ConnectionLost):
        return False
    return True


class _Look:
    """Asks whether names exist; a no closes the channel, and the next question opens another."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._channel: Channel | None = None

    async def exchange(self, name: str) -> bool:
        """Say whether an exchange exists."""
        return await self._ask(lambda channel: channel.declare_exchange(name, passive=True))

    async def queue(self, name: str) -> bool:
        """Say whether a queue exists."""
        return await self._ask(lambda channel: channel.declare_queue(name, passive=True))

    async def _ask(self, question: Callable[[Channel], Awaitable[object]]) -> bool:
        if self._channel is None:
            self._channel = await self._client.channel()
        channel, self._channel = self._channel, None
        try:
            await question(channel)
        except NotFound:
            return False
        self._channel = channel
        return True

    async def close(self) -> None:
        """Close what is open."""
        if self._channel is not None:
            await self._channel.close()
