import pytest

from brokerkit.adapters.memory import MemoryAdapter
from brokerkit.testing.conformance import LIMITS, AdapterConformance, switched_off
from brokerkit.testing.conformance.gate import all_tests, check_limits, needs, spared_by


class Claims:
    url = "memory://"
    patience = 1.0

    def __init__(self, *limits: str) -> None:
        self.limits = frozenset(limits)

    async def adapter(self) -> MemoryAdapter:
        return MemoryAdapter(self.url)


def test_what_a_capability_switches_off_is_listed_with_the_reason() -> None:
    off = switched_off(AdapterConformance, MemoryAdapter("memory://"), Claims())
    assert "lease is None" in off["test_two_deaths_make_a_suspect"]
    assert "Restarts" in off["test_after_a_restart_one_subscribes_again_and_goes_on"]
    assert "test_what_is_acked_does_not_return" not in off
    leased = switched_off(AdapterConformance, MemoryAdapter("memory://?lease=1"), Claims())
    assert "test_two_deaths_make_a_suspect" not in leased


def test_a_lease_too_long_to_wait_for_is_a_reason_and_not_a_hang() -> None:
    off = switched_off(AdapterConformance, MemoryAdapter("memory://?lease=30"), Claims())
    assert "too long" in off["test_two_deaths_make_a_suspect"]


def test_a_limit_switches_off_what_it_stands_for_and_nothing_else() -> None:
    adapter = MemoryAdapter("memory://")
    more = switched_off(AdapterConformance, adapter, Claims("no-replay")).keys()
    assert more - switched_off(AdapterConformance, adapter, Claims()).keys() == {
        "test_a_new_group_from_the_earliest_sees_what_is_kept"
    }


def test_only_limits_of_the_closed_list_can_be_claimed() -> None:
    check_limits(Claims(*LIMITS))
    with pytest.raises(AssertionError, match="evidence"):
        check_limits(Claims("loses-a-few"))
    with pytest.raises(AssertionError, match="loses-a-few"):
        spared_by("loses-a-few")


def test_the_names_of_the_tests_are_sentences() -> None:
    assert all(name.count("_") >= 3 for name, _ in all_tests(AdapterConformance))


def test_what_a_test_needs_is_data_on_it() -> None:
    @needs("lease", "marks")
    def test() -> None:
        pass

    assert test.__dict__["needs"] == ("lease", "marks")
