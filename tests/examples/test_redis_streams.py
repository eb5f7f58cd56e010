"""The adapter for Redis Streams: both conformance suites, and what they leave to a test of its own."""

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import pytest

from brokerkit.adapter import Adapter, Subscription
from brokerkit.brokerurl import parse_url
from brokerkit.delivery import Delivery
from brokerkit.errors import (
    Closed,
    ConfigurationError,
    ConnectionLost,
    PublishUnknown,
    Throttled,
    Unauthorised,
)
from brokerkit.examples.redis_streams import RedisAdapter
from brokerkit.examples.redis_streams.keeper import Watch
from brokerkit.examples.redis_streams.line import Line
from brokerkit.message import Address, Message
from brokerkit.sandbox import Server
from brokerkit.settlement import Ack
from brokerkit.testing.conformance import AdapterConformance, BusConformance, Harness
from tests.conftest import StartOwn
from tests.servers import Certificates, RealServer

INLET: Final = Address("orders", "billing", "inlet")
_restartable: Final[dict[str, Server]] = {}  # by URL, and not in the harness, which is pickled


class RedisHarness:
    limits: frozenset[str] = frozenset()
    patience = 15.0

    def __init__(self, server: RealServer) -> None:
        self.server = server.url
        self.url = f"{server.url}?lease=1&max_message=200000&prefix=t{secrets.token_hex(4)}"

    async def adapter(self) -> Adapter:
        adapter = RedisAdapter(self.url)
        await adapter.connect()
        return adapter


class RestartingHarness(RedisHarness):
    """On a server that is ours."""

    async def restart(self) -> None:
        await asyncio.to_thread(_restartable[self.server].kill)
        await asyncio.to_thread(_restartable[self.server].start)


def harness_of(server: RealServer) -> Harness:
    if server.own is None:
        return RedisHarness(server)
    _restartable[server.url] = server.own
    return RestartingHarness(server)


@pytest.mark.conformance
class TestRedisStreams(AdapterConformance):
    @pytest.fixture
    def harness(self, redis_server: RealServer) -> Harness:
        return harness_of(redis_server)


@pytest.mark.conformance
class TestRedisStreamsBus(BusConformance):
    @pytest.fixture
    def harness(self, redis_server: RealServer) -> Harness:
        return harness_of(redis_server)


@dataclass
class Cable:
    """What lies between an adapter and the server, and can be cut or deafened."""

    port: int
    deaf: bool = False  # the next long answer is lost; hints and greetings are short
    cut: bool = False
    here: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set[asyncio.StreamWriter])

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers |= {writer, far_writer}
        await asyncio.gather(
            self._copy(reader, far_writer, back=False), self._copy(far_reader, writer, back=True)
        )

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if self.deaf and back and len(data) > 500:
                    self.deaf = False
                    self.break_all()
                    return
                writer.write(data)
                await writer.drain()
        writer.close()

    def break_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@asynccontextmanager
async def cable_to(server: RealServer) -> AsyncGenerator[Cable]:
    cable = Cable(int(server.url.rpartition(":")[2].partition("/")[0]))
    listening = await asyncio.start_server(cable.carry, "127.0.0.1", 0)
    cable.here = listening.sockets[0].getsockname()[1]
    try:
        yield cable
    finally:
        listening.close()
        cable.break_all()
        await asyncio.sleep(0.02)


@asynccontextmanager
async def adapter_at(url: str, **options: float | str) -> AsyncGenerator[RedisAdapter]:
    adapter = RedisAdapter(url, **options)
    await adapter.connect()
    try:
        yield adapter
    finally:
        await adapter.close()


async def said_to(url: str, *command: str) -> None:
    line = Line(parse_url(url, port=6379, known=()), timeout=5)
    try:
        await line.command(*command)
    finally:
        await line.close()


@dataclass
class Member:
    """A subscription, and what it was told to have lost."""

    subscription: Subscription
    lost: list[Delivery]

    async def take(self, count: int, seconds: float = 10.0) -> list[Delivery]:
        found: list[Delivery] = []
        async with asyncio.timeout(seconds):
            while len(found) < count:
                found += await self.subscription.receive(count - len(found))
        return found

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        assert set(await self.subscription.settle([(delivery, Ack()) for delivery in deliveries])) == {None}


async def member_of(adapter: RedisAdapter) -> Member:
    lost: list[Delivery] = []

    async def on_lost(deliveries: Sequence[Delivery], seconds: float) -> None:
        lost.extend(deliveries)

    subscription = await adapter.subscribe(
        INLET, order="none", start="earliest", prefetch=100, on_lost=on_lost
    )
    return Member(subscription, lost)


def numbered(count: int) -> list[Message]:
    return [Message(body=str(n).encode(), key=str(n % 7).encode()) for n in range(count)]


