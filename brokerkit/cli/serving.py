"""
Running a bus as the one thing a process does: signals, the drain, and an end in bounded time whatever a handler does.

Three things make the end certain. Signals are Python's own handlers, not the loop's, so they arrive although a handler
blocks the loop. A watchdog on a thread of its own ends the process when the grace and two seconds are over. And where a
handler was abandoned the process ends without waiting for the threads that still run.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Generator, Sequence
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Final

from brokerkit.adapter import redacted
from brokerkit.bus import Bus
from brokerkit.cli.exits import Exit, explain
from brokerkit.cli.logs import flush_logs
from brokerkit.engine import Engine

__all__ = ["Server"]

_log = logging.getLogger("brokerkit.run")

_BEYOND_GRACE: Final = 1.8
"""Seconds after the grace in which cancelled handlers may end and settlements are flushed; below two with what follows."""

_FAREWELL: Final = 1.0
"""Seconds that the interpreter has to end once everything is drained: exit hooks, threads of the application."""

_ONE_REQUEST: Final = 0.3
"""Seconds in which a second signal is the first once more: shells, `timeout` and runners signal a process and its group."""

_PATIENCE: Final = 0.2
_FLUSH: Final = 0.15
_THIRD: Final = 3


class _Watchdog:
    """Ends the process at the earliest of the deadlines that it was given."""

    def __init__(self) -> None:
        # The put of a simple queue may interrupt itself, so a signal handler may call it.
        self._orders: SimpleQueue[tuple[float, Exit, str]] = SimpleQueue()
        threading.Thread(target=self._watch, name="brokerkit watchdog", daemon=True).start()

    def within(self, seconds: float, code: Exit, why: str) -> None:
        """End the process with this code if it is still there after so many seconds."""
        self._orders.put((time.monotonic() + seconds, code, why))

    def _watch(self) -> None:
        order = self._orders.get()
        while (left := order[0] - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                order = min(order, self._orders.get(timeout=left))
        leave(order[1], order[2])


def leave(code: Exit, why: str) -> None:
    """End the process now, whatever still runs in it. The log gets a moment; a stderr that nobody reads gets no more."""

    def last_words() -> None:
        _log.error("%s", why)
        with contextlib.suppress(OSError, ValueError):
            flush_logs()

    writer = threading.Thread(target=last_words, daemon=True)
    writer.start()
    writer.join(_FLUSH)
    os._exit(code)


class Server:
    """
    Owns the signals of a process from before the application is imported until its end.

    The first SIGTERM or SIGINT drains within the grace, the second cuts that to nothing, the third ends the process.
    """

    def __init__(self) -> None:
        self._signals = 0
        self._last = -_ONE_REQUEST
        self._grace = 0.0
        self._consuming = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._watchdog = _Watchdog()

    @contextlib.contextmanager
    def signals(self) -> Generator[None, None, None]:
        """
        Take the signals over, until the process ends if a bus has run.

        Before it runs, one of them ends the process with code 0: nothing was begun.
        """
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._signalled) for number in numbers]
        try:
            yield
        finally:
            if self._loop is None:
                for number, handler in zip(numbers, before, strict=True):
                    signal.signal(number, handler)
            else:
                # The interpreter puts back the default, death by signal, while it ends; what is ignored stays ignored.
                for number in numbers:
                    signal.signal(number, signal.SIG_IGN)

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        """Take note; only what may interrupt anything happens here, so no lock and no log."""
        now = time.monotonic()
        if now - self._last < _ONE_REQUEST:
            return
        self._last = now
        self._signals += 1
        if self._loop is None:
            raise SystemExit(Exit.DONE)
        if self._signals >= _THIRD:
            os._exit(Exit.INTERRUPTED)
        if self._signals == 1:
            self._watchdog.within(
                self._grace + _BEYOND_GRACE, Exit.FAILED, "the drain did not end within the grace; leaving"
            )
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe((self._stop if self._signals == 1 else self._hurry).set)

    def run(self, bus: Bus) -> Exit:
        """
        Consume until a signal, drain, and return the exit code.

        0 after a drain that a second signal did not cut short (then 130). Does not return, and ends the process with 1,
        where a handler had to be abandoned. Raises what the start of the bus raises.
        """
        self._grace = bus.grace
        self._loop = loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._serve(bus))
        except Exception as error:
            self._farewell(bus, loop, explain(error)[0])
            raise
        code = Exit.DONE if self._signals <= 1 else Exit.INTERRUPTED
        self._farewell(bus, loop, code)
        return code

    def _farewell(self, bus: Bus, loop: asyncio.AbstractEventLoop, code: Exit) -> None:
        """See to it that the process ends soon, and end it here if a handler would keep it alive."""
        if bus.abandoned:
            leave(
                Exit.FAILED, f"{bus.abandoned} handlers did not stop when cancelled; their messages come back"
            )
        self._watchdog.within(_FAREWELL, code, "something of the application did not end; leaving")
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=_PATIENCE))
        loop.run_until_complete(loop.shutdown_asyncgens())

    async def _serve(self, bus: Bus) -> None:
        """Consume until told to stop; a stop that comes before the bus consumes cancels the start."""
        serving = asyncio.create_task(self._consume(bus))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not self._consuming:
            serving.cancel()
        try:
            await serving
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise

    async def _consume(self, bus: Bus) -> None:
        async with bus, bus.consuming():
            self._consuming = True
            _log.info("consuming from %s; stop with SIGTERM or Ctrl-C", redacted(bus.url))
            engines = list(bus.engines)
            await self._stop.wait()
            _log.info("draining, for at most %g s; a second signal stops at once", bus.grace)
            hurrying = asyncio.create_task(self._hurry_up(engines))
        hurrying.cancel()

    async def _hurry_up(self, engines: Sequence[Engine]) -> None:
        await self._hurry.wait()
        _log.warning("stopping now; what still runs is cancelled, and its messages come back")
        for engine in engines:
            engine.hurry()
