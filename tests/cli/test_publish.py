import json
from pathlib import Path

import pytest

from tests.cli.conftest import Brokerkit


@pytest.fixture(autouse=True)
def _broker(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKERKIT_URL", url)


@pytest.fixture
def publish(brokerkit: Brokerkit, url: str) -> Brokerkit:
    return lambda *arguments, **more: brokerkit("publish", "orders", *arguments, "--url", url, **more)


@pytest.fixture
def stored(brokerkit: Brokerkit, url: str) -> Brokerkit:
    return lambda *arguments: brokerkit(
        "tail", "orders", "--no-follow", "-o", "json", "--url", url, *arguments
    )


def test_an_event_arrives_with_what_the_flags_say_and_its_id_is_printed(
    publish: Brokerkit, stored: Brokerkit
) -> None:
    done = publish(
        '{"total": 17}',
        "--type",
        "order.placed",
        "--key",
        "o-17",
        "--id",
        "e-1",
        "--header",
        "a=b=c",
        "--name",
        "shop",
    )
    (item,) = stored().items

    assert (done.code, done.out) == (0, "e-1\n")
    assert (item["id"], item["source"], item["type"], item["key"]) == ("e-1", "shop", "order.placed", "o-17")
    assert item["headers"] == [["a", "b=c"]]
    assert item["data"] == {"total": 17}


def test_data_travels_as_it_was_written(publish: Brokerkit, brokerkit: Brokerkit, url: str) -> None:
    written = '{"price": 1.50,  "n": 12345678901234567890.0}'
    publish(written, "--type", "t")

    assert written in brokerkit("tail", "orders", "--no-follow", "--raw", "--url", url).out


def test_a_body_comes_from_a_file_or_from_stdin(
    publish: Brokerkit, stored: Brokerkit, tmp_path: Path
) -> None:
    (tmp_path / "body.json").write_text("[1]\n")
    publish("@body.json", "--type", "t")
    publish("-", "--type", "t", stdin="[2]")

    assert [item["data"] for item in stored().items] == [[1], [2]]


def test_text_travels_under_its_own_content_type(publish: Brokerkit, stored: Brokerkit) -> None:
    publish("hello", "--type", "t", "--content-type", "text/plain")
    (item,) = stored().items

    assert item["content_type"] == "text/plain"
    assert item["data_base64"] == "aGVsbG8="


@pytest.mark.parametrize("envelope", ["structured", "binary", "plain"])
def test_each_envelope_carries_the_data(envelope: str, publish: Brokerkit, stored: Brokerkit) -> None:
    publish("[1]", "--envelope", envelope, *(() if envelope == "plain" else ("--type", "t")))
    (item,) = stored().items

    assert item["data"] == [1]
    assert item["type"] == (None if envelope == "plain" else "t")


def test_count_sends_several_with_an_id_each(publish: Brokerkit, stored: Brokerkit) -> None:
    done = publish("1", "--type", "t", "--count", "1001")

    assert len(set(done.out.split())) == 1001
    assert len(stored().items) == 1001


def test_the_answer_for_programs_names_every_event(publish: Brokerkit) -> None:
    whole = json.loads(publish("1", "--type", "t", "--id", "a", "-o", "json").out)
    line = json.loads(publish("1", "--type", "t", "--id", "a", "-o", "ndjson").out)

    assert whole == {"schema": {"name": "brokerkit.publish", "version": 1}, "items": [line], "next": None}
    assert line == {"number": 1, "id": "a", "source": "brokerkit-cli", "type": "t", "error": None}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("1",), "--type is missing"),
        ((), "BODY is missing"),
        (("{", "--type", "t"), "not JSON"),
        (("NaN", "--type", "t"), "NaN has no JSON form"),
        (("@nowhere.json", "--type", "t"), "@nowhere.json"),
        (("1", "--type", "t", "--header", "tenant"), "NAME=VALUE"),
        (("1", "--type", "t", "--header", "bk-v=1"), "bk-v"),
        (("1", "--type", "t", "--id", "a", "--count", "2"), "--count 2"),
        (("1", "--from-ndjson", "-"), "--from-ndjson and BODY"),
        (("1", "--type", "t", "--count", "0"), "--count"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_moves(
    arguments: tuple[str, ...], said: str, publish: Brokerkit, brokerkit: Brokerkit, url: str
) -> None:
    done = publish(*arguments, stdin="")

    assert done.code == 2
    assert said in done.err
    assert brokerkit("tail", "orders", "--no-follow", "--url", url).out == ""


def test_a_wrong_channel_name_is_refused_with_a_right_one(brokerkit: Brokerkit, url: str) -> None:
    done = brokerkit("publish", "Orders", "1", "--type", "t", "--url", url)

    assert done.code == 2
    assert "'orders'" in done.err


def test_must_route_refuses_what_no_group_reads(publish: Brokerkit) -> None:
    done = publish("1", "--type", "t", "--must-route")

    assert done.code == 6
    assert "--must-route" in done.err


def test_lines_say_what_is_sent_and_flags_fill_the_gaps(publish: Brokerkit, stored: Brokerkit) -> None:
    lines = [
        {
            "data": {"n": 1},
            "type": "a",
            "key": "k",
            "id": "e-1",
            "subject": "s",
            "headers": [["h", "1"], ["h", "2"]],
        },
        {"data": None, "headers": {"h": "v"}, "extensions": {"tenant": "acme"}},
        {"data_base64": "AAE="},
    ]
    done = publish("--from-ndjson", "-", "--type", "b", stdin="\n\n".join(map(json.dumps, lines)))
    first, second, third = stored().items

    assert done.code == 0
    assert (first["id"], first["type"], first["key"], first["subject"]) == ("e-1", "a", "k", "s")
    assert first["headers"] == [["h", "1"], ["h", "2"]]
    assert (second["type"], second["data"], second["extensions"]) == ("b", None, {"tenant": "acme"})
    assert third["data_base64"] == "AAE="


def test_what_tail_prints_can_be_published_again(
    publish: Brokerkit, stored: Brokerkit, brokerkit: Brokerkit, url: str
) -> None:
    publish('{"n": 1}', "--type", "a", "--key", "k", "--header", "h=v")
    publish(
        "--from-ndjson",
        "-",
        stdin='{"data_base64": "AAE=", "type": "b", "headers": [["x", {"base64": "/w=="}]]}',
    )
    printed = brokerkit("tail", "orders", "--no-follow", "-o", "ndjson", "--url", url).out
    again = publish("--from-ndjson", "-", stdin=printed)
    items = [{**item, "position": None, "time": None} for item in stored().items]

    assert again.code == 0
    assert items[:2] == items[2:]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("not json", "Expecting value"),
        ("[]", "an object"),
        ('{"data": 1}', "'type'"),
        ('{"type": "t"}', "'data'"),
        ('{"type": "t", "data": 1, "data_base64": "AA=="}', "one of"),
        ('{"type": "t", "data_base64": "?"}', "base64"),
        ('{"type": 1, "data": 1}', "'type' is int"),
        ('{"type": "t", "data": 1, "tpye": "t"}', "'tpye'"),
        ('{"type": "t", "data": 1, "headers": [["bk-v", "1"]]}', "bk-v"),
        ('{"type": "t", "data": 1, "headers": 7}', "'headers'"),
        ('{"type": "t", "data": 1, "extensions": [1]}', "extensions"),
        ('{"type": "t", "data": 1e999}', "JSON"),
    ],
)
def test_a_line_that_cannot_be_sent_is_named_and_harms_no_other(
    line: str, why: str, publish: Brokerkit, stored: Brokerkit
) -> None:
    good = '{"type": "t", "data": 1}'
    done = publish("--from-ndjson", "-", "-o", "json", stdin=f"{good}\n{line}\n{good}\n")
    bad = [item for item in done.items if item["error"]]

    assert done.code == 3
    assert done.err.startswith("2: ")
    assert why in done.err
    assert [item["number"] for item in bad] == [2]
    assert len(stored().items) == 2


def test_lines_of_which_none_can_be_sent_have_the_code_of_the_first(publish: Brokerkit) -> None:
    assert publish("--from-ndjson", "-", stdin="{}\n{}\n").code == 1


def test_many_lines_arrive_in_order(publish: Brokerkit, stored: Brokerkit) -> None:
    lines = "".join(json.dumps({"type": "t", "data": {"n": n, "pad": "x" * 200}}) + "\n" for n in range(2000))
    done = publish("--from-ndjson", "-", stdin=lines)

    assert done.code == 0
    assert [item["data"]["n"] for item in stored().items] == list(range(2000))


@pytest.mark.usefixtures("adapters")
def test_lines_stop_at_a_broker_that_is_gone(brokerkit: Brokerkit) -> None:
    done = brokerkit(
        "publish",
        "orders",
        "--from-ndjson",
        "-",
        "--url",
        "walled://x",
        "--timeout",
        "0.1",
        stdin='{"type": "t", "data": 1}',
    )

    assert done.code == 4
