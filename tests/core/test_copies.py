import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.copies import (
    OURS,
    STORY_ROOM,
    VERSION,
    Mark,
    TooNew,
    copy_id,
    dead_copy,
    is_foreign,
    mark_of,
    read_delivery,
    redrive_copy,
    retry_copy,
)
from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError
from brokerkit.message import Address, Header, Message
from tests.core.deliveries import (
    CHANNEL,
    DEAD,
    INLET,
    NOW,
    arrival,
    case,
    copy_with,
    examples,
    message_of,
    ordered,
)

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((GOLDEN / name).read_text("utf-8"))
    return read


def written(message: Message) -> dict[str, Any]:
    return {
        "body": message.body.decode(),
        "content_type": message.content_type,
        "key": None if message.key is None else message.key.decode(),
        "headers": [[name, value] for name, value in message.headers],
        "copy_id": message.copy_id,
    }


def stored(fields: dict[str, Any]) -> Message:
    return Message(
        body=fields["body"].encode(),
        content_type=fields["content_type"],
        key=None if fields["key"] is None else fields["key"].encode(),
        headers=tuple((name, value) for name, value in fields["headers"]),
        copy_id=fields["copy_id"],
    )


def failed() -> Delivery:
    """Return a delivery whose second attempt of its second run has failed."""
    headers: tuple[Header, ...] = (
        ("tenant", "blue"),
        ("bk-attempt", "77"),
        ("x-death", "forged"),
        ("tenant", "green"),
    )
    delivery = arrival(message_of(ordered(), key=b"o-17", headers=headers))
    delivery.attempt, delivery.run, delivery.hop, delivery.alone = 2, 1, 4, 2
    delivery.story = [{"n": 1, "at": 1767225600125, "type": "ConnectionError", "message": "café"}]
    return delivery


def numbers(delivery: Delivery) -> tuple[int, int, int, int, float]:
    return (delivery.attempt, delivery.run, delivery.hop, delivery.alone, delivery.first)


def ours(message: Message) -> dict[str, str | bytes]:
    return {name: value for name, value in message.headers if name in OURS}


