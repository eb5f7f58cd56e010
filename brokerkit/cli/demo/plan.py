"""
What one run of the demo does: how much, where, and with which environment its processes start.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

__all__ = ["CHANNEL", "GROUPS", "TRANSACTIONAL", "Plan", "Without", "python_module"]

Without = Literal["inbox", "order", "dedupe"]

CHANNEL: Final = "github"
GROUPS: Final = ("audit", "projection", "notifier")
TRANSACTIONAL: Final = ("audit", "projection")
PACKAGE: Final = "brokerkit.examples.github_webhooks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    One run.

    url: the broker. prefix: keeps this run's names apart from others at the same broker. folder: databases, witness files and
    logs. time_limit: seconds after which it has failed. stall_limit: seconds without any progress that do the same.
    """

    events: int
    kills: int
    seed: int
    without: Without | None
    url: str
    prefix: str
    folder: Path
    time_limit: float
    stall_limit: float = 120.0

    @property
    def channel(self) -> str:
        """Return the channel's name at the broker."""
        return f"{self.prefix}.{CHANNEL}" if self.prefix else CHANNEL

    @property
    def least_dead(self) -> int:
        """Return how many dead letters there must be for the run to say something about them."""
        return max(1, self.events // 100)

    @property
    def least_repositories(self) -> int:
        """Return over how many repositories the keys must be spread."""
        return min(500, max(8, self.events // 10))

    def database(self, name: str) -> Path:
        """Return the file of one program's own database."""
        return self.folder / f"{name}.db"

    def environment(
        self, *, fixed: bool = False, chat: str = "127.0.0.1:0", witness: str = ""
    ) -> dict[str, str]:
        """Return the environment of a process of this run; what the caller's says about brokers is left out."""
        foreign = {name for name in os.environ if name.startswith(("BROKERKIT_", "GITHUB_WEBHOOKS_"))}
        environment = {name: value for name, value in os.environ.items() if name not in foreign}
        environment |= {
            "BROKERKIT_URL": self.url,
            "GITHUB_WEBHOOKS_FOLDER": str(self.folder),
            "GITHUB_WEBHOOKS_SEED": str(self.seed),
            "GITHUB_WEBHOOKS_WITHOUT": self.without or "",
            "GITHUB_WEBHOOKS_FIXED": "1" if fixed else "0",
            "GITHUB_WEBHOOKS_CHAT": chat,
            "GITHUB_WEBHOOKS_WITNESS": witness,
        }
        return environment | ({"BROKERKIT_PREFIX": self.prefix} if self.prefix else {})


def python_module(module: str, *arguments: str) -> Sequence[str]:
    """Return the command line that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]
