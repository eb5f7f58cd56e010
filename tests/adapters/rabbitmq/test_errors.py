"""What goes wrong is said in our words, and no secret with it."""

import asyncio
import gc
import logging
import time

import pytest

from brokerkit.adapters.rabbitmq import RabbitAdapter
from brokerkit.adapters.rabbitmq.parcels import Parcel
from brokerkit.errors import (
    ConfigurationError,
    ConnectionLost,
    NotFound,
    PublishUnknown,
    Throttled,
    TooLarge,
    Unauthorised,
)
from brokerkit.message import Address, Message
from brokerkit.sandbox import Server
from tests.adapters.rabbitmq.broker import Adapters, fresh, inlet, join, raw_channel, sure, texts
from tests.servers import Certificates, RealServer


def with_user(url: str, user: str, password: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}:{password}@{rest.rpartition('@')[2]}"


async def test_a_wrong_password_is_unauthorised_and_never_said(
    rabbitmq_server: RealServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    adapter = RabbitAdapter(with_user(rabbitmq_server.url, "guest", "s3cr3t-wrong"))
    with pytest.raises(Unauthorised) as caught:
        await adapter.connect()
    await adapter.close()
    assert "s3cr3t-wrong" not in f"{caught.value} {caught.value!r} {caplog.text}"


async def test_a_missing_virtual_host_is_unauthorised_and_named(rabbitmq_server: RealServer) -> None:
    adapter = RabbitAdapter(f"{rabbitmq_server.url}no-such-host")
    with pytest.raises(Unauthorised, match="virtual host"):
        await adapter.connect()
    await adapter.close()


async def test_an_unreachable_broker_is_a_lost_connection_and_the_next_host_is_tried(
    rabbitmq_server: RealServer,
) -> None:
    adapter = RabbitAdapter("amqp://localhost:1")
    with pytest.raises(ConnectionLost):
        await adapter.connect()
    await adapter.close()
    second = RabbitAdapter(rabbitmq_server.url.replace("@", "@127.0.0.1:1,", 1))
    await second.connect()
    assert second.server.startswith("RabbitMQ ")
    await second.close()


async def test_a_host_that_accepts_and_says_nothing_is_given_up_in_time() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    adapter = RabbitAdapter(f"amqp://127.0.0.1:{port}?connect_timeout=0.5")
    begin = time.monotonic()
    with pytest.raises(ConnectionLost, match="in time"):
        await adapter.connect()
    assert time.monotonic() - begin < 2
    await adapter.close()
    server.close()
    await asyncio.sleep(0.05)  # the stub's own connection ends
    gc.collect()


async def test_the_certificate_is_verified_and_what_is_wrong_with_it_is_said(
    strict_server: RealServer, certificates: Certificates
) -> None:
    url = strict_server.url
    good = RabbitAdapter(f"{url}?tls_ca={certificates.authority}")
    await good.connect()
    channel = fresh()
    member = await join(good, inlet(channel))
    await sure(good, Address(channel), texts(3))
    await member.take(3, ack=True)
    await good.close()
    for query in ("", f"?tls_ca={certificates.stranger}"):
        adapter = RabbitAdapter(f"{url}{query}")
        with pytest.raises(ConfigurationError, match="certificate is not trusted"):
            await adapter.connect()
        await adapter.close()
    # "127.1" is the same address by a name for which the certificate was not made
    other = RabbitAdapter(f"{url.replace('127.0.0.1', '127.1')}?tls_ca={certificates.authority}")
    with pytest.raises(ConfigurationError, match=r"127\.1:\d+: .* is for another host \(.*'127\.1'"):
        await other.connect()
    await other.close()


async def test_a_port_without_tls_is_said_to_be_one(rabbitmq_server: RealServer) -> None:
    adapter = RabbitAdapter(rabbitmq_server.url.replace("amqp://", "amqps://"))
    with pytest.raises(ConfigurationError, match="TLS"):
        await adapter.connect()
    await adapter.close()


async def test_without_the_right_to_make_things_what_exists_can_be_used(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    """A user who may read and write everything and configure nothing, made through the management plugin."""
    control = rabbitmq_server.control
    await asyncio.to_thread(make_user, control, "weak", "weak")
    owner = await adapters()
    channel = fresh()
    await owner.provision([(inlet(channel), "earliest", "none")], create=True)
    weak = await adapters(with_user(rabbitmq_server.url, "weak", "weak"))
    member = await join(weak, inlet(channel))
    await sure(weak, Address(channel), texts(2))
    await sure(weak, inlet(channel), [Message(body=b"late")], after=1)
    assert {each.message.body for each in await member.take(3, ack=True)} == {b"0", b"1", b"late"}
    with pytest.raises(Unauthorised):
        await join(weak, inlet(fresh()))
    (outcome,) = await weak.send(Address(fresh()), texts(1))
    assert isinstance(outcome, Unauthorised)


async def test_a_forbidden_publish_says_nothing_definite_of_the_allowed_ones_that_were_out_with_it(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    owner = await adapters()
    allowed, forbidden = fresh(), fresh()
    await join(owner, inlet(allowed))
    await sure(owner, Address(forbidden), texts(1))
    name = fresh("user")
    await asyncio.to_thread(make_user, rabbitmq_server.control, name, name, f"^{allowed}$")
    user = await adapters(with_user(rabbitmq_server.url, name, name))
    parcels = [
        Parcel(exchange, exchange, b"", None, {})
        for exchange in (*[allowed] * 20, forbidden, *[allowed] * 20)
    ]
    outcomes = await user._publisher.publish(parcels, asyncio.get_running_loop().time() + 10)
    assert isinstance(outcomes[20], Unauthorised)
    others = {type(outcome) for outcome in outcomes if outcome is not outcomes[20]}
    assert others <= {PublishUnknown, type(None)}
    await sure(user, Address(allowed), texts(1))


def make_user(server: Server, name: str, password: str, write: str = ".*") -> None:
    import base64
    import json
    import urllib.request

    def put(path: str, body: object) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.ports['management']}{path}",
            json.dumps(body).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": "Basic " + base64.b64encode(b"brokerkit:brokerkit").decode(),
            },
            method="PUT",
        )
        urllib.request.urlopen(request).close()

    put(f"/api/users/{name}", {"password": password, "tags": ""})
    put(f"/api/permissions/%2F/{name}", {"configure": "^$", "write": write, "read": ".*"})