class TestGoldenFiles:
    def test_a_retry_copy_is_written_to_the_byte(self) -> None:
        assert written(retry_copy(failed())) == golden("v1/retry_copy.json")

    def test_a_dead_letter_is_written_to_the_byte(self) -> None:
        delivery = failed()
        delivery.story.append({"dead": "exhausted", "n": 2, "at": 1767225601000})

        assert written(dead_copy(delivery)) == golden("v1/dead_letter.json")

    def test_a_redrive_copy_is_written_to_the_byte(self) -> None:
        assert written(redrive_copy(failed())) == golden("v1/redrive_copy.json")

    def test_the_copy_of_a_strangers_message_is_written_to_the_byte(self) -> None:
        stranger = Message(body=b"plain", content_type="text/plain", key=None, headers=(("a", "b"),))

        assert written(retry_copy(arrival(stranger, position=("3", 42)))) == golden("v1/stranger_copy.json")

    def test_a_mark_is_written_to_the_byte(self) -> None:
        delivery = failed()
        delivery.due = NOW + 60

        assert mark_of(delivery, alone=3).decode() == golden("v1/mark.json")["mark"]

    def test_a_retry_copy_of_version_1_is_read(self) -> None:
        delivery = arrival(stored(golden("v1/retry_copy.json")), INLET, now=NOW + 9)

        assert numbers(delivery) == (3, 1, 5, 2, NOW)
        assert delivery.story[0]["message"] == "café"
        assert (delivery.event.id, delivery.event.derived) == ("e-1", False)

    def test_a_dead_letter_of_version_1_is_read(self) -> None:
        delivery = arrival(stored(golden("v1/dead_letter.json")), DEAD, now=NOW + 9)

        assert numbers(delivery) == (2, 1, 5, 2, NOW)
        assert [entry.get("dead") for entry in delivery.story] == [None, "exhausted"]

    def test_a_redrive_copy_of_version_1_is_read(self) -> None:
        delivery = arrival(stored(golden("v1/redrive_copy.json")), INLET, now=NOW + 9)

        assert numbers(delivery) == (1, 2, 1, 0, NOW + 9)
        assert len(delivery.story) == 1

    def test_a_strangers_copy_of_version_1_keeps_its_first_id(self) -> None:
        copy = stored(golden("v1/stranger_copy.json"))

        delivery = arrival(copy, INLET, position=("inlet-7", 1))

        assert delivery.event.identity == ("/orders", "orders#3/42")
        assert delivery.event.derived

    def test_a_mark_of_version_1_is_read(self) -> None:
        delivery = arrival(mark=golden("v1/mark.json")["mark"].encode(), now=NOW + 9)

        assert numbers(delivery) == (2, 0, 0, 3, NOW)
        assert delivery.due == NOW + 60
        assert delivery.story[0]["type"] == "ConnectionError"

    def test_a_copy_of_version_2_is_too_new_and_leaves_the_delivery_readable(self) -> None:
        delivery = arrival(stored(golden("v2/retry_copy.json")), INLET, read=False)

        with pytest.raises(TooNew, match="orders/billing/inlet has header version 2, this is 1: upgrade"):
            read_delivery(delivery, NOW)

        assert numbers(delivery) == (1, 0, 0, 0, NOW)
        assert (delivery.story, delivery.due) == ([], 0.0)
        assert delivery.event.id == "e-1"

    def test_a_mark_of_version_2_is_too_new(self) -> None:
        delivery = arrival(mark=golden("v2/mark.json")["mark"].encode(), read=False)

        with pytest.raises(TooNew, match="mark at orders has version 2, this is 1: upgrade"):
            read_delivery(delivery, NOW)

        assert numbers(delivery) == (1, 0, 0, 0, NOW)

    def test_headers_and_story_fields_of_a_later_minor_version_are_kept(self) -> None:
        copy = stored(golden("v1/retry_copy.json"))
        story = '[{"n":1,"at":5,"shape":"of things to come"}]'
        later = copy.replace(headers=(*copy.without(["bk-story"]), ("bk-colour", "red"), ("bk-story", story)))

        again = retry_copy(arrival(later, INLET))

        assert again.header("bk-colour") == "red"
        assert json.loads(str(again.header("bk-story")))[0]["shape"] == "of things to come"

    def test_a_mark_with_unknown_fields_is_read(self) -> None:
        delivery = arrival(mark=b'{"v":1,"attempt":4,"colour":"red"}')

        assert delivery.attempt == 4

    def test_the_error_is_of_the_family_and_has_a_code(self) -> None:
        assert issubclass(TooNew, BrokerkitError)
        assert (TooNew.code, TooNew.retryable, VERSION, STORY_ROOM) == ("too_new", False, 1, 8192)


class TestPosition:
    FORGED: tuple[Header, ...] = (
        ("bk-v", "99"),
        ("bk-attempt", "9"),
        ("bk-run", "8"),
        ("bk-hop", "7"),
        ("bk-alone", "6"),
        ("bk-first", "5"),
        ("bk-origin", "elsewhere"),
        ("bk-story", '[{"n":1}]'),
    )

    def test_on_the_channel_our_headers_prove_nothing(self) -> None:
        delivery = arrival(Message(body=b"x", headers=self.FORGED), CHANNEL, position=("0", 1))

        assert numbers(delivery) == (1, 0, 0, 0, NOW)
        assert delivery.story == []
        assert delivery.event.id == "orders#0/1"

    @pytest.mark.parametrize("place", [INLET, DEAD], ids=["inlet", "dead"])
    def test_in_a_place_of_the_groups_own_they_are_believed(self, place: Address) -> None:
        headers = (("bk-v", "1"), *self.FORGED[1:])

        delivery = arrival(Message(body=b"x", headers=headers), place, position=("0", 1))

        assert numbers(delivery) == (9, 8, 7, 6, 0.005)
        assert delivery.story == [{"n": 1}]
        assert delivery.event.id == "elsewhere"

    def test_our_headers_are_known_by_their_exact_name_only(self) -> None:
        delivery = arrival(copy_with(("BK-Attempt", "9"), ("bk_attempt", "9")), INLET)

        assert delivery.attempt == 1

    def test_a_forged_header_on_the_channel_does_not_travel_on(self) -> None:
        copy = retry_copy(arrival(Message(body=b"x", headers=self.FORGED), CHANNEL, position=("0", 1)))

        assert ours(copy) == {
            "bk-v": "1",
            "bk-attempt": "2",
            "bk-run": "0",
            "bk-hop": "1",
            "bk-group": "billing",
            "bk-first": "1767225600125",
            "bk-origin": "orders#0/1",
        }
        assert len(copy.headers) == 7

    def test_an_origin_does_not_rename_an_event_that_has_an_id(self) -> None:
        assert arrival(copy_with(("bk-origin", "other")), INLET).event.id == "e-1"

    @pytest.mark.parametrize(("value", "read"), [(b"abc", "abc"), (b"\xff", "\ufffd")], ids=case)
    def test_an_origin_in_bytes_is_read_as_text(self, value: bytes, read: str) -> None:
        delivery = arrival(Message(body=b"x", headers=(("bk-origin", value),)), INLET)

        assert delivery.event.id == read

    @pytest.mark.parametrize("value", ["", b""], ids=case)
    def test_an_empty_origin_is_none(self, value: str | bytes) -> None:
        delivery = arrival(Message(body=b"x", headers=(("bk-origin", value),)), INLET, position=("p", 3))

        assert delivery.event.id == "orders/billing/inlet#p/3"


