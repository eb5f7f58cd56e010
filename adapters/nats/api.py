"""
The requests of the JetStream API that the adapter makes, as JSON.
"""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

from brokerkit.adapters.nats.failure import CONSUMER_MISSING, NO_MESSAGE, STREAM_MISSING, ApiError
from brokerkit.adapters.nats.link import Link

__all__ = ["Api", "Info", "notes_of", "read_answer", "subjects_of"]

_TIMEOUT = 5.0
Info = dict[str, Any]


class Api:
    """Requests to the server, by one connection. Each raises `ApiError` or `NoAnswer`; `None` says that it is missing."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def ask(
        self, verb: str, request: Mapping[str, Any] | None = None, *, timeout: float = _TIMEOUT
    ) -> Info:
        """Ask and return the answer."""
        data = b"" if request is None else json.dumps(request).encode()
        answer = await self._link.call(f"$JS.API.{verb}", data, timeout=timeout)
        return read_answer(answer.data)

    async def stream(self, name: str) -> Info | None:
        """Return what is known of a stream."""
        return await self._or_none(STREAM_MISSING, f"STREAM.INFO.{name}")

    async def create_stream(self, config: Mapping[str, Any]) -> Info:
        """Create a stream; one that is there with the same configuration is returned."""
        return await self.ask(f"STREAM.CREATE.{config['name']}", config)

    async def stream_of(self, subject: str) -> str | None:
        """Return the stream that takes a subject."""
        found = await self.ask("STREAM.NAMES", {"subject": subject})
        names = cast("list[str]", found.get("streams") or [])
        return names[0] if names else None

    async def streams(self) -> AsyncIterator[Info]:
        """Yield what is known of every stream of the account."""
        async for each in self._pages("STREAM.LIST", "streams"):
            yield each

    async def consumers(self, stream: str) -> AsyncIterator[Info]:
        """Yield what is known of every consumer of a stream."""
        async for each in self._pages(f"CONSUMER.LIST.{stream}", "consumers"):
            yield each

    async def consumer(self, stream: str, name: str, *, timeout: float = _TIMEOUT) -> Info | None:
        """Return what is known of a consumer."""
        return await self._or_none(CONSUMER_MISSING, f"CONSUMER.INFO.{stream}.{name}", timeout=timeout)

    async def create_consumer(self, stream: str, config: Mapping[str, Any], action: str = "create") -> Info:
        """Create a durable consumer, or with the action `update` change it."""
        request = {"stream_name": stream, "config": config, "action": action}
        return await self.ask(f"CONSUMER.CREATE.{stream}.{config['durable_name']}", request)

    async def unpin(self, stream: str, name: str, group: str) -> None:
        """Take the pin from whoever has it."""
        await self.ask(f"CONSUMER.UNPIN.{stream}.{name}", {"group": group})

    async def message(self, stream: str, seq: int, subject: str | None = None) -> Info | None:
        """Return a stored message, or the first one of a subject from there on."""
        request: dict[str, Any] = {"seq": seq}
        if subject is not None:
            request["next_by_subj"] = subject
        found = await self._or_none(NO_MESSAGE, f"STREAM.MSG.GET.{stream}", request)
        return None if found is None else cast("Info", found["message"])

    async def delete_message(self, stream: str, seq: int) -> None:
        """Delete a stored message; one that is gone already is no error."""
        try:
            await self.ask(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
        except ApiError as error:
            if error.reason not in {NO_MESSAGE, _GONE} and "no message found" not in error.text:
                raise

    async def _or_none(
        self, missing: int, verb: str, request: Mapping[str, Any] | None = None, *, timeout: float = _TIMEOUT
    ) -> Info | None:
        try:
            return await self.ask(verb, request, timeout=timeout)
        except ApiError as error:
            if error.reason in {missing, STREAM_MISSING}:
                return None
            raise

    async def _pages(self, verb: str, what: str) -> AsyncIterator[Info]:
        offset = 0
        while True:
            found = await self.ask(verb, {"offset": offset})
            page = cast("list[Info]", found.get(what) or [])
            for each in page:
                yield each
            offset += len(page)
            if not page or offset >= int(found.get("total", 0)):
                return


_GONE = 10043  # "stream sequence not found": deleted by somebody else


def read_answer(data: bytes) -> Info:
    """Return an answer of the server, or raise the `ApiError` in it."""
    found = cast("Info", json.loads(data))
    error = cast("Info | None", found.get("error"))
    if error is not None:
        raise ApiError(
            int(error.get("code", 0)), int(error.get("err_code", 0)), str(error.get("description", "refused"))
        )
    return found


def notes_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a stream or a consumer."""
    return cast("dict[str, str]", config.get("metadata") or {})


def subjects_of(config: Mapping[str, Any]) -> list[str]:
    """Return the subjects of a stream."""
    return cast("list[str]", config.get("subjects") or [])
