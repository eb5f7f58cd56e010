import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
from cloudevents.core.bindings import http as oracle
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import assume, example, given
from hypothesis import strategies as st

from brokerkit import envelope as module
from brokerkit.envelope import STRUCTURED, Form, lay, open_event, timestamp
from brokerkit.event import Event
from brokerkit.message import Header, Message
from tests.core.deliveries import case, examples

_split = module._split
_walk = module._walk
_event = module._event
_read_ordinary = module._read_ordinary

WEIRD = (
    "",
    "a'b\"c",
    "../x",
    "100%",
    "%41",
    "é",
    "😀",
    "\u202eabc",
    "e\u0301",
    "a b",
    "\t",
    "\x7f",
    "=",
    '"',
)


def stranger() -> tuple[str, str]:
    return ("/orders", "orders#0/1")


def opened(
    body: bytes | str, content_type: str | None = STRUCTURED, headers: tuple[Header, ...] = ()
) -> Event[bytes]:
    raw = body.encode() if isinstance(body, str) else body
    return open_event(Message(body=raw, content_type=content_type, headers=headers), stranger)


def envelope(**members: Any) -> str:
    return json.dumps({"specversion": "1.0", "id": "1", "source": "s", "type": "t", **members})


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
some_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8).filter(
    lambda name: name not in {"id", "source", "type", "time", "subject", "data", "specversion"}
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
datas = st.one_of(
    st.binary(max_size=30),
    json_values.map(lambda value: json.dumps(value).encode()),
    json_values.map(lambda value: json.dumps(value, ensure_ascii=False).encode()),
    st.sampled_from(
        [b"", b"null", b"1,2", b'1,"id":"x"', b" 1", b"1 ", b"{}\n", b"NaN", b'"\xff"', b"[" * 300, b"\x00"]
    ),
)
content_types = st.sampled_from(
    [None, "application/json", "APPLICATION/JSON; charset=utf-8", "application/vnd.x+json", "text/plain", "x"]
)
events = st.builds(
    Event,
    id=some_text,
    source=some_text,
    type=some_text,
    data=datas,
    subject=st.none() | text,
    time=st.none() | text,
    datacontenttype=content_types,
    dataschema=st.none() | text,
    extensions=st.dictionaries(names, text, max_size=3),
)
headers_like = st.lists(
    st.tuples(st.sampled_from(["a", "A", "tenant", "x"]), text | st.binary(max_size=5)), max_size=3
)
keys = st.none() | st.binary(max_size=5)


@given(
    events,
    st.sampled_from(["structured", "binary"]),
    keys,
    headers_like.map(tuple),
    st.sampled_from(["ce-", "ce_"]),
)
@examples(120)
def test_an_event_comes_back_as_it_was(
    event: Event[bytes],
    form: Form,
    key: bytes | None,
    headers: tuple[Header, ...],
    prefix: Literal["ce-", "ce_"],
) -> None:
    message = lay(event, form, key=key, headers=headers, prefix=prefix)

    assert open_event(message, stranger) == event
    assert message.key == key
    assert message.headers[len(message.headers) - len(headers) :] == headers


@given(events, st.sampled_from(["structured", "binary"]))
@examples(20)
def test_the_id_of_a_first_publish_stands_for_source_and_id_together(event: Event[bytes], form: Form) -> None:
    def copy_id(**changes: Any) -> str | None:
        return lay(replace(event, **changes), form, key=None, headers=()).copy_id

    assert copy_id(data=b"other") == copy_id()
    assert len({copy_id(), copy_id(id=event.id + "x"), copy_id(source=event.source + "x")}) == 3


def test_kafka_s_prefix_stands_before_attributes_that_are_not_encoded() -> None:
    event = Event(id="é 1", source="s", type="t", data=b"x", datacontenttype="text/plain")
    message = lay(event, "binary", key=None, headers=(), prefix="ce_")
    assert ("ce_id", "é 1") in message.headers
    assert not any(name.startswith("ce-") for name, _ in message.headers)


@given(events, keys, headers_like.map(tuple))
@examples(60)
def test_a_plain_message_carries_the_data_and_nothing_else(
    event: Event[bytes], key: bytes | None, headers: tuple[Header, ...]
) -> None:
    message = lay(event, "plain", key=key, headers=headers)

    assert message == Message(
        body=event.data,
        content_type=event.datacontenttype,
        key=key,
        headers=headers,
        copy_id=message.copy_id,
    )


@given(events)
@examples(60)
def test_a_structured_event_is_json_with_the_required_attributes(event: Event[bytes]) -> None:
    assume(event.data != b"NaN")
    message = lay(event, "structured", key=None, headers=())

    read = json.loads(message.body)
    assert message.content_type == STRUCTURED
    assert (read["specversion"], read["id"], read["source"], read["type"]) == (
        "1.0",
        event.id,
        event.source,
        event.type,
    )
    assert not ("data" in read and "data_base64" in read)


ORACLE = JSONFormat()
SOME = [word for word in WEIRD if word]


@pytest.mark.parametrize("weird", SOME, ids=case)
def test_the_sdk_reads_what_we_write_structured(weird: str) -> None:
    event = Event(
        id=weird, source="s", type="t", data=b'{"a":1}', subject=weird, datacontenttype="application/json"
    )
    message = lay(event, "structured", key=None, headers=())

    read = oracle.from_structured(oracle.HTTPMessage({"content-type": STRUCTURED}, message.body), ORACLE)

    assert (read.get_id(), read.get_subject(), read.get_data()) == (weird, weird, {"a": 1})


@pytest.mark.parametrize("weird", SOME, ids=case)
def test_the_sdk_reads_what_we_write_binary(weird: str) -> None:
    event = Event(
        id=weird, source="s", type="t", data=b'{"a":1}', subject=weird, datacontenttype="application/json"
    )
    message = lay(event, "binary", key=None, headers=())
    headers = {name: str(value) for name, value in message.headers}

    read = oracle.from_binary(
        oracle.HTTPMessage({**headers, "content-type": "application/json"}, message.body), ORACLE
    )

    assert (read.get_id(), read.get_subject(), read.get_data()) == (weird, weird, {"a": 1})


@pytest.mark.parametrize("weird", SOME, ids=case)
@pytest.mark.parametrize("write", [oracle.to_structured, oracle.to_binary])
def test_we_read_what_the_sdk_writes(
    weird: str, write: Callable[[CloudEvent, JSONFormat], oracle.HTTPMessage]
) -> None:
    attributes = {
        "id": weird,
        "source": "s",
        "type": "t",
        "subject": weird,
        "specversion": "1.0",
        "datacontenttype": "application/json",
        "tenant": "acme",
    }
    written = write(CloudEvent(attributes, {"a": 1}), ORACLE)
    content_type = next(value for name, value in written.headers.items() if name.lower() == "content-type")
    headers = tuple(
        (name, value) for name, value in written.headers.items() if name.lower() != "content-type"
    )

    read = open_event(
        Message(body=written.body, content_type=content_type, headers=headers), lambda: ("/orders", "?")
    )

    assert read.error is None
    assert (read.id, read.subject, json.loads(read.data)) == (weird, weird, {"a": 1})
    assert read.extensions["tenant"] == "acme"


class TestWriting:
    def test_a_structured_event_is_compact_with_data_last(self) -> None:
        event = Event(id="1", source="s", type="t", data=b'{"a":1}', extensions={"x": "é"})

        assert lay(event, "structured", key=None, headers=()).body.decode() == (
            '{"specversion":"1.0","id":"1","source":"s","type":"t","x":"é","data":{"a":1}}'
        )

    @pytest.mark.parametrize(
        ("data", "content_type", "ending"),
        [
            (b"", None, '"t"}'),
            (b"7", None, ',"data":7}'),
            (b"7", "text/plain", ',"data_base64":"Nw=="}'),
            (b'1,"id":"forged"', "application/json", ',"data_base64":"MSwiaWQiOiJmb3JnZWQi"}'),
            (b" 7", "application/json", ',"data_base64":"IDc="}'),
            (b"{", "application/json", ',"data_base64":"ew=="}'),
        ],
    )
    def test_data_that_is_no_json_travels_as_base64_whatever_it_calls_itself(
        self, data: bytes, content_type: str | None, ending: str
    ) -> None:
        event = Event(id="1", source="s", type="t", data=data, datacontenttype=content_type)

        assert lay(event, "structured", key=None, headers=()).body.decode().endswith(ending)

    def test_binary_attributes_are_percent_encoded_headers(self) -> None:
        event = Event(id="a b", source='"é%', type="t", data=b"d", subject="~!", datacontenttype="text/plain")
        message = lay(event, "binary", key=None, headers=(("mine", "1"),))

        assert message.headers == (
            ("ce-specversion", "1.0"),
            ("ce-id", "a%20b"),
            ("ce-source", "%22%C3%A9%25"),
            ("ce-type", "t"),
            ("ce-subject", "~!"),
            ("mine", "1"),
        )
        assert (message.body, message.content_type) == (b"d", "text/plain")

    @pytest.mark.parametrize(
        ("seconds", "written"),
        [(0, "1970-01-01T00:00:00Z"), (1767225600.5, "2026-01-01T00:00:00.500000Z")],
    )
    def test_wall_time_is_written_in_utc(self, seconds: float, written: str) -> None:
        assert timestamp(seconds) == written


class TestTellingApart:
    @pytest.mark.parametrize(
        "content_type",
        [
            "application/cloudevents+json",
            "Application/CloudEvents+JSON",
            "application/cloudevents+json; charset=utf-8",
            "application/cloudevents+json ;charset=UTF-8",
            " application/cloudevents+json",
        ],
    )
    def test_a_structured_content_type_is_known_in_any_case_and_with_parameters(
        self, content_type: str
    ) -> None:
        assert opened(envelope(), content_type).id == "1"

    @pytest.mark.parametrize(
        "content_type",
        ["application/cloudevents", "application/cloudevents-batch+json", "application/cloudevents+avro"],
    )
    def test_a_format_that_is_not_read_is_an_error_and_no_stranger(self, content_type: str) -> None:
        event = opened(envelope(), content_type)

        assert event.error == f"content type '{content_type}': only the JSON format of single events is read"
        assert (event.id, event.derived, event.data) == ("orders#0/1", True, envelope().encode())

    @pytest.mark.parametrize(
        "prefix", ["ce-", "CE-", "ce_", "Ce_", "cloudEvents:", "cloudEvents_", "cloudevents:"]
    )
    def test_every_way_of_writing_binary_attributes_is_read(self, prefix: str) -> None:
        attributes = {"SpecVersion": "1.0", "id": "1", "Source": "s", "type": "t", "Subject": "x", "my": "y"}
        headers = tuple((prefix + name, value) for name, value in attributes.items())

        event = opened(b"d", "text/plain", headers)

        assert (event.id, event.source, event.type, event.subject, event.data) == ("1", "s", "t", "x", b"d")
        assert (event.extensions, event.datacontenttype) == ({"my": "y"}, "text/plain")

    def test_a_json_object_without_content_type_that_has_the_four_attributes_is_structured(self) -> None:
        assert opened(envelope(data={"a": 1}), None).identity == ("s", "1")

    @pytest.mark.parametrize(
        "body",
        [
            '{"events":[{"specversion":"1.0","id":"1","source":"s","type":"t"}]}',
            '{"id":1,"note":"\\"source\\" \\"type\\" \\"specversion\\"","source":0,"type":0,"x":{"specversion":1}}',
            '{"id":"1","source":"s","type":"t"}',
        ],
    )
    def test_a_strangers_json_that_only_mentions_them_is_plain(self, body: str) -> None:
        event = opened(body, None)

        assert (event.error, event.derived, event.data) == (None, True, body.encode())

    @pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/xml", ""])
    def test_with_another_content_type_it_is_plain(self, content_type: str) -> None:
        event = opened(envelope(), content_type)

        assert (event.error, event.derived, event.datacontenttype) == (None, True, content_type)

    def test_a_plain_message_gets_its_id_from_where_it_stands(self) -> None:
        event = opened(b"\xff\x00", None)

        assert event == Event(id="orders#0/1", source="/orders", type="", data=b"\xff\x00", derived=True)

    def test_a_header_that_only_ends_in_specversion_makes_nothing_binary(self) -> None:
        assert opened(b"d", None, (("x-specversion", "1.0"), ("ce-id", "1"))).derived


class TestBinary:
    REQUIRED: tuple[Header, ...] = (
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "s"),
        ("ce-type", "t"),
    )

    def test_values_in_bytes_are_read(self) -> None:
        headers = tuple((name, str(value).encode()) for name, value in self.REQUIRED)

        assert opened(b"d", None, headers).identity == ("s", "1")

    def test_a_value_that_is_no_text_is_an_error(self) -> None:
        assert opened(b"d", None, (*self.REQUIRED, ("ce-x", b"\xff"))).error

    @pytest.mark.parametrize(
        ("name", "value", "read"),
        [
            ("ce-subject", "a%20b", "a b"),
            ("ce-subject", "50%fe", "50%fe"),
            ("ce-subject", "100%", "100%"),
            ("ce_subject", "a%20b", "a%20b"),
            ("cloudEvents:subject", "%41", "%41"),
        ],
    )
    def test_percent_signs_are_undone_where_the_binding_has_them(
        self, name: str, value: str, read: str
    ) -> None:
        assert opened(b"d", None, (*self.REQUIRED, (name, value))).subject == read

    def test_the_content_type_is_the_datas(self) -> None:
        headers = (*self.REQUIRED, ("ce-datacontenttype", "text/plain"))

        assert opened(b"d", None, headers).datacontenttype == "text/plain"
        assert opened(b"d", "text/xml", headers).datacontenttype == "text/xml"

    @pytest.mark.parametrize("name", ["ce-data", "ce-data_base64", "ce-"])
    def test_a_header_cannot_stand_in_for_the_body(self, name: str) -> None:
        event = opened(b"body", "application/json", (*self.REQUIRED, (name, "!")))

        assert (event.error, event.data, event.extensions) == (None, b"body", {})

    def test_a_body_that_is_not_what_it_says_is_for_the_codec_to_refuse(self) -> None:
        assert opened(b"\xff", "application/json", self.REQUIRED).error is None


