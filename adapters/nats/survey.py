"""
How much waits where, and which groups there are.
"""

import time
from collections.abc import Iterable
from typing import Any

from brokerkit.adapter import Measurement
from brokerkit.adapters.nats import names
from brokerkit.adapters.nats.api import Api, Info, notes_of
from brokerkit.adapters.nats.failure import ApiError, NoAnswer, meaning
from brokerkit.adapters.nats.options import Options
from brokerkit.adapters.nats.places import Places
from brokerkit.adapters.nats.servertime import nanoseconds
from brokerkit.adapters.nats.wire import after_of, headers_in
from brokerkit.errors import NotFound
from brokerkit.message import Address

__all__ = ["Survey"]

_MOST_READ = 500


class Survey:
    """Answers questions about the server's streams and consumers."""

    def __init__(self, api: Api, places: Places, options: Options) -> None:
        self._api = api
        self._places = places
        self._options = options

    async def groups(self) -> list[tuple[str, str]]:
        """Return the (channel, group) pairs that exist, by the notes that their consumers carry."""
        found: set[tuple[str, str]] = set()
        try:
            streams = [
                str(info["config"]["name"])
                async for info in self._api.streams()
                if self._may_hold_groups(info["config"])
            ]
            for place, subject in self._options.native.items():
                if "/" not in place and (adopted := await self._api.stream_of(subject)):
                    streams.append(adopted)
            for stream in streams:
                found.update([_group(info) async for info in self._api.consumers(stream)])
        except (ApiError, NoAnswer) as error:
            raise meaning(error, str(self._options.url.text)) from error
        return sorted(pair for pair in found if all(pair))

    @staticmethod
    def _may_hold_groups(config: Info) -> bool:
        name = str(config["name"])
        return "bk.channel" in notes_of(config) and not name.endswith(("--inlet", "--dead"))

    async def measure(self, at: Address) -> Measurement:
        """Measure a group's inlet (the channel as it sees it) or its dead place."""
        try:
            return await self._measure(at)
        except (ApiError, NoAnswer) as error:
            raise meaning(error, str(at)) from error

    async def _measure(self, at: Address) -> Measurement:
        if at.group is None or at.place is None:
            message = f"{at}: a group's inlet or dead place can be measured"
            raise NotFound(message)
        stream, name = names.stream(at.channel, at.place), names.durable(at.group)
        own = await self._api.consumer(stream, name)
        main = await self._main(at) if at.place == "inlet" else []
        if own is None:
            message = f"group {at.group!r} of {at.channel!r} does not exist"
            raise NotFound(message)
        delayed = await self._delayed(at, own) if at.place == "inlet" else 0
        pending, out = int(own["num_pending"]), int(own["num_ack_pending"])
        in_flight = min(max(0, out - delayed), pending + out - delayed)
        waiting = max(0, pending + out - delayed - in_flight)
        for _, info in main:
            waiting += int(info["num_pending"])
            in_flight += int(info["num_ack_pending"])
        ages = [await self._age(at_stream, info) for at_stream, info in [*main, (stream, own)]]
        return Measurement(waiting=waiting, delayed=delayed, in_flight=in_flight, oldest=_greatest(ages))

    async def _main(self, at: Address) -> list[tuple[str, Info]]:
        assert at.group is not None  # noqa: S101 - an inlet
        channel = await self._places.channel(at.channel, create=False)
        single = self._options.native.get(f"{at.channel}/{at.group}") or names.durable(at.group)
        info = await self._api.consumer(channel.stream, single)
        if info is not None:
            return [(channel.stream, info)]
        found = [
            await self._api.consumer(channel.stream, names.durable(at.group, index))
            for index in range(len(channel.subjects))
        ]
        return [(channel.stream, each) for each in found if each is not None]

    async def _delayed(self, at: Address, own: Info) -> int:
        """Count the copies that are not due; of very many, the first are read and the rest taken to be alike."""
        assert at.group is not None  # noqa: S101 - an inlet
        total = int(own["num_pending"]) + int(own["num_ack_pending"])
        now = nanoseconds(own["ts"]) if "ts" in own else time.time_ns()
        seq, read, early = 0, 0, 0
        while read < min(total, _MOST_READ):
            message = await self._api.message(
                names.stream(at.channel, "inlet"), seq + 1, names.subject(at.channel, "inlet", at.group)
            )
            if message is None:
                break
            seq, read = int(message["seq"]), read + 1
            after = after_of(dict(headers_in(message.get("hdrs"))))
            early += nanoseconds(message["time"]) + after * 1e9 > now
        return early if read in {0, total} else min(total, round(total * early / read))

    async def _age(self, stream: str, info: Info) -> float | None:
        if int(info["num_pending"]) + int(info["num_ack_pending"]) == 0:
            return None
        config: dict[str, Any] = info["config"]
        subjects = config.get("filter_subject") or ">"
        first = await self._api.message(stream, int(info["ack_floor"]["stream_seq"]) + 1, subjects)
        if first is None:
            return None
        now = nanoseconds(info["ts"]) if "ts" in info else time.time_ns()
        return max(0.0, (now - nanoseconds(first["time"])) / 1e9)


def _greatest(ages: Iterable[float | None]) -> float | None:
    return max((age for age in ages if age is not None), default=None)


def _group(info: Info) -> tuple[str, str]:
    notes = notes_of(info["config"])
    return notes.get("bk.channel", ""), notes.get("bk.group", "")
