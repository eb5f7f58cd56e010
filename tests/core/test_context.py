import asyncio
import gc
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from typing import Any

import pytest

from brokerkit.context import CURRENT, Driven, absorb_cancellation, asked_to_stop, current
from tests.core.deliveries import arrival

VAR: ContextVar[str] = ContextVar("var", default="outside")


def driven(coroutine: Coroutine[Any, Any, Any]) -> tuple[Context, Driven[Any]]:
    context = copy_context()
    return context, Driven(context, coroutine, context.run(coroutine.send, None))


class TestDriven:
    async def test_every_step_runs_inside_the_context_and_leaves_none_behind(self) -> None:
        seen: list[str] = []

        async def handler() -> str:
            for word in ("a", "b", "c"):
                VAR.set(word)
                await asyncio.sleep(0)
                seen.append(VAR.get())
            return "done"

        context, awaitable = driven(handler())

        assert await awaitable == "done"
        assert seen == ["a", "b", "c"]
        assert VAR.get() == "outside"
        assert context[VAR] == "c"

    async def test_what_a_future_brings_reaches_the_coroutine(self) -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def handler() -> int:
            return await future + 1

        _, awaitable = driven(handler())
        future.set_result(41)

        assert await awaitable == 42

    async def test_an_error_comes_out_and_one_thrown_in_can_be_handled(self) -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def handler() -> str:
            try:
                await future
            except KeyError:
                await asyncio.sleep(0)
                return VAR.get()
            raise AssertionError

        _, awaitable = driven(handler())
        future.set_exception(KeyError())

        assert await awaitable == "outside"

    async def test_an_error_of_the_coroutine_passes(self) -> None:
        async def handler() -> None:
            await asyncio.sleep(0)
            raise LookupError

        _, awaitable = driven(handler())
        with pytest.raises(LookupError):
            await awaitable

    async def test_a_cancellation_reaches_the_coroutine_inside_its_context(self) -> None:
        seen: list[str] = []

        async def handler() -> None:
            VAR.set("inside")
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                seen.append(VAR.get())
                raise

        async def worker() -> None:
            await driven(handler())[1]

        task = asyncio.create_task(worker())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["inside"]

    async def test_closing_it_closes_the_coroutine_inside_its_context(self) -> None:
        seen: list[str] = []

        async def handler() -> None:
            VAR.set("inside")
            try:
                await asyncio.sleep(0)
            finally:
                seen.append(VAR.get())

        _, awaitable = driven(handler())
        steps = awaitable.__await__()
        next(steps)
        steps.close()

        assert seen == ["inside"]

    async def test_a_coroutine_that_refuses_to_close_says_so(self) -> None:
        async def handler() -> None:
            while True:
                try:
                    await asyncio.sleep(0)
                except GeneratorExit:
                    continue

        coroutine = handler()
        _, awaitable = driven(coroutine)
        steps = awaitable.__await__()
        next(steps)
        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            steps.close()
        with pytest.raises(KeyError):
            coroutine.throw(KeyError)
        gc.collect()


class TestAbsorbing:
    async def test_a_cancellation_that_was_not_delivered_yet_is_taken_back(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await absorb_cancellation(task)

        assert task.cancelling() == 0
        await asyncio.sleep(0)

    async def test_several_and_delivered_ones_are_taken_back(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        task.cancel()
        task.cancel()
        await absorb_cancellation(task)

        assert task.cancelling() == 0
        await asyncio.sleep(0)

    async def test_without_one_nothing_happens(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        await absorb_cancellation(task)

        assert task.cancelling() == 0


class TestCurrent:
    def test_outside_a_handling_there_is_none(self) -> None:
        assert current() is None

    async def test_it_follows_into_tasks_and_threads_that_take_the_context_along(self) -> None:
        delivery = arrival()
        context = copy_context()
        context.run(CURRENT.set, delivery)

        async def read() -> object:
            return current()

        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(context.run, current).result() is delivery
            assert pool.submit(current).result() is None
        assert await asyncio.create_task(read(), context=context) is delivery
        assert current() is None


class TestAskedToStop:
    async def test_a_task_knows_whether_somebody_has_cancelled_it(self) -> None:
        assert not asked_to_stop()
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        assert asked_to_stop()
        await absorb_cancellation(task)
        assert not asked_to_stop()

    async def test_without_a_task_a_cancellation_is_not_a_librarys(self) -> None:
        asked: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: asked.set_result(asked_to_stop()))

        assert await asked