class TestStructured:
    def test_extensions_become_text_and_null_is_absent(self) -> None:
        event = opened(envelope(n=5, yes=True, obj={"a": [1]}, gone=None, subject=None, text="t"))

        assert event.extensions == {"n": "5", "yes": "true", "obj": '{"a": [1]}', "text": "t"}
        assert event.subject is None

    def test_all_attributes_are_read(self) -> None:
        event = opened(
            envelope(subject="sub", time="t", datacontenttype="text/plain", dataschema="d", data="héllo")
        )

        assert event == Event(
            id="1",
            source="s",
            type="t",
            data="héllo".encode(),
            subject="sub",
            time="t",
            datacontenttype="text/plain",
            dataschema="d",
        )

    @pytest.mark.parametrize(
        ("more", "data"),
        [
            ('"data_base64":"/w=="', b"\xff"),
            ('"datacontenttype":"text/xml","data":"<a/>"', b"<a/>"),
            ('"datacontenttype":"text/xml","data":{"a" : 1}', b'{"a" : 1}'),
            ('"datacontenttype":"application/json","data":"x"', b'"x"'),
            ('"datacontenttype":"Application/JSON ; a=b","data":"x"', b'"x"'),
            ('"data":null', b"null"),
            ('"data" : [1, 2] ', b"[1, 2]"),
            ('"data":"\\ud800"', b'"\\ud800"'),
        ],
    )
    def test_data_is_kept_as_the_sender_wrote_it(self, more: str, data: bytes) -> None:
        event = opened(envelope()[:-1] + f",{more}}}")

        assert (event.error, event.data) == (None, data)

    @pytest.mark.parametrize(
        ("more", "why"),
        [
            ('"data_base64":"!"', "data_base64 is not base64"),
            ('"data_base64":7', "data_base64 is not base64"),
            ('"data_base64":null', "data_base64 is not base64"),
            ('"data_base64":"é"', "data_base64 is not base64"),
            ('"data_base64":"","data":1', "data and data_base64 stand both"),
            ('"data":1,"data":2', "attribute 'data' stands twice"),
            ('"id":"2","data":1', "attribute 'id' stands twice"),
            ('"\\u0069d":"2","data":1', "attribute 'id' stands twice"),
            ('"subject":7', "attribute 'subject' is not text"),
            ('"time":[],"data":1', "attribute 'time' is not text"),
            ('"datacontenttype":"text/plain","data":"\\ud800"', "surrogates not allowed"),
        ],
    )
    def test_an_envelope_that_contradicts_itself_is_an_error(self, more: str, why: str) -> None:
        event = opened(envelope()[:-1] + f",{more}}}")

        assert event.error is not None
        assert why in event.error