def read_from(name: str, value: str | bytes) -> Delivery:
    return arrival(copy_with((name, value)), INLET)


class TestOddValues:
    ODD = ("", "-1", "1.5", "x", " 3", "+3", "1e3", "²", "٣", "0x10", "9" * 19, "1" * 5000, "\ud800")

    @pytest.mark.parametrize("value", [*ODD, b"", b"-1", b"\xff", b"3 "], ids=case)
    def test_what_is_no_number_is_absent(self, value: str | bytes) -> None:
        headers = tuple(
            (name, value) for name in ("bk-v", "bk-attempt", "bk-run", "bk-hop", "bk-alone", "bk-first")
        )

        delivery = arrival(copy_with(*headers), INLET)

        assert numbers(delivery) == (1, 0, 0, 0, NOW)

    @pytest.mark.parametrize(
        ("value", "attempt"),
        [("0", 1), ("1", 1), ("2", 2), (b"2", 2), ("007", 7), ("1000000", 1_000_000), ("1000001", 1_000_000)],
        ids=case,
    )
    def test_an_attempt_is_clamped(self, value: str | bytes, attempt: int) -> None:
        assert read_from("bk-attempt", value).attempt == attempt

    @pytest.mark.parametrize("value", ["1000001", "9" * 18])
    @pytest.mark.parametrize("name", ["run", "hop", "alone"])
    def test_a_huge_number_is_clamped(self, name: str, value: str) -> None:
        assert getattr(read_from(f"bk-{name}", value), name) == 1_000_000

    @pytest.mark.parametrize("value", ["9" * 18, str(int(NOW * 1000) + 1), str(int(NOW * 1000))])
    def test_a_first_arrival_in_the_future_is_now(self, value: str) -> None:
        assert read_from("bk-first", value).first == NOW

    def test_a_first_arrival_in_the_past_is_kept(self) -> None:
        assert read_from("bk-first", "1767225600124").first == 1767225600.124

    @pytest.mark.parametrize("value", ["0", "1"])
    def test_an_older_or_equal_version_is_read(self, value: str) -> None:
        assert arrival(copy_with(("bk-v", value), ("bk-attempt", "4")), INLET).attempt == 4

    @pytest.mark.parametrize("value", ["2", "999999999", "9" * 18])
    def test_any_later_version_is_too_new(self, value: str) -> None:
        with pytest.raises(TooNew):
            read_from("bk-v", value)

    def test_of_a_repeated_header_the_last_counts(self) -> None:
        assert arrival(copy_with(("bk-attempt", "3"), ("bk-attempt", "4")), INLET).attempt == 4

    @pytest.mark.parametrize("story", ["", "{}", "[", "7", "[" * 100_000, b"\xff", '"x"', "null"], ids=case)
    def test_a_story_that_cannot_be_read_is_empty(self, story: str | bytes) -> None:
        assert read_from("bk-story", story).story == []

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(sorted(OURS)),
                st.text(max_size=20) | st.binary(max_size=20) | st.integers().map(str),
            ),
            max_size=12,
        )
    )
    @examples(150)
    def test_whatever_our_headers_hold_reading_gives_sane_numbers(self, headers: list[Header]) -> None:
        delivery = arrival(copy_with(*headers), INLET, read=False)
        try:
            read_delivery(delivery, NOW)
        except TooNew:
            return
        assert 1 <= delivery.attempt <= 1_000_000
        assert all(0 <= number <= 1_000_000 for number in (delivery.run, delivery.hop, delivery.alone))
        assert 0 <= delivery.first <= NOW
        assert (
            len(
                {copy.copy_id for copy in (retry_copy(delivery), dead_copy(delivery), redrive_copy(delivery))}
            )
            == 3
        )


