"""
Sends copies on: from rung to rung, until what remains is less than a second.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

from brokerkit.adapters.rabbitmq import names
from brokerkit.adapters.rabbitmq.channel import Raw
from brokerkit.adapters.rabbitmq.parcels import Parcel
from brokerkit.adapters.rabbitmq.provisioner import Provisioner
from brokerkit.adapters.rabbitmq.publisher import Publisher
from brokerkit.adapters.rabbitmq.topology import Topology
from brokerkit.adapters.rabbitmq.wire import headers_to_forward
from brokerkit.errors import BrokerkitError, NotFound, SendError
from brokerkit.message import Address

__all__ = ["Forwarder"]

_log = logging.getLogger(__name__)

_LONGEST_BACKOFF = 5.0


class Forwarder:
    """
    Publishes to the places of a group, and makes a rung of its ladder when something first needs it.

    create: whether a missing rung may be made.
    """

    def __init__(
        self,
        publisher: Publisher,
        provisioner: Provisioner,
        topology: Topology,
        *,
        timeout: float,
        create: bool,
    ) -> None:
        self._publisher = publisher
        self._provisioner = provisioner
        self._topology = topology
        self._timeout = timeout
        self._create = create

    async def publish(
        self, to: Address, parcels: Sequence[Parcel], deadline: float
    ) -> Sequence[SendError | None]:
        """Publish to a channel or a place of a group; one outcome for each, `NotFound` for a place that is not there."""
        outcomes = list(await self._publisher.publish(parcels, deadline))
        if to.group is None:
            return outcomes  # and its key is its channel, whatever letter that begins with
        homeless = [
            index
            for index, (parcel, outcome) in enumerate(zip(parcels, outcomes, strict=True))
            if isinstance(outcome, NotFound) and parcel.key.startswith("r")
        ]
        if homeless and self._create:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._make_rungs(to, {int(parcels[index].key[1:]) for index in homeless})
            except TimeoutError:
                return outcomes
            except SendError as error:
                for index in homeless:
                    outcomes[index] = error
                return outcomes
            again = await self._publisher.publish([parcels[index] for index in homeless], deadline)
            for index, outcome in zip(homeless, again, strict=True):
                outcomes[index] = outcome
        return outcomes

    async def _make_rungs(self, to: Address, rungs: set[int]) -> None:
        client = await self._publisher.client()
        for seconds in sorted(rungs):
            plan = self._topology.rung(to, seconds, client.version)
            missing = await self._provisioner.missing(client, plan)
            await self._provisioner.make(missing, plan.bindings)

    async def forward(
        self, at: Address, raw: Raw, rung: int, remains: int, *, until: Callable[[], bool]
    ) -> bool:
        """
        Send a copy on to a rung until that is confirmed; False if meanwhile the original was lost.

        What it says besides the wait stays to the byte.
        """
        properties: Any = raw.header.properties
        parcel = Parcel(
            exchange=names.return_exchange(at.channel, at.group or ""),
            key=names.rung_key(rung),
            body=raw.body,
            content_type=properties.content_type,
            headers=headers_to_forward(properties.headers or {}, remains),
            mandatory=True,
        )
        tries = 0
        while not until():
            try:
                deadline = asyncio.get_running_loop().time() + self._timeout
                (outcome,) = await self.publish(at, [parcel], deadline)
            except BrokerkitError as error:
                outcome = SendError(str(error))
            if outcome is None:
                return True
            tries += 1
            if tries == 1:
                _log.warning("%s: a copy cannot be sent on to its rung (%s); it is tried again", at, outcome)
            ceiling = min(_LONGEST_BACKOFF, 0.1 * 2 ** min(tries, 10))
            await asyncio.sleep(random.uniform(ceiling / 4, ceiling))  # noqa: S311 - jitter
        return False
