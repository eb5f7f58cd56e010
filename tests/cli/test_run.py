import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cli.conftest import PASSWORD, TOKEN, Brokerkit, Process

Start = Callable[..., Process]

APP: Final = '''
from brokerkit import Bus, Retry

bus = Bus("{url}", name="shop")


@bus.subscriber("orders", group="billing")
async def charge(order: dict) -> None:
    """Charge."""


@bus.subscriber("orders", group="mailing", type="order.placed")
async def confirm(order: dict) -> None:
    """Confirm."""


@bus.subscriber("orders", group="mailing", type="order.shipped")
async def ship(order: dict) -> None:
    """Ship."""


def make():
    return bus


async def make_later():
    return bus


empty = Bus("{url}", name="shop")
number = 7
'''

LEDGER: Final = """
import asyncio, os
from brokerkit import Bus

bus = Bus("{url}", name="shop")
ledger = os.open("ledger", os.O_CREAT | os.O_APPEND | os.O_WRONLY)


@bus.subscriber("orders", group="billing", concurrency=8)
async def charge(order: dict) -> None:
    os.write(ledger, f"began {{order['n']}}\\n".encode())
    await asyncio.sleep(0.01)
    os.write(ledger, f"{{order['n']}}\\n".encode())
"""

WEDGED: Final = {
    "a coroutine that ignores cancellation": """
async def charge(order: dict) -> None:
    print("began", flush=True)
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass
""",
    "a thread that does not return": """
def charge(order: dict) -> None:
    print("began", flush=True)
    time.sleep(1000)
""",
    "a coroutine that blocks the loop": """
async def charge(order: dict) -> None:
    print("began", flush=True)
    time.sleep(1000)
""",
}

POLITE: Final = """
async def charge(order: dict) -> None:
    print("began", flush=True)
    await asyncio.sleep(1000)
"""


@pytest.fixture(autouse=True)
def _forget_modules(tmp_path: Path) -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if (
            str(getattr(module, "__file__", None) or "").startswith(str(tmp_path))
            and "third_party" not in name
        ):
            del sys.modules[name]


@pytest.fixture
def app(tmp_path: Path, url: str) -> Callable[..., None]:
    """Write a module, by default app.py."""

    def write(source: str = APP, name: str = "app") -> None:
        (tmp_path / f"{name}.py").write_text(source.format(url=url))

    return write


def handler(source: str) -> str:
    head = 'import asyncio, time\nfrom brokerkit import Bus\nbus = Bus("{url}", name="shop")\n\n'
    head += '@bus.subscriber("orders", group="billing")'
    return f"{head}{source}"


# -- what is run


def test_a_dry_run_prints_the_plan_and_touches_no_broker(
    brokerkit: Brokerkit, app: Callable[..., None], tmp_path: Path
) -> None:
    app()
    done = brokerkit("run", "app:bus", "--dry-run")

    assert done.code == 0
    assert "orders / billing: order=none" in done.out
    assert "app.charge" in done.out
    assert "retry" in done.out
    assert not (tmp_path / "events.db").exists()


def test_a_plan_for_programs_has_every_handler_with_its_patterns(
    brokerkit: Brokerkit, app: Callable[..., None]
) -> None:
    app()
    billing, mailing = brokerkit("run", "app:bus", "--dry-run", "-o", "json").items

    assert (billing["channel"], billing["group"], billing["concurrency"]) == ("orders", "billing", 16)
    assert [each["handler"] for each in mailing["handlers"]] == ["app.confirm", "app.ship"]
    assert [each["takes"] for each in mailing["handlers"]] == ["order.placed", "order.shipped"]
    assert "retry" in billing["handlers"][0]["patterns"][0]


def test_a_factory_is_called(brokerkit: Brokerkit, app: Callable[..., None]) -> None:
    app()

    assert brokerkit("run", "app:make", "--factory", "--dry-run").code == 0


def test_a_module_is_found_in_app_dir(brokerkit: Brokerkit, app: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "src" / "shop").mkdir(parents=True)
    app(name="src/shop/consumers")

    assert brokerkit("run", "shop.consumers:bus", "--app-dir", "src", "--dry-run").code == 0


