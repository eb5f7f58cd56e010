import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.codec import Codec, JsonCodec
from brokerkit.errors import DecodeError
from tests.core.deliveries import case, examples

CODEC: Codec = JsonCodec()


class Order(pydantic.BaseModel):
    n: float = 0
    note: str | None = None
    at: int = pydantic.Field(default=0, alias="placedAt")


class Whole(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        ser_json_bytes="base64", val_json_bytes="base64", ser_json_timedelta="float"
    )
    raw: bytes
    took: timedelta = timedelta(seconds=2)
    label: str = ""

    @pydantic.field_serializer("label", when_used="json")
    def shout(self, label: str) -> str:
        return label.upper()


@dataclass
class Plain:
    n: float
    inner: "Plain | None" = None


class Struct(msgspec.Struct):
    n: float
    note: str | None = None


class Node(pydantic.BaseModel):
    inner: "Node | None" = None


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"a": [1, None, "é"]}, '{"a":[1,null,"é"]}'),
        (Order(n=1, placedAt=2), '{"n":1.0,"note":null,"placedAt":2}'),
        (Plain(1.5), '{"n":1.5,"inner":null}'),
        (Struct(1.5), '{"n":1.5,"note":null}'),
        ([Order(), Order()], '[{"n":0.0,"note":null,"placedAt":0},{"n":0.0,"note":null,"placedAt":0}]'),
        (Whole(raw=b"\xff", label="x"), '{"raw":"_w==","took":2.0,"label":"X"}'),
        ("NaN and Infinity", '"NaN and Infinity"'),
        (2**64, "18446744073709551616"),
        (datetime(2026, 1, 1, tzinfo=UTC), '"2026-01-01T00:00:00Z"'),
        (None, "null"),
    ],
    ids=case,
)
def test_a_value_is_written_as_compact_json_the_way_its_model_says(value: object, written: str) -> None:
    assert CODEC.encode(value).decode() == written


def bare(number: float) -> object:
    return number


def in_containers(number: float) -> object:
    return {"a": [number]}


def in_a_model(number: float) -> object:
    return Order(n=number)


def in_models(number: float) -> object:
    return [{"a": Order(n=number)}]


def nested(number: float) -> object:
    return Plain(1, Plain(number))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "wrap",
    [bare, in_containers, in_a_model, in_models, Plain, nested, Struct],
    ids=lambda wrap: wrap.__name__,
)
def test_b16_what_json_cannot_express_is_refused_and_never_written_as_null(wrap: Any, number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        CODEC.encode(wrap(number))


@pytest.mark.parametrize("value", [object(), {"a": object()}, b"\xff", "\ud800", [b"\xff"], Struct], ids=case)
def test_b28_what_has_no_json_form_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        CODEC.encode(value)


def test_b17_what_is_nested_too_deeply_or_contains_itself_is_a_type_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError):
        CODEC.encode(endless)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
        st.lists,
    )
)
@examples(60)
def test_what_was_written_is_read_back(value: object) -> None:
    assert CODEC.decoder(Any)(CODEC.encode(value)) == value


@pytest.mark.parametrize(
    ("model", "data", "value"),
    [
        (Order, b'{"n":1,"placedAt":3,"extra":1}', Order(n=1, placedAt=3)),
        (Struct, b'{"n":1}', Struct(1)),
        (Plain, b'{"n":1}', Plain(1)),
        (dict, b'{"a":1,"a":2}', {"a": 2}),
        (list[Order], b"[]", []),
        (Whole, b'{"raw":"_w==","took":2.0}', Whole(raw=b"\xff")),
        (bytes, b"\xff\x00", b"\xff\x00"),
        (str, b'"NaN 1e999"', "NaN 1e999"),
        (int, b"18446744073709551616", 2**64),
        (
            dict,
            b'{"e":1e3,"id":"5e100000","n":1e308,"m":12e-999}',
            {"e": 1e3, "id": "5e100000", "n": 1e308, "m": 0.0},
        ),
        (float, b"1" * 308, float("1" * 308)),
    ],
    ids=case,
)
def test_data_is_read_as_the_model(model: Any, data: bytes, value: object) -> None:
    assert CODEC.decoder(model)(data) == value


@pytest.mark.parametrize("model", [Order, Struct, Plain, dict, list, int, Any, str])
@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a":1}x', b'{"n":"x"}x'], ids=case)
def test_b1_b3_b26_what_is_no_json_is_a_decode_error(model: Any, data: bytes) -> None:
    with pytest.raises(DecodeError):
        CODEC.decoder(model)(data)


@pytest.mark.parametrize("model", [Order, Plain, dict, Any])
@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e400", "-1E+999", "1.5e309", "9" * 400 + ".0", "2e00400"]
)
def test_b16_a_number_that_no_float_can_hold_is_a_decode_error(model: Any, number: str) -> None:
    with pytest.raises(DecodeError):
        CODEC.decoder(model)(f'{{"n":{number}}}'.encode())


def test_b16_the_error_says_where_and_does_not_repeat_the_data() -> None:
    data = b'[{"n":"secret"},{"n":1},{"n":[]},{"n":{}},{"n":"x"},{"n":"y"},{"n":"z"}]'
    with pytest.raises(DecodeError) as caught:
        CODEC.decoder(list[Order])(data)

    assert str(caught.value).startswith("0.n: Input should be a valid number")
    assert str(caught.value).endswith("; and 1 more")
    assert "secret" not in str(caught.value)


def test_an_error_of_the_whole_is_named_data() -> None:
    with pytest.raises(DecodeError, match=r"^data: Input should be a valid array$"):
        CODEC.decoder(list[int])(b"{}")


@pytest.mark.parametrize("model", [Node, dict, Any])
@pytest.mark.parametrize(
    "text",
    ['{"inner":' * 100_000, '{"inner":' * 10_000 + "null" + "}" * 10_000, "[" * 100_000 + "NaN"],
    ids=case,
)
def test_b17_deep_nesting_is_a_decode_error(model: Any, text: str) -> None:
    with pytest.raises(DecodeError):
        CODEC.decoder(model)(text.encode())


def test_a_validator_that_recurses_without_end_is_a_decode_error() -> None:
    class Endless(pydantic.BaseModel):
        n: int

        @pydantic.field_validator("n")
        @classmethod
        def forever(cls, n: int) -> int:
            return cls.forever(n)

    with pytest.raises(DecodeError, match="nested too deeply"):
        CODEC.decoder(Endless)(b'{"n":1}')


def test_a_model_that_cannot_be_used_is_an_error_at_once() -> None:
    with pytest.raises(Exception, match="schema"):
        CODEC.decoder(object())