class TestMarks:
    @pytest.mark.parametrize(
        "mark",
        [b"", b"x", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 100_000, b"{}", b'"v"', b'{"v":"x"}'],
        ids=case,
    )
    def test_a_damaged_mark_is_absent(self, mark: bytes) -> None:
        delivery = arrival(mark=mark)

        assert numbers(delivery) == (1, 0, 0, 0, NOW)
        assert (delivery.due, delivery.story) == (0.0, [])

    @pytest.mark.parametrize("odd", [-1, 1.5, True, None, "x", [], {}, 2.0, "²"], ids=case)
    def test_a_field_that_is_no_number_is_absent(self, odd: object) -> None:
        mark = json.dumps(
            {"v": 1, "attempt": odd, "alone": odd, "first": odd, "due": odd, "story": odd}
        ).encode()

        delivery = arrival(mark=mark)

        assert numbers(delivery) == (1, 0, 0, 0, NOW)
        assert (delivery.due, delivery.story) == (0.0, [])

    def test_a_field_that_is_absent_leaves_what_the_copy_says(self) -> None:
        copy = copy_with(("bk-attempt", "3"), ("bk-alone", "2"), ("bk-first", "9"), ("bk-story", '[{"n":1}]'))

        delivery = arrival(copy, INLET, mark=b'{"v":1}')

        assert numbers(delivery) == (3, 0, 0, 2, 0.009)
        assert delivery.story == [{"n": 1}]

    def test_what_a_mark_says_wins_over_the_copy(self) -> None:
        copy = copy_with(
            ("bk-attempt", "3"), ("bk-alone", "2"), ("bk-first", "9000"), ("bk-story", '[{"n":1}]')
        )
        mark = Mark(attempt=5, alone=1, first=8000, due=9500, story='[{"n":2}]')

        delivery = arrival(copy, INLET, mark=mark.encode())

        assert numbers(delivery) == (5, 0, 0, 1, 8.0)
        assert (delivery.due, delivery.story) == (9.5, [{"n": 2}])

    def test_a_crash_mark_that_was_taken_back_stays_so(self) -> None:
        assert arrival(copy_with(("bk-alone", "2")), INLET, mark=b'{"alone":0}').alone == 0

    def test_a_mark_cannot_make_the_first_arrival_later(self) -> None:
        assert arrival(mark=b'{"first":99999999999999}').first == NOW

    def test_the_numbers_of_a_mark_are_clamped(self) -> None:
        huge = 1 << 200
        delivery = arrival(
            mark=json.dumps({"attempt": huge, "alone": huge, "first": huge, "due": huge}).encode()
        )

        assert (delivery.attempt, delivery.alone, delivery.first) == (1_000_000, 1_000_000, NOW)
        assert delivery.due == (1 << 53) / 1000

    def test_an_attempt_of_nothing_is_one(self) -> None:
        assert arrival(mark=b'{"attempt":0}').attempt == 1

    def test_a_mark_without_version_is_read_as_ours(self) -> None:
        assert arrival(mark=b'{"attempt":2}').attempt == 2

    @pytest.mark.parametrize("version", [2, "2", 1 << 80], ids=case)
    def test_any_later_version_is_too_new(self, version: object) -> None:
        with pytest.raises(TooNew):
            arrival(mark=json.dumps({"v": version}).encode())

    def test_a_mark_on_a_channel_is_believed_for_the_broker_keeps_it_beside_the_delivery(self) -> None:
        assert arrival(copy_with(("bk-attempt", "9")), CHANNEL, mark=b'{"attempt":2}').attempt == 2

    @given(
        st.integers(1, 999_999),
        st.integers(0, 9),
        st.integers(0, 9),
        st.lists(st.text(max_size=9), max_size=5),
    )
    @examples(60)
    def test_a_mark_survives_the_way_to_the_next_owner(
        self, attempt: int, alone: int, due: int, said: list[str]
    ) -> None:
        delivery = arrival()
        delivery.attempt, delivery.due = attempt, NOW + due
        delivery.story = [{"n": at, "message": text} for at, text in enumerate(said)]

        after = arrival(mark=mark_of(delivery, alone=alone), now=NOW + 100)

        assert numbers(after) == (attempt, 0, 0, alone, NOW)
        assert (after.due, after.story) == (NOW + due, delivery.story)

    def test_a_mark_is_a_frozen_record(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            Mark(attempt=1, alone=0, first=0, due=0, story="").attempt = 2  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]

    def test_the_story_of_a_mark_is_bounded(self) -> None:
        delivery = arrival()
        delivery.story = [{"n": at, "message": "m" * 1000} for at in range(50)]

        assert len(json.loads(mark_of(delivery, alone=0))["story"]) <= STORY_ROOM