def test_concurrency_replaces_what_the_code_says(brokerkit: Brokerkit, app: Callable[..., None]) -> None:
    app()
    items = brokerkit("run", "app:bus", "--dry-run", "--concurrency", "3", "-o", "json").items

    assert [(item["concurrency"], item["prefetch"]) for item in items] == [(3, 6), (3, 6)]


@pytest.mark.parametrize(
    ("flags", "groups"),
    [
        (("--only", "orders/billing"), ["billing"]),
        (("--only", "charge"), ["billing"]),
        (("--only", "app.charge"), ["billing"]),
        (("--only", "confirm", "--only", "ship"), ["mailing"]),
        (("--exclude", "orders/mailing"), ["billing"]),
        (("--only", "orders/billing", "--only", "orders/mailing", "--exclude", "charge"), ["mailing"]),
    ],
)
def test_a_part_of_the_handlers_can_run(
    flags: tuple[str, ...], groups: list[str], brokerkit: Brokerkit, app: Callable[..., None]
) -> None:
    app()
    items = brokerkit("run", "app:bus", "--dry-run", "-o", "json", *flags).items

    assert [item["group"] for item in items] == groups


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--only", "orders/biling"), "did you mean 'orders/billing'"),
        (("--exclude", "chrge"), "did you mean 'charge'"),
        (("--only", "confirm"), "dead-letter what that one takes; name the whole group: orders/mailing"),
        (("--exclude", "ship"), "name the whole group"),
        (("--exclude", "orders/billing", "--exclude", "orders/mailing"), "leave no handler"),
    ],
)
def test_a_part_that_cannot_run_alone_is_refused(
    flags: tuple[str, ...], said: str, brokerkit: Brokerkit, app: Callable[..., None]
) -> None:
    app()
    done = brokerkit("run", "app:bus", "--dry-run", *flags)

    assert done.code == 2
    assert said in done.err


# -- what cannot be run


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("ap:bus",), 2, "no module 'ap' in --app-dir '.' or on the path; did you mean 'app'?"),
        (("store.app:bus",), 2, "no module 'store'"),
        (("app:buss",), 2, "no 'buss'; it has app:bus"),
        (("app",), 2, "names no bus; it has app:bus"),
        (("app:",), 2, "names no bus"),
        (("app.py:bus",), 2, "name the module: app:bus"),
        (("./app.py",), 2, "name the module: app:bus"),
        (("a-b:bus",), 2, "for example app:bus"),
        (("app:number",), 2, "an instance of int, not a Bus"),
        (("app:make",), 2, "not a Bus; if it makes a bus, say --factory"),
        (("app:bus", "--factory"), 2, "--factory wants a plain function"),
        (("app:make_later", "--factory"), 2, "a coroutine function"),
        (("app:empty",), 2, "no handler"),
        (("app:bus", "--app-dir", "nowhere"), 2, "--app-dir"),
        (("app:bus", "--grace", "-1"), 2, "--grace"),
        (("broken:bus",), 1, "division by zero"),
        (("lacking:bus",), 1, "No module named 'not_there'"),
        (("unset:bus",), 2, "BROKERKIT_URL"),
        (("wrong:bus",), 2, "parameter 'order'"),
    ],
)
def test_what_cannot_be_run_is_named_with_what_to_do(
    arguments: tuple[str, ...], code: int, said: str, brokerkit: Brokerkit, app: Callable[..., None]
) -> None:
    app()
    app("import math\n\nmath.pi / 0\n", "broken")
    app("import not_there\n", "lacking")
    app("from brokerkit import Bus\nbus = Bus()\n", "unset")
    app(handler("\nasync def charge(order) -> None: ...\n"), "wrong")
    done = brokerkit("run", *arguments)

    assert done.code == code
    assert said in done.err
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err


def test_an_error_in_the_module_names_its_line(brokerkit: Brokerkit, app: Callable[..., None]) -> None:
    app("import math\n\nmath.pi / 0\n", "broken")

    assert "broken.py, line 3)" in brokerkit("run", "broken:bus").err


