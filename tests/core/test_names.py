import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.errors import BadName, ConfigurationError
from brokerkit.names import RESERVED, check_name, with_prefix
from tests.core.deliveries import case, examples

words = st.text("abcdi019", min_size=1, max_size=6).filter(lambda word: word not in RESERVED)
names = st.lists(words, min_size=1, max_size=4).flatmap(
    lambda parts: st.lists(st.sampled_from("-."), min_size=len(parts) - 1, max_size=len(parts) - 1).map(
        lambda joints: "".join(part + joint for part, joint in zip(parts, [*joints, ""], strict=True))
    )
)


@pytest.mark.parametrize(
    "name", ["orders", "shop.orders-eu", "1", "a.b.c", "a-b-c", "retrying", "x" * 80, "inlets"]
)
def test_a_legal_name_is_returned(name: str) -> None:
    assert check_name("channel", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 81,
        "x" * 256,
        "*",
        ">",
        "a b",
        "é",
        "Orders",
        "a--b",
        "a..b",
        "-a",
        "a-",
        ".a",
        "a.",
        "a.-b",
        "a_b",
        "a/b",
        "a\n",
        "²",
        "a'b",
    ],
    ids=case,
)
def test_b23_any_other_name_is_refused_before_connecting(name: str) -> None:
    with pytest.raises(BadName, match="group name"):
        check_name("group", name)


@pytest.mark.parametrize("name", [None, 7, b"orders"])
def test_a_name_that_is_no_text_is_refused(name: object) -> None:
    with pytest.raises(BadName, match=f"channel name must be text, not {type(name).__name__}"):
        check_name("channel", name)


@pytest.mark.parametrize("word", sorted(RESERVED))
@pytest.mark.parametrize("shape", ["{}", "a.{}", "{}-b", "a-{}.b"])
def test_a_reserved_word_is_refused_wherever_it_stands(word: str, shape: str) -> None:
    with pytest.raises(BadName, match=f"the word '{word}' is reserved"):
        check_name("channel", shape.format(word))


def test_an_error_names_the_length_and_not_the_whole_text() -> None:
    with pytest.raises(BadName, match=r"'xxxxxxxxxxxxxxxxxxxx'\.\.\. has 1000 characters; at most 80"):
        check_name("channel", "x" * 1000)


def test_a_bad_name_is_a_mistake_of_configuration() -> None:
    assert issubclass(BadName, ConfigurationError)


@given(names, names, names, names)
@examples(100)
def test_names_joined_by_two_hyphens_can_be_told_apart_again(
    one: str, two: str, three: str, four: str
) -> None:
    assert "--" not in check_name("channel", one)
    assert (f"{one}--{two}" == f"{three}--{four}") == ((one, two) == (three, four))


@given(names, names, names)
@examples(60)
def test_one_prefix_never_makes_two_channels_one(prefix: str, one: str, other: str) -> None:
    assert (with_prefix(prefix, one) == with_prefix(prefix, other)) == (one == other)


def test_no_prefix_changes_nothing() -> None:
    assert with_prefix("", "orders") == "orders"
    assert with_prefix("blue", "orders") == "blue.orders"
