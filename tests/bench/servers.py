"""
Where the broker is that is measured.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from brokerkit.sandbox import Sandbox
from tests.bench.plan import SANDBOX

__all__ = ["served"]

_FOLDER: Final = Path(__file__).parents[2] / ".cache" / "bench"


@contextmanager
def served(broker: str, url: str | None, say: Callable[[str], None]) -> Generator[tuple[str, str]]:
    """
    Give a broker's URL, and its product and version if known.

    A server is a sandbox's, new and gone at the end, unless a URL is given; then what was made there stays, under names
    that begin with `bench-`.
    """
    if url is not None:
        yield url, ""
    elif broker == "memory":
        yield "memory://", ""
    elif broker not in SANDBOX:
        with TemporaryDirectory(prefix="brokerkit-bench-") as folder:
            yield f"{broker}:///{folder}/bench.db", ""
    else:
        box = Sandbox(_FOLDER, say=say)
        box.down(broker, ephemeral=True)
        try:
            server = box.up(broker, ephemeral=True)
            yield server.url, f"{broker} {server.version}"
        finally:
            box.down(broker, ephemeral=True)
