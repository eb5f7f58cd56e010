import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Brokerkit


@pytest.fixture
def tail(brokerkit: Brokerkit, url: str) -> Brokerkit:
    return lambda *arguments: brokerkit("tail", "orders", "--url", url, *arguments)


@pytest.fixture
def five(brokerkit: Brokerkit, url: str) -> None:
    lines = "".join(
        json.dumps({"type": "order.placed", "id": f"o-{n}", "key": f"k-{n}", "data": {"n": n}}) + "\n"
        for n in range(5)
    )
    assert brokerkit("publish", "orders", "--from-ndjson", "-", "--url", url, stdin=lines).code == 0


@pytest.mark.usefixtures("five")
@pytest.mark.parametrize(
    ("flags", "ids"),
    [
        ((), [0, 1, 2, 3, 4]),
        (("--last", "2"), [3, 4]),
        (("--last", "9"), [0, 1, 2, 3, 4]),
        (("--last", "0"), []),
        (("--count", "2"), [0, 1]),
        (("--last", "3", "--count", "1"), [2]),
    ],
)
def test_what_is_stored_is_shown_as_far_as_it_is_wanted(
    flags: tuple[str, ...], ids: list[int], tail: Brokerkit
) -> None:
    done = tail("--no-follow", "-o", "json", *flags)

    assert done.code == 0
    assert [item["id"] for item in done.items] == [f"o-{n}" for n in ids]


@pytest.mark.usefixtures("five")
def test_the_fields_of_an_item_are_these(tail: Brokerkit) -> None:
    whole = json.loads(tail("--no-follow", "-o", "json", "--last", "1").out)

    assert whole["schema"] == {"name": "brokerkit.tail", "version": 1}
    fields = {
        "channel",
        "position",
        "id",
        "source",
        "type",
        "subject",
        "time",
        "key",
        "headers",
        "extensions",
    }
    assert set(whole["items"][0]) == fields | {"content_type", "data"}


@pytest.mark.usefixtures("five")
def test_a_line_for_people_has_type_id_and_data(tail: Brokerkit) -> None:
    head, data = tail("--no-follow", "--last", "1").out.splitlines()

    assert "order.placed o-4 key=k-4" in head
    assert data == '    {"n":4}'


@pytest.mark.usefixtures("five")
def test_headers_only_leaves_the_data_out(tail: Brokerkit) -> None:
    assert '"n"' not in tail("--no-follow", "--headers-only").out
    assert "data" not in tail("--no-follow", "--headers-only", "-o", "json", "--last", "1").items[0]


@pytest.mark.usefixtures("five")
def test_raw_is_the_message_itself(tail: Brokerkit) -> None:
    assert json.loads(tail("--no-follow", "--raw", "--last", "1").out)["specversion"] == "1.0"


def test_a_foreign_message_cannot_steer_the_terminal(brokerkit: Brokerkit, tail: Brokerkit, url: str) -> None:
    brokerkit(
        "publish",
        "orders",
        "\x1b]0;owned\x07\x1b[2J",
        "--type",
        "t",
        "--content-type",
        "text/plain",
        "--url",
        url,
    )

    shown = tail("--no-follow").out
    assert "\x1b" not in shown
    assert "\\u001b[2J" in shown


def test_waiting_for_a_message_that_does_not_come_is_124(tail: Brokerkit) -> None:
    done = tail("--count", "1", "--timeout", "0.3")

    assert done.code == 124
    assert "0 of 1" in done.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("-o", "json"), "--count"),
        (("--raw", "-o", "json"), "--raw and --output json"),
        (("--raw", "--headers-only"), "--raw and --headers-only"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    flags: tuple[str, ...], said: str, tail: Brokerkit
) -> None:
    done = tail(*flags)

    assert done.code == 2
    assert said in done.err


@pytest.mark.usefixtures("adapters")
def test_a_broker_that_cannot_be_read_without_taking_is_refused(brokerkit: Brokerkit) -> None:
    done = brokerkit("tail", "orders", "--url", "taking://x", "--no-follow")

    assert done.code == 6
    assert "takes nothing" in done.err


def test_following_shows_what_comes_and_an_interrupt_is_130(
    url: str, brokerkit: Brokerkit, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with out.open("wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", "brokerkit.cli", "tail", "orders", "--url", url, "-o", "ndjson"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=os.environ,
        )
    try:
        deadline = time.monotonic() + 30
        sent = 0
        while not out.read_text():
            assert time.monotonic() < deadline
            brokerkit("publish", "orders", str(sent), "--type", "t", "--url", url)
            sent += 1
        shown = out.read_text().count("\n")
        for number in range(3):
            brokerkit("publish", "orders", str(sent + number), "--type", "t", "--url", url)
            while out.read_text().count("\n") == shown + number:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        time.sleep(0.3)  # some looks at nothing new
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()

    numbers = [json.loads(line)["data"] for line in out.read_text().splitlines()]
    assert numbers == list(range(numbers[0], sent + 3))
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_a_reader_that_has_enough_is_no_failure(url: str, brokerkit: Brokerkit) -> None:
    brokerkit("publish", "orders", '"' + "x" * 1000 + '"', "--type", "t", "--count", "2000", "--url", url)
    done = subprocess.run(
        f"{sys.executable} -m brokerkit.cli tail orders --no-follow --url {url} | head -n 1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""
