"""
Reading a channel or a dead place without taking anything.
"""

import base64
from collections.abc import Sequence

from brokerkit.adapters.nats import names
from brokerkit.adapters.nats.api import Api
from brokerkit.adapters.nats.failure import ApiError, NoAnswer, meaning
from brokerkit.adapters.nats.places import Places
from brokerkit.adapters.nats.wire import decode, headers_in
from brokerkit.delivery import Delivery
from brokerkit.errors import NotFound
from brokerkit.message import Address

__all__ = ["Browser"]


class Browser:
    """Reads stored messages one by one; the cursor is the sequence number of the last one."""

    def __init__(self, api: Api, places: Places) -> None:
        self._api = api
        self._places = places

    async def browse(
        self, at: Address, cursor: str | None, limit: int
    ) -> tuple[Sequence[Delivery], str | None]:
        """Return a page, and the next cursor if there is something in it."""
        try:
            stream, subject = await self._where(at)
            if cursor == "end":
                info = await self._api.stream(stream)
                return [], str(info["state"]["last_seq"] if info is not None else 0)
            return await self._page(at, stream, subject, int(cursor or 0), limit)
        except NotFound:
            return [], None
        except (ApiError, NoAnswer) as error:
            raise meaning(error, str(at)) from error

    async def _where(self, at: Address) -> tuple[str, str]:
        if at.place is None:
            channel = await self._places.channel(at.channel, create=False)
            if channel.adopted:
                return channel.stream, channel.subjects[0]
            return channel.stream, f"{names.token(at.channel)}.*"
        assert at.group is not None  # noqa: S101 - not a channel
        return names.stream(at.channel, at.place), names.subject(at.channel, at.place, at.group)

    async def _page(
        self, at: Address, stream: str, subject: str, last: int, limit: int
    ) -> tuple[Sequence[Delivery], str | None]:
        found: list[Delivery] = []
        while len(found) < limit:
            message = await self._api.message(stream, last + 1, subject)
            if message is None:
                break
            last = int(message["seq"])
            body = base64.b64decode(message.get("data") or "")
            decoded = decode(headers_in(message.get("hdrs")), body)
            found.append(Delivery(decoded, at, position=(stream, last), native=message))
        return found, str(last) if found else None
