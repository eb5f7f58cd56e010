"""
Another process: a real one where the broker is shared by processes, else an event loop in a thread of its own.

What is asked of it is data, so the tests need not know which of the two it is. `stop` is SIGSTOP: nothing over there
goes on, no lease is renewed, no heartbeat sent. Never resumed, it is a process that has died.
"""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

from brokerkit.adapter import Adapter, Marks, Order, Settled, Start, Tallies
from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError, ConnectionLost, SendError, SettleError
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Ack, Retry
from brokerkit.testing.conformance.harness import Harness
from brokerkit.testing.conformance.member import Member, join

__all__ = ["Away", "Die", "Elsewhere", "MakeHand", "Way", "start_elsewhere", "start_way"]

Die = Callable[[], None]
"""End the process in which it is called; in a thread that plays a process, stand still until resumed."""

MakeHand = Callable[[Die], Any]
"""Make what works over there, over there. Sent between processes, so a function of a module or a partial of one."""


_KILLED = 9
"""The exit code of a process that has ended itself."""


class Seen(NamedTuple):
    """A delivery as it can be sent home; `handle` names it."""

    handle: int
    message: Message
    address: Address
    arrivals: int | None
    returns: int
    mark: bytes | None


class Hand:
    """What works over there: every method takes and returns what can be sent between processes."""

    def __init__(self, harness: Harness, _: Die) -> None:
        self._harness = harness
        self._adapter: Adapter | None = None
        self._members: list[Member] = []
        self._deliveries: list[Delivery] = []

    async def open(self) -> None:
        """Connect."""
        self._adapter = await self._harness.adapter()

    async def join(self, at: Address, order: Order, start: Start) -> int:
        """Subscribe and return the member's number."""
        self._members.append(await join(self._open, at, self._harness.patience, order, start))
        return len(self._members) - 1

    async def send(
        self, to: Address, messages: Sequence[Message], after: float
    ) -> Sequence[SendError | None]:
        """Send."""
        return list(await self._open.send(to, messages, after=after))

    async def take(self, member: int, count: int) -> list[Seen]:
        """Receive exactly so many."""
        try:
            taken = await self._members[member].take(count)
        except ConnectionLost:
            await self._members[member].come_back()
            taken = await self._members[member].take(count)
        return self._seen(taken)

    async def some(self, member: int, seconds: float) -> list[Seen]:
        """Receive what comes within so many seconds."""
        try:
            taken = await self._members[member].some(seconds)
        except ConnectionLost:
            await self._members[member].come_back()
            taken = await self._members[member].some(seconds)
        return self._seen(taken)

    async def settle(
        self, member: int, settled: Sequence[tuple[int, Ack | Retry]]
    ) -> Sequence[SettleError | None]:
        """Settle by handle."""
        pairs = [(self._deliveries[handle], settlement) for handle, settlement in settled]
        return list(await self._members[member].subscription.settle(pairs))

    async def mark(self, member: int, handle: int, value: bytes | None) -> SettleError | None:
        """Mark by handle."""
        subscription = self._members[member].subscription
        assert isinstance(subscription, Marks)
        (outcome,) = await subscription.mark([(self._deliveries[handle], value)])
        return outcome

    async def tally(self, member: int, changes: Sequence[tuple[str, int]]) -> list[int | SettleError]:
        """Change counts."""
        subscription = self._members[member].subscription
        assert isinstance(subscription, Tallies)
        return list(await subscription.tally(changes))

    async def lost(self, member: int) -> list[int]:
        """Wait until something is lost, and return the handles."""
        async with asyncio.timeout(self._harness.patience):
            await self._members[member].told.wait()
        return [self._deliveries.index(delivery) for delivery in self._members[member].lost]

    async def close(self) -> None:
        """Close the adapter; what a lost broker says in the end is no part of the test."""
        with suppress(BrokerkitError):
            await self._open.close()

    @property
    def _open(self) -> Adapter:
        assert self._adapter is not None
        return self._adapter

    def _seen(self, deliveries: Iterable[Delivery]) -> list[Seen]:
        seen: list[Seen] = []
        for each in deliveries:
            seen.append(
                Seen(
                    len(self._deliveries), each.message, each.address, each.arrivals, each.returns, each.mark
                )
            )
            self._deliveries.append(each)
        return seen


class Way(Protocol):
    """How calls get there and back."""

    async def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of the `Hand` over there."""
        ...

    async def stop(self) -> None:
        """Stop everything over there."""
        ...

    def resume(self) -> None:
        """Let it go on."""
        ...

    async def kill(self) -> None:
        """End it as by SIGKILL: it leaves nothing behind in order."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


