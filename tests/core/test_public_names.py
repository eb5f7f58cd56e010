"""What a user imports is a promise: it changes on purpose, with an entry in CHANGELOG, or not at all."""

from importlib import import_module
from pathlib import Path

import pytest

import brokerkit

GOLDEN = Path(__file__).parent / "golden" / "public_names.txt"
MODULES = (
    "brokerkit",
    "brokerkit.adapter",
    "brokerkit.errors",
    "brokerkit.hooks",
    "brokerkit.patterns",
    "brokerkit.pipeline",
    "brokerkit.settlement",
    "brokerkit.testing.conformance",
)


def public_names() -> list[str]:
    return [f"{module}.{name}" for module in MODULES for name in sorted(import_module(module).__all__)]


def test_the_public_names_are_those_that_were_promised() -> None:
    assert public_names() == GOLDEN.read_text("utf-8").split()


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_can_be_imported_and_says_what_it_is(module: str) -> None:
    home = import_module(module)
    for name in home.__all__:
        assert getattr(home, name) is not None
        assert home.__doc__


def test_a_name_that_is_not_public_is_an_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="Buss"):
        brokerkit.Buss  # noqa: B018


def test_the_package_lists_its_public_names() -> None:
    assert dir(brokerkit) == brokerkit.__all__
