"""
Commits: one at a time, some milliseconds after progress, never past an unfinished offset, never of a stale owner.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from brokerkit.adapters.kafka.client import Committed, Consumer, Fenced, Transient
from brokerkit.adapters.kafka.partition import Partition

__all__ = ["Committer"]

_log = logging.getLogger("brokerkit.kafka")
_AFTER = 0.02
_BACKOFF = 0.1
_LONGEST = 2.0


class Committer:
    """
    Writes where the partitions of one assignment stand.

    buffered: returns the ids of what is read and not handed out. on_fenced: told when the group has gone on without us.
    on_broken: told of an error that nobody foresaw; nothing more is committed by itself then.
    generation: the one that the present assignment belongs to; no commit carries another one.
    """

    def __init__(
        self,
        consumer: Consumer,
        *,
        buffered: Callable[[], set[int]],
        on_fenced: Callable[[], None],
        on_broken: Callable[[Exception], None],
    ) -> None:
        self.generation = -1
        self._consumer = consumer
        self._buffered = buffered
        self._on_fenced = on_fenced
        self._on_broken = on_broken
        self._dirty: dict[Partition, None] = {}
        self._lock = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._backoff = 0.0

    def touch(self, part: Partition) -> None:
        """Commit this soon."""
        self._dirty[part] = None
        if self._timer is None and self._task is None:
            self._timer = self._loop.call_later(_AFTER, self._begin)

    async def write(self, parts: Iterable[Partition], *, drained: bool = False, force: bool = False) -> None:
        """
        Commit these now, behind a commit that is under way. Raises `Fenced` or `Transient`.

        drained: this is the last word on them. force: ask the broker even if there is nothing new to say: only who still owns
        a partition is answered.
        """
        async with self._lock:
            buffered = self._buffered()
            written: dict[Partition, tuple[int, str]] = {}
            for part in parts:
                self._dirty.pop(part, None)
                if not part.live or not part.adopted:
                    continue
                note = part.note(buffered, drained=drained)
                if force or note != part.written:
                    written[part] = note
            if not written:
                return
            try:
                offsets = {part.tp: Committed(*note) for part, note in written.items()}
                await self._consumer.commit(offsets, self.generation)
            except BaseException:
                self._dirty.update((part, None) for part in written if part.live)
                raise
            for part, note in written.items():
                part.written = note

    async def last(self, parts: Sequence[Partition], seconds: float) -> None:
        """Say the last word on these partitions, within so many seconds. What cannot be said comes again elsewhere."""
        end = self._loop.time() + seconds
        while True:
            try:
                async with asyncio.timeout_at(end):
                    await self.write(parts, drained=True, force=True)
            except Fenced:
                return
            except (Transient, TimeoutError) as error:
                if self._loop.time() + _BACKOFF > end:
                    _log.warning("the last commit failed (%s); what was done comes again", error)
                    return
                await asyncio.sleep(_BACKOFF)
            except Exception:  # noqa: BLE001 - we leave all the same
                _log.exception("the last commit failed; what was done comes again")
                return
            else:
                return

    async def close(self) -> None:
        """Stop, and leave no commit in flight."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._dirty.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _begin(self) -> None:
        self._timer = None
        self._task = self._loop.create_task(self._run(), name="brokerkit kafka commit")

    async def _run(self) -> None:
        try:
            await self.write(list(self._dirty))
            self._backoff = 0.0
        except Fenced:
            self._dirty.clear()
            self._on_fenced()
        except Transient as error:
            self._backoff = min(max(self._backoff * 2, _BACKOFF), _LONGEST)
            _log.warning("offsets could not be committed, they are kept and tried again: %s", error)
        except Exception as error:  # noqa: BLE001 - it is told, and not by a task that nobody asks
            self._dirty.clear()
            self._on_broken(error)
        finally:
            self._task = None
        if self._dirty and self._timer is None:
            self._timer = self._loop.call_later(max(_AFTER, self._backoff), self._begin)