class Away:
    """A member over there, used from here. Its deliveries are stand-ins that are known by identity."""

    def __init__(self, way: Way, number: int) -> None:
        self._way = way
        self._number = number
        self._stand_ins: dict[int, Delivery] = {}

    async def take(self, count: int, *, ack: bool = False) -> list[Delivery]:
        """Receive exactly so many, and perhaps ack them."""
        taken = self._home(await self._call("take", count))
        if ack:
            await self.ack(taken)
        return taken

    async def some(self, seconds: float) -> list[Delivery]:
        """Receive what comes within so many seconds."""
        return self._home(await self._call("some", seconds))

    async def settle(self, settled: Sequence[Settled]) -> Sequence[SettleError | None]:
        """Settle."""
        pairs = [(delivery.receipt, settlement) for delivery, settlement in settled]
        outcomes: Sequence[SettleError | None] = await self._call("settle", pairs)
        return outcomes

    async def ack(self, deliveries: Iterable[Delivery]) -> None:
        """Ack, and see each confirmed."""
        assert set(await self.settle([(delivery, ACK) for delivery in deliveries])) <= {None}

    async def tally(self, *changes: tuple[str, int]) -> list[object]:
        """Change counts."""
        counts: list[object] = await self._call("tally", changes)
        return counts

    async def mark(self, delivery: Delivery, value: bytes | None) -> SettleError | None:
        """Mark."""
        outcome: SettleError | None = await self._call("mark", delivery.receipt, value)
        return outcome

    async def lost(self) -> list[Delivery]:
        """Wait until it is told that it has lost something, and return that."""
        return [self._stand_ins[handle] for handle in await self._call("lost")]

    async def _call(self, name: str, *arguments: Any) -> Any:
        return await self._way.call(name, (self._number, *arguments))

    def _home(self, seen: Iterable[Seen]) -> list[Delivery]:
        for handle, message, address, arrivals, returns, mark in seen:
            self._stand_ins[handle] = Delivery(
                message, address, handle, arrivals=arrivals, returns=returns, mark=mark
            )
        return [self._stand_ins[each.handle] for each in seen]


class Elsewhere:
    """Another process with an adapter of its own on the same broker."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self.stop = way.stop
        self.resume = way.resume
        self.close = way.close

    async def member(
        self, channel: str, group: str = "g", *, order: Order = "none", start: Start = "earliest"
    ) -> Away:
        """Subscribe over there."""
        number = await self._way.call("join", (Address(channel, group, "inlet"), order, start))
        return Away(self._way, number)

    async def send(self, to: Address, messages: Sequence[Message], *, after: float = 0) -> None:
        """Send from over there, and see each confirmed."""
        assert await self._way.call("send", (to, messages, after)) == [None] * len(messages)


async def start_elsewhere(harness: Harness, *, real: bool) -> Elsewhere:
    """Start another process and connect it."""
    way = start_way(harness, partial(Hand, harness), real=real)
    await way.call("open", ())
    return Elsewhere(way)


def start_way(harness: Harness, make_hand: MakeHand, *, real: bool) -> Way:
    """Start another process with somebody in it who does what is asked."""
    return _Process(harness, make_hand) if real else _Thread(harness, make_hand)


class _Thread:
    """An event loop in a thread. A stop blocks the loop, between two steps."""

    def __init__(self, harness: Harness, make_hand: MakeHand) -> None:
        self._patience = harness.patience
        self._hand = make_hand(self._die)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stopped = threading.Event()
        self._go_on = threading.Event()
        self._over = False

    async def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method over there."""
        future = asyncio.run_coroutine_threadsafe(getattr(self._hand, name)(*arguments), self._loop)
        async with asyncio.timeout(self._patience):
            return await asyncio.wrap_future(future)

    async def stop(self) -> None:
        """Block the loop."""
        self._go_on.clear()
        self._stopped.clear()
        self._loop.call_soon_threadsafe(self._halt)
        await asyncio.to_thread(self._stopped.wait, self._patience)

    def resume(self) -> None:
        """Let the loop go on."""
        self._go_on.set()

    async def kill(self) -> None:
        """Block the loop, for good as far as anybody can see."""
        await self.stop()

    async def close(self) -> None:
        """Close the adapter and end the loop, resumed if need be; nobody dies over there any more."""
        self._over = True
        self.resume()
        with suppress(TimeoutError):
            await self.call("close", ())
            future = asyncio.run_coroutine_threadsafe(_leave_nothing(), self._loop)
            await asyncio.wrap_future(future)
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, self._patience)
        if not self._thread.is_alive():
            self._loop.close()

    def _die(self) -> None:
        if not self._over:
            self._go_on.clear()
            self._halt()

    def _halt(self) -> None:
        self._stopped.set()
        self._go_on.wait()


class _Process:
    """A process of the operating system, stopped and continued by signals, killed in the end."""

    def __init__(self, harness: Harness, make_hand: MakeHand) -> None:
        # The server has imported everything and opened nothing, so a fork of it is quick and clean.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([type(harness).__module__])
        self._patience = harness.patience
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make_hand), daemon=True)
        self._process.start()
        theirs.close()

    async def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method over there."""
        self._pipe.send((name, arguments))
        found = await asyncio.to_thread(self._pipe.poll, self._patience)
        assert found, f"no answer to {name} within {self._patience} s"
        outcome, error = self._pipe.recv()
        if error is not None:
            raise error
        return outcome

    async def stop(self) -> None:
        """Send SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Send SIGCONT."""
        self._signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Send SIGKILL and see it end."""
        self._process.kill()
        await asyncio.to_thread(self._process.join, self._patience)

    async def close(self) -> None:
        """Kill it."""
        await self.kill()
        self._process.close()
        self._pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def _serve(pipe: Connection, make_hand: MakeHand) -> None:
    """Run over there until the pipe is closed."""
    with suppress(EOFError, KeyboardInterrupt):
        asyncio.run(_answer(pipe, make_hand(partial(os._exit, _KILLED))))


async def _answer(pipe: Connection, hand: Any) -> None:
    while True:
        name, arguments = await asyncio.to_thread(pipe.recv)
        try:
            outcome = await getattr(hand, name)(*arguments)
        except Exception as error:  # noqa: BLE001 - it is raised at home, where the test is
            pipe.send((None, error))
        else:
            pipe.send((outcome, None))


async def _leave_nothing() -> None:
    """Cancel what is left on this loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()
