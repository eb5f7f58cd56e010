"""
So many at once, and no more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from tests.bench.work import WINDOW

__all__ = ["in_window"]

T = TypeVar("T")


async def in_window(do: Callable[[T], Awaitable[object]], items: Sequence[T], *, width: int = WINDOW) -> None:
    """Do something with each item, `width` at a time: long-lived workers, which cost less than a task for each."""
    left = iter(items)

    async def work() -> None:
        for item in left:
            await do(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(width, len(items))):
            group.create_task(work())
