"""
The seam's other side: aiokafka 0.14, the settings that make it safe, and the few private names that this needs.

Pinned and tested: `_coordinator` with `generation`, `_do_heartbeat` and `_do_commit_offsets`, `_subscription`, and what has to be
cancelled by hand when a broker does not answer. Everything untyped of the client stays in the `aio` modules.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from brokerkit.adapters.kafka.aio_admin import AioAdmin
from brokerkit.adapters.kafka.aio_producer import AioProducer
from brokerkit.adapters.kafka.client import (
    Admin,
    Committed,
    Consumer,
    Fenced,
    Listener,
    Place,
    Producer,
    Transient,
)
from brokerkit.adapters.kafka.failure import connection_error
from brokerkit.adapters.kafka.lib import ConsumerClient, ListenerBase, OffsetNote, Partition
from brokerkit.adapters.kafka.lib import errors as kafka
from brokerkit.adapters.kafka.options import Options
from brokerkit.adapters.kafka.wire import Record

__all__ = ["AioClient"]

_COMMIT = 10.0
_TORN = 1.0
_FETCH_WAIT_MS = 200
_BACKOFF_MS = 100


class AioClient:
    """Makes aiokafka's consumers, producers and administrators, each with the options of one adapter."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._context = options.url.context()

    def consumer(self, group: str) -> Consumer:
        """Return a member, not started."""
        return _AioConsumer(group, self._options, self._settings())

    def producer(self) -> Producer:
        """Return a producer session, not started."""
        return AioProducer(self._options, self._settings())

    def admin(self) -> Admin:
        """Return an administrator, not started."""
        return AioAdmin(self._options, self._settings())

    def _settings(self) -> dict[str, Any]:
        """Return what all of them share. Made for each: aiokafka's objects belong to the loop that made them."""
        options = self._options
        secure = options.url.tls
        settings: dict[str, Any] = {
            "bootstrap_servers": options.servers,
            "client_id": options.client_id,
            "request_timeout_ms": int(options.request_timeout * 1000),
            "retry_backoff_ms": _BACKOFF_MS,
            "security_protocol": "SSL" if secure else "PLAINTEXT",
            "ssl_context": self._context,
        }
        if options.url.user is not None:
            settings |= {
                "security_protocol": "SASL_SSL" if secure else "SASL_PLAINTEXT",
                "sasl_mechanism": options.sasl,
                "sasl_plain_username": options.url.user,
                "sasl_plain_password": options.url.password or "",
            }
        return settings


class _Rebalances(ListenerBase):  # type: ignore[misc]
    """Passes aiokafka's two calls on; it calls the first with nothing when it starts."""

    def __init__(self, owner: "_AioConsumer", listener: Listener) -> None:
        self._owner = owner
        self._listener = listener

    async def on_partitions_revoked(self, revoked: Iterable[Place]) -> None:
        if list(revoked):
            await self._listener.revoked()

    async def on_partitions_assigned(self, assigned: Iterable[Place]) -> None:
        self._owner.touched()
        self._listener.assigned([(place[0], place[1]) for place in assigned])