async def test_with_provisioning_off_nothing_is_made_and_what_is_missing_is_named(adapters: Adapters) -> None:
    adapter = await adapters(provisioning="off")
    channel = fresh()
    (outcome,) = await adapter.send(Address(channel), texts(1))
    assert isinstance(outcome, NotFound)
    with pytest.raises(NotFound, match=f"{channel}--g"):
        await join(adapter, inlet(channel))
    missing = await adapter.provision([(inlet(channel), "earliest", "none")], create=False)
    assert f"queue {channel}--g--retry--1" in missing
    assert await adapter.provision([(inlet(channel), "earliest", "none")], create=False) == missing


async def test_a_group_has_one_order_mode(adapters: Adapters) -> None:
    adapter = await adapters()
    plain, keyed = fresh(), fresh()
    await join(adapter, inlet(plain))
    await join(adapter, inlet(keyed), order="key")
    with pytest.raises(ConfigurationError, match="one mode"):
        await join(adapter, inlet(plain), order="key")
    with pytest.raises(ConfigurationError, match="one mode"):
        await join(adapter, inlet(keyed))
    await sure(adapter, Address(plain), texts(1))  # and nothing is broken by having asked


async def test_something_of_ours_with_other_properties_is_refused_and_named(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    channel = fresh()
    async with raw_channel(rabbitmq_server.url) as raw:
        await raw.exchange_declare(channel, exchange_type="direct", durable=True)
    adapter = await adapters()
    await join(adapter, inlet(channel))  # what is there is used as it is


async def test_a_full_unrouted_queue_is_throttled_and_not_silence(adapters: Adapters) -> None:
    adapter = await adapters(max_unrouted=3)
    channel = fresh()
    outcomes = [(await adapter.send(Address(channel), texts(1)))[0] for _ in range(30)]
    assert outcomes[0] is None
    assert isinstance(outcomes[-1], Throttled)
    assert {type(outcome) for outcome in outcomes} == {type(None), Throttled}


async def test_what_the_server_finds_too_large_is_too_large_and_its_neighbours_are_retryable(
    adapters: Adapters, strict_server: RealServer, certificates: Certificates
) -> None:
    adapter = await adapters(strict_server.url, tls_ca=str(certificates.authority))
    channel = fresh()
    member = await join(adapter, inlet(channel))
    await sure(adapter, Address(channel), texts(2))
    outcomes = await adapter.send(
        Address(channel), [Message(body=b"1"), Message(body=b"x" * 2000), Message(body=b"2")]
    )
    assert isinstance(outcomes[1], TooLarge)
    assert all(outcome is None or outcome.retryable for outcome in (outcomes[0], outcomes[2]))
    await sure(adapter, Address(channel), texts(2))
    assert len(await member.take(4)) == 4
