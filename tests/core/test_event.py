from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone

import pytest

from brokerkit.event import Event, made


def at(time: str | None) -> datetime | None:
    return Event(id="1", source="s", type="t", data=b"", time=time).when()


@pytest.mark.parametrize(
    ("time", "when"),
    [
        (None, None),
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        (
            "2026-01-31T12:00:00.123456789+02:00",
            datetime(2026, 1, 31, 12, 0, 0, 123456, timezone(timedelta(hours=2))),
        ),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", None),
        ("yesterday", None),
        ("", None),
        ("\ud800", None),
        ("2026-13-01T00:00:00Z", None),
    ],
)
def test_b20_the_time_is_parsed_with_a_zone_or_absent_and_never_raises(
    time: str | None, when: datetime | None
) -> None:
    assert at(time) == when


def test_identity_is_source_and_id() -> None:
    assert Event(id="1", source="s", type="t", data=b"").identity == ("s", "1")


def test_other_data_leaves_everything_else() -> None:
    event = Event(
        id="1",
        source="s",
        type="t",
        data=b"x",
        extensions={"a": "b"},
        subject="sub",
        time="t",
        derived=True,
        error="e",
    )

    changed = event.with_data({"n": 1})

    assert changed.data == {"n": 1}
    assert changed.with_data(b"x") == event


def test_extensions_are_empty_without_being_shared() -> None:
    one, other = (Event(id="1", source="s", type="t", data=b"") for _ in range(2))

    assert dict(one.extensions) == {}
    assert one == other


def test_an_event_made_on_the_hot_path_equals_one_that_was_constructed() -> None:
    values = {
        "id": "e-1",
        "source": "shop",
        "type": "order.placed",
        "data": b"{}",
        "subject": "o-17",
        "time": "2026-01-01T00:00:00Z",
        "datacontenttype": "application/json",
        "dataschema": "https://example.org/order",
        "extensions": {"tenant": "acme"},
    }
    assert made(*values.values()) == Event(**values)  # type: ignore[arg-type]
    assert {field.name for field in fields(Event)} == {*values, "derived", "error"}
