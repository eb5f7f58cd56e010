import time

from brokerkit.clock import SYSTEM, Clock, SystemClock


def test_the_system_clock_is_the_machines_wall_time() -> None:
    before = time.time()
    clock: Clock = SystemClock()

    assert before <= clock.time() <= SYSTEM.time() <= time.time()
