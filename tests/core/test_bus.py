"""
The bus over the broker in memory: connecting, publishing, consuming, stopping.
"""

# pyright: reportPrivateUsage=false
# a test of a part may look inside it

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from brokerkit import Bus, DeadLetter, Delivery, Event, Outgoing, Retry, Router, State
from brokerkit.adapters.memory import MemoryAdapter, forget
from brokerkit.adapters.memory.broker import Broker
from brokerkit.errors import (
    BrokerkitError,
    Closed,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    PublishUnknown,
    TooLarge,
    Unauthorised,
    Unroutable,
    Unsupported,
)
from brokerkit.hooks import HookEvent, Settled
from brokerkit.message import Address, Message
from brokerkit.pipeline import Handler
from tests.core.fakes import Bug, turns, until, virtual

DEAD = Address("orders", "billing", "dead")


@dataclass
class OrderPlaced:
    number: int = 1


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("BROKERKIT_"):
            monkeypatch.delenv(name)


@pytest.fixture
def shared() -> Iterator[str]:
    yield "memory://shared"
    forget("shared")


def adapter_of(bus: Bus) -> MemoryAdapter:
    adapter = bus.adapter
    assert isinstance(adapter, MemoryAdapter)
    return adapter


def broker_of(bus: Bus) -> Broker:
    return adapter_of(bus).broker


async def stored(bus: Bus, at: Address) -> list[Delivery]:
    page, _ = await adapter_of(bus).browse(at, cursor=None, limit=1000)
    return list(page)


async def data_in(bus: Bus, channel: str) -> list[bytes]:
    return [each.event.data for each in await stored(bus, Address(channel))]


async def ids_in(bus: Bus, channel: str) -> list[str]:
    return [each.event.id for each in await stored(bus, Address(channel))]


class Failing:
    """Stands between a bus and its adapter's method, and fails on demand."""

    def __init__(self, bus: Bus, name: str, errors: Sequence[Any]) -> None:
        self.real = getattr(bus.adapter, name)
        self.errors = list(errors)
        self.calls: list[float] = []
        self.messages: list[Message] = []
        object.__setattr__(bus.adapter, name, self)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(asyncio.get_running_loop().time())
        if len(args) > 1:
            self.messages += args[1]
        error = self.errors.pop(0) if len(self.errors) > 1 else self.errors[0] if self.errors else None
        if isinstance(error, BrokerkitError):
            if len(args) > 1:
                return [error] * len(args[1])
            raise error
        if error == "raise":
            lost = ConnectionLost("raised")
            raise lost
        if error == "hang":
            await asyncio.Event().wait()
        return await self.real(*args, **kwargs)


