"""A loop whose time passes only when nobody has anything to do: a wait of ten seconds takes none."""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

__all__ = ["in_virtual_time"]


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = 1_000.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self._virtual

    def pass_(self, seconds: float) -> None:
        self._virtual += seconds


class _Selector(selectors.DefaultSelector):
    """Where the loop would wait for its next timer, that time has passed."""

    def __init__(self, loop: _Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            message = "nobody has anything to do, and no timer runs: this test waits for ever"
            raise RuntimeError(message)
        self._loop.pass_(max(timeout, 0.0))
        return super().select(0)


_P = ParamSpec("_P")


def in_virtual_time(test: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, None]:
    """Run a test on such a loop. No server can be talked to on it."""

    @functools.wraps(test)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            runner.run(test(*args, **kwargs))

    return run
