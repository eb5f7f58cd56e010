"""
One run from the first process to the counts.

    prepare -> services up -> producer, kills -> drained -> snapshot -> services down -> fix -> redrive -> drained -> counts
"""

import asyncio
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from brokerkit.adapter import Adapter, Measures, Order, Provisions, Start, open_adapter, redacted
from brokerkit.cli.demo.killer import Killer
from brokerkit.cli.demo.plan import CHANNEL, GROUPS, PACKAGE, Plan, python_module
from brokerkit.cli.demo.processes import Fleet, Stopped, chat_service, cli, run_to_end
from brokerkit.cli.demo.progress import Ledgers
from brokerkit.errors import NotFound, Unsupported
from brokerkit.message import Address

__all__ = ["State", "run"]

_LOOK: Final = 0.25
_QUIET: Final = 1.0


@dataclass(frozen=True, slots=True)
class State:
    """What a run tells while it goes on. done: rows of the producer and of each ledger."""

    phase: str
    done: Mapping[str, int]
    kills: int
    crashes: int


Tell = Callable[[State], None]


async def run(plan: Plan, tell: Tell) -> dict[str, Any]:
    """
    Run the demo and return its counts.

    Raises `Stopped` if a process that is needed ends, or if the run takes too long, and then says what is missing. Whatever
    happens, SIGTERM included, no process is left.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in one
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await _run(plan, tell)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def _run(plan: Plan, tell: Tell) -> dict[str, Any]:
    for folder in ("witness", "logs"):
        (plan.folder / folder).mkdir(exist_ok=True)
    started = time.monotonic()
    adapter = open_adapter(plan.url)
    if not adapter.capabilities.processes:
        message = (
            f"{redacted(plan.url)} cannot be shared by several processes; leave --broker out, or name another"
        )
        raise Unsupported(message)
    await adapter.connect()
    try:
        async with chat_service(plan) as chat, Fleet(plan, chat) as fleet:
            await _Run(plan, adapter, fleet, tell).play()
    finally:
        await adapter.close()
    counted = await run_to_end(
        python_module("brokerkit.cli.demo.checker", "counts", str(plan.folder)),
        plan.environment(),
        plan.folder / "logs" / "checker.log",
    )
    return {**json.loads(counted), "seconds": round(time.monotonic() - started, 1)}


class _Run:
    """The run, phase by phase."""

    def __init__(self, plan: Plan, adapter: Adapter, fleet: Fleet, tell: Tell) -> None:
        self._plan = plan
        self._adapter = adapter
        self._fleet = fleet
        self._tell = tell
        self._ledgers = Ledgers(plan)
        self._killer = Killer(plan, fleet.members, self._ledgers.done)
        self._phase = ""
        self._deadline = time.monotonic() + plan.time_limit
        self._moved = time.monotonic()
        self._seen: object = None

    async def play(self) -> None:
        """Do everything."""
        self._begin("tables and groups")
        await self._run("prepare", python_module(f"{PACKAGE}.prepare"))
        await self._create_groups()
        self._begin("load and kills")
        await self._fleet.start(fixed=False)
        await self._load()
        self._begin("draining")
        await self._until(self._drained)
        await self._snapshot("before")
        self._begin("fix deployed, dead letters redriven")
        await self._fleet.stop()
        await self._fleet.start(fixed=True)
        await self._redrive()
        await self._until(self._drained)
        await self._snapshot("after")
        self._begin("counting")
        await self._fleet.stop()

    async def _create_groups(self) -> None:
        """Create every group before the first publish, so that what is published reaches it."""
        if not isinstance(self._adapter, Provisions):
            return
        orders: dict[str, Order] = {"projection": "none" if self._plan.without == "order" else "key"}
        places: list[tuple[Address, Start, Order]] = [
            (Address(self._plan.channel, group, "inlet"), "earliest", orders.get(group, "none"))
            for group in GROUPS
        ]
        await self._adapter.provision(places, create=True)

    async def _load(self) -> None:
        """Publish everything, and kill meanwhile."""
        producer = python_module(f"{PACKAGE}.producer", str(self._plan.events))
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._run("producer", producer)),
            asyncio.create_task(self._killer.run()),
        ]
        try:
            await self._until(lambda: _ended(tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _redrive(self) -> None:
        """Send every dead letter back to the group that failed it, and keep what the command says of each."""
        lines: list[str] = []
        for group in GROUPS:
            place = ("--channel", CHANNEL, "--group", group)
            output = await self._run(
                "redrive", cli("dlq", "redrive", *place, "--all", "--yes", "-o", "ndjson")
            )
            outcomes = [json.loads(line) for line in output.splitlines()]
            lines += [
                json.dumps({"group": group, "id": outcome["id"]})
                for outcome in outcomes
                if outcome["result"] == "redriven"
            ]
        (self._plan.folder / "redriven.ndjson").write_text("".join(f"{line}\n" for line in lines), "utf-8")

    async def _snapshot(self, when: str) -> None:
        arguments = ("snapshot", when, str(self._plan.folder), self._plan.url, self._plan.channel)
        await self._run("checker", python_module("brokerkit.cli.demo.checker", *arguments))

    async def _run(self, name: str, command: Any) -> bytes:
        log = self._plan.folder / "logs" / f"{name}.log"
        return await run_to_end(command, self._plan.environment(), log)

    # -- waiting

    def _begin(self, phase: str) -> None:
        self._phase = phase
        self._moved = time.monotonic()

    async def _until(self, reached: Callable[[], Any]) -> None:
        """Wait until it is so; raises `Stopped` with what is missing when the run takes too long or nothing moves."""
        while not await reached():
            done = self._ledgers.all()
            self._tell(State(self._phase, done, self._killer.kills, self._fleet.crashes))
            self._fleet.check()
            now = time.monotonic()
            if done != self._seen:
                self._seen, self._moved = done, now
            if now > self._deadline or now - self._moved > self._plan.stall_limit:
                raise Stopped(await self._missing(now))
            await asyncio.sleep(_LOOK)

    async def _missing(self, now: float) -> str:
        why = (
            "the time limit is over"
            if now > self._deadline
            else f"nothing has moved for {now - self._moved:.0f} s"
        )
        counts = ", ".join(f"{name} {count}" for name, count in self._ledgers.all().items())
        waiting = [f"{group}: {await self._measured(group)}" for group in GROUPS]
        return (
            f"{why} in phase '{self._phase}'; rows so far: {counts}; kills {self._killer.kills} of "
            f"{self._plan.kills}; at the broker: {'; '.join(waiting)}"
        )

    async def _drained(self) -> bool:
        """Whether nothing waits for any group, and the ledgers have stood still for a moment."""
        for group in GROUPS:
            measured = await self._measured(group)
            if measured is not None and (measured.waiting or measured.delayed or measured.in_flight):
                return False
        before = self._ledgers.all()
        await asyncio.sleep(_QUIET)
        return before == self._ledgers.all()

    async def _measured(self, group: str) -> Any:
        if not isinstance(self._adapter, Measures):
            return None
        try:
            return await self._adapter.measure(Address(self._plan.channel, group, "inlet"))
        except NotFound:
            return None


async def _ended(tasks: Sequence["asyncio.Task[Any]"]) -> bool:
    """Whether all of them are done; raises what one of them has raised, as soon as it has."""
    ended = [task for task in tasks if task.done()]
    for task in ended:
        task.result()
    return len(ended) == len(tasks)
