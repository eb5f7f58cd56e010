import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.story import Failure, Story, clean, decode_story, encode_story
from tests.core.deliveries import case, examples


def raised(error: BaseException, depth: int = 0) -> BaseException:
    try:
        raised_inside(error, depth)
    except BaseException as caught:  # noqa: BLE001 - it is what is described
        return caught
    raise AssertionError


def raised_inside(error: BaseException, depth: int) -> None:
    if depth:
        raised_inside(error, depth - 1)
    raise error


class Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyError


class TestFailure:
    def test_it_names_the_class_by_its_module_but_for_builtins(self) -> None:
        assert Failure.of(ValueError("x")).type == "ValueError"
        assert Failure.of(Unprintable()).type == f"{__name__}.Unprintable"

    def test_an_error_that_cannot_be_printed_is_described_all_the_same(self) -> None:
        assert Failure.of(Unprintable()).message == "<unprintable: KeyError>"

    def test_the_innermost_frames_stay(self) -> None:
        failure = Failure.of(raised(ValueError("why"), depth=300))

        assert len(failure.trace) <= 8192
        assert "raised_inside" in failure.trace
        assert failure.trace.endswith("ValueError: why\n")

    def test_a_huge_message_leaves_the_frames_readable(self) -> None:
        failure = Failure.of(raised(ValueError("m" * 100_000)))

        assert len(failure.message) == 1024
        assert failure.message.endswith("…")
        assert "in raised_inside" in failure.trace

    @pytest.mark.parametrize("length", [1023, 1024])
    def test_a_message_of_the_limit_is_whole(self, length: int) -> None:
        assert Failure.of(ValueError("m" * length)).message == "m" * length

    @pytest.mark.parametrize(
        "secret", ["p4ss", "p@4ss", "p4ss:x", "p4%40ss", "p?4ss", "p#4ss", "[p4ss"], ids=case
    )
    def test_no_user_information_of_a_url_is_told(self, secret: str) -> None:
        failure = Failure.of(
            raised(ConnectionError(f"cannot reach amqp://shop:{secret}@host:5672/v, tried twice"))
        )

        for told in (failure.message, failure.trace):
            assert "4ss" not in told
            assert "shop" not in told
            assert "amqp://***@host:5672/v" in told

    def test_the_cause_is_told_too(self) -> None:
        error = ValueError("outer")
        error.__cause__ = raised(KeyError("inner"))

        assert "KeyError: 'inner'" in Failure.of(error).trace


class TestClean:
    @pytest.mark.parametrize(
        ("text", "cleaned"),
        [
            ("a\nb\tc", "a\nb\tc"),
            ("a\x00\x1b[31m\r\x7f\x85", "a\\x00\\x1b[31m\\x0d\\x7f\\x85"),
            ("\u2028\u2029", "\\x2028\\x2029"),
            ("\ud800", "\\ud800"),
            ("é😀", "é😀"),
            ("see http://host/path of a@b", "see http://host/path of a@b"),
        ],
        ids=case,
    )
    def test_control_characters_are_escaped_and_all_else_stays(self, text: str, cleaned: str) -> None:
        assert clean(text) == cleaned


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.just(object()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
entries: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(["n", "at", "type", "message", "trace", "dead", "cut", "x"]), anything, max_size=6
)
told: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "n": st.integers(1, 99),
        "at": st.integers(0, 1 << 45),
        "type": st.text(max_size=40),
        "message": st.text(max_size=1024),
    },
    optional={
        "trace": st.text(max_size=3000),
        "dead": st.text(max_size=20),
        "later": st.none() | st.floats(0, 1),
    },
)


def failure(number: int, **more: Any) -> dict[str, Any]:
    return {"n": number, "at": number, "type": "E", "message": "m" * 100, **more}


