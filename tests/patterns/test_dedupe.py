import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError
from brokerkit.hooks import Alarm, HookEvent
from brokerkit.patterns.dedupe import DONE, Done, MemoryStore, Scope, Taken, Token, dedupe
from brokerkit.settlement import ACK, DeadLetter, Retry, Settle, Settlement
from brokerkit.testing.clock import run_virtual
from tests.patterns.deliveries import Intake, delivery_of, place_of


def counting(*ends: Settlement | BaseException, wait: float = 0.0) -> Any:
    calls: list[str] = []

    async def handler(delivery: Delivery) -> Settlement:
        calls.append(delivery.event.id)
        if wait:
            await asyncio.sleep(wait)
        end = ends[min(len(calls), len(ends)) - 1]
        if isinstance(end, BaseException):
            raise end
        return end

    handler.calls = calls  # type: ignore[attr-defined]
    return handler


def memory() -> MemoryStore:
    return MemoryStore(clock=asyncio.get_running_loop().time)


class Flaky(MemoryStore):
    """A memory that cannot be reached for a number of calls."""

    def __init__(self, **down: int) -> None:
        super().__init__(clock=asyncio.get_running_loop().time)
        self.down = down

    def _ask(self, call: str) -> None:
        if self.down.get(call, 0) > 0:
            self.down[call] -= 1
            raise ConnectionError(call)

    async def claim(self, scope: Scope, lease: float) -> Token | Taken | Done:
        self._ask("claim")
        return await super().claim(scope, lease)

    async def done(self, token: Token, window: float) -> bool:
        self._ask("done")
        return await super().done(token, window)

    async def release(self, token: Token) -> bool:
        self._ask("release")
        return await super().release(token)

    async def renew(self, tokens: Sequence[Token], lease: float) -> Sequence[bool]:
        self._ask("renew")
        return await super().renew(tokens, lease)


async def test_what_has_finished_is_acked_without_the_handler() -> None:
    calls = counting(ACK)
    handler = dedupe()(calls)
    assert [await handler(delivery_of()) for _ in range(3)] == [ACK, ACK, ACK]
    assert calls.calls == ["e-1"]


@pytest.mark.parametrize(
    "other",
    [
        {"event_id": "e-2"},
        {"source": "/other"},
        {"group": "shipping"},
        {"channel": "returns"},
    ],
)
async def test_another_event_group_or_channel_is_no_duplicate(other: dict[str, str]) -> None:
    calls = counting(ACK)
    handler = dedupe()(calls)
    await handler(delivery_of())
    await handler(delivery_of(**other))  # type: ignore[arg-type]
    assert len(calls.calls) == 2


@pytest.mark.parametrize("end", [Retry(3), Retry(3, counts=False), DeadLetter()])
async def test_what_did_not_end_in_ack_is_not_taken_for_a_duplicate(end: Settlement) -> None:
    calls = counting(end, ACK)
    handler = dedupe()(calls)
    assert await handler(delivery_of()) is end
    assert await handler(delivery_of()) is ACK
    assert len(calls.calls) == 2


@pytest.mark.parametrize("wait", [0.0, 1.0])
@pytest.mark.parametrize("error", [ValueError(), Settle(Retry(3)), asyncio.CancelledError()])
def test_what_failed_is_not_taken_for_a_duplicate(error: BaseException, wait: float) -> None:
    async def main() -> None:
        calls = counting(error, ACK, wait=wait)
        handler = dedupe(memory())(calls)
        with pytest.raises(type(error)):
            await handler(delivery_of())
        assert await handler(delivery_of()) is ACK
        assert len(calls.calls) == 2

    run_virtual(main())


def test_a_second_copy_waits_for_the_rest_of_the_lease_and_does_not_count() -> None:
    async def main() -> None:
        calls = counting(ACK, wait=5)
        handler = dedupe(memory(), lease=60)(calls)
        first = asyncio.ensure_future(handler(delivery_of()))
        await asyncio.sleep(2)
        assert await handler(delivery_of()) == Retry(after=58, reason="taken", counts=False)
        assert await first is ACK
        assert await handler(delivery_of()) is ACK
        assert len(calls.calls) == 1

    run_virtual(main())


def test_a_long_handler_keeps_its_claim() -> None:
    async def main() -> None:
        calls = counting(ACK, wait=1000)
        handler = dedupe(memory(), lease=30)(calls)
        first = asyncio.ensure_future(handler(delivery_of()))
        for _ in range(9):
            await asyncio.sleep(100)
            second = await handler(delivery_of())
            assert isinstance(second, Retry)
            assert 20 <= second.after <= 30
        assert await first is ACK
        assert len(calls.calls) == 1

    run_virtual(main())


