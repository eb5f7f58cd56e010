"""
Bytes of an event's data to a handler's model and back. Only the endpoint and `publish` use it.

JSON through pydantic is the default; anything that has these three members can be given as `codec=`.
Nothing is ever imported or constructed by a name found in a message.
"""

import json
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import pydantic
import pydantic_core

from brokerkit.errors import DecodeError

__all__ = ["Codec", "JsonCodec"]

Decoder = Callable[[bytes], Any]

_SHAPE = bytes.maketrans(b"123456789E", b"000000000e")
_LONGEST_FLOAT = b"0" * 300


class Codec(Protocol):
    """
    How data is written and read.

    content_type: what `encode` writes, for `datacontenttype`.
    """

    content_type: str

    def encode(self, value: object) -> bytes:
        """Return the bytes of a value; raise `TypeError` or `ValueError` that says what cannot be written."""
        ...

    def decoder(self, model: Any) -> Decoder:
        """
        Return a function from bytes to `model`, made once for each handler.

        The function raises `DecodeError` with the path of what is wrong; raising here means that the model itself
        cannot be used, which is an error at decoration.
        """
        ...


class JsonCodec:
    """
    JSON by pydantic: models, dataclasses, typed dicts, containers and plain values; msgspec structs by msgspec.

    Guarantees that a value which JSON cannot express (NaN, infinity) is refused when writing and when reading,
    and never silently turned into something else; so is a number that would become infinity, such as `1e400`.
    """

    content_type = "application/json"

    def encode(self, value: object) -> bytes:
        """Return compact JSON; `ValueError` for NaN and infinity, `TypeError` for what has no JSON form."""
        if _is_struct(type(value)):
            return _write_struct(value)
        try:
            written = pydantic_core.to_json(value, inf_nan_mode="constants")
            # A model writes null for NaN; as a Python object the constant stays visible
            shown = _shown(value) if b"null" in written else written
        except pydantic_core.PydanticSerializationError as error:
            raise TypeError(str(error)) from error
        if b"NaN" in shown or b"Infinity" in shown:
            json.loads(shown, parse_constant=_refuse_constant)
        return written

    def decoder(self, model: Any) -> Decoder:
        """Return the decoder of a model; `bytes` passes through untouched."""
        if model is bytes:
            return _same
        if _is_struct(model):
            return _struct_decoder(model)
        validate = pydantic.TypeAdapter(model).validator.validate_json

        def decode(data: bytes) -> Any:
            if b"NaN" in data or b"Infinity" in data or _may_overflow(data):
                _check_numbers(data)
            try:
                return validate(data)
            except pydantic.ValidationError as error:
                raise DecodeError(_explained(error)) from error
            except RecursionError as error:
                message = "the data is nested too deeply"
                raise DecodeError(message) from error

        return decode


def _shown(value: object) -> bytes:
    plain = pydantic_core.to_jsonable_python(value, inf_nan_mode="constants")
    return pydantic_core.to_json(plain, inf_nan_mode="constants")


def _write_struct(value: object) -> bytes:
    import msgspec  # noqa: PLC0415 - optional, and there if somebody made a struct

    written = msgspec.json.encode(value)
    if b"null" in written:  # which msgspec writes for NaN, too
        json.dumps(msgspec.to_builtins(value, str_keys=True), allow_nan=False)
    return written


def _same(data: bytes) -> bytes:
    return data


def _refuse_constant(name: str) -> object:
    message = f"{name} has no JSON form"
    raise ValueError(message)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        message = f"{text[:40]} is beyond the range of a float"
        raise ValueError(message)
    return number


def _may_overflow(data: bytes) -> bool:
    """Say whether a number in the text may be too large for a float; cheap, and wrong on the safe side only."""
    shape = data.translate(_SHAPE)
    return b"0e000" in shape or b"0e+000" in shape or _LONGEST_FLOAT in shape


def _check_numbers(data: bytes) -> None:
    try:
        json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise DecodeError(str(error)) from error


def _explained(error: pydantic.ValidationError) -> str:
    shown = [
        f"{'.'.join(str(part) for part in item['loc']) or 'data'}: {item['msg']}"
        for item in error.errors(include_url=False, include_context=False, include_input=False)[:5]
    ]
    more = error.error_count() - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def _is_struct(model: Any) -> bool:
    return isinstance(model, type) and _has_struct_fields(model)


@lru_cache(maxsize=1024)
def _has_struct_fields(model: type) -> bool:
    """Say it, once for each class: what a pydantic model has not got it is slow to say so."""
    return hasattr(model, "__struct_fields__")


def _struct_decoder(model: Any) -> Decoder:
    import msgspec  # noqa: PLC0415 - optional, and there if somebody made a struct

    decode_struct = msgspec.json.Decoder(model).decode

    def decode(data: bytes) -> Any:
        try:
            return decode_struct(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise DecodeError(str(error)) from error

    return decode