def bodies(deliveries: Sequence[Delivery]) -> list[int]:
    return sorted(int(delivery.message.body) for delivery in deliveries)


class TestTrouble:
    async def test_what_was_claimed_by_a_request_whose_answer_was_lost_comes_as_a_polite_return(
        self, redis_server: RealServer
    ) -> None:
        prefix = f"t{secrets.token_hex(4)}"
        async with (
            cable_to(redis_server) as cable,
            adapter_at(f"redis://127.0.0.1:{cable.here}/0", lease=20, prefix=prefix) as adapter,
            adapter_at(redis_server.url, prefix=prefix) as sender,
        ):
            member = await member_of(adapter)
            waiting = asyncio.create_task(member.take(20))
            await asyncio.sleep(0.2)
            cable.deaf = True
            await sender.send(Address("orders"), numbered(20))
            found = await waiting
            assert not cable.deaf
            assert bodies(found) == list(range(20))
            assert {(one.arrivals, one.returns) for one in found} == {(2, 1)}
            assert not any(one.suspect for one in found)
            await member.ack(found)
            assert member.lost == []

    async def test_a_short_cut_costs_nothing_that_is_handed_out(self, redis_server: RealServer) -> None:
        prefix = f"t{secrets.token_hex(4)}"
        async with (
            cable_to(redis_server) as cable,
            adapter_at(f"redis://127.0.0.1:{cable.here}/0", lease=20, prefix=prefix) as adapter,
        ):
            member = await member_of(adapter)
            assert set(await adapter.send(Address("orders"), numbered(10))) == {None}
            found = await member.take(10)
            cable.cut = True
            cable.break_all()
            (outcome,) = await adapter.send(Address("orders"), numbered(1))
            assert isinstance(outcome, PublishUnknown | ConnectionLost)
            (refused,) = await member.subscription.settle([(found[0], Ack())])
            assert refused is not None
            assert refused.retryable
            cable.cut = False
            await member.ack(found)
            assert member.lost == []
            assert set(await adapter.send(Address("orders"), numbered(1))) == {None}
            await member.ack(await member.take(1))

    async def test_a_cut_that_is_longer_than_the_lease_is_told_and_then_raised(
        self, redis_server: RealServer
    ) -> None:
        prefix = f"t{secrets.token_hex(4)}"
        async with (
            cable_to(redis_server) as cable,
            adapter_at(f"redis://127.0.0.1:{cable.here}/0", lease=1, prefix=prefix) as adapter,
            adapter_at(redis_server.url, lease=1, prefix=prefix) as other,
        ):
            first, second = await member_of(adapter), await member_of(other)
            await second.subscription.close()
            await other.send(Address("orders"), numbered(5))
            found = await first.take(5)
            second = await member_of(other)
            cable.cut = True
            cable.break_all()
            with pytest.raises(ConnectionLost):
                await first.take(1)
            assert first.lost == found
            again = await second.take(5)
            assert bodies(again) == bodies(found)
            cable.cut = False
            outcomes = await first.subscription.settle([(one, Ack()) for one in found])
            assert all(outcome is not None and not outcome.retryable for outcome in outcomes)
            await second.ack(again)
            await first.subscription.close()
            third = await member_of(adapter)
            await other.send(Address("orders"), numbered(1))
            await third.subscription.close()

    async def test_a_server_that_stands_still_is_closed_in_bounded_time(self, own_server: StartOwn) -> None:
        server = own_server("redis")
        async with adapter_at(server.url, timeout=1, lease=2) as adapter:
            member = await member_of(adapter)
            await adapter.send(Address("orders"), numbered(5))
            await member.take(5)
            await asyncio.to_thread(server.freeze)
            try:
                began = time.monotonic()
                (outcome,) = await adapter.send(Address("orders"), numbered(1))
                assert isinstance(outcome, PublishUnknown)
                await adapter.close()
                assert time.monotonic() - began < 9.0
            finally:
                await asyncio.to_thread(server.thaw)

    async def test_what_was_confirmed_outlives_a_kill_of_the_server(self, own_server: StartOwn) -> None:
        server = own_server("redis")
        confirmed: list[int] = []

        async def publish(adapter: RedisAdapter) -> None:
            for n in range(100_000):
                (outcome,) = await adapter.send(Address("orders"), [Message(body=str(n).encode())])
                if outcome is None:
                    confirmed.append(n)

        async with adapter_at(server.url, lease=2) as adapter:
            member = await member_of(adapter)
            publishing = asyncio.create_task(publish(adapter))
            found = await member.take(200)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(server.start)
            await asyncio.sleep(0.3)
            publishing.cancel()
            seen = {int(one.message.body) for one in found}
            async with asyncio.timeout(20):
                while not seen >= set(confirmed):
                    try:
                        seen |= {int(one.message.body) for one in await member.subscription.receive(500)}
                    except ConnectionLost:
                        await member.subscription.close()
                        member = await member_of(adapter)

    async def test_a_full_server_is_said_to_be_so_and_takes_the_next_batch(
        self, own_server: StartOwn
    ) -> None:
        server = own_server("redis", settings={"maxmemory": "4mb", "maxmemory-policy": "noeviction"})
        async with adapter_at(server.url) as adapter:
            member = await member_of(adapter)
            big = Message(body=bytes(500_000))
            outcomes = [(await adapter.send(INLET, [big]))[0] for _ in range(12)]
            assert isinstance(outcomes[-1], Throttled)
            stored = outcomes.count(None)
            found = await member.take(stored)
            await member.ack(found)
            assert list(await adapter.send(INLET, [big])) == [None]