class TestWhatTravels:
    def test_body_type_key_and_the_senders_headers_stay_to_the_byte(self) -> None:
        headers: tuple[Header, ...] = (
            ("a", "1"),
            ("A", b"\x00\xff"),
            ("a", "1"),
            ("x-deathly", "mine"),
            ("nats", "n"),
        )
        message = Message(body=b"\x00body", content_type="application/octet-stream", key=b"", headers=headers)

        for copy in (
            retry_copy(arrival(message)),
            dead_copy(arrival(message)),
            redrive_copy(arrival(message)),
        ):
            assert (copy.body, copy.content_type, copy.key) == (message.body, message.content_type, b"")
            assert copy.headers[:5] == headers

    @pytest.mark.parametrize(
        "name",
        [
            "x-death",
            "X-Death",
            "x-first-death-queue",
            "x-last-death-reason",
            "X-Last-Death-Exchange",
            "x-delivery-count",
            "x-acquired-count",
            "Nats-Msg-Id",
            "nats-expected-stream",
            "BK-V",
            "Bk-Wait",
        ],
    )
    def test_a_brokers_own_header_does_not_travel_on(self, name: str) -> None:
        copy = retry_copy(arrival(copy_with((name, "forged"), ("kept", "1"))))

        assert name not in dict(copy.headers)
        assert copy.header("kept") == "1"

    @pytest.mark.parametrize(
        "name", ["x-deaths", "x-first", "death", "gnats-", "x-delivery-count-2", "bk-more"]
    )
    def test_a_senders_header_that_looks_like_one_travels_on(self, name: str) -> None:
        assert not is_foreign(name)
        assert retry_copy(arrival(copy_with((name, "mine")))).header(name) == "mine"

    def test_our_headers_are_replaced_and_never_appended(self) -> None:
        once = retry_copy(arrival())
        twice = retry_copy(arrival(once, INLET))

        assert len(twice.headers) == len(once.headers)
        assert ours(twice)["bk-attempt"] == "3"

    def test_the_original_is_left_as_it_was(self) -> None:
        delivery = failed()
        before = (numbers(delivery), delivery.message, [dict(entry) for entry in delivery.story])

        for made in (retry_copy(delivery), dead_copy(delivery, room=512), redrive_copy(delivery)):
            assert made is not delivery.message

        assert (numbers(delivery), delivery.message, delivery.story) == before

    def test_the_first_arrival_survives_any_number_of_copies(self) -> None:
        delivery = arrival()
        for later in range(1, 5):
            delivery = arrival(retry_copy(delivery), INLET, now=NOW + later)
            assert (delivery.first, delivery.attempt, delivery.hop) == (NOW, later + 1, later)

    def test_a_dead_letter_keeps_the_attempt_that_failed(self) -> None:
        assert ours(dead_copy(failed()))["bk-attempt"] == "2"
        assert ours(dead_copy(failed()))["bk-run"] == "1"

    def test_a_redriven_message_begins_again(self) -> None:
        """Else one that a crash limit or a hop limit has ended could never be handled again."""
        delivery = failed()
        delivery.hop, delivery.alone = 1000, 3

        again = arrival(redrive_copy(delivery), INLET, now=NOW + 500)

        assert numbers(again) == (1, 2, 1, 0, NOW + 500)
        assert again.event.identity == delivery.event.identity
        assert again.story == delivery.story

    def test_a_story_is_cut_to_the_room_there_is(self) -> None:
        delivery = failed()
        delivery.story = [{"n": at, "message": "m" * 500, "trace": "t" * 5000} for at in range(9)]

        sizes = [
            len(str(dead_copy(delivery, room=room).header("bk-story"))) for room in (8192, 4096, 2048, 512)
        ]

        assert all(size <= room for size, room in zip(sizes, (8192, 4096, 2048, 512), strict=True))
        assert len(str(retry_copy(delivery).header("bk-story"))) <= STORY_ROOM
        assert len(str(dead_copy(delivery).header("bk-story"))) > 4096

    def test_no_story_no_header(self) -> None:
        assert retry_copy(arrival()).header("bk-story") is None

    def test_crash_marks_travel_with_retries_and_dead_letters(self) -> None:
        assert retry_copy(failed()).header("bk-alone") == "2"
        assert dead_copy(failed()).header("bk-alone") == "2"
        assert retry_copy(arrival()).header("bk-alone") is None


