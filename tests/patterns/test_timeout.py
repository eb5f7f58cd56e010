import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

import pytest

from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError, HandlerTimeout
from brokerkit.patterns import timeout as module_or_function
from brokerkit.patterns.timeout import timeout
from brokerkit.settlement import ACK, DeadLetter, Retry, Settle, Settlement
from brokerkit.testing.clock import run_virtual
from tests.patterns.deliveries import delivery_of


async def quick(_: Delivery) -> Settlement:
    return ACK


async def forever(_: Delivery) -> Settlement:
    await asyncio.sleep(1e6)
    return ACK


def left_over() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


def test_the_package_gives_the_function_not_the_module() -> None:
    assert module_or_function is timeout


@pytest.mark.parametrize("settlement", [ACK, Retry(3), DeadLetter()])
async def test_what_is_in_time_passes_as_it_is(settlement: Settlement) -> None:
    async def handler(_: Delivery) -> Settlement:
        await asyncio.sleep(0)
        return settlement

    assert await timeout(10)(handler)(delivery_of()) is settlement
    assert await timeout(10)(quick)(delivery_of()) is ACK


async def test_an_error_in_time_passes_as_it_is() -> None:
    async def waits(_: Delivery) -> Settlement:
        await asyncio.sleep(0)
        raise KeyError

    async def does_not(_: Delivery) -> Settlement:
        raise Settle(Retry(3))

    with pytest.raises(KeyError):
        await timeout(10)(waits)(delivery_of())
    with pytest.raises(Settle):
        await timeout(10)(does_not)(delivery_of())


def test_a_handler_over_its_time_is_cancelled_and_fails() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        delivery = delivery_of()
        with pytest.raises(HandlerTimeout, match=r"longer than 2\.5 s"):
            await timeout(2.5)(forever)(delivery)
        assert loop.time() == 2.5
        assert delivery.stopped is None
        assert left_over() == 0
        await asyncio.sleep(1)

    run_virtual(main())


def test_while_it_is_cancelled_the_delivery_says_why() -> None:
    async def main() -> None:
        seen: list[str | None] = []

        async def handler(delivery: Delivery) -> Settlement:
            try:
                await asyncio.sleep(99)
            finally:
                seen.append(delivery.stopped)
            return ACK

        with pytest.raises(HandlerTimeout):
            await timeout(1)(handler)(delivery_of())
        assert seen == ["timeout"]

    run_virtual(main())


@pytest.mark.parametrize("end", [ACK, DeadLetter(), ValueError("x"), Settle(ACK)])
def test_a_handler_that_swallows_the_cancellation_never_acks(end: Settlement | BaseException) -> None:
    async def handler(_: Delivery) -> Settlement:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(99)
        await asyncio.sleep(5)
        if isinstance(end, BaseException):
            raise end
        return end

    async def main() -> None:
        with pytest.raises(HandlerTimeout):
            await timeout(1)(handler)(delivery_of())
        assert left_over() == 0
        await asyncio.sleep(1)

    run_virtual(main())


