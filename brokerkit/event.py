"""
The meaning of a message: a CloudEvents 1.0 event.

Its identity is (source, id). It survives retries, dead letters and redrives; a broker's own message id does not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

__all__ = ["Event", "made"]

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Generic[T]):
    """
    One event, with its data as bytes (`Event[bytes]`, on a delivery) or as a handler's model.

    time: RFC 3339 text as it came, or None. It never takes part in scheduling; `when` parses it.
    extensions: every other context attribute, as text.
    derived: the id was made from the broker's coordinates because the message had none.
    error: why the envelope could not be read, or None. Such an event is dead-lettered as it came.
    """

    id: str
    source: str
    type: str
    data: T
    subject: str | None = None
    time: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    extensions: Mapping[str, str] = field(default_factory=dict)  # pyright: ignore[reportUnknownVariableType] - dict[str, str] is slow to call
    derived: bool = False
    error: str | None = None

    @property
    def identity(self) -> tuple[str, str]:
        """Return (source, id)."""
        return (self.source, self.id)

    def when(self) -> datetime | None:
        """Return `time` as a datetime with a zone (UTC where the sender gave none), or None if absent or unreadable."""
        if self.time is None:
            return None
        try:
            parsed = datetime.fromisoformat(self.time)
        except ValueError:
            return None
        return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)

    def with_data(self, data: U) -> "Event[U]":
        """Return the same event with other data."""
        return replace(self, data=data)  # type: ignore[arg-type,return-value]


_new: Callable[[type[Any]], Event[bytes]] = object.__new__
_set_id = Event.__dict__["id"].__set__
_set_source = Event.__dict__["source"].__set__
_set_type = Event.__dict__["type"].__set__
_set_data = Event.__dict__["data"].__set__
_set_subject = Event.__dict__["subject"].__set__
_set_time = Event.__dict__["time"].__set__
_set_datacontenttype = Event.__dict__["datacontenttype"].__set__
_set_dataschema = Event.__dict__["dataschema"].__set__
_set_extensions = Event.__dict__["extensions"].__set__
_set_derived = Event.__dict__["derived"].__set__
_set_error = Event.__dict__["error"].__set__


def made(
    id: str,  # noqa: A002 - the attribute's own name in CloudEvents
    source: str,
    type: str,  # noqa: A002 - the attribute's own name in CloudEvents
    data: bytes,
    subject: str | None,
    time: str | None,
    datacontenttype: str | None,
    dataschema: str | None,
    extensions: Mapping[str, str],
) -> Event[bytes]:
    """
    Return the event that was read out of a message: `Event(...)` for the hot path.

    The constructor of a frozen dataclass sets each field by way of `object.__setattr__`, at more than twice the cost.
    """
    event = _new(Event)
    _set_id(event, id)
    _set_source(event, source)
    _set_type(event, type)
    _set_data(event, data)
    _set_subject(event, subject)
    _set_time(event, time)
    _set_datacontenttype(event, datacontenttype)
    _set_dataschema(event, dataschema)
    _set_extensions(event, extensions)
    _set_derived(event, False)  # noqa: FBT003 - the value of the field
    _set_error(event, None)
    return event