class TestBadInputs:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"x",
            b"null",
            b"[]",
            b'"x"',
            b"{",
            b"{}",
            b'{"specversion":"1.0"',
            b'{"specversion" "1.0"}',
            b'{specversion:"1.0"}',
            b"\xff\xfe",
            b"\x00",
            b'{"a":' * 100_000,
            b"[" * 100_000,
            envelope(data={"a": 1}).encode()[:-1],
            envelope(data={"a": 1}).encode()[:-2],
            envelope(data={"a": 1}).encode()[:-1] + b",}",
            envelope(data=1).encode() + b"}",
            envelope(data=1).encode() + b" x",
            envelope(data=1).encode() + "\u00a0".encode(),
            envelope(data=1).encode("utf-16"),
            envelope()[:-1].encode() + b',"data":[1,2,{}',
            envelope()[:-1].encode() + b',"data":1 2}',
            envelope()[:-1].encode() + b',"data":}',
            envelope()[:-1].encode() + b',"n":' + b"1" * 5000 + b',"data":1}',
        ],
        ids=case,
    )
    def test_b1_b3_b17_what_cannot_be_read_is_an_error_with_the_body_as_it_came(self, body: bytes) -> None:
        event = opened(body)

        assert event.error
        assert (event.data, event.derived, event.type, event.id) == (body, True, "", "orders#0/1")

    @pytest.mark.parametrize(
        "identity", [*(word for word in WEIRD if word), "i" * 10_000, "'; DROP TABLE", "a\x00b", "é\u0301"]
    )
    def test_b5_b13_odd_ids_are_kept_and_not_normalised(self, identity: str) -> None:
        assert (
            opened(json.dumps({"specversion": "1.0", "id": identity, "source": "s", "type": "t"})).id
            == identity
        )

    def test_b5_a_lone_surrogate_is_kept(self) -> None:
        assert opened('{"specversion":"1.0","id":"\\ud800","source":"s","type":"t"}').id == "\ud800"

    @pytest.mark.parametrize("missing", ["id", "source", "type"])
    @pytest.mark.parametrize("value", ["", None, 7, ["x"]])
    def test_b27_a_required_attribute_is_a_text_that_is_not_empty(self, missing: str, value: object) -> None:
        event = opened(envelope(**{missing: value}))

        assert event.error == f"required attribute {missing!r} is missing or empty"

    @pytest.mark.parametrize("version", ["2.0", "0.3", "1", "", None, 1.0, []])
    def test_b15_b27_any_other_specversion_is_an_error(self, version: object) -> None:
        assert opened(envelope(specversion=version)).error == f"specversion {version!r} is not 1.0"

    def test_b17_deep_data_in_an_envelope_that_is_shallow_is_no_error_of_recursion(self) -> None:
        deep = "[" * 400 + "]" * 400

        assert opened(envelope()[:-1] + f',"data":{deep}}}').data == deep.encode()

    @pytest.mark.parametrize(
        "content_type", ["application/x-python-serialize", "application/x-yaml", "application/gzip"]
    )
    def test_b25_b26_foreign_formats_stay_bytes(self, content_type: str) -> None:
        event = opened(b"cos\nsystem\n(S'x'\ntR.", content_type)

        assert (event.data, event.datacontenttype) == (b"cos\nsystem\n(S'x'\ntR.", content_type)

    @given(st.binary(max_size=60), st.sampled_from([None, STRUCTURED, "text/plain"]))
    @examples(60)
    def test_reading_never_raises(self, body: bytes, content_type: str | None) -> None:
        assert opened(body, content_type).data == body