class TestEncoding:
    @given(st.lists(told, max_size=12), st.sampled_from([2, 3, 10, 16, 64, 512, 2048, 8192]))
    @examples(150)
    def test_a_story_is_never_above_its_limit_and_always_json(self, story: Story, limit: int) -> None:
        text = encode_story(story, limit)

        assert len(text.encode()) <= limit
        assert text.isascii()
        assert isinstance(json.loads(text, parse_constant=pytest.fail), list)

    @given(st.lists(entries, max_size=6))
    @examples(100)
    def test_one_that_cannot_be_written_is_written_as_far_as_it_can(self, story: Story) -> None:
        sound = decode_story_of(story)

        assert isinstance(json.loads(encode_story(sound), parse_constant=pytest.fail), list)

    @given(st.lists(told, max_size=6))
    @examples(80)
    def test_one_that_fits_comes_back_whole(self, story: Story) -> None:
        assert decode_story(encode_story(story, 1_000_000)) == story

    def test_traces_go_first_and_the_last_one_is_only_shortened(self) -> None:
        story = [failure(1, trace="a" * 5000), failure(2, trace="b" * 5000)]

        read = decode_story(encode_story(story))

        assert [len(entry["trace"]) for entry in read] == [0, 2048]
        assert [entry["message"] for entry in read] == ["m" * 100] * 2

    def test_then_all_traces(self) -> None:
        story = [failure(number, trace="b" * 5000) for number in range(15)]

        read = decode_story(encode_story(story, 3000))

        assert len(read) == 15
        assert all("trace" not in entry for entry in read)

    def test_then_the_middle_of_the_history_and_it_says_how_much(self) -> None:
        story = [failure(1), {"cut": 30}, *(failure(number) for number in range(32, 50))]

        read = decode_story(encode_story(story, 700))

        assert [entry.get("n") for entry in read] == [1, None, 48, 49]
        assert read[1] == {"cut": 30 + 16}

    def test_four_entries_are_not_cut_to_the_ends(self) -> None:
        assert len(decode_story(encode_story([failure(number) for number in range(4)], 700))) == 4

    def test_then_messages(self) -> None:
        read = decode_story(encode_story([failure(number, message="é" * 1000) for number in range(3)], 2800))

        assert [entry["message"] for entry in read] == ["é" * 120] * 3

    @pytest.mark.parametrize("limit", [512, 200])
    def test_the_verdict_stays_to_the_end(self, limit: int) -> None:
        verdict = {"dead": "exhausted", "n": 9, "detail": "é" * 1000}
        story = [*(failure(number, message="é" * 1000) for number in range(9)), verdict]

        read = decode_story(encode_story(story, limit))

        assert read[-1]["dead"].startswith("exhauste")
        assert len(encode_story(story, limit)) <= limit

    def test_what_is_left_of_a_story_without_room_is_its_length(self) -> None:
        assert encode_story([failure(1), failure(2)], 16) == '[{"cut":2}]'
        assert encode_story([failure(1), failure(2)], 10) == "[]"

    def test_the_story_itself_is_left_alone(self) -> None:
        story = [failure(1, trace="t" * 9000)]

        encode_story(story, 64)

        assert story == [failure(1, trace="t" * 9000)]

    @pytest.mark.parametrize(
        "odd", [float("nan"), float("inf"), object(), {1: object()}, b"x", {1, 2}], ids=case
    )
    def test_a_value_that_json_cannot_express_costs_only_itself(self, odd: object) -> None:
        assert decode_story(encode_story([{"n": 1, "odd": odd, "half": 0.5, "no": None}])) == [
            {"n": 1, "half": 0.5, "no": None}
        ]

    def test_a_value_too_deep_to_write_costs_only_itself(self) -> None:
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]

        assert decode_story(encode_story([{"n": 1, "deep": deep}])) == [{"n": 1}]
        while deep:
            deep = deep[0]


def decode_story_of(story: Story) -> Story:
    """Return entries as a reader hands them on: numbers and traces are what they should be."""
    return [
        {
            name: value
            for name, value in entry.items()
            if not (name in {"n", "at", "cut"} and type(value) is not int)
            and not (name == "trace" and not isinstance(value, str))
        }
        for entry in story
    ]


class TestDecoding:
    @pytest.mark.parametrize(
        "text",
        [None, "", b"", "x", "{}", "7", "null", "[" * 100_000, b"\xff", 7, ["a"], {"a": 1}, "1" * 5000],
        ids=case,
    )
    def test_what_is_not_readable_is_an_empty_story(self, text: object) -> None:
        assert decode_story(text) == []

    def test_entries_that_are_none_are_left_out(self) -> None:
        assert decode_story('[1,null,{"n":1},[]]') == [{"n": 1}]

    def test_bytes_are_read_too(self) -> None:
        assert decode_story('[{"message":"é"}]'.encode()) == [{"message": "é"}]

    def test_a_number_or_trace_that_is_none_is_dropped_and_unknown_fields_are_kept(self) -> None:
        text = '[{"n":"1","at":1.5,"cut":true,"trace":7,"later":{"a":[1]},"x":true}]'

        assert decode_story(text) == [{"later": {"a": [1]}, "x": True}]

    def test_a_forged_trace_does_not_keep_a_copy_from_being_written(self) -> None:
        story = decode_story(json.dumps([{"trace": {"a": 1}, "message": "m" * 9000}]))

        assert len(encode_story(story)) <= 8192
