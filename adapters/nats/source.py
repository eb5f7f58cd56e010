"""
A source: one durable consumer, pulled by requests whose answers come to one inbox.

The server sends messages against what was asked for (credit). A message keeps its own subject, so it cannot be matched to
its request and credit is counted over all of them; a status says what of a request was not filled. When nothing is heard
for two heartbeats the credit is forgotten, for the server drops requests in silence when a connection has broken.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence

from brokerkit.adapters.nats.failure import NoAnswer
from brokerkit.adapters.nats.held import Held
from brokerkit.adapters.nats.link import Incoming, Link, Listener

__all__ = ["ACK", "PROGRESS", "Source", "nak"]

_log = logging.getLogger("brokerkit.nats")
ACK = b"+ACK"
PROGRESS = b"+WPI"
_HEARTBEAT = 2.0
_LONGEST = 15.0
_SLACK = 0.5
_PAUSE = 0.05
_ANSWER = 5.0
_ABSENCE = 3.0


def nak(delay: float) -> bytes:
    """Return the settlement that gives a message back after so many seconds."""
    return b"-NAK" if delay <= 0 else b'-NAK {"delay": %d}' % int(delay * 1e9)


class Source:
    """
    One consumer as one member pulls it.

    on_message: takes each message. on_hungry: something ended a request, so more may have to be asked for. on_gone: the
    consumer was deleted, or another owns it (423); the text says which. credit: how many messages are asked for and have
    not come. fields: what each request carries beside its size.
    """

    def __init__(
        self,
        link: Link,
        stream: str,
        name: str,
        *,
        patience: float,
        on_message: Callable[["Source", Incoming], None],
        on_hungry: Callable[["Source"], None],
        on_gone: Callable[["Source", str], None],
    ) -> None:
        self.stream = stream
        self.name = name
        self.link = link
        self.credit = 0
        self.fields: dict[str, str] = {}
        self._expires = min(_LONGEST, patience / 2)
        self._heartbeat = min(_HEARTBEAT, self._expires / 3)
        self._on_message = on_message
        self._on_hungry = on_hungry
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._listener: Listener | None = None
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"
        self._heard = 0.0
        self._not_before = 0.0
        self._absent_since: float | None = None
        self._deaf = False

    @property
    def open(self) -> bool:
        """Say whether it can be asked."""
        return self._listener is not None

    async def start(self) -> None:
        """Open the inbox."""
        if self._listener is None:
            self.credit = 0
            self._listener = await self.link.listen(self.link.new_inbox(), self._hear)

    async def ask(self, wanted: int) -> None:
        """See that about so many messages are asked for; asks nothing while more than half of it still is."""
        if self.credit * 2 <= wanted and wanted > 0:
            await self.request(wanted - self.credit)

    async def request(self, count: int) -> bool:
        """Ask for so many more, and say whether that was written."""
        if self._deaf and self._listener is not None:
            await self._renew_inbox()
        listener = self._listener
        now = self._loop.time()
        if listener is None or now < self._not_before:
            return False
        if self.credit == 0:
            self._heard = now
        self.credit += count
        body = {
            "batch": count,
            "expires": int(self._expires * 1e9),
            "idle_heartbeat": int(self._heartbeat * 1e9),
            **self.fields,
        }
        try:
            await self.link.publish(self._next, json.dumps(body).encode(), reply=listener.subject)
        except NoAnswer:
            self.credit = max(0, self.credit - count)
            return False
        return True

    async def _renew_inbox(self) -> None:
        """Listen anew: the server may have lost the inbox, and then drops every answer in silence."""
        self._deaf = False
        old = self._listener
        try:
            self._listener = await self.link.listen(self.link.new_inbox(), self._hear)
        except NoAnswer:
            self._deaf = True
            return
        if old is not None:
            await self.link.drain(old)

    def forget_credit(self) -> None:
        """Take nothing as asked for any more: the connection is another one."""
        self.credit = 0

    def check(self, now: float) -> None:
        """Forget the credit if the server is silent."""
        if self.credit and now - self._heard > 2 * self._heartbeat + _SLACK:
            self.credit = 0
            self._deaf = True
            self._on_hungry(self)

    async def drain(self) -> None:
        """Stop asking; returns when what the server had already sent has come."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await self.link.drain(listener)
        self.credit = 0

    async def send(self, settlements: Sequence[tuple[str, bytes]], *, timeout: float = _ANSWER) -> None:
        """
        Write settlements in order and wait until the server has processed them: it does so in order, so the last answers for all.

        Raises `NoAnswer`; what was written may have been processed. They are written all or none.
        """
        *first, (reply, last) = settlements
        await self.link.call(reply, last, timeout=timeout, before=first)

    async def send_for(self, held: Sequence[Held], data: bytes, *, timeout: float = _ANSWER) -> None:
        """Write the same settlement for several."""
        if held:
            await self.send([(each.reply, data) for each in held], timeout=timeout)

    def _hear(self, message: Incoming) -> None:
        self._heard = self._loop.time()
        if message.reply.startswith("$JS.ACK."):
            self._absent_since = None
            if self.credit:
                self.credit -= 1
            self._on_message(self, message)
            return
        status = message.headers.get("Status", "")
        if status != "503":
            self._absent_since = None
        if status == "100":
            return
        self._take_status(status, message)

    def _take_status(self, status: str, message: Incoming) -> None:
        text = message.headers.get("Description", "")
        unfilled = message.headers.get("Nats-Pending-Messages", "")
        self.credit = max(0, self.credit - int(unfilled)) if unfilled.isdigit() else 0
        if status == "423" or (status == "409" and "deleted" in text.lower()):
            self._on_gone(self, f"{status} {text}")
            return
        if status == "503":
            self._absent_since = self._absent_since or self._heard
            if self._heard - self._absent_since > _ABSENCE:
                self._on_gone(self, "the consumer does not exist, or has no leader")
                return
        if status not in {"404", "408"}:
            self._not_before = self._heard + _PAUSE
            level = logging.WARNING if status == "400" else logging.INFO
            _log.log(level, "%s of %s: %s %s", self.name, self.stream, status, text)
            self._loop.call_later(_PAUSE, self._on_hungry, self)
            return
        self._on_hungry(self)
