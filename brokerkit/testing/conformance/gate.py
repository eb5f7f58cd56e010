"""
What a test needs, as data on the test: read when it runs, and listed without running anything.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from brokerkit.adapter import Browses, Capabilities, Describes, Identifies, Measures, Provisions
from brokerkit.testing.conformance.harness import LIMITS, Harness, Restarts

__all__ = ["all_tests", "check_limits", "needs", "spared_by", "why_off"]

Test = TypeVar("Test", bound=Callable[..., Any])

_PROTOCOLS = {
    "browses": Browses,
    "describes": Describes,
    "identifies": Identifies,
    "measures": Measures,
    "provisions": Provisions,
    "restarts": Restarts,
}
_LONGEST_LEASE = 3.0
_LARGEST_MESSAGE = 8 * 1024 * 1024


def needs(*names: str) -> Callable[[Test], Test]:
    """Say that a test is about these capabilities, or optional protocols in lower case; of `a|b` one is enough."""

    def mark(test: Test) -> Test:
        test.__dict__["needs"] = names
        return test

    return mark


def spared_by(*limits: str) -> Callable[[Test], Test]:
    """Say that a test is off where the harness claims one of these limits."""
    unknown = set(limits) - LIMITS.keys()
    assert not unknown, f"not in LIMITS: {sorted(unknown)}"

    def mark(test: Test) -> Test:
        test.__dict__["spared_by"] = limits
        return test

    return mark


def all_tests(suite: type) -> Iterable[tuple[str, Callable[..., Any]]]:
    """Return the tests of a suite by name."""
    return [(name, getattr(suite, name)) for name in sorted(dir(suite)) if name.startswith("test_")]


def why_off(
    test: Callable[..., Any], capabilities: Capabilities, has: Iterable[object], limits: Iterable[str]
) -> str:
    """Return why a test does not run, or nothing. `has` are the objects that may implement optional protocols."""
    for name in test.__dict__.get("needs", ()):
        protocol = _PROTOCOLS.get(name)
        if protocol is not None and not any(isinstance(each, protocol) for each in has):
            return f"off: neither adapter nor harness is {protocol.__name__}"
        if protocol is None and not any(getattr(capabilities, each) for each in name.split("|")):
            return f"off by capability: {', '.join(f'{each} is {getattr(capabilities, each)!r}' for each in name.split('|'))}"
    named = test.__dict__.get("needs", ())
    if "lease" in named and (capabilities.lease or 0.0) > _LONGEST_LEASE:
        return f"off: a lease of {capabilities.lease} s is too long to wait for; at most {_LONGEST_LEASE} in a harness"
    if "max_message" in named and capabilities.max_message > _LARGEST_MESSAGE:
        return f"off: {capabilities.max_message} bytes are too many to send; at most {_LARGEST_MESSAGE} in a harness"
    claimed = sorted(set(test.__dict__.get("spared_by", ())) & set(limits))
    return f"off by listed limit: {LIMITS[claimed[0]]}" if claimed else ""


def check_limits(harness: Harness) -> None:
    """Refuse a limit that is not in the closed list."""
    unknown = harness.limits - LIMITS.keys()
    assert not unknown, f"{sorted(unknown)}: a limit has its entry and its evidence in LIMITS first"
