import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from brokerkit.examples import github_webhooks
from brokerkit.examples.github_webhooks import trouble
from brokerkit.examples.github_webhooks.events import generate, payloads
from brokerkit.examples.github_webhooks.producer import deliveries

HERE: Final = Path(github_webhooks.__file__).parent
LONGEST: Final = 400.0


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the demo as a user does: outside this run's coverage, and hearing SIGINT wherever this run was started."""
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from brokerkit.cli import main; main()"
    command = [sys.executable, "-c", program, "demo", *arguments]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.Popen(command, env=ours, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def demo(*arguments: str) -> dict[str, Any]:
    """Run the demo to its end and return its one object; it must end well."""
    return result_of(start(*arguments, "-o", "json"))


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        output, errors = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, errors = process.communicate()
    assert process.returncode == 0, f"{output}\n{errors}"
    result: dict[str, Any] = json.loads(output)
    return result


def of_this_run(folder: Path) -> list[int]:
    """Return the processes whose environment names the folder."""
    wanted = f"GITHUB_WEBHOOKS_FOLDER={folder}".encode()
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def wait_for(folder: Path, *, at_least: int) -> None:
    deadline = time.monotonic() + LONGEST
    while len(of_this_run(folder)) < at_least:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- the input


def test_there_are_at_least_150_payloads_of_at_least_30_types() -> None:
    assert len({payload.digest for payload in payloads()}) >= 150
    assert len({payload.type.split(".")[1] for payload in payloads()}) >= 30


def test_the_payloads_are_the_published_ones_to_the_byte_and_carry_their_licence() -> None:
    text = (HERE / "README.md").read_text("utf-8")

    assert sha256((HERE / "payloads.ndjson").read_bytes()).hexdigest() in text
    assert "Copyright (c) 2018 Gregor Martynus" in text
    assert "Permission is hereby granted, free of charge" in text
    assert "@octokit/webhooks-examples" in text


def test_every_event_of_a_load_has_an_id_of_its_own_although_payloads_repeat() -> None:
    events = list(generate(1000, "1"))

    assert len({event.id for event in events}) == 1000


def test_the_same_seed_makes_the_same_load() -> None:
    assert list(deliveries(500, "7")) == list(deliveries(500, "7"))
    assert list(deliveries(500, "7")) != list(deliveries(500, "8"))


def test_a_full_load_has_at_least_500_repositories_and_counts_each_ones_events_from_one() -> None:
    sequences: dict[str | None, list[int | None]] = {}
    for event in generate(5000, "1"):
        sequences.setdefault(event.repository, []).append(event.sequence)
    keyless = sequences.pop(None)

    assert len(sequences) >= 500
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in sequences.values())
    assert set(keyless) == {None}


def test_an_event_has_a_key_exactly_if_its_payload_has_a_repository() -> None:
    for event in generate(400, "1"):
        assert (event.repository is not None) == bool(event.payload.data.get("repository"))


def test_about_one_event_in_fifty_is_delivered_twice() -> None:
    times = Counter(event.id for event in deliveries(5000, "1"))

    assert set(times.values()) == {1, 2}
    assert 50 <= sum(count == 2 for count in times.values()) <= 200


def test_exactly_one_event_crashes_the_audit_and_each_group_has_poison_of_its_own() -> None:
    events = list(generate(5000, "1"))
    poisoned = {
        group: {event.id for event in events if trouble.is_poison(group, event.id)}
        for group in ("audit", "projection", "notifier")
    }

    assert sum(trouble.crashes_audit(event.payload.type, event.id) for event in events) == 1
    assert len(poisoned["audit"]) >= 25
    assert len(poisoned["notifier"]) >= 25
    assert poisoned["projection"]
    assert poisoned["audit"] != poisoned["notifier"] != poisoned["projection"]


# -- the job, short


@pytest.mark.faults
def test_with_every_protection_nothing_is_lost_doubled_out_of_order_or_wrongly_dead() -> None:
    result = demo("--events", "600", "--kills", "4")

    assert {name: held for name, held in result["promises"].items() if not held} == {}
    assert result["ok"] is True
    assert result["published"] >= 600
    assert result["kills"] >= 4
    assert result["crashes"] >= 3
    assert result["redelivered_by_producer"] > 0
    assert result["dead_lettered"] == result["redriven"] == result["completed_after_redrive"] > 0
    zeros = ("lost", "innocents_dead_lettered", "duplicated_effects", "key_order_breaks", "still_dead")
    assert {name: result[name] for name in zeros} == dict.fromkeys(zeros, 0)


@pytest.fixture(scope="module")
def unprotected() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Runs without one protection each, all at once: most of their time is waiting for retries."""
    common = ("--events", "300", "--kills", "0", "-o", "json")
    running = {without: start(*common, "--without", without) for without in ("inbox", "order", "dedupe")}
    yield running
    for process in running.values():
        process.terminate()  # which ends its own children too
        process.communicate()


@pytest.mark.faults
@pytest.mark.parametrize("without", ["inbox", "order", "dedupe"])
def test_without_a_protection_its_count_fails(
    without: str, unprotected: dict[str, subprocess.Popen[str]]
) -> None:
    result = result_of(unprotected[without])

    assert result["break_seen"] is True
    assert result["ok"] is True
    count = {"inbox": "duplicated_effects", "order": "key_order_breaks", "dedupe": "repeated_calls"}[without]
    assert result[count] > 0
    assert result["lost"] == 0


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to look for processes")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_interrupted_it_leaves_no_process_behind(tmp_path: Path, number: int, code: int) -> None:
    process = start("--events", "600", "--keep", str(tmp_path / "run"), "-q")
    wait_for(tmp_path / "run", at_least=8)

    process.send_signal(number)
    process.communicate(timeout=LONGEST)

    assert process.returncode == code
    assert of_this_run(tmp_path / "run") == []


@pytest.mark.faults
def test_out_of_time_it_fails_and_says_what_is_missing() -> None:
    process = start("--events", "600", "--kills", "2", "--time-limit", "3", "-o", "json")
    output, errors = process.communicate(timeout=LONGEST)

    assert process.returncode == 1
    assert output == ""
    assert "the time limit is over" in errors
    assert "audit" in errors


def test_a_broker_that_processes_cannot_share_is_refused() -> None:
    process = start("--broker", "memory://")
    _, errors = process.communicate(timeout=LONGEST)

    assert process.returncode == 6
    assert "several processes" in errors
