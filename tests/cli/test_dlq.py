import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.cli.conftest import Brokerkit

PLACE = ("--channel", "orders", "--group", "billing")
Make = Callable[..., None]


@pytest.fixture
def dlq(brokerkit: Brokerkit, url: str) -> Brokerkit:
    return lambda *arguments, **more: brokerkit("dlq", *arguments, "--url", url, **more)


@pytest.fixture
def three(dead_letters: Make) -> None:
    dead_letters("o-1", "o-2", "o-3")


def ids_of(dlq: Brokerkit) -> list[str]:
    return [item["id"] for item in dlq("list", *PLACE, "-o", "json").items]


@pytest.mark.usefixtures("three")
def test_groups_counts_what_is_dead(dlq: Brokerkit, dead_letters: Make) -> None:
    dead_letters(channel="mails", group="mailing")
    second, first = dlq("groups", "-o", "json").items

    assert (first["channel"], first["group"], first["depth"]) == ("orders", "billing", 3)
    assert first["oldest"] >= 0
    assert (second["group"], second["depth"], second["oldest"]) == ("mailing", 0, None)
    assert dlq("groups").out.splitlines()[0].split() == ["CHANNEL", "GROUP", "DEPTH", "OLDEST"]


@pytest.mark.usefixtures("three")
def test_list_says_what_failed_and_why(dlq: Brokerkit) -> None:
    whole = json.loads(dlq("list", "-o", "json").out)
    item = whole["items"][0]

    assert whole["schema"] == {"name": "brokerkit.dlq.list", "version": 1}
    assert whole["next"] is None
    assert [each["id"] for each in whole["items"]] == ["o-1", "o-2", "o-3"]
    assert (item["reason"], item["detail"], item["attempts"]) == ("rejected", "the card is declined", 1)
    assert (item["channel"], item["group"], item["key"], item["type"]) == (
        "orders",
        "billing",
        "o-1",
        "order.placed",
    )
    assert "trace" not in item
    assert "the card is declined" in dlq("list").out


@pytest.mark.usefixtures("three")
def test_a_listing_goes_on_where_it_ended(dlq: Brokerkit) -> None:
    first = json.loads(dlq("list", *PLACE, "--limit", "2", "-o", "json").out)
    second = json.loads(dlq("list", *PLACE, "--limit", "2", "-o", "json", "--after", first["next"]).out)

    assert [each["id"] for each in (*first["items"], *second["items"])] == ["o-1", "o-2", "o-3"]
    assert second["next"] is None


@pytest.mark.usefixtures("three")
def test_list_covers_every_group_that_is_not_excluded_by_a_name(dlq: Brokerkit, dead_letters: Make) -> None:
    dead_letters("p-1", channel="payments")

    assert len(dlq("list", "-o", "json").items) == 4
    assert [item["id"] for item in dlq("list", "--channel", "payments", "-o", "json").items] == ["p-1"]
    assert len(dlq("list", "--limit", "3", "-o", "json").items) == 3


@pytest.mark.usefixtures("three")
def test_show_prints_everything(dlq: Brokerkit) -> None:
    (item,) = dlq("show", "o-2", "-o", "json").items
    said = dlq("show", "o-2").out

    assert item["data"] == {"order": "o-2"}
    assert item["content_type"] == "application/json"
    assert {"trace", "history"} <= set(item)
    assert '"order": "o-2"' in said
    assert "the card is declined" in said