class TestConnecting:
    @virtual
    async def test_nothing_is_touched_before(self) -> None:
        bus = Bus("memory://")
        assert not bus.ready
        with pytest.raises(Closed, match="not connected"):
            await bus.publish("orders", OrderPlaced())
        with pytest.raises(Closed, match="connect first"):
            async with bus.consuming():
                pass

    @virtual
    async def test_a_broker_that_is_down_is_tried_with_growing_back_off(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        bus = Bus("memory://", connect_timeout=60)
        failing = Failing(bus, "connect", [ConnectionLost("down")] * 8 + [None])
        async with bus:
            assert bus.ready
            waits = [later - earlier for earlier, later in pairwise(failing.calls)]
            for at, wait in enumerate(waits):
                assert min(0.1 * 2**at, 5.0) / 2 - 1e-9 <= wait <= min(0.1 * 2**at, 5.0) + 1e-9
            assert "memory:// cannot be reached (down); trying again" in caplog.text
        assert not bus.ready

    @virtual
    async def test_it_fails_when_the_time_is_over(self) -> None:
        bus = Bus("memory://", connect_timeout=10)
        failing = Failing(bus, "connect", [ConnectionLost("down")])
        with pytest.raises(ConnectionLost, match="down"):
            await bus.connect()
        assert 4 < asyncio.get_running_loop().time() <= 10
        assert len(failing.calls) > 5

    @virtual
    async def test_a_broker_that_does_not_answer_is_given_up_in_time(self) -> None:
        bus = Bus("memory://", connect_timeout=10)
        Failing(bus, "connect", ["hang"])
        with pytest.raises(ConnectionLost, match="connect_timeout, 10 s"):
            await bus.connect()
        assert asyncio.get_running_loop().time() == 10

    @virtual
    async def test_what_cannot_get_better_is_raised_at_once(self) -> None:
        bus = Bus("memory://")
        failing = Failing(bus, "connect", [Unauthorised("no")])
        with pytest.raises(Unauthorised):
            await bus.connect()
        assert len(failing.calls) == 1

    @virtual
    async def test_twice_is_refused_and_closing_twice_is_fine(self) -> None:
        bus = Bus("memory://")
        async with bus:
            with pytest.raises(ConfigurationError, match="connected already"):
                await bus.connect()
        await bus.close()


class TestConfiguration:
    def test_without_a_url_the_text_says_what_to_do(self) -> None:
        with pytest.raises(ConfigurationError, match="BROKERKIT_URL"):
            Bus()

    def test_the_environment_wins_over_the_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BROKERKIT_URL", "memory://fromenv")
        monkeypatch.setenv("BROKERKIT_NAME", "shop")
        monkeypatch.setenv("BROKERKIT_PREFIX", "blue")
        bus = Bus("nosuch://x", name="code", prefix="green")
        assert (bus.url, bus.name, bus.prefix) == ("memory://fromenv", "shop", "blue")
        monkeypatch.setenv("BROKERKIT_URL", "")
        monkeypatch.setenv("BROKERKIT_PREFIX", "")
        monkeypatch.setenv("BROKERKIT_NAME", "")
        bus = Bus("memory://", prefix="green")
        assert (bus.url, bus.name, bus.prefix) == ("memory://", "memory", "green")
        forget("fromenv")

    def test_an_unknown_scheme_or_option_is_refused_without_the_password(self) -> None:
        with pytest.raises(ConfigurationError, match="memory://") as refused:
            Bus("nosuch://user:hunter2@host", name="shop")
        assert "hunter2" not in str(refused.value)
        with pytest.raises(ConfigurationError, match="wrong"):
            Bus("memory://", wrong=1)

    @pytest.mark.parametrize("prefix", ["Blue", "a_b", "retry", "-"])
    def test_a_bad_prefix_is_refused(self, prefix: str) -> None:
        with pytest.raises(ConfigurationError):
            Bus("memory://", prefix=prefix)

    def test_an_unknown_envelope_is_refused(self) -> None:
        form: Any = "xml"
        with pytest.raises(ConfigurationError, match="'structured', 'binary' or 'plain'"):
            Bus("memory://", envelope=form)

    @pytest.mark.parametrize(
        "secret", ["hunter2", "hun/ter2", "hun?ter2", "hun#ter2", "hun@ter2", "h:u:n:ter2", "h%2Fter2"]
    )
    def test_no_secret_is_in_its_text(self, secret: str) -> None:
        bus = Bus("memory://")
        bus.url = f"amqp://user:{secret}@host:5672/v?key={secret}"
        assert "ter2" not in repr(bus)
        assert "host" in repr(bus)
        assert "name='memory'" in repr(bus)

    @virtual
    async def test_the_prefix_keeps_two_deployments_apart_on_one_broker(self) -> None:
        seen: list[str] = []
        blue, green = Bus("memory://two", prefix="blue"), Bus("memory://two", prefix="green")
        for color, bus in (("blue", blue), ("green", green)):

            @bus.subscriber("orders", group="billing")
            async def take(order: OrderPlaced, delivery: Delivery, color: str = color) -> None:
                seen.append(f"{color} {order.number} {delivery.channel}")

        async with blue, green, blue.consuming(), green.consuming():
            await blue.publish("orders", OrderPlaced(1))
            await green.publish("orders", OrderPlaced(2))
            await until(lambda: len(seen) == 2)
            await asyncio.sleep(10)
            assert sorted(seen) == ["blue 1 orders", "green 2 orders"]
            assert sorted(await adapter_of(blue).groups()) == [
                ("blue.orders", "billing"),
                ("green.orders", "billing"),
            ]
        forget("two")


class TestPublishing:
    @virtual
    async def test_it_returns_the_event_once_the_broker_has_it(self) -> None:
        async with Bus("memory://", name="shop") as bus:
            event = await bus.publish(
                "orders", OrderPlaced(7), key="k", subject="s", id="i", headers={"h": "v"}
            )
            (delivery,) = await stored(bus, Address("orders"))
            assert (event.id, event.source, event.type, event.subject) == ("i", "shop", "order.placed", "s")
            assert delivery.message.key == b"k"
            assert delivery.message.header("h") == "v"
            assert delivery.event.data == b'{"number":7}'

    @pytest.mark.parametrize("first", [ConnectionLost("down"), PublishUnknown("who knows"), "raise"])
    @virtual
    async def test_trouble_is_tried_again_under_the_same_id(self, first: Any) -> None:
        async with Bus("memory://") as bus:
            failing = Failing(bus, "send", [first, first, None])
            event = await bus.publish("orders", OrderPlaced())
            assert len(failing.calls) == 3
            assert len({message.copy_id for message in failing.messages}) == 1
            assert await ids_in(bus, "orders") == [event.id]

    @virtual
    async def test_when_the_time_is_over_a_broker_that_was_never_reached_is_a_lost_connection(self) -> None:
        async with Bus("memory://", publish_timeout=20) as bus:
            Failing(bus, "send", [ConnectionLost("down")])
            with pytest.raises(ConnectionLost):
                await bus.publish("orders", OrderPlaced())
            assert 15 < asyncio.get_running_loop().time() <= 20

    @pytest.mark.parametrize("later", [ConnectionLost("down"), TooLarge("now it is refused")])
    @virtual
    async def test_after_one_unknown_outcome_the_result_is_unknown(self, later: BrokerkitError) -> None:
        async with Bus("memory://", publish_timeout=20) as bus:
            Failing(bus, "send", [PublishUnknown("who knows"), later])
            with pytest.raises(PublishUnknown) as raised:
                await bus.publish("orders", OrderPlaced())
            assert raised.value.__cause__ is later

    @virtual
    async def test_a_broker_that_does_not_answer_is_an_unknown_outcome_in_time(self) -> None:
        async with Bus("memory://") as bus:
            Failing(bus, "send", ["hang"])
            with pytest.raises(PublishUnknown):
                await bus.publish("orders", OrderPlaced(), timeout=3)
            assert asyncio.get_running_loop().time() == 3

    @virtual
    async def test_closing_the_bus_meanwhile_ends_it_with_a_typed_error(self) -> None:
        bus = Bus("memory://")
        await bus.connect()
        Failing(bus, "send", [ConnectionLost("down")])
        publishing = asyncio.create_task(bus.publish("orders", OrderPlaced()))
        await asyncio.sleep(1)
        await bus.close()
        with pytest.raises(ConnectionLost):
            await publishing

    @virtual
    async def test_many_have_one_outcome_each_and_only_the_failed_are_sent_again(self) -> None:
        async with Bus("memory://") as bus:
            broker_of(bus).refuse(1, TooLarge("no"))
            broker_of(bus).refuse(1, ConnectionLost("down"))
            outcomes = await bus.publish_many(
                "orders", [OrderPlaced(1), Outgoing(data=OrderPlaced(2), key="k"), OrderPlaced(3)]
            )
            assert [type(outcome.error) for outcome in outcomes] == [TooLarge, type(None), type(None)]
            assert await data_in(bus, "orders") == [b'{"number":3}', b'{"number":2}']
            assert await bus.publish_many("orders", []) == []

    @virtual
    async def test_what_no_group_reads_is_kept_or_refused_as_asked(self) -> None:
        async with Bus("memory://") as bus:
            await bus.publish("orders", OrderPlaced())
            with pytest.raises(Unroutable):
                await bus.publish("orders", OrderPlaced(), must_route=True)


class TestPublishingInsideAHandler:
    @virtual
    async def test_it_is_held_until_the_handler_has_succeeded_and_sent_in_order_before_the_ack(self) -> None:
        bus = Bus("memory://")
        kept: list[list[bytes]] = []
        outcomes: list[str] = []

        def hook(event: HookEvent) -> None:
            if isinstance(event, Settled):
                outcomes.append(event.outcome)

        @bus.subscriber("orders", group="billing")
        async def handle(order: OrderPlaced) -> None:
            for number in range(3):
                await bus.publish("bills", OrderPlaced(number))
            await bus.publish("other", OrderPlaced(9), hold=False)
            await bus.publish("bills", OrderPlaced(3))
            kept.extend([await data_in(bus, "bills"), await data_in(bus, "other")])

        bus.hooks.append(hook)
        async with bus, bus.consuming():
            send = Failing(bus, "send", [None, None, "hang"])
            await bus.publish("orders", OrderPlaced())
            await asyncio.sleep(10)
            assert kept == [[], [b'{"number":9}']]
            assert outcomes == []
            assert [message.body[-13:-1] for message in send.messages[2:]] == [
                f'{{"number":{n}}}'.encode() for n in range(4)
            ]

    @virtual
    async def test_a_handler_that_publishes_and_then_fails_has_published_nothing(self) -> None:
        bus = Bus("memory://")
        runs = 0

        @bus.subscriber("orders", group="billing")
        async def handle(order: OrderPlaced, delivery: Delivery) -> Retry | DeadLetter | None:
            nonlocal runs
            runs += 1
            await bus.publish("bills", OrderPlaced(runs))
            if runs == 1:
                raise ConnectionError
            if runs == 2:
                return Retry(1)
            return None if runs == 3 else DeadLetter("no")

        async with bus, bus.consuming():
            await bus.publish("orders", OrderPlaced())
            await until(lambda: runs == 3)
            await turns()
            assert await data_in(bus, "bills") == [b'{"number":3}']
            await bus.publish("orders", OrderPlaced())
            await until(lambda: runs == 4)
            await turns(30)
            assert await data_in(bus, "bills") == [b'{"number":3}']
            assert len(await stored(bus, DEAD)) == 1

    @pytest.mark.parametrize("order", ["none", "key"])
    @virtual
    async def test_a_second_run_publishes_the_same_ids(self, order: Any) -> None:
        bus = Bus("memory://")
        seen: list[list[str]] = []

        @bus.subscriber("orders", group="billing", order=order)
        async def handle(placed: OrderPlaced) -> None:
            ids = [(await bus.publish("bills", OrderPlaced(n))).id for n in (1, 1, 2)]
            seen.append(ids)
            if len(seen) < 4:
                raise ConnectionError

        async with bus, bus.consuming():
            await bus.publish("orders", OrderPlaced(), key="k")
            await until(lambda: len(seen) == 4)
            await turns(30)
            assert seen[0] == seen[1] == seen[2] == seen[3]
            assert len(set(seen[0])) == 3
            assert await ids_in(bus, "bills") == seen[0]
            await bus.publish("orders", OrderPlaced(), key="k")
            await until(lambda: len(seen) == 5)
            assert not set(seen[4]) & set(seen[0])

    @virtual
    async def test_an_output_that_cannot_be_sent_fails_the_attempt(self) -> None:
        bus = Bus("memory://", publish_timeout=1)
        runs = 0

        @bus.subscriber("orders", group="billing")
        async def handle(order: OrderPlaced) -> None:
            nonlocal runs
            runs += 1
            await bus.publish("bills", OrderPlaced())

        async with bus, bus.consuming():
            await bus.publish("orders", OrderPlaced())
            broker_of(bus).refuse(1, TooLarge("no"))
            await until(lambda: runs > 0)
            await asyncio.sleep(100)
            bills = await ids_in(bus, "bills")
            assert len(bills) + len(await stored(bus, DEAD)) == 1


class TestConsuming:
    @virtual
    async def test_conflicting_handlers_are_refused_before_the_first_message(self) -> None:
        bus = Bus("memory://")

        @bus.subscriber("orders", group="billing")
        async def one(order: OrderPlaced) -> None: ...

        @bus.subscriber("orders", group="billing")
        async def other(order: OrderPlaced) -> None: ...

        async with bus:
            await bus.publish("orders", OrderPlaced())
            with pytest.raises(ConfigurationError, match=r"both take the type 'order\.placed'"):
                async with bus.consuming():
                    pytest.fail("it started")
            assert not bus.engines

    @virtual
    async def test_an_order_that_the_broker_cannot_keep_is_refused(self) -> None:
        bus = Bus("memory://")

        @bus.subscriber("orders", group="billing", order="key")
        async def handle(order: OrderPlaced) -> None: ...

        import dataclasses

        adapter = adapter_of(bus)
        adapter.capabilities = dataclasses.replace(adapter.capabilities, order_key=False)
        async with bus:
            with pytest.raises(Unsupported, match="no order='key'"):
                async with bus.consuming():
                    pytest.fail("it started")

    @virtual
    async def test_it_is_ready_only_when_every_group_is(self) -> None:
        bus = Bus("memory://")

        @bus.subscriber("orders", group="billing")
        async def handle(order: OrderPlaced) -> None: ...

        @bus.subscriber("orders", group="audit")
        async def audit(order: OrderPlaced) -> None: ...

        async with bus, bus.consuming():
            assert bus.ready
            bus.engines[1].intake.hold("breaker")
            assert not bus.ready
            bus.engines[1].intake.release("breaker")
            assert bus.ready
        assert not bus.engines

    @virtual
    async def test_a_router_brings_its_handlers_and_the_plan_lists_them(self) -> None:
        router = Router()

        @router.subscriber("orders", group="billing")
        async def handle(order: OrderPlaced) -> None: ...

        bus = Bus("memory://")
        bus.include(router)
        plan = bus.plan()
        assert plan[0].startswith("orders / billing: order=none")
        assert "handle" in plan[1]

    @virtual
    async def test_abandoned_handlers_are_counted(self) -> None:
        bus = Bus("memory://", grace=1)

        @bus.subscriber("orders", group="billing")
        async def handle(order: OrderPlaced) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(100)
            await asyncio.sleep(100)

        async with bus:
            async with bus.consuming():
                await bus.publish("orders", OrderPlaced())
                await until(lambda: len(bus.engines[0]._running) == 1)
            assert bus.abandoned == 1
            await asyncio.sleep(200)

    @virtual
    async def test_an_engine_that_cannot_start_stops_those_that_have(self) -> None:
        bus = Bus("memory://")
        for group in ("one", "two"):

            @bus.subscriber("orders", group=group)
            async def handle(order: OrderPlaced) -> None: ...

        async with bus:
            Failing(bus, "subscribe", [None, "raise"])
            with pytest.raises(ConnectionLost):
                async with bus.consuming():
                    pytest.fail("it started")
            assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("brokerkit")]

    @virtual
    async def test_an_engine_that_cannot_stop_is_said_after_the_others_have(self) -> None:
        bus = Bus("memory://")
        for group in ("one", "two"):

            @bus.subscriber("orders", group=group)
            async def handle(order: OrderPlaced) -> None: ...

        async def broken() -> None:
            raise Bug

        async with bus:
            consuming = bus.consuming()
            await consuming.__aenter__()
            subscription: Any = bus.engines[0]._subscription
            subscription.close = broken
            other = bus.engines[1]
            with pytest.raises(Bug):
                await consuming.__aexit__(None, None, None)
            assert not other.ready
            del subscription.close


