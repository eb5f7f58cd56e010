"""
Time that costs no time: an event loop that jumps to its next timer, and wall time that goes with it.

For what runs inside one process (`memory://`, patterns, policies). Sockets work, but a deadline on a virtual loop
does not know how long a real server takes.
"""

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple

__all__ = ["VirtualClock", "VirtualLoop", "run_virtual"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_THREADS = 0.05
"""Seconds of real time that a jump leaves to threads at work, so that they can finish before their deadline."""

_EPOCH = 1_767_225_600.0
"""Midnight UTC on 1 January 2026: a wall time that is plausible and always the same."""

_HORIZON = 30 * 24 * 3600.0

_ROUNDING = 1e-6

_Events = list[tuple[selectors.SelectorKey, int]]


class _Selector(selectors.DefaultSelector):
    """Asks what is ready now, and has the loop's time moved instead of waiting."""

    def __init__(self, wait: "Callable[[Callable[[float], _Events], float | None], _Events]") -> None:
        super().__init__()
        self._wait = wait

    def select(self, timeout: float | None = None) -> _Events:
        """Return what is ready, after a jump if nothing is."""
        return super().select(0) or self._wait(super().select, timeout)


class VirtualLoop(asyncio.SelectorEventLoop):
    """
    An event loop whose `time` starts at `start` and jumps to the next timer when nothing is ready.

    A sleep of an hour takes microseconds, and everything that is due earlier happens before. While threads of
    `run_in_executor` are at work, a jump first gives them a moment of real time. When nothing is ready, nothing
    is due and nothing comes from outside for `patience` seconds of real time, `run_until_complete` raises
    `RuntimeError`: a test that hangs says so. It does the same after `horizon` virtual seconds, because something
    periodic (a heartbeat, a lease) would otherwise keep a test that hangs busy for ever.

    Usable as a context manager, which cancels what is left over and closes the loop.
    """

    def __init__(self, *, start: float = 0.0, patience: float = 5.0, horizon: float = _HORIZON) -> None:
        self._now = start
        self._end = start + horizon
        self._patience = patience
        self._threads = 0
        self._runner: asyncio.Runner | None = None
        super().__init__(_Selector(self._jump))

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, inside `with`."""
        if self._runner is None:
            main.close()
            message = "VirtualLoop.run works inside `with VirtualLoop() as loop:`"
            raise RuntimeError(message)
        return self._runner.run(main)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run in a thread, and count it as at work until it has ended."""
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self._threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner(loop_factory=lambda: self)
        self._runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._runner is not None:
            self._runner.__exit__(kind, error, traceback)

    def _thread_ended(self, _future: object) -> None:
        self._threads -= 1

    def _jump(self, select: Callable[[float], _Events], timeout: float | None) -> _Events:
        if timeout is None:
            return self._wait(select)
        if timeout > 0 and self._threads and (events := select(min(timeout, _THREADS))):
            return events
        if timeout > 0:
            self._now = self._target(timeout)
            if self._now > self._end:
                message = f"it is {self._now} s: the test was to be over at {self._end} s"
                raise RuntimeError(message)
        return []

    def _target(self, timeout: float) -> float:
        """Return when the next timer is due, exactly: a rounding error below it would fire it for ever."""
        target = self._now + timeout
        timers: list[asyncio.TimerHandle] = getattr(self, "_scheduled", [])
        exact = [timer.when() for timer in timers[:1] if abs(timer.when() - target) < _ROUNDING]
        return exact[0] if exact else target

    def _wait(self, select: Callable[[float], _Events]) -> _Events:
        end = time.monotonic() + self._patience
        while not (events := select(max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                message = f"nothing is ready, nothing is due and nothing has come for {self._patience} s"
                raise RuntimeError(message)
        return events


class VirtualClock:
    """
    Wall time that goes with a loop's time; a `brokerkit.clock.Clock`.

    `epoch` is the wall time, in seconds since 1970, at which the clock is made. `shift` plays a host whose clock is
    set; timers do not notice.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, *, epoch: float = _EPOCH) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._epoch = epoch - self._loop.time()

    def time(self) -> float:
        """Return now."""
        return self._epoch + self._loop.time()

    def shift(self, seconds: float) -> None:
        """Set the clock forward, or back."""
        self._epoch += seconds


def run_virtual(main: Coroutine[Any, Any, T], *, patience: float = 5.0, horizon: float = _HORIZON) -> T:
    """Run a coroutine on a virtual loop, as `asyncio.run` would on a real one."""
    with VirtualLoop(patience=patience, horizon=horizon) as loop:
        return loop.run(main)