def outcome(read: Any, body: bytes) -> object:
    try:
        members, data = read(body)
    except (ValueError, RecursionError) as error:
        return ("refused", isinstance(error, ValueError))
    return ({name: value for name, value in members.items() if name != "data"}, data)


spaces = st.text(" \t\n\r", max_size=2)
member_names = st.sampled_from(["id", "data", "x", 'a,"data":', "é", "data_base64", "\\", "\U0001f600"])


@st.composite
def written_envelopes(draw: st.DrawFn) -> bytes:
    """Write an object as odd as JSON allows: spaces, escapes, members behind the data, names that stand twice."""
    members: list[str] = []
    for name in draw(st.lists(member_names, max_size=5)):
        inner = draw(json_values | st.just({"x": 1, "data": {"data": 2}}) | st.just(',"data":1'))
        value = json.dumps(inner, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
        shown = json.dumps(name, ensure_ascii=draw(st.booleans()))
        if draw(st.booleans()):
            shown = shown.replace("da", "\\u0064a")
        members.append(f"{draw(spaces)}{shown}{draw(spaces)}:{draw(spaces)}{value}{draw(spaces)}")
    compact = draw(st.booleans())
    body = ",".join(member.strip() if compact else member for member in members)
    return (draw(st.sampled_from(["", "\ufeff"])) + draw(spaces) + "{" + body + "}" + draw(spaces)).encode()


class TestTheShortWay:
    @given(written_envelopes())
    @example(b'{"id":"a","id":"b","data":1}')
    @example(b'{"a":{"b":1,"data":2},"data":3}')
    @example(b'{"a":1,"data":{"x":1},"n":2}')
    @example(b'{"a":1,"data": 5 }')
    @example(b'{"data":0,"a":1,"data":2}')
    @example(b'{"a":1,"data":1,}')
    @example(b'{"a":",\\"data\\":","data":"}"}')
    @example(b'\xef\xbb\xbf{"a":1,"data":2}')
    @examples(200)
    def test_the_short_way_and_the_long_way_read_the_same(self, body: bytes) -> None:
        assert outcome(_split, body) == outcome(_walk, body)

    @given(st.text('{}[]",:\\ data1x\n', max_size=30))
    @examples(80)
    def test_they_agree_on_what_is_no_json_too(self, middle: str) -> None:
        body = ('{"a":1' + middle + "}").encode()

        assert outcome(_split, body) == outcome(_walk, body)

    @given(written_envelopes())
    @examples(80)
    def test_the_long_way_reads_what_json_reads(self, body: bytes) -> None:
        names: list[list[str]] = []

        def noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            names.append([name for name, _ in pairs])
            return dict(pairs)

        reference = json.loads(body.decode("utf-8-sig"), object_pairs_hook=noted)
        if len(set(names[-1])) != len(names[-1]):
            with pytest.raises(ValueError, match="stands twice"):
                _walk(body)
            return
        members, data = _walk(body)
        assert members == reference
        assert (json.loads(data) if data else None) == reference.get("data")

    def test_what_brokerkit_writes_takes_the_short_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: bytes) -> None:
            raise AssertionError

        message = lay(
            Event(id="1", source="s", type="t", data=b'{"data":{"data":1}}'),
            "structured",
            key=None,
            headers=(),
        )
        monkeypatch.setattr("brokerkit.envelope._walk", fail)

        assert open_event(message, stranger).data == b'{"data":{"data":1}}'


