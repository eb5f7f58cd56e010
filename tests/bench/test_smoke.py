"""The bench works: small runs, of which no figure is looked at."""

import json
from pathlib import Path

import pytest

from tests.bench import child
from tests.bench.__main__ import main
from tests.bench.plan import AIMS, CLIENTS, LINES, Line
from tests.bench.report import merged, page, report, table
from tests.bench.rounds import Measured, Plan, measure
from tests.bench.work import Failed, Figures, Meter, Task, envelope_of, id_of, orders
from tests.servers import RealServer


def task(**changed: object) -> Task:
    given: dict[str, object] = {
        "broker": "memory",
        "url": "memory://",
        "client": "brokerkit",
        "verb": "consume",
        "place": "bench-smoke",
        "round": 0,
        "messages": 50,
        "warm": 5,
    }
    return Task(**{**given, **changed})  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_every_line_has_a_client_and_every_aim_its_lines() -> None:
    for broker, lines in LINES.items():
        names = [line.name for line in lines]
        assert len(names) == len(set(names))
        assert all((broker, line.client) in CLIENTS for line in lines)
        for aim in AIMS.get(broker, ()):
            assert {aim.line, aim.base} <= set(names)
    for broker in AIMS:
        assert [line.verb for line in LINES[broker] if line.base] == ["publish", "consume"]


@pytest.mark.parametrize("line", LINES["memory"], ids=lambda line: str(line.name))
async def test_a_line_of_ours_handles_everything(line: Line) -> None:
    waiting = 10 if line.waits else 0

    figures = await child.run(task(client=line.client, verb=line.verb, waiting=waiting))

    assert (figures.handled, figures.twice) == (55, 0)
    assert 0 < figures.messages <= 50
    assert figures.seconds > 0


def test_a_run_on_sqlite_with_processes_says_everything_in_one_object(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = main(
        ["--broker", "sqlite", "--rounds", "2", "--messages", "50", "--lines", "consume", "-o", "json"]
    )
    said = json.loads(capsys.readouterr().out)

    (broker,) = said["brokers"]
    assert status == 0
    assert broker["failed"] == {}
    assert not broker["conclusive"]
    assert broker["beside_retries"] > 0
    assert [line["handled"] for line in broker["lines"]] == [110, 110]


def test_a_real_broker_beside_its_raw_client(nats_server: RealServer) -> None:
    lines = [line for line in LINES["nats"] if line.name in {"consume brokerkit", "consume nats-py"}]
    plan = Plan(broker="nats", url=nats_server.url, lines=lines, rounds=1, messages=50, waiting=10)

    said = report([measure(plan, print)])

    (broker,) = said["brokers"]
    assert broker["failed"] == {}
    assert [aim["base"] for aim in broker["aims"]] == ["consume nats-py"]
    assert broker["aims"][0]["ratio"] > 0
    assert "consume brokerkit" in table(said)
    assert "consume brokerkit to consume nats-py" in page(said)


def test_a_line_that_cannot_run_fails_alone_and_says_why(tmp_path: Path) -> None:
    lines = LINES["sqlite"][:1]
    url = f"sqlite:///{tmp_path / 'missing' / 'bench.db'}"

    measured = measure(Plan(broker="sqlite", url=url, lines=lines, rounds=2, messages=50, waiting=0), print)

    assert list(measured.failed) == ["publish brokerkit"]
    assert measured.rounds == {"publish brokerkit": [None, None]}
    assert "FAILED: publish brokerkit" in table(report([measured]))


def test_what_is_missing_or_strange_fails_a_line() -> None:
    figures = Figures(messages=2, seconds=1.0, cpu=1.0, handled=0, twice=0)

    with pytest.raises(Failed, match="1 of 2 messages were never handled, b for one"):
        child._checked(figures, ["a"], {"a", "b"})
    with pytest.raises(Failed, match="1 messages came that were not of this round, c for one"):
        child._checked(figures, ["a", "b", "c"], {"a", "b"})
    assert child._checked(figures, ["a", "b", "a"], {"a", "b"}).twice == 1


def test_the_clock_runs_from_the_end_of_the_warm_up() -> None:
    meter = Meter(10, 3)
    meter.add_all(["a", "b"])
    assert meter._began == (0.0, 0.0)
    meter.add_all(["c", "d"])
    assert meter._began != (0.0, 0.0)
    assert not meter.over.is_set()
    meter.add_all("efghij")
    meter.stop()

    assert meter.over.is_set()
    assert meter.figures().messages == 6


def test_an_id_is_found_in_everything_that_is_handled() -> None:
    order = orders(task())[7]
    body = envelope_of(order)

    assert {id_of(each) for each in (order.id, order.model_dump_json(), body, body.decode())} == {order.id}


def test_ratios_are_taken_within_a_round() -> None:
    plan = Plan(broker="kafka", url="", lines=LINES["kafka"], rounds=3, messages=10_000, waiting=1)
    measured = Measured(plan=plan)
    for name, seconds in (("consume brokerkit", (2, 8, 40)), ("consume aiokafka", (1, 2, 20))):
        measured.rounds[name] = [
            Figures(messages=10_000, seconds=each, cpu=1.0, handled=10_000, twice=0) for each in seconds
        ]
    measured.rounds |= {line.name: [] for line in plan.lines if line.name not in measured.rounds}

    (broker,) = report([measured])["brokers"]

    assert broker["aims"][0] == {
        "line": "consume brokerkit",
        "base": "consume aiokafka",
        "aim": 0.4,
        "ratio": 0.5,
        "met": True,
    }


def test_brokers_that_were_not_measured_again_are_kept() -> None:
    plan = Plan(broker="sqs", url="", lines=(), rounds=1, messages=1, waiting=0)
    now = report([Measured(plan=plan)])
    before = {**now, "brokers": [{"broker": "kafka"}, {"broker": "sqs", "old": True}]}

    assert [each["broker"] for each in merged(before, now)["brokers"]] == ["kafka", "sqs"]
    assert "old" not in merged(before, now)["brokers"][1]
    assert merged({**before, "schema": "other"}, now) == now