def test_many_long_handlers_are_renewed_by_one_call() -> None:
    async def main() -> None:
        renewed: list[int] = []

        class Watching(MemoryStore):
            async def renew(self, tokens: Sequence[Token], lease: float) -> Sequence[bool]:
                renewed.append(len(tokens))
                return await super().renew(tokens, lease)

        store = Watching(clock=asyncio.get_running_loop().time)
        handler = dedupe(store, lease=30)(counting(ACK, wait=25))
        await asyncio.gather(*(handler(delivery_of(f"e-{n}")) for n in range(50)))
        assert renewed == [50, 50]
        await asyncio.sleep(100)
        assert renewed == [50, 50]

    run_virtual(main())


def test_a_lost_claim_stops_the_handling_and_neither_acks_nor_counts() -> None:
    async def main() -> None:
        alarms: list[HookEvent] = []
        seen: list[str | None] = []

        async def handler(delivery: Delivery) -> Settlement:
            try:
                await asyncio.sleep(1000)
            finally:
                seen.append(delivery.stopped)
            return ACK

        store = memory()
        delivery = delivery_of()
        running = asyncio.ensure_future(dedupe(store, lease=30, hooks=[alarms.append])(handler)(delivery))
        await asyncio.sleep(1)
        store._claims.clear()
        other = await store.claim(("orders", "billing", "/shop", "e-1"), 30)
        assert await running == Retry(after=30, reason="lease lost", counts=False)
        assert seen == ["lease_lost"]
        assert delivery.stopped is None
        assert running.cancelling() == 0
        assert [alarm.code for alarm in alarms if isinstance(alarm, Alarm)] == ["lease_lost"]
        assert isinstance(other, Token)
        assert await store.done(other, 60)

    run_virtual(main())


def test_a_handler_that_ignores_the_loss_of_its_claim_does_not_ack() -> None:
    async def handler(_: Delivery) -> Settlement:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)
        return ACK

    async def main() -> None:
        store = memory()
        running = asyncio.ensure_future(dedupe(store, lease=30)(handler)(delivery_of()))
        await asyncio.sleep(1)
        store._claims.clear()
        assert await running == Retry(after=30, reason="lease lost", counts=False)

    run_virtual(main())


def test_a_claim_that_cannot_be_renewed_is_lost_when_its_lease_is_over_not_before() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        handler = dedupe(Flaky(renew=2), lease=30)(counting(ACK, wait=100))
        assert await handler(delivery_of()) is ACK
        begun = loop.time()
        handler = dedupe(Flaky(renew=999), lease=30)(counting(ACK, wait=100))
        assert await handler(delivery_of()) == Retry(after=30, reason="lease lost", counts=False)
        assert 25 <= loop.time() - begun <= 30

    run_virtual(main())


def test_a_drain_gives_the_claim_back_and_passes() -> None:
    async def main() -> None:
        store = memory()
        pattern = dedupe(store)
        calls = counting(ACK, wait=100)
        task = asyncio.ensure_future(pattern(calls)(delivery_of()))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pattern.close()
        assert await pattern(counting(ACK))(delivery_of()) is ACK

    run_virtual(main())


def test_a_slow_release_outlives_a_second_cancellation() -> None:
    async def main() -> None:
        class Slow(MemoryStore):
            async def release(self, token: Token) -> bool:
                await asyncio.sleep(1)
                return await super().release(token)

        pattern = dedupe(Slow(clock=asyncio.get_running_loop().time))
        task = asyncio.ensure_future(pattern(counting(ACK, wait=100))(delivery_of()))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pattern.close()
        assert await pattern(counting(ACK))(delivery_of()) is ACK

    run_virtual(main())


@pytest.mark.parametrize("call", ["claim", "done"])
def test_while_the_store_is_down_the_intake_is_held_and_nothing_is_acked_or_counted(call: str) -> None:
    async def main() -> None:
        alarms: list[HookEvent] = []
        calls = counting(ACK)
        handler = dedupe(Flaky(**{call: 4}), hooks=[alarms.append])(calls)
        delivery = delivery_of()
        intake = delivery.control
        assert isinstance(intake, Intake)
        running = asyncio.ensure_future(handler(delivery))
        await asyncio.sleep(0.3)
        assert intake.reasons == {"dedupe"}
        assert not running.done()
        assert await running is ACK
        assert intake.reasons == set()
        assert len(calls.calls) == 1
        assert [alarm.code for alarm in alarms if isinstance(alarm, Alarm)] == ["dedupe_store_down"]
        assert await handler(delivery_of()) is ACK
        assert len(calls.calls) == 1

    run_virtual(main())