ORDINARY = (
    b'{"specversion":"1.0","id":"o-1","source":"shop","type":"order.placed","subject":"s","time":"2026-01-31T12:00:00Z",'
    b'"datacontenttype":"application/json","data":{"n":1}}'
)
oddities = st.sampled_from(
    [b'"', b"\\", b",", b'"id":"x",', b',"data":2', b"}", b"\n", b"\xff", b"\xc3\xa9", b" ", b'"x":"y",', b""]
)


class TestTheOrdinaryWay:
    @given(st.integers(0, len(ORDINARY)), st.integers(0, 12), oddities)
    @examples(400)
    def test_it_reads_the_same_as_the_long_way_or_leaves_it_to_that(
        self, at: int, cut: int, odd: bytes
    ) -> None:
        body = ORDINARY[:at] + odd + ORDINARY[at + cut :]
        try:
            event = _read_ordinary(body)
        except UnicodeDecodeError:
            with pytest.raises(UnicodeDecodeError):
                _walk(body)
            return
        assert event is None or event == _event(*_walk(body))

    def test_it_reads_what_brokerkit_writes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: bytes) -> None:
            raise AssertionError

        monkeypatch.setattr("brokerkit.envelope._split", fail)
        for subject, time in ((None, None), ("s", "2026-01-31T12:00:00Z")):
            event = Event(
                id="é",
                source="shop",
                type="t",
                data=b'{"data":[1]}',
                subject=subject,
                time=time,
                datacontenttype="application/json",
            )
            message = lay(event, "structured", key=None, headers=())
            assert open_event(message, stranger) == event