class TestConnecting:
    async def test_a_wrong_password_is_told_apart_from_a_server_that_is_not_there(
        self, own_server: StartOwn
    ) -> None:
        server = own_server("redis")
        host = server.url.partition("://")[2]
        await said_to(server.url, "ACL", "SETUSER", "app", "on", ">right", "~*", "&*", "+@all")
        await said_to(
            server.url, "ACL", "SETUSER", "reader", "on", ">right", "~*", "&*", "+@all", "-@scripting"
        )
        with pytest.raises(Unauthorised) as caught:
            await RedisAdapter(f"redis://app:wr0ng-one@{host}").connect()
        assert "wr0ng-one" not in str(caught.value) + repr(caught.value.__cause__)
        async with adapter_at(f"redis://app:right@{host}") as adapter:
            assert list(await adapter.send(Address("orders"), numbered(1))) == [None]
        async with adapter_at(f"redis://reader:right@{host}") as adapter:
            (outcome,) = await adapter.send(Address("orders"), numbered(1))
            assert isinstance(outcome, Unauthorised)
            with pytest.raises(Unauthorised):
                await member_of(adapter)
        await asyncio.to_thread(server.kill)
        with pytest.raises(ConnectionLost):
            await RedisAdapter(f"redis://app:right@{host}").connect()

    async def test_it_speaks_tls_and_refuses_a_stranger(
        self, own_server: StartOwn, certificates: Certificates
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        own_server(
            "redis",
            settings={
                "tls-port": str(port),
                "tls-cert-file": str(certificates.server.certificate),
                "tls-key-file": str(certificates.server.key),
                "tls-auth-clients": "no",
            },
        )
        url = f"rediss://127.0.0.1:{port}"
        async with adapter_at(url, tls_ca=str(certificates.authority)) as adapter:
            member = await member_of(adapter)
            await adapter.send(Address("orders"), numbered(3))
            await member.ack(await member.take(3))
            assert adapter.server.startswith("Redis ")
        with pytest.raises(Unauthorised):
            await RedisAdapter(url, tls_ca=str(certificates.stranger)).connect()

    async def test_a_closed_one_is_closed(self, redis_server: RealServer) -> None:
        adapter = RedisAdapter(redis_server.url)
        with pytest.raises(Closed):
            await adapter.send(Address("orders"), numbered(1))
        await adapter.close()
        with pytest.raises(Closed):
            await adapter.connect()

    @pytest.mark.parametrize(
        "url",
        [
            "http://localhost",
            "redis://app:secret@redis.example",
            "redis://one,two",
            "redis://localhost/name",
            "redis://localhost?lease=soon",
            "redis://localhost?nonsense=1",
            "redis://localhost?prefix=A*",
        ],
    )
    def test_a_wrong_url_is_refused_before_anything_connects(self, url: str) -> None:
        with pytest.raises(ConfigurationError):
            RedisAdapter(url)


class TestWatch:
    def test_who_stands_still_for_a_lease_is_dead_and_who_moves_is_not(self) -> None:
        watch = Watch(10)
        assert watch.judge({b"a": b"1|10", b"b": b"1|10"}, 0) == []
        assert watch.judge({b"a": b"1|10", b"b": b"2|10"}, 9) == []
        assert watch.judge({b"a": b"1|10", b"b": b"2|10"}, 11) == [(b"a", b"1|10")]

    def test_who_was_away_judges_nobody_and_the_longer_lease_counts(self) -> None:
        watch = Watch(10)
        assert watch.judge({b"a": b"1|10", b"b": b"1|60"}, 0) == []
        assert watch.judge({b"a": b"1|10", b"b": b"1|60"}, 30, away=True) == []
        assert watch.judge({b"a": b"1|10", b"b": b"1|60"}, 39) == []
        assert watch.judge({b"a": b"1|10", b"b": b"1|60"}, 41) == [(b"a", b"1|10")]