@pytest.mark.usefixtures("three")
def test_show_of_an_unknown_id_failed(dlq: Brokerkit) -> None:
    done = dlq("show", "o-9")

    assert done.code == 1
    assert "'o-9'" in done.err


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("verb", ["redrive", "discard"])
def test_a_dry_run_changes_nothing_and_needs_no_yes(verb: str, dlq: Brokerkit) -> None:
    done = dlq(verb, *PLACE, "--all", "--dry-run", "-o", "json")

    assert done.code == 0
    assert [(item["id"], item["result"]) for item in done.items] == [
        (f"o-{n}", f"would_{verb}") for n in (1, 2, 3)
    ]
    assert ids_of(dlq) == ["o-1", "o-2", "o-3"]


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("verb", ["redrive", "discard"])
def test_a_script_has_to_say_yes(verb: str, dlq: Brokerkit) -> None:
    done = dlq(verb, *PLACE, "--all")

    assert done.code == 6
    assert "--yes" in done.err
    assert ids_of(dlq) == ["o-1", "o-2", "o-3"]


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(("verb", "result"), [("redrive", "redriven"), ("discard", "discarded")])
def test_what_is_named_is_done_and_nothing_else(verb: str, result: str, dlq: Brokerkit) -> None:
    done = dlq(verb, *PLACE, "o-1", "o-3", "--yes", "-o", "json")

    assert done.code == 0
    assert [(item["id"], item["result"]) for item in done.items] == [("o-1", result), ("o-3", result)]
    assert ids_of(dlq) == ["o-2"]


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("verb", ["redrive", "discard"])
def test_all_means_all_of_that_group(verb: str, dlq: Brokerkit, dead_letters: Make) -> None:
    dead_letters("m-1", channel="mails", group="mailing")

    assert dlq(verb, *PLACE, "--all", "--yes").code == 0
    assert [item["id"] for item in dlq("list", "-o", "json").items] == ["m-1"]
    assert dlq(verb, *PLACE, "--all", "--yes").code == 0


@pytest.mark.usefixtures("three")
def test_a_part_that_is_not_there_is_3_and_named(dlq: Brokerkit) -> None:
    done = dlq("redrive", *PLACE, "o-1", "o-9", "--yes")

    assert done.code == 3
    assert "o-9: not found" in done.err


@pytest.mark.usefixtures("three")
def test_nothing_of_what_was_named_is_1(dlq: Brokerkit) -> None:
    assert dlq("redrive", *PLACE, "o-9", "--yes").code == 1


@pytest.mark.usefixtures("three")
def test_ids_come_from_stdin(dlq: Brokerkit) -> None:
    assert dlq("discard", *PLACE, "-", "--yes", stdin="o-1\n\no-2\n").code == 0
    assert ids_of(dlq) == ["o-3"]


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("redrive", *PLACE), "nothing is selected"),
        (("redrive", *PLACE, "--all", "o-1"), "--all and ids"),
        (("redrive", "--channel", "orders", "--all"), "--group"),
        (("redrive", "--channel", "orders", "--group", "biling", "--all", "--yes"), "did you mean 'billing'"),
        (("discard", "--channel", "order", "--group", "billing", "--all", "--yes"), "did you mean 'orders'"),
        (("list", "--after", "7"), "--channel and --group"),
        (("list", "--group", "nobody"), "there are billing"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(
    arguments: tuple[str, ...], said: str, dlq: Brokerkit
) -> None:
    done = dlq(*arguments)

    assert done.code == 2
    assert said in done.err
    assert ids_of(dlq) == ["o-1", "o-2", "o-3"]


def test_a_prefix_keeps_deployments_apart(dlq: Brokerkit, dead_letters: Make) -> None:
    dead_letters("o-1", channel="blue.orders")
    dead_letters("o-2", channel="green.orders")

    assert [item["id"] for item in dlq("list", "--prefix", "blue", *PLACE, "-o", "json").items] == ["o-1"]
    assert [item["channel"] for item in dlq("groups", "--prefix", "blue", "-o", "json").items] == ["orders"]


def on_a_terminal(arguments: list[str], answer: str) -> tuple[int, str]:
    """Run a command with a terminal of its own, type an answer to its question, and return its code and what it said."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "brokerkit.cli", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "dumb"},
        close_fds=True,
    )
    os.close(terminal)
    said = b""
    answered = False
    while select.select([master], [], [], 30)[0]:
        try:
            said += os.read(master, 4096)
        except OSError:
            break
        if not answered and (b"[y/N]" in said or b"type the number" in said):
            os.write(master, answer.encode() + b"\n")
            answered = True
    os.close(master)
    return process.wait(30), said.decode()


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("arguments", "answer", "code", "left"),
    [
        (["redrive", *PLACE, "o-1"], "y", 0, 2),
        (["redrive", *PLACE, "--all"], "n", 6, 3),
        (["discard", *PLACE, "--all"], "y", 6, 3),
        (["discard", *PLACE, "--all"], "3", 0, 0),
    ],
)
def test_a_terminal_is_asked(
    arguments: list[str], answer: str, code: int, left: int, dlq: Brokerkit, url: str
) -> None:
    ended, said = on_a_terminal(["dlq", *arguments, "--url", url], answer)

    assert ended == code, said
    assert "orders/billing" in said
    assert len(ids_of(dlq)) == left
