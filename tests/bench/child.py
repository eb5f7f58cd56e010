"""
The process of one line: `python -m tests.bench.child TASK`, with the task as JSON; one object in JSON comes back.
"""

import asyncio
import gc
import importlib
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, cast

from tests.bench.plan import CLIENTS
from tests.bench.work import Client, Failed, Figures, Meter, Task, envelope_of, id_of, orders

__all__ = ["run"]

_LATE = 10.0
"""Seconds for the broker to count what was settled last."""


def client_for(task: Task) -> Client:
    """Return the client of a task; its module is imported now, so that no other client is in the process."""
    module, name = CLIENTS[task.broker, task.client]
    made: Client = getattr(importlib.import_module(f"tests.bench.{module}"), name)(task)
    return made


async def run(task: Task) -> Figures:
    """Do what a task says, and check that everything came and nothing is left. Raises `Failed`."""
    client = client_for(task)
    made = orders(task)
    items: Sequence[Any] = made if client.models else [envelope_of(order) for order in made]
    await client.open()
    try:
        if task.verb == "publish":
            await client.publish(items[: task.warm])
            _settle_down()
            meter = Meter(task.total, task.warm)
            meter.start(task.warm)
            await client.publish(items[task.warm :])
            meter.stop()
            figures = meter.figures(task.messages)
            again = Meter(task.total, task.warm)
            await client.consume(again)
            seen = again.seen
        else:
            await client.fill(items)
            meter = Meter(task.total, task.warm)
            _settle_down()
            await client.consume(meter)
            figures = meter.figures()
            seen = meter.seen
        figures = _checked(figures, [id_of(what) for what in seen], {order.id for order in made})
        await _nothing_left(client)
    finally:
        await client.close()
    return replace(figures, server=client.server)


def _settle_down() -> None:
    gc.collect()
    gc.freeze()


def _checked(figures: Figures, ids: Sequence[str], expected: set[str]) -> Figures:
    found = set(ids)
    if missing := expected - found:
        message = f"{len(missing)} of {len(expected)} messages were never handled, {min(missing)} for one"
        raise Failed(message)
    if strange := found - expected:
        message = f"{len(strange)} messages came that were not of this round, {min(strange)} for one"
        raise Failed(message)
    return replace(figures, handled=len(found), twice=len(ids) - len(found))


async def _nothing_left(client: Client) -> None:
    left = await client.left()
    for _ in range(int(_LATE / 0.1)):
        if not left:
            return
        await asyncio.sleep(0.1)
        left = await client.left()
    if left:
        message = f"{left} messages are not settled at the broker"
        raise Failed(message)


def main() -> int:
    """Read the task, run it, write the answer; 1 and a reason if it failed."""
    logging.basicConfig(level=logging.ERROR)
    task = Task(**json.loads(sys.argv[1]))
    try:
        figures = asyncio.run(run(task))
    except Exception as error:  # noqa: BLE001 - whatever it is, the line failed, and the run goes on
        traceback.print_exc()
        print(json.dumps({"failed": _reason(error)}))
        return 1
    print(json.dumps(asdict(figures)))
    return 0


def _reason(error: BaseException) -> str:
    """Say what went wrong in one line: of a group, the first."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