class Keeper:
    """A pattern that is opened and closed, and says when."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __call__(self, handler: Handler) -> Handler:
        return handler

    async def start(self) -> None:
        self.log.append("start")

    async def close(self) -> None:
        self.log.append("close")


class TestLifespan:
    @virtual
    async def test_a_pattern_in_several_chains_starts_once_and_closes_after_the_last_settlement(self) -> None:
        log: list[str] = []

        @contextlib.asynccontextmanager
        async def lifespan(bus: Bus) -> AsyncGenerator[dict[str, Any]]:
            log.append("state")
            yield {"name": "x"}
            log.append("state gone")

        def hook(event: HookEvent) -> None:
            if isinstance(event, Settled):
                log.append(event.outcome)

        keeper = Keeper(log)
        bus = Bus("memory://", lifespan=lifespan, hooks=[hook])
        for group in ("one", "two"):

            @bus.subscriber("orders", group=group, patterns=[keeper])
            async def handle(order: OrderPlaced, name: State[str]) -> None:
                await asyncio.sleep(5)
                log.append(f"handled with {name}")

        async with bus, bus.consuming():
            await bus.publish("orders", OrderPlaced())
            await until(lambda: all(engine._running for engine in bus.engines))
        assert log[:2] == ["state", "start"]
        assert sorted(log[2:6]) == ["ack", "ack", "handled with x", "handled with x"]
        assert log[6:] == ["close", "state gone"]

    @pytest.mark.parametrize("yielded", [None, "one object"])
    @virtual
    async def test_it_may_yield_nothing_or_one_object(self, yielded: str | None) -> None:
        @contextlib.asynccontextmanager
        async def lifespan(bus: Bus) -> AsyncGenerator[Any]:
            yield yielded

        seen: list[str] = []
        bus = Bus("memory://", lifespan=lifespan)
        if yielded is None:

            @bus.subscriber("orders", group="billing")
            async def plain(order: OrderPlaced) -> None:
                seen.append("plain")

        else:

            @bus.subscriber("orders", group="billing")
            async def with_state(order: OrderPlaced, thing: State[str]) -> None:
                seen.append(thing)

        async with bus, bus.consuming():
            await bus.publish("orders", OrderPlaced())
            await until(lambda: len(seen) == 1)
            assert seen == [yielded or "plain"]

    @virtual
    async def test_state_that_it_does_not_give_is_refused_before_the_first_message(self) -> None:
        @contextlib.asynccontextmanager
        async def lifespan(bus: Bus) -> AsyncGenerator[dict[str, Any]]:
            yield {"other": 1}

        bus = Bus("memory://", lifespan=lifespan)

        @bus.subscriber("orders", group="billing")
        async def handle(order: OrderPlaced, name: State[str]) -> None: ...

        async with bus:
            with pytest.raises(ConfigurationError, match="'name'"):
                async with bus.consuming():
                    pytest.fail("it started")


class TestProvisioning:
    def bus(self, provisioning: Any) -> Bus:
        bus = Bus("memory://", provisioning=provisioning, prefix="p")
        for group in ("one", "two"):

            @bus.subscriber("orders", group=group)
            async def handle(order: OrderPlaced) -> None: ...

        return bus

    @virtual
    async def test_verify_names_all_that_is_missing_at_once(self) -> None:
        bus = self.bus("verify")
        async with bus:
            with pytest.raises(NotFound, match=r"p\.orders/one/inlet, p\.orders/two/inlet") as refused:
                async with bus.consuming():
                    pytest.fail("it started")
            assert "provisioning='create'" in str(refused.value)
            assert not await adapter_of(bus).groups()

    @virtual
    async def test_verify_is_content_when_all_is_there(self) -> None:
        bus = self.bus("verify")
        async with bus:
            places: Any = [
                (Address("p.orders", group, "inlet"), "earliest", "none") for group in ("one", "two")
            ]
            await adapter_of(bus).provision(places, create=True)
            async with bus.consuming():
                assert bus.ready

    @pytest.mark.parametrize("provisioning", ["create", "off"])
    @virtual
    async def test_otherwise_places_are_made_or_left_to_the_adapter(self, provisioning: str) -> None:
        bus = self.bus(provisioning)
        async with bus:
            calls = Failing(bus, "provision", [])
            async with bus.consuming():
                assert bus.ready
            assert len(calls.calls) == (provisioning == "create")


class TestSync:
    def test_a_script_publishes_without_a_loop(self, shared: str) -> None:
        bus = Bus(shared)
        with bus.sync:
            event = bus.sync.publish("orders", OrderPlaced(1))
            outcomes = bus.sync.publish_many("orders", [OrderPlaced(2), OrderPlaced(3)])
            assert [outcome.error for outcome in outcomes] == [None, None]
            with pytest.raises(ConfigurationError):
                bus.sync.publish("orders", object())
        assert isinstance(event, Event)
        assert not [thread for thread in threading.enumerate() if thread.name == "brokerkit sync"]
        with pytest.raises(Closed, match="not connected"):
            bus.sync.publish("orders", OrderPlaced())

        async def look() -> list[bytes]:
            async with Bus(shared) as other:
                return await data_in(other, "orders")

        assert asyncio.run(look()) == [f'{{"number":{number}}}'.encode() for number in (1, 2, 3)]

    def test_a_script_that_cannot_connect_is_told_and_leaves_no_thread(self) -> None:
        bus = Bus("memory://", connect_timeout=0.01)
        broker_of(bus).stop()
        with pytest.raises(ConnectionLost), bus.sync:
            pytest.fail("it connected")
        assert not [thread for thread in threading.enumerate() if thread.name == "brokerkit sync"]

    @virtual
    async def test_the_loop_of_the_bus_itself_is_refused(self) -> None:
        async with Bus("memory://") as bus:
            with pytest.raises(ConfigurationError, match=r"use 'await bus\.publish'"):
                bus.sync.publish("orders", OrderPlaced())

    @virtual
    async def test_a_handler_in_a_thread_publishes_as_part_of_its_handling(self) -> None:
        bus = Bus("memory://")
        runs: list[str] = []

        @bus.subscriber("orders", group="billing")
        def handle(order: OrderPlaced) -> None:
            event = bus.sync.publish("bills", OrderPlaced(2))
            runs.append(event.id)
            if len(runs) == 1:
                raise ConnectionError

        async with bus, bus.consuming():
            incoming = await bus.publish("orders", OrderPlaced())
            await until(lambda: len(runs) == 2)
            await until(lambda: bus.engines[0].counts.out == 0)
            assert runs[0] == runs[1]
            (bill,) = await stored(bus, Address("bills"))
            assert bill.event.id == runs[0]
            assert bill.event.extensions["causationid"] == incoming.id

    @virtual
    async def test_another_thread_uses_the_loop_of_the_bus(self) -> None:
        async with Bus("memory://") as bus:
            event = await asyncio.to_thread(bus.sync.publish, "orders", OrderPlaced())
            assert await ids_in(bus, "orders") == [event.id]
            with pytest.raises(TooLarge):
                await asyncio.to_thread(bus.sync.publish, "orders", "x" * (65 << 20), type="text")

    def test_what_is_under_way_when_the_loop_ends_is_told(self) -> None:
        bus = Bus("memory://")
        errors: list[BaseException] = []

        def publish() -> None:
            try:
                bus.sync.publish("orders", OrderPlaced())
            except BaseException as error:  # noqa: BLE001 - whatever it is
                errors.append(error)

        async def main() -> None:
            await bus.connect()
            hanging = Failing(bus, "send", ["hang"])
            thread.start()
            await until(lambda: bool(hanging.calls), within=5)

        thread = threading.Thread(target=publish)
        asyncio.run(main())
        thread.join(5)
        assert [type(error) for error in errors] == [Closed]


@virtual
async def test_two_buses_live_in_one_process_and_do_not_mix() -> None:
    buses = [Bus("memory://"), Bus("memory://")]
    seen: list[tuple[int, int]] = []
    for at, bus in enumerate(buses):

        @bus.subscriber("orders", group="billing")
        async def handle(order: OrderPlaced, at: int = at) -> None:
            seen.append((at, order.number))

    one, other = buses
    async with one, other, one.consuming(), other.consuming():
        await one.publish("orders", OrderPlaced(1))
        await other.publish("orders", OrderPlaced(2))
        await until(lambda: len(seen) == 2)
        assert sorted(seen) == [(0, 1), (1, 2)]


class TestRun:
    @virtual
    async def test_stop_drains_and_ends_it(self) -> None:
        bus = Bus("memory://")
        done: list[int] = []

        @bus.subscriber("orders", group="billing")
        async def handle(order: OrderPlaced) -> None:
            await asyncio.sleep(5)
            done.append(order.number)

        bus.stop()
        running = asyncio.create_task(bus.run())
        await until(lambda: bus.ready and bool(bus.engines))
        await bus.publish("orders", OrderPlaced())
        await until(lambda: bool(bus.engines[0]._running))
        bus.stop()
        await running
        assert done == [1]
        assert not bus.ready

    @virtual
    async def test_stopping_twice_cuts_the_grace(self) -> None:
        bus = Bus("memory://", grace=1000)

        @bus.subscriber("orders", group="billing")
        async def handle(order: OrderPlaced) -> None:
            await asyncio.sleep(500)

        running = asyncio.create_task(bus.run())
        await until(lambda: bool(bus.engines))
        await bus.publish("orders", OrderPlaced())
        engine = bus.engines[0]
        await until(lambda: bool(engine._running))
        bus.stop()
        await asyncio.sleep(10)
        bus.stop()
        async with asyncio.timeout(10):
            await running

    @virtual
    async def test_stopping_while_it_connects_ends_it(self) -> None:
        bus = Bus("memory://")
        Failing(bus, "connect", [ConnectionLost("down")])
        running = asyncio.create_task(bus.run())
        await asyncio.sleep(5)
        bus.stop()
        async with asyncio.timeout(1):
            await running
        await turns()
        assert len(asyncio.all_tasks()) == 1

    @virtual
    async def test_cancelling_run_while_it_connects_leaves_no_task(self) -> None:
        bus = Bus("memory://")
        Failing(bus, "connect", [ConnectionLost("down")])
        running = asyncio.create_task(bus.run())
        await asyncio.sleep(5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await turns()
        assert len(asyncio.all_tasks()) == 1

    @virtual
    async def test_a_broker_that_stays_down_fails_it(self) -> None:
        bus = Bus("memory://", connect_timeout=5)
        Failing(bus, "connect", [ConnectionLost("down")])
        with pytest.raises(ConnectionLost):
            await bus.run()
        await turns()
        assert len(asyncio.all_tasks()) == 1

    @virtual
    async def test_in_another_thread_it_leaves_signals_alone(self) -> None:
        before = signal.getsignal(signal.SIGTERM)

        def elsewhere() -> None:
            bus = Bus("memory://")

            async def main() -> None:
                asyncio.get_running_loop().call_later(0.01, bus.stop)
                await bus.run()

            asyncio.run(main())

        await asyncio.to_thread(elsewhere)
        assert signal.getsignal(signal.SIGTERM) is before

    def test_sigterm_drains_a_real_process_and_ends_it_well(self) -> None:
        script = """
