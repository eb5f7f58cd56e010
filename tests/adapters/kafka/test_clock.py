"""The broker's clock as a member sees it: it may be behind, and never ahead."""

import time

import pytest

from brokerkit.adapters.kafka import clock
from brokerkit.adapters.kafka.clock import BrokerClock


class Machine:
    """A machine's two clocks, set by the test; the broker's goes right."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = 1_000.0
        self.steady = 50.0
        monkeypatch.setattr(time, "time", lambda: self.wall)
        monkeypatch.setattr(clock, "_steady", lambda: self.steady)

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_before_the_first_confirmation_the_broker_s_clock_is_taken_to_be_ours(machine: Machine) -> None:
    assert BrokerClock().time() == 1_000.0


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_step_of_our_wall_clock_moves_the_broker_s_by_nothing(machine: Machine, step: float) -> None:
    """An hour forward would hand out everything of the 1 h rung early."""
    subject = BrokerClock()
    subject.confirmed(990.0)
    machine.wall += step
    machine.pass_(2.0)
    assert subject.time() == 992.0


def test_the_confirmation_that_came_quickest_counts(machine: Machine) -> None:
    subject = BrokerClock()
    for delay in (0.5, 0.01, 0.3):
        machine.pass_(1.0)
        subject.confirmed(machine.wall - delay)
    assert subject.time() == pytest.approx(machine.wall - 0.01)


def test_a_broker_s_clock_that_was_set_back_is_believed_after_ten_minutes(machine: Machine) -> None:
    subject = BrokerClock()
    subject.confirmed(machine.wall)
    machine.pass_(601.0)
    subject.confirmed(machine.wall - 100)
    assert subject.time() == machine.wall - 100


def test_a_thousand_slow_confirmations_do_not_make_a_quick_one_forgotten(machine: Machine) -> None:
    subject = BrokerClock()
    subject.confirmed(machine.wall)
    for _ in range(1_000):
        machine.pass_(0.01)
        subject.confirmed(machine.wall - 0.5)
    assert subject.time() == pytest.approx(machine.wall)