class _AioConsumer:
    """One member of a group; see `client.Consumer`."""

    def __init__(self, group: str, options: Options, settings: dict[str, Any]) -> None:
        self._options = options
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._contact = self._loop.time()
        self._consumer: Any = ConsumerClient(
            **settings,
            group_id=group,
            group_instance_id=options.instance or None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=int(options.session * 1000),
            heartbeat_interval_ms=int(options.heartbeat * 1000),
            rebalance_timeout_ms=int(options.rebalance * 1000),
            max_poll_interval_ms=int(options.max_poll * 1000),
            fetch_max_wait_ms=_FETCH_WAIT_MS,
        )
        self._coordinator: Any = None

    @property
    def generation(self) -> int:
        """The group's generation that we are in, or -1."""
        return -1 if self._coordinator is None else int(self._coordinator.generation)

    @property
    def contact(self) -> float:
        """When the coordinator last said that we are a member."""
        return self._contact

    def touched(self) -> None:
        """Note that the coordinator knows us now."""
        self._contact = self._loop.time()

    async def start(self, topics: Sequence[str], listener: Listener) -> None:
        """Connect, then subscribe: in this order aiokafka does not wait for the assignment."""
        try:
            await self._consumer.start()
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            await self.stop(_TORN)
            raise connection_error(error, self._options.url.text) from error
        self._coordinator = self._consumer._coordinator  # noqa: SLF001
        beat = self._coordinator._do_heartbeat  # noqa: SLF001

        async def watched() -> bool:
            alive: bool = await beat()
            if alive:
                self.touched()
            return alive

        self._coordinator._do_heartbeat = watched  # noqa: SLF001
        self._consumer.subscribe(list(topics), listener=_Rebalances(self, listener))

    async def poll(self, limit: int, seconds: float) -> Mapping[Place, Sequence[Record]]:
        """Wait for records; the hand-over is one step of the loop."""
        try:
            found: Mapping[Place, Sequence[Record]] = await self._consumer.getmany(
                timeout_ms=int(seconds * 1000), max_records=limit
            )
        except (kafka.KafkaError, kafka.ConsumerStoppedError) as error:
            raise connection_error(error, self._group) from error
        return found

    def pause(self, places: Sequence[Place]) -> None:
        """Fetch nothing more of these."""
        self._consumer.pause(*self._mine(places))

    def resume(self, places: Sequence[Place]) -> None:
        """Fetch again."""
        self._consumer.resume(*self._mine(places))

    def seek(self, place: Place, offset: int) -> None:
        """Read on from here."""
        for mine in self._mine([place]):
            self._consumer.seek(mine, offset)

    async def committed(self, places: Sequence[Place]) -> Mapping[Place, Committed]:
        """Return what is committed, asked of the coordinator itself."""
        wanted = [Partition(*place) for place in places]
        try:
            found = await self._coordinator.fetch_committed_offsets(wanted)
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise Transient(repr(error)) from error
        return {
            place: Committed(int(found[place].offset), str(found[place].metadata))
            if place in found
            else Committed(-1, "")
            for place in wanted
        }

    async def ends(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Return where these logs end."""
        try:
            found: Mapping[Place, int] = await self._consumer.end_offsets(
                [Partition(*place) for place in places]
            )
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise Transient(repr(error)) from error
        return found

    async def position(self, place: Place) -> int:
        """Return where reading begins."""
        try:
            return int(await self._consumer.position(Partition(*place)))
        except (kafka.KafkaError, kafka.IllegalStateError, OSError, TimeoutError) as error:
            raise Transient(repr(error)) from error

    async def commit(self, offsets: Mapping[Place, Committed], generation: int) -> None:
        """
        Commit with exactly this generation.

        Not `commit()` of the client: that one tries for ever, across generations, with the generation of that moment. This
        builds its request in the step that compares the two.
        """
        subscription = self._consumer._subscription.subscription  # noqa: SLF001
        if generation < 0 or self.generation != generation or subscription is None:
            raise Fenced
        request = {
            Partition(*place): OffsetNote(committed.offset, committed.note)
            for place, committed in offsets.items()
        }
        try:
            async with asyncio.timeout(_COMMIT):
                await self._coordinator._do_commit_offsets(subscription.assignment, request)  # noqa: SLF001
        except (kafka.UnknownMemberIdError, kafka.IllegalGenerationError) as error:
            raise Fenced from error
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise Transient(repr(error)) from error
        self.touched()

    async def stop(self, seconds: float) -> None:
        """Leave within so many seconds; then what is left is cancelled by hand."""
        leaving = asyncio.ensure_future(self._consumer.stop())
        await asyncio.wait({leaving}, timeout=seconds)
        if leaving.done():
            leaving.exception()
            return
        leaving.cancel()
        await _cancelled([leaving, *self._tasks()])
        closing = asyncio.ensure_future(self._consumer._client.close())  # noqa: SLF001
        await asyncio.wait({closing}, timeout=_TORN)
        await _cancelled([closing])

    def _tasks(self) -> list["asyncio.Task[Any]"]:
        """Return aiokafka's tasks of this consumer."""
        coordinator, fetcher = self._consumer._coordinator, self._consumer._fetcher  # noqa: SLF001
        names = ("_coordination_task", "_heartbeat_task", "_commit_refresh_task")
        tasks = [getattr(coordinator, name, None) for name in names]
        tasks += [getattr(fetcher, "_fetch_task", None), *getattr(fetcher, "_pending_tasks", ())]
        return [task for task in tasks if task is not None]

    def _mine(self, places: Sequence[Place]) -> list[Any]:
        """Return those that are assigned now; asking for another one is an error at the client."""
        assigned = self._consumer.assignment()
        return [place for place in (Partition(*place) for place in places) if place in assigned]


async def _cancelled(tasks: Sequence["asyncio.Future[Any]"]) -> None:
    """Cancel and wait for the end, but not for ever."""
    for task in tasks:
        task.cancel()
    done, _ = await asyncio.wait(tasks, timeout=_TORN)
    for task in done:
        with contextlib.suppress(asyncio.CancelledError):
            task.exception()
