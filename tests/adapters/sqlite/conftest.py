"""Files and adapters for the tests of `sqlite://`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from brokerkit.adapter import Order
from brokerkit.adapters.sqlite import SqliteAdapter
from tests.adapters.sqlite.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[Callable[[Order], Store]]:
    stores: list[Store] = []

    def make(order: Order = "none") -> Store:
        stores.append(Store(path, order))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
async def connect(path: Path) -> AsyncIterator[Callable[..., Awaitable[SqliteAdapter]]]:
    adapters: list[SqliteAdapter] = []

    async def make(**options: object) -> SqliteAdapter:
        adapter = SqliteAdapter(f"sqlite:///{path}", **options)
        adapters.append(adapter)
        await adapter.connect()
        return adapter

    yield make
    for adapter in adapters:
        await adapter.close()
