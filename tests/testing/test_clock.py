import asyncio
import time

import pytest

from brokerkit.testing import VirtualClock, VirtualLoop, run_virtual


def test_hours_pass_in_no_time_and_in_order() -> None:
    async def main() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        seen: list[tuple[str, float]] = []

        async def wait(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, loop.time()))

        await asyncio.gather(wait("late", 7200), wait("early", 0.1), wait("middle", 3600))
        return seen

    begin = time.monotonic()
    assert run_virtual(main()) == [("early", 0.1), ("middle", 3600.0), ("late", 7200.0)]
    assert time.monotonic() - begin < 1


def test_time_stands_still_while_something_is_ready() -> None:
    async def main() -> float:
        for _ in range(1000):
            await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 0.0


def test_a_timer_never_fires_before_its_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in range(1, 300):
            due = loop.time() + number / 7
            await asyncio.sleep(number / 7)
            assert loop.time() >= due

    run_virtual(main())


def test_a_time_out_cancels_what_is_slower() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.sleep(31)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 30.0


def test_a_thread_has_a_moment_to_finish_before_a_deadline() -> None:
    async def main() -> float:
        async with asyncio.timeout(5):
            await asyncio.to_thread(time.sleep, 0.01)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 0.0


def test_a_thread_that_hangs_does_not_stop_the_time() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.to_thread(time.sleep, 0.4)

    run_virtual(main())


def test_a_call_from_another_thread_is_heard() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        task = asyncio.create_task(asyncio.to_thread(loop.call_soon_threadsafe, future.set_result, "heard"))
        result = await future
        await task
        return result

    assert run_virtual(main()) == "heard"


def test_what_can_never_happen_is_an_error_and_not_a_hang() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing is due"):
        run_virtual(main(), patience=0.05)


def test_a_heartbeat_does_not_hide_a_hang() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def beat() -> None:
            loop.call_later(10, beat)

        beat()
        await loop.create_future()

    with pytest.raises(RuntimeError, match="was to be over"):
        run_virtual(main(), horizon=3600)


def test_the_loop_is_a_context_manager_that_leaves_nothing_behind() -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            ended.append("cancelled")

    async def main(tasks: list[asyncio.Task[None]]) -> None:
        tasks.append(asyncio.create_task(background()))
        await asyncio.sleep(1)

    with VirtualLoop(start=50.0) as loop:
        loop.run(main([]))
        assert loop.time() == 51.0
        assert ended == []
    assert ended == ["cancelled"]
    assert loop.is_closed()


def test_wall_time_goes_with_the_loop_and_can_be_set() -> None:
    async def main() -> None:
        clock = VirtualClock(epoch=1000.0)
        await asyncio.sleep(60)
        assert clock.time() == 1060.0
        clock.shift(-3600)
        assert clock.time() == -2540.0
        assert asyncio.get_running_loop().time() == 60.0

    run_virtual(main())
