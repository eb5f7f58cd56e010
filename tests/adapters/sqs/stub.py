"""A service without a server: what is called when is the test's to say."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from brokerkit.adapters.sqs.calls import Answer, Arguments
from brokerkit.adapters.sqs.desk import Desk
from brokerkit.adapters.sqs.held import Source
from brokerkit.adapters.sqs.queues import Queue
from brokerkit.adapters.sqs.subscription import SqsSubscription
from brokerkit.adapters.sqs.url import MiB, Options, read_url
from brokerkit.delivery import Delivery
from brokerkit.message import Address

MAIN = Queue("c--g", "http://stub/c--g", MiB, "")
INLET = Queue("c--g--inlet", "http://stub/c--g--inlet", MiB, "")
HERE = Address("c", "g", "inlet")

Act = Callable[[Arguments, float], Awaitable[Answer | None]]
"""Takes the arguments of a call and its time limit; None lets the service answer as usual."""


def options(lease: int = 1, **changed: Any) -> Options:
    """Return options with times that are too short for a URL."""
    return replace(read_url("sqs://127.0.0.1:1", {}), lease=lease, **{"poll": 0, **changed})


class Service:
    """Answers every call with success, unless `acts` says something else for its operation."""

    def __init__(self) -> None:
        self._moved = asyncio.Event()
        self.calls: list[tuple[str, Arguments]] = []
        self.acts: dict[str, Act] = {}
        self.waiting: dict[str, deque[dict[str, Any]]] = {MAIN.url: deque(), INLET.url: deque()}

    async def call(self, operation: str, arguments: Arguments, *, timeout: float) -> Answer:
        """Note a call and answer it."""
        self.calls.append((operation, arguments))
        self._moved.set()
        try:
            return await self._answer(operation, arguments, timeout)
        finally:
            self._moved.set()

    async def close(self) -> None:
        """Nothing is open."""

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until calls have led to something."""
        async with asyncio.timeout(5):
            while not reached():
                self._moved.clear()
                await self._moved.wait()

    async def _answer(self, operation: str, arguments: Arguments, timeout: float) -> Answer:
        if operation in self.acts and (answer := await self.acts[operation](arguments, timeout)) is not None:
            return answer
        if operation == "ReceiveMessage":
            return Answer({"Messages": await self._receive(arguments)})
        return Answer({"Successful": [{"Id": each["Id"]} for each in arguments["Entries"]]})

    def entries(self, operation: str) -> list[dict[str, Any]]:
        """Return the entries of all calls of an operation."""
        return [each for name, arguments in self.calls if name == operation for each in arguments["Entries"]]

    def put(self, count: int, queue: Queue = MAIN, **fields: Any) -> None:
        """Let messages wait in a queue; their handles are their numbers."""
        for number in range(count):
            message = {"MessageId": f"m{number}", "ReceiptHandle": str(number), "Body": str(number), **fields}
            self.waiting[queue.url].append(message)

    async def _receive(self, arguments: Arguments) -> list[dict[str, Any]]:
        waiting = self.waiting[arguments["QueueUrl"]]
        if not waiting:
            await asyncio.sleep(0.02)
        return [waiting.popleft() for _ in range(min(len(waiting), arguments["MaxNumberOfMessages"]))]


class Directory:
    """What the adapter asks its directory of queues."""

    def __init__(self, in_flight: int = 0) -> None:
        self._in_flight = in_flight

    def known(self, name: str) -> Queue:
        """Return the inlet: it is all that is sent to here."""
        return replace(INLET, name=name)

    async def attributes(self, queue: Queue, names: Sequence[str]) -> dict[str, str]:
        """Say how many are in flight."""
        del queue
        return dict.fromkeys(names, str(self._in_flight))


class Watch:
    """A subscription on a `Service`, and what it has said to have lost."""

    def __init__(self, service: Service, *, lease: int = 1, in_flight: int = 0, **changed: Any) -> None:
        self.lost: list[Delivery] = []
        self.told = asyncio.Event()
        self.desk = Desk(service, cast("Any", Directory(in_flight)), options(lease, **changed))
        sources = [Source(MAIN, None), Source(INLET, "inlet")]
        self.subscription = SqsSubscription(self.desk, HERE, sources, self._on_lost, cast("Any", None))
        self.subscription.start()

    async def take(self, count: int) -> list[Delivery]:
        """Receive exactly so many."""
        taken: list[Delivery] = []
        async with asyncio.timeout(5):
            while len(taken) < count:
                taken += await self.subscription.receive(count - len(taken))
        return taken

    async def until_lost(self, count: int) -> None:
        """Wait until so many are said to be lost."""
        async with asyncio.timeout(5):
            while len(self.lost) < count:
                self.told.clear()
                await self.told.wait()

    async def _on_lost(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        del seconds
        self.lost.extend(deliveries)
        self.told.set()