def identity_of(delivery: Delivery, **changed: Any) -> str:
    parts: dict[str, Any] = {"stage": "retry", "attempt": 1, "run": 0, "hop": 1, **changed}
    return copy_id(delivery, **parts)


class TestCopyIds:
    def test_the_same_hop_made_again_has_the_same_id(self) -> None:
        assert retry_copy(arrival()).copy_id == retry_copy(arrival(now=NOW + 60)).copy_id

    def test_an_id_is_short_and_the_same_in_every_process(self) -> None:
        assert identity_of(arrival()) == golden("v1/copy_id.json")["copy_id"]
        assert len(identity_of(arrival())) == 32

    def test_a_copy_never_goes_under_the_events_own_id(self) -> None:
        made = [retry_copy(failed()), dead_copy(failed()), redrive_copy(failed())]

        assert len({copy.copy_id for copy in made} | {"e-1"}) == 4

    @given(
        st.lists(
            st.tuples(st.sampled_from(["retry", "dead", "redrive"]), *[st.integers(0, 1_000_001)] * 3),
            unique=True,
        )
    )
    @examples(60)
    def test_no_two_hops_share_an_id(self, hops: list[tuple[str, int, int, int]]) -> None:
        delivery = arrival()

        ids = {
            copy_id(delivery, stage=stage, run=run, attempt=attempt, hop=hop)
            for stage, run, attempt, hop in hops
        }

        assert len(ids) == len(hops)

    def test_run_attempt_and_hop_are_not_mixed_up(self) -> None:
        delivery = arrival()
        ids = {
            identity_of(delivery, run=1, attempt=11, hop=1),
            identity_of(delivery, run=11, attempt=1, hop=1),
            identity_of(delivery, run=1, attempt=1, hop=11),
            identity_of(delivery, run=1, attempt=1, hop=1),
        }

        assert len(ids) == 4

    names = st.text(alphabet="a\x1f\x00/:8", min_size=1, max_size=4)

    @given(st.tuples(names, names, names, names), st.tuples(names, names, names, names))
    @examples(150)
    def test_no_two_events_places_or_groups_share_an_id(
        self, one: tuple[str, ...], other: tuple[str, ...]
    ) -> None:
        def made(source: str, identity: str, channel: str, group: str) -> str:
            event = message_of(ordered(source=source, identity=identity))
            return identity_of(arrival(event, channel=channel, group=group))

        assert (made(*one) == made(*other)) == (one == other)

    def test_a_separator_inside_an_id_does_not_make_two_events_one(self) -> None:
        one = message_of(ordered(source="a\x1fb", identity="c"))
        other = message_of(ordered(source="a", identity="b\x1fc"))

        assert identity_of(arrival(one)) != identity_of(arrival(other))

    def test_ids_with_lone_surrogates_have_copies_too(self) -> None:
        body = b'{"specversion":"1.0","id":"\\ud800","source":"s","type":"t"}'
        delivery = arrival(copy_with(body=body))

        assert delivery.event.id == "\ud800"
        assert len(identity_of(delivery)) == 32

    def test_every_hop_of_a_life_has_an_id_of_its_own(self) -> None:
        seen: list[str | None] = []
        delivery = arrival()
        for _ in range(3):
            for _ in range(4):
                copy = retry_copy(delivery)
                seen.append(copy.copy_id)
                delivery = arrival(copy, INLET)
            dead = dead_copy(delivery)
            again = redrive_copy(arrival(dead, DEAD))
            seen += [dead.copy_id, again.copy_id]
            delivery = arrival(again, INLET)

        assert len(set(seen)) == len(seen) == 18

    def test_strangers_without_coordinates_never_share_one(self) -> None:
        """A broker that drops repeated ids would confirm the second copy and throw it away."""
        plain = Message(body=b"same")

        assert retry_copy(arrival(plain)).copy_id != retry_copy(arrival(plain)).copy_id