import asyncio, brokerkit
bus = brokerkit.Bus("memory://")
@bus.subscriber("orders", group="billing")
async def handle(data: dict) -> None:
    print("begun", flush=True)
    await asyncio.sleep(0.5)
    print("done", flush=True)
async def main():
    running = asyncio.create_task(bus.run())
    while not bus.engines:
        await asyncio.sleep(0.01)
    await bus.publish("orders", {}, type="order.placed")
    await running
    print("closed", bus.ready, flush=True)
asyncio.run(main())
"""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKERKIT_")}
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == "done\nclosed False\n"
            assert process.wait(10) == 0

    def test_a_second_sigterm_cuts_the_grace_of_a_real_process(self) -> None:
        script = """
import asyncio, brokerkit
bus = brokerkit.Bus("memory://", grace=300)
@bus.subscriber("orders", group="billing")
async def handle(data: dict) -> None:
    print("begun", flush=True)
    await asyncio.sleep(300)
async def main():
    running = asyncio.create_task(bus.run())
    while not bus.engines:
        await asyncio.sleep(0.01)
    engine = bus.engines[0]
    await bus.publish("orders", {}, type="order.placed")
    while not engine._stopping:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.4)
    print("draining", flush=True)
    await running
    print("closed", flush=True)
asyncio.run(main())
"""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKERKIT_")}
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            too_late = threading.Timer(30, process.kill)
            too_late.start()
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "draining\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == "closed\n"
            assert process.wait(10) == 0
            too_late.cancel()


class TestOneAtATime:
    @virtual
    async def test_a_second_consuming_beside_the_first_is_refused_and_harms_it_not(self) -> None:
        bus = Bus("memory://")
        seen: list[dict[str, int]] = []

        @bus.subscriber("orders", group="billing")
        async def handle(data: dict[str, int]) -> None:
            seen.append(data)

        async with bus, bus.consuming():
            with pytest.raises(ConfigurationError, match="consuming already"):
                async with bus.consuming():
                    pass
            await bus.publish("orders", {"n": 1}, type="order.placed")
            await until(lambda: seen == [{"n": 1}])

    @virtual
    async def test_a_bus_that_was_closed_says_that_a_new_one_is_needed(self) -> None:
        bus = Bus("memory://")
        async with bus:
            pass
        with pytest.raises(Closed, match="make a new Bus"):
            await bus.connect()

    @virtual
    async def test_an_envelope_that_does_not_exist_is_refused_when_publishing(self) -> None:
        form: Any = "strutured"
        async with Bus("memory://") as bus:
            with pytest.raises(ConfigurationError, match="'structured', 'binary', 'plain'"):
                await bus.publish("orders", {}, type="order.placed", envelope=form)
