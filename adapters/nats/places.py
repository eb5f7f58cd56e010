"""
What exists at the server, found out once and made where it is missing.
"""

import logging
from collections.abc import Mapping
from typing import Any

from brokerkit.adapter import Order, Start
from brokerkit.adapters.nats import names
from brokerkit.adapters.nats.api import Api, Info, notes_of, subjects_of
from brokerkit.adapters.nats.failure import ApiError, NoAnswer, meaning
from brokerkit.adapters.nats.link import Link
from brokerkit.adapters.nats.options import Options
from brokerkit.adapters.nats.topology import Channel, consumer_configs, order_of, stream_config
from brokerkit.errors import ConfigurationError, ConnectionLost, NotFound
from brokerkit.message import Address

__all__ = ["Places"]

_log = logging.getLogger("brokerkit.nats")
_STREAM_EXISTS = 10058
_CONSUMER_EXISTS = {10013, 10148}
_PINS = (2, 11)


class Places:
    """The streams and consumers of one adapter's server. Every method raises errors of brokerkit's own family."""

    def __init__(self, link: Link, api: Api, options: Options) -> None:
        self._link = link
        self._api = api
        self._options = options
        self._channels: dict[str, Channel] = {}
        self._streams: set[str] = set()

    @property
    def pins(self) -> bool:
        """Say whether the server can give a partition to one owner."""
        return self._link.version >= _PINS

    def forget(self, channel: str) -> None:
        """Look again next time: something that was there is gone."""
        self._channels.pop(channel, None)
        self._streams.discard(names.stream(channel, "inlet"))
        self._streams.discard(names.stream(channel, "dead"))

    def known(self, channel: str) -> Channel | None:
        """Return a channel that was found before."""
        return self._channels.get(channel)

    def has(self, channel: str, place: str) -> bool:
        """Say whether the stream of a channel's inlets or dead letters was found before."""
        return names.stream(channel, place) in self._streams

    async def channel(self, name: str, *, create: bool | None = None) -> Channel:
        """Return a channel, made if need be; raises `NotFound` if it is missing and may not be made."""
        known = self._channels.get(name)
        if known is None:
            try:
                known = await self._find(name, self._options.create if create is None else create)
            except (ApiError, NoAnswer) as error:
                raise meaning(error, self._link.where) from error
            self._channels[name] = known
        return known

    async def _find(self, name: str, create: bool) -> Channel:
        native = self._options.native.get(name)
        if native is not None:
            stream = await self._api.stream_of(native)
            if stream is None:
                message = f"{self._link.where}: no stream takes the subject {native!r}, which channel {name!r} adopts"
                raise NotFound(message)
            return Channel(name, stream, (native,), adopted=True)
        info = await self._stream(stream_config(self._options, name, None), create)
        return Channel(name, names.stream(name), _subjects(name, info), adopted=False)

    async def _stream(self, config: Mapping[str, Any], create: bool) -> Info:
        info = await self._api.stream(config["name"])
        if info is not None:
            return info
        if not create:
            message = f"{self._link.where}: there is no stream {config['name']!r}"
            raise NotFound(message)
        try:
            return await self._api.create_stream(config)
        except ApiError as error:
            if error.reason != _STREAM_EXISTS:
                raise
        info = await self._api.stream(config["name"])
        if info is None:
            message = f"{self._link.where}: stream {config['name']!r} comes and goes"
            raise ConnectionLost(message)
        return info

    async def own(self, channel: str, place: str, *, create: bool | None = None) -> None:
        """See that the stream of a channel's inlets or dead letters is there."""
        name = names.stream(channel, place)
        if name in self._streams:
            return
        try:
            await self._stream(
                stream_config(self._options, channel, place),
                self._options.create if create is None else create,
            )
        except (ApiError, NoAnswer) as error:
            raise meaning(error, self._link.where) from error
        self._streams.add(name)

    async def group(
        self, at: Address, order: Order, start: Start, *, create: bool | None = None
    ) -> tuple[Channel, list[tuple[str, Info]]]:
        """
        Return a channel and (stream, what is known) of each durable of a group's inlet or dead place, made if need be.

        What exists is only read, so no right to create is needed then. Raises `ConfigurationError` if the group exists with
        the other order, or what is adopted cannot be used.
        """
        assert at.place is not None  # noqa: S101 - an inlet or a dead place
        may = self._options.create if create is None else create
        try:
            if at.place == "dead":
                channel = Channel(at.channel, names.stream(at.channel), (), adopted=False)
            else:
                channel = await self.channel(at.channel)
                await self._check_order(channel, at, order)
            await self.own(at.channel, at.place)
            found: list[tuple[str, Info]] = []
            for stream, config in await self._configs(channel, at, order, start):
                found.append((stream, await self._consumer(at, stream, config, may)))
        except (ApiError, NoAnswer) as error:
            raise meaning(error, self._link.where) from error
        return channel, found

    async def _configs(
        self, channel: Channel, at: Address, order: Order, start: Start
    ) -> list[tuple[str, dict[str, Any]]]:
        first: int | None = None
        if start == "latest" and at.place == "inlet":
            info = await self._api.stream(channel.stream)
            first = 1 + int(info["state"]["last_seq"]) if info is not None else None
        return consumer_configs(self._options, channel, at, order, first, pins=self.pins)

    async def _check_order(self, channel: Channel, at: Address, order: Order) -> None:
        assert at.group is not None  # noqa: S101 - an inlet
        other = names.durable(at.group, 0) if order == "none" else names.durable(at.group)
        if await self._api.consumer(channel.stream, other) is not None:
            message = (
                f"{self._link.where}: group {at.group!r} of {at.channel!r} exists with order="
                f"{'key' if order == 'none' else 'none'!r}; delete its consumers of stream {channel.stream} to change that"
            )
            raise ConfigurationError(message)

    async def _consumer(self, at: Address, stream: str, config: Mapping[str, Any], create: bool) -> Info:
        name = config["durable_name"]
        info = await self._api.consumer(stream, name)
        if info is not None:
            return await self._fitting(at, stream, config, info)
        if not create or name == self._options.native.get(f"{at.channel}/{at.group}"):
            message = f"{self._link.where}: there is no consumer {name!r} on stream {stream!r}"
            raise NotFound(message)
        try:
            return await self._api.create_consumer(stream, config)
        except ApiError as error:
            if error.reason not in _CONSUMER_EXISTS:
                raise
        info = await self._api.consumer(stream, name)
        if info is None:
            message = f"{self._link.where}: consumer {name!r} of {stream!r} comes and goes"
            raise ConnectionLost(message)
        return info

    async def _fitting(self, at: Address, stream: str, config: Mapping[str, Any], info: Info) -> Info:
        """Check what is there; a lease or a budget of another length is changed where it is ours to change."""
        have = info["config"]
        if have.get("deliver_subject") or have.get("ack_policy") != "explicit" or have.get("backoff"):
            message = (
                f"{self._link.where}: consumer {info['name']!r} of {stream!r} cannot be used: it has to be a pull consumer with "
                "explicit acks and without backoff"
            )
            raise ConfigurationError(message)
        adopted = info["name"] == self._options.native.get(f"{at.channel}/{at.group}")
        if order_of(have) != order_of(config) and not adopted:
            _log.warning("consumer %s of %s was made for another order", info["name"], stream)
        wanted = {
            key: config[key]
            for key in ("ack_wait", "priority_timeout")
            if key in config and have.get(key) != config[key]
        }
        if adopted or not wanted or not self._options.create:
            return info
        try:
            return await self._api.create_consumer(stream, {**have, **wanted}, "update")
        except ApiError as error:
            _log.warning("consumer %s of %s keeps its lease: %s", info["name"], stream, error)
            return info

    async def missing(self, at: Address, order: Order) -> list[str]:
        """Return the names of the streams and consumers that a place needs and that are not there."""
        try:
            return await self._missing(at, order)
        except (ApiError, NoAnswer) as error:
            raise meaning(error, self._link.where) from error

    async def _missing(self, at: Address, order: Order) -> list[str]:
        found: list[str] = []
        channel: Channel | None = None
        if at.place != "dead":
            try:
                channel = await self.channel(at.channel, create=False)
            except NotFound:
                found.append(f"stream {self._options.native.get(at.channel) or names.stream(at.channel)}")
        if at.place is None:
            return found
        if await self._api.stream(names.stream(at.channel, at.place)) is None:
            found.append(f"stream {names.stream(at.channel, at.place)}")
        assumed = channel or Channel(
            at.channel,
            names.stream(at.channel),
            names.partitions_in(at.channel, self._options.partitions),
            adopted=False,
        )
        for stream, config in consumer_configs(self._options, assumed, at, order, None, pins=self.pins):
            if await self._api.consumer(stream, config["durable_name"]) is None:
                found.append(f"consumer {config['durable_name']} of {stream}")
        return found

    async def make(self, at: Address, order: Order, start: Start) -> None:
        """Create what a place needs, whatever `provisioning` says."""
        await self.channel(at.channel, create=True)
        if at.place is not None:
            await self.own(at.channel, at.place, create=True)
            await self.group(at, order, start, create=True)

    async def has_groups(self, channel: Channel) -> bool:
        """Say whether any group reads a channel."""
        try:
            info = await self._api.stream(channel.stream)
        except (ApiError, NoAnswer) as error:
            raise meaning(error, self._link.where) from error
        return info is not None and int(info["state"].get("consumer_count", 0)) > 0


def _subjects(channel: str, info: Info) -> tuple[str, ...]:
    """Return the subjects of a channel's stream in the order of their partitions."""
    have = set(subjects_of(info["config"]))
    noted = notes_of(info["config"]).get("bk.partitions", "")
    count = int(noted) if noted.isdigit() else len(have)
    made = names.partitions_in(channel, count)
    if not made or not have.issuperset(made):
        message = (
            f"stream {info['config']['name']!r} is not one of brokerkit's ({', '.join(sorted(have)) or 'no'} subjects); adopt it "
            "with native="
        )
        raise ConfigurationError(message)
    return made