def test_the_intake_is_released_only_when_the_last_that_waits_got_through() -> None:
    async def main() -> None:
        intake = Intake()
        store = Flaky(claim=10_000)
        handler = dedupe(store)(counting(ACK))

        def delivery(name: str) -> Delivery:
            made = delivery_of(name)
            made.control = intake
            return made

        tasks = [asyncio.ensure_future(handler(delivery(name))) for name in "abc"]
        await asyncio.sleep(60)
        tasks[0].cancel()
        await asyncio.sleep(0)
        assert intake.reasons == {"dedupe"}
        store.down = {}
        assert await asyncio.gather(*tasks[1:]) == [ACK, ACK]
        assert intake.reasons == set()

    run_virtual(main())


def test_a_release_that_fails_changes_nothing_about_the_settlement() -> None:
    async def main() -> None:
        handler = dedupe(Flaky(release=1), lease=60)(counting(Retry(1), ACK))
        assert await handler(delivery_of()) == Retry(1)
        assert await handler(delivery_of()) == Retry(after=60, reason="taken", counts=False)
        await asyncio.sleep(60)
        assert await handler(delivery_of()) is ACK

    run_virtual(main())


async def test_a_mark_that_comes_too_late_acks_with_an_alarm() -> None:
    class Late(MemoryStore):
        async def done(self, token: Token, window: float) -> bool:
            return False

    alarms: list[HookEvent] = []
    assert await dedupe(Late(), hooks=[alarms.append])(counting(ACK))(delivery_of()) is ACK
    assert [alarm.code for alarm in alarms if isinstance(alarm, Alarm)] == ["lease_lost"]


async def test_a_message_without_any_identity_is_never_taken_for_another() -> None:
    calls = counting(ACK)
    handler = dedupe()(calls)
    for _ in range(2):
        assert await handler(delivery_of("orders#unknown", derived=True)) is ACK
    assert len(calls.calls) == 2


async def test_a_key_stands_in_for_the_identity() -> None:
    calls = counting(ACK)
    handler = dedupe(key=lambda delivery: delivery.message.body.decode())(calls)
    await handler(delivery_of("e-1", body=b"order 7"))
    await handler(delivery_of("e-2", body=b"order 7"))
    await handler(delivery_of("e-1", body=b"order 8"))
    assert calls.calls == ["e-1", "e-1"]


async def test_the_memory_is_bounded_and_forgets_first_what_was_not_asked_for() -> None:
    store = MemoryStore(limit=2)
    calls = counting(ACK)
    handler = dedupe(store)(calls)
    for name in ("a", "b", "a", "c", "a", "b"):
        await handler(delivery_of(name))
    assert calls.calls == ["a", "b", "c", "b"]
    assert len(store) == 2


def test_what_is_older_than_the_window_is_new() -> None:
    async def main() -> None:
        calls = counting(ACK)
        handler = dedupe(memory(), lease=10, window=100)(calls)
        await handler(delivery_of())
        await asyncio.sleep(99)
        await handler(delivery_of())
        assert len(calls.calls) == 1
        await asyncio.sleep(1)
        await handler(delivery_of())
        assert len(calls.calls) == 2

    run_virtual(main())


async def test_a_store_that_can_be_started_is_started_and_closed() -> None:
    log: list[str] = []

    class Kept(MemoryStore):
        async def start(self) -> None:
            log.append("start")

        async def close(self) -> None:
            log.append("close")

    pattern = dedupe(Kept())
    await pattern.start()
    await pattern.close()
    assert log == ["start", "close"]


def test_a_lease_longer_than_a_lane_may_be_held_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"shop\.charge.*400 s.*max_hold \(300 s\)"):
        dedupe(lease=400).check(place_of(order="key"))
    dedupe(lease=400).check(place_of(order="none"))


@pytest.mark.parametrize(
    "arguments",
    [{"lease": 0}, {"lease": float("nan")}, {"window": -1}, {"lease": 60, "window": 30}, {"lease": "x"}],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        dedupe(**arguments)
    with pytest.raises(ConfigurationError):
        MemoryStore(0)


def test_it_prints_as_it_is_configured() -> None:
    assert repr(dedupe(lease=30, window=3600)) == "dedupe(MemoryStore(100000), lease=30, window=3600)"


async def test_done_is_one_value() -> None:
    store = MemoryStore()
    token = await store.claim(("a", "b", "c", "d"), 1)
    assert isinstance(token, Token)
    assert await store.done(token, 10)
    assert await store.claim(("a", "b", "c", "d"), 1) is DONE


@pytest.mark.parametrize("store", [dedupe, "sqlite:///x.db", 7])
def test_what_is_no_store_is_refused_at_once(store: Any) -> None:
    with pytest.raises(ConfigurationError, match="give a store"):
        dedupe(store)