# -- from publish to handled


FAILING: Final = """
import os
from brokerkit import Bus
from tenacity import wait_none
from brokerkit.patterns.retry import retry

bus = Bus("{url}", name="shop")


@bus.subscriber("orders", group="billing", patterns=[retry(attempts=2, wait=wait_none())])
async def charge(order: dict) -> None:
    if not os.path.exists("repaired"):
        raise ConnectionError("the bank is closed")
    print("charged", order["n"], flush=True)
"""


def test_a_failed_event_is_found_redriven_and_handled(
    brokerkit: Brokerkit,
    start: Start,
    app: Callable[..., None],
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app(FAILING)
    place = ("--channel", "orders", "--group", "billing")

    def command(*arguments: str) -> object:
        done = brokerkit(*arguments, "--url", url, "-o", "json")
        assert done.code == 0, done.err
        return done.items

    command("publish", "orders", '{"n": 17}', "--type", "order.placed", "--id", "o-17")
    process = start("app:bus")
    process.wait_for(lambda: brokerkit("dlq", "list", "--url", url, "-q").out != "", 60)

    (listed,) = brokerkit("dlq", "list", "--url", url, "-o", "json").items
    assert (listed["id"], listed["reason"], listed["attempts"]) == ("o-17", "exhausted", 2)
    (shown,) = brokerkit("dlq", "show", "o-17", "--url", url, "-o", "json").items
    assert shown["error"] == {"type": "ConnectionError", "message": "the bank is closed"}
    assert [entry["type"] for entry in shown["history"]] == ["ConnectionError", "ConnectionError"]
    assert "the bank is closed" in shown["trace"]

    command("dlq", "redrive", *place, "--all", "--dry-run")
    assert len(brokerkit("dlq", "list", "--url", url, "-o", "json").items) == 1
    (tmp_path / "repaired").touch()
    command("dlq", "redrive", *place, "--all", "--yes")
    process.wait_for("charged 17")
    process.signal()

    assert process.end() == 0
    assert process.said.count("charged") == 1
    assert brokerkit("dlq", "list", "--url", url, "-o", "json").items == []


def publish(brokerkit: Brokerkit, url: str, count: int) -> None:
    lines = "".join(json.dumps({"type": "order.placed", "data": {"n": n}}) + "\n" for n in range(count))
    assert brokerkit("publish", "orders", "--from-ndjson", "-", "--url", url, stdin=lines).code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_drains_and_nothing_is_handled_twice(
    number: int, brokerkit: Brokerkit, start: Start, app: Callable[..., None], url: str, tmp_path: Path
) -> None:
    app(LEDGER)
    publish(brokerkit, url, 1000)
    ledger = tmp_path / "ledger"

    def done() -> list[str]:
        return ledger.read_text().split("\n")[:-1] if ledger.exists() else []

    first = start("app:bus")
    first.wait_for(lambda: len(done()) > 100)
    first.signal(number)
    began = time.monotonic()
    assert first.end() == 0, first.said
    assert time.monotonic() - began < 10
    assert 0 < len(done()) < 2000, "the signal came under load"

    second = start("app:bus")
    second.wait_for(lambda: len(done()) >= 2000)
    second.signal(number)
    assert second.end() == 0, second.said

    counts = Counter(done())
    assert len(counts) == 2000
    assert set(counts.values()) == {1}


# -- the end, whatever a handler does


@pytest.mark.parametrize("wedge", sorted(WEDGED))
def test_a_wedged_handler_does_not_keep_the_process_and_its_message_comes_back(
    wedge: str, brokerkit: Brokerkit, start: Start, app: Callable[..., None], url: str
) -> None:
    app(handler(WEDGED[wedge]))
    publish(brokerkit, url, 1)
    process = start("app:bus", "--grace", "0.5")
    process.wait_for("began")
    process.signal()
    began = time.monotonic()

    assert process.end() == 1, process.said
    assert time.monotonic() - began < 0.5 + 2 + 0.5  # half a second for this machine
    again = start("app:bus", "--grace", "0")
    again.wait_for("began")


def test_a_handler_that_stops_when_cancelled_is_a_clean_end(
    brokerkit: Brokerkit, start: Start, app: Callable[..., None], url: str
) -> None:
    app(handler(POLITE))
    publish(brokerkit, url, 1)
    process = start("app:bus", "--grace", "0.2")
    process.wait_for("began")
    process.signal()

    assert process.end(5) == 0, process.said


def test_a_second_signal_cuts_the_grace_and_says_so(
    brokerkit: Brokerkit, start: Start, app: Callable[..., None], url: str
) -> None:
    app(handler(POLITE))
    publish(brokerkit, url, 1)
    process = start("app:bus")
    process.wait_for("began")
    process.signal()
    process.wait_for("draining")
    time.sleep(0.4)
    process.signal()

    assert process.end(5) == 130, process.said
    assert "stopping now" in process.said


def test_one_request_that_arrives_as_two_signals_is_one(
    brokerkit: Brokerkit, start: Start, app: Callable[..., None], url: str
) -> None:
    app(handler(POLITE.replace("1000", "1")))
    publish(brokerkit, url, 1)
    process = start("app:bus")
    process.wait_for("began")
    process.signal(signal.SIGINT)
    process.signal(signal.SIGTERM)

    assert process.end(10) == 0, process.said
    assert "stopping now" not in process.said


def test_a_third_signal_ends_at_once(
    brokerkit: Brokerkit, start: Start, app: Callable[..., None], url: str
) -> None:
    app(handler(WEDGED["a coroutine that ignores cancellation"]))
    publish(brokerkit, url, 1)
    process = start("app:bus")
    process.wait_for("began")
    for _ in range(3):
        process.signal()
        time.sleep(0.35)

    assert process.end(3) == 130, process.said


def test_a_thread_of_the_application_does_not_keep_the_process(
    start: Start, app: Callable[..., None]
) -> None:
    app(handler(POLITE) + "import threading\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n")
    process = start("app:bus")
    process.wait_for("consuming from")
    process.signal()

    assert process.end(5) == 0, process.said


def test_exit_hooks_of_the_application_run(start: Start, app: Callable[..., None]) -> None:
    app(handler(POLITE) + "import atexit\natexit.register(print, 'farewell')\n")
    process = start("app:bus")
    process.wait_for("consuming from")
    process.signal()

    assert process.end(10) == 0
    assert "farewell" in process.said


# -- a broker that is not there


@pytest.mark.usefixtures("adapters")
def test_a_broker_that_is_not_there_is_4_after_the_time_out_and_no_secret_is_told(
    start: Start, app: Callable[..., None]
) -> None:
    app(handler(POLITE))
    where = f"walled://shop:{PASSWORD}@host/x?token={TOKEN}"
    process = start("app:bus", "--url", where, "--timeout", "0.5", "-vv")

    assert process.end() == 4
    assert "nobody answers" in process.said
    assert "trying again" in process.said
    assert "Traceback" in process.said
    assert PASSWORD not in process.said
    assert TOKEN not in process.said


@pytest.mark.usefixtures("adapters")
def test_a_signal_while_the_broker_is_awaited_ends_at_once(start: Start, app: Callable[..., None]) -> None:
    app(handler(POLITE))
    process = start("app:bus", "--url", "walled://host")
    process.wait_for("trying again")
    process.signal()

    assert process.end(5) == 0, process.said


def test_a_signal_while_the_module_is_imported_ends_at_once(start: Start, app: Callable[..., None]) -> None:
    app("import time\nprint('importing', flush=True)\ntime.sleep(1000)\n")
    process = start("app:bus")
    process.wait_for("importing")
    process.signal()

    assert process.end(5) == 0, process.said


def test_the_log_of_an_application_that_has_its_own_is_left_alone(
    start: Start, app: Callable[..., None]
) -> None:
    app(
        handler(POLITE)
        + "import logging\nlogging.basicConfig(level=logging.INFO, format='MINE %(message)s')\n"
    )
    process = start("app:bus")
    process.wait_for("MINE consuming from")
    process.signal()

    assert process.end(10) == 0
