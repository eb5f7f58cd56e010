"""
SIGKILL at the worst moment: between a handler's first write and its settlement.

That moment is a fact here and no guess: the process is stopped first (SIGSTOP), then its witness file is read, and only if a
handling stands open is it killed; else it goes on and is looked at again a moment later.
"""

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import Final

from brokerkit.cli.demo.plan import Plan
from brokerkit.cli.demo.processes import Member
from brokerkit.cli.demo.witness import in_flight, writes

__all__ = ["Killer"]

_LAST: Final = 0.85
"""The share of a group's work at which its last kill is due, so that there is a load to kill in."""

_PATIENCE: Final = 20.0
_STOPPING: Final = 5.0
_LOOK: Final = 0.1


class Killer:
    """
    Kills the processes of each group, one after the other, spread over the group's own progress.

    The record of each kill goes to `kills.ndjson`: group, process id, witness file, time. How many were in flight is for
    the checker to find out, from the witness files.
    """

    def __init__(self, plan: Plan, members: Sequence[Member], done: Callable[[str], int]) -> None:
        self.kills = 0
        self._plan = plan
        self._members = members
        self._done = done
        self._chance = random.Random(plan.seed)  # noqa: S311 - when, not a secret
        self._record = plan.folder / "kills.ndjson"
        self._record.touch()

    async def run(self) -> None:
        """Make all the kills that are planned."""
        groups = list(dict.fromkeys(member.group for member in self._members))
        async with asyncio.TaskGroup() as tasks:
            for place, group in enumerate(groups):
                mine = len(range(place, self._plan.kills, len(groups)))
                tasks.create_task(self._haunt(group, mine))

    async def _haunt(self, group: str, kills: int) -> None:
        members = [member for member in self._members if member.group == group]
        for number in range(kills):
            due = self._plan.events * _LAST * (number + self._chance.uniform(0.3, 0.9)) / kills
            while self._done(group) < due:  # noqa: ASYNC110 - another process moves it
                await asyncio.sleep(_LOOK)
            await self._kill(members[number % len(members) :] + members[: number % len(members)])

    async def _kill(self, members: Sequence[Member]) -> None:
        """Kill the first of these that is caught in flight; out of patience, the first that runs."""
        deadline = time.monotonic() + _PATIENCE
        caught = False
        while not caught:
            await asyncio.sleep(self._chance.uniform(0.002, 0.03))
            caught = any(self._catch(member, anyhow=time.monotonic() > deadline) for member in members)

    def _catch(self, member: Member, *, anyhow: bool) -> bool:
        """Stop a process and look; kill it if a handling stands open (or `anyhow`), else let it go on."""
        process = member.process
        if process is None or not member.pid or not (anyhow or writes(member.witness)):
            return False
        if not _stop(process.pid):
            return False
        if not (anyhow or in_flight(member.witness)):
            process.send_signal(signal.SIGCONT)
            return False
        member.killed = True
        process.kill()
        process.wait()
        self._note(member, process.pid)
        return True

    def _note(self, member: Member, pid: int) -> None:
        entry = {"group": member.group, "pid": pid, "witness": member.witness.name, "at": time.time()}
        with self._record.open("a", encoding="ascii") as record:
            record.write(json.dumps(entry) + "\n")
        self.kills += 1


def _stop(pid: int) -> bool:
    """Stop a child and wait until it stands; False if it has ended instead."""
    os.kill(pid, signal.SIGSTOP)
    if not hasattr(os, "waitid"):
        time.sleep(_LOOK)
        return True
    deadline = time.monotonic() + _STOPPING
    while time.monotonic() < deadline:
        # WNOWAIT: the child stays as it is for whoever waits for its end
        found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is not None:
            return found.si_code == os.CLD_STOPPED
        time.sleep(0.0005)
    return True