def test_a_cancellation_by_somebody_else_passes_untouched() -> None:
    async def main() -> None:
        delivery = delivery_of()
        task = asyncio.ensure_future(timeout(10)(forever)(delivery))
        await asyncio.sleep(1)
        delivery.stopped = "drain"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert delivery.stopped == "drain"

    run_virtual(main())


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_cancellation_by_somebody_else_in_the_same_moment_is_not_swallowed(ours_first: bool) -> None:
    async def main() -> None:
        delivery = delivery_of()
        task = asyncio.ensure_future(timeout(10)(forever)(delivery))
        loop = asyncio.get_running_loop()
        if ours_first:
            await asyncio.sleep(0)
        loop.call_at(10, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    run_virtual(main())


def test_a_cancellation_during_the_clean_up_after_a_timeout_is_not_swallowed() -> None:
    async def handler(_: Delivery) -> Settlement:
        try:
            await asyncio.sleep(99)
        finally:
            await asyncio.sleep(5)
        return ACK

    async def main() -> None:
        task = asyncio.ensure_future(timeout(1)(handler)(delivery_of()))
        await asyncio.sleep(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())


def test_a_worker_that_was_cancelled_before_can_still_run_into_a_timeout() -> None:
    async def main() -> None:
        async def worker() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(99)
            with pytest.raises(HandlerTimeout):
                await timeout(1)(forever)(delivery_of())
            assert left_over() == 1

        task = asyncio.ensure_future(worker())
        await asyncio.sleep(1)
        task.cancel()
        await task

    run_virtual(main())


def test_no_cancellation_is_left_behind_if_it_comes_as_the_handler_finishes() -> None:
    """The timer fires after the future that the handler waits for is done and before its task runs on."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for order in (0, 1):
            done: asyncio.Future[None] = loop.create_future()

            async def handler(_: Delivery, done: asyncio.Future[None] = done) -> Settlement:
                await done
                return ACK

            if order:
                loop.call_at(loop.time() + 1, done.set_result, None)
            task = asyncio.ensure_future(timeout(1)(handler)(delivery_of()))
            await asyncio.sleep(0)
            if not order:
                loop.call_at(loop.time() + 1, done.set_result, None)
            with contextlib.suppress(HandlerTimeout):
                await task
            assert task.cancelling() == 0
            assert not task.cancelled()

    run_virtual(main())


def test_the_worker_goes_on_after_a_stop_that_was_never_thrown() -> None:
    """`cancel` inside the task's own step: uncancel alone leaves it pending before Python 3.13."""

    async def main() -> None:
        async def handler(delivery: Delivery) -> Settlement:
            await asyncio.sleep(0)
            for handling in list(pattern._watch.active):
                handling.stop("timeout")
            return ACK

        pattern = timeout(1)
        with pytest.raises(HandlerTimeout):
            await pattern(handler)(delivery_of())
        assert left_over() == 0
        await asyncio.sleep(0)

    run_virtual(main())


def test_handlings_of_one_duration_share_a_timer_and_each_has_its_own_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ends: list[float] = []

        async def one(after: float) -> None:
            await asyncio.sleep(after)
            with pytest.raises(HandlerTimeout):
                await timeout(5)(forever)(delivery_of())
            ends.append(loop.time())

        await asyncio.gather(one(0), one(1), one(1), one(3))
        assert ends == [5, 6, 6, 8]

    run_virtual(main())


def test_a_handler_that_ends_takes_its_entry_along() -> None:
    async def main() -> None:
        pattern = timeout(5)

        async def handler(_: Delivery) -> Settlement:
            await asyncio.sleep(1)
            return ACK

        for _ in range(20):
            await pattern(handler)(delivery_of())
        assert not pattern._watch.active
        await asyncio.sleep(20)
        assert pattern._watch.timer is None

    run_virtual(main())


def test_a_handler_need_not_be_a_coroutine_function() -> None:
    async def main() -> None:
        def handler(delivery: Delivery) -> Awaitable[Settlement]:
            return asyncio.ensure_future(forever(delivery))

        with pytest.raises(HandlerTimeout):
            await timeout(1)(handler)(delivery_of())

    run_virtual(main())


async def test_a_def_handler_keeps_its_thread_and_fails_when_it_returns() -> None:
    import threading

    go, returned = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(10)
        returned.set()

    async def handler(delivery: Delivery) -> Settlement:
        future = asyncio.get_running_loop().run_in_executor(None, work)
        cancelled = False
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                cancelled = True
                go.set()
        if cancelled:
            raise asyncio.CancelledError
        return ACK

    with pytest.raises(HandlerTimeout):
        await timeout(0.01)(handler)(delivery_of())
    assert returned.is_set()


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), True, "10", None])
def test_what_is_no_time_is_refused(seconds: Any) -> None:
    with pytest.raises(ConfigurationError):
        timeout(seconds)


def test_it_prints_as_it_is_configured() -> None:
    assert repr(timeout(2.5)) == "timeout(2.5)"
