"""TLS, logins and what an error says, on a real server; no text ever holds a password."""

import asyncio
import traceback
from collections.abc import Mapping
from typing import Any

import pytest

from brokerkit.adapter import open_adapter
from brokerkit.adapters.kafka import KafkaAdapter
from brokerkit.errors import BrokerkitError, ConfigurationError, ConnectionLost, NotFound, Unauthorised
from brokerkit.message import Address
from tests.adapters.kafka.kit import connected, fresh, inlet, join, send, text
from tests.servers import Certificates, RealServer


def secure(server: RealServer) -> str:
    return server.url.replace("kafka://", "kafka+tls://")


@pytest.mark.parametrize("sasl", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_messages_travel_over_tls_with_a_login(
    secure_kafka_server: RealServer, certificates: Certificates, sasl: str
) -> None:
    channel = fresh()
    async with connected(
        secure(secure_kafka_server), tls_ca=str(certificates.authority), sasl=sasl
    ) as adapter:
        member = await join(adapter, inlet(channel), 30)
        await send(adapter, Address(channel), [text("1")])
        assert (await member.take(1, ack=True))[0].message.body == b"1"


@pytest.mark.parametrize("sasl", ["PLAIN", "SCRAM-SHA-512"])
async def test_a_wrong_password_is_unauthorised_and_shows_nowhere(
    secure_kafka_server: RealServer, certificates: Certificates, sasl: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = secure(secure_kafka_server).replace("brokerkit:brokerkit@", "brokerkit:hunter2-wrong@")
    error = await refused(url, {"tls_ca": str(certificates.authority), "sasl": sasl})
    assert isinstance(error, Unauthorised)
    assert "hunter2" not in "".join(traceback.format_exception(error)) + caplog.text


async def test_an_authority_that_is_not_trusted_is_named_with_what_to_do(
    secure_kafka_server: RealServer, certificates: Certificates
) -> None:
    error = await refused(secure(secure_kafka_server), {"tls_ca": str(certificates.stranger)})
    assert isinstance(error, ConfigurationError)
    assert "certificate" in str(error)
    assert "tls_ca" in str(error)


async def test_without_an_authority_the_system_s_are_asked_and_do_not_know_it(
    secure_kafka_server: RealServer,
) -> None:
    assert isinstance(await refused(secure(secure_kafka_server), {}), ConfigurationError)


async def test_plain_text_to_a_port_that_speaks_tls_is_a_lost_connection(
    secure_kafka_server: RealServer,
) -> None:
    error = await refused(secure_kafka_server.url, {"request_timeout": 2})
    assert isinstance(error, ConnectionLost | ConfigurationError)


async def test_nobody_there_is_a_lost_connection() -> None:
    error = await refused("kafka://user:hunter2@127.0.0.1:1", {"request_timeout": 2})
    assert isinstance(error, ConnectionLost)
    assert "hunter2" not in "".join(traceback.format_exception(error))


async def refused(url: str, options: Mapping[str, Any]) -> BrokerkitError:
    """Return what connecting raises, within a decent time."""
    adapter = KafkaAdapter(url, **options)
    try:
        async with asyncio.timeout(30):
            with pytest.raises(BrokerkitError) as caught:
                await adapter.connect()
    finally:
        await adapter.close()
    return caught.value


async def test_without_provisioning_what_is_missing_is_not_found_and_named(kafka_server: RealServer) -> None:
    channel = fresh()
    async with connected(kafka_server.url, provisioning="off") as adapter:
        (outcome,) = await adapter.send(Address(channel), [text("1")])
        assert isinstance(outcome, NotFound)
        with pytest.raises(NotFound, match=f"{channel}--g--inlet"):
            await join(adapter, inlet(channel), 30)
        await adapter.provision([(inlet(channel), "earliest", "none")], create=True)
        await send(adapter, Address(channel), [text("1")])
        assert (await (await join(adapter, inlet(channel), 30)).take(1, ack=True))[0].message.body == b"1"


async def test_an_adopted_topic_and_group_are_used_as_they_are(kafka_server: RealServer) -> None:
    theirs, group = f"Legacy_{fresh('t')}", f"old group {fresh('g')}"
    async with connected(kafka_server.url, native={"other": theirs}) as adapter:
        with pytest.raises(NotFound, match="not ours to create"):
            await join(adapter, inlet("other"), 30)
    async with connected(kafka_server.url, native={}) as maker:
        await maker._admin.create([maker._plan.spec(Address("x"), theirs, 1)])
    native = {"orders": theirs, "orders/billing": group}
    async with connected(kafka_server.url, native=native) as adapter:
        member = await join(adapter, inlet("orders", "billing"), 30)
        await send(adapter, Address("orders"), [text("1")])
        (delivery,) = await member.take(1, ack=True)
        assert delivery.address == Address("orders")
        assert delivery.position is not None
        assert delivery.position[0].startswith(theirs)
        await member.close()
        assert any(place[0] == theirs for place in await adapter._admin.committed(group))
        assert ("orders", "billing") in await adapter.groups()


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("kafka://localhost/orders", "path"),
        ("kafka://localhost?sesion=5", "sesion"),
        ("kafka://localhost?session=0.5", "session"),
        ("kafka://localhost?drain=60&rebalance=30", "rebalance"),
        ("kafka://localhost?session=6&heartbeat=5", "heartbeat"),
        ("kafka://localhost?partitions=0", "partitions"),
        ("kafka://localhost?sasl=GSSAPI", "sasl"),
        ("kafka://u:hunter2@example.org", "unencrypted"),
    ],
)
def test_a_wrong_option_is_named_before_anything_connects(url: str, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word) as caught:
        open_adapter(url)
    assert "hunter2" not in str(caught.value)


def test_the_rebalance_waits_for_heartbeat_drain_and_five_seconds() -> None:
    options = KafkaAdapter("kafka://localhost?drain=40")._options
    assert options.rebalance >= options.heartbeat + options.drain + 5


def test_the_commands_make_what_an_address_needs_and_leave_what_is_adopted_alone() -> None:
    adapter = KafkaAdapter("kafka://broker:9092", native={"legacy": "Old_Topic"})
    made = adapter.commands([(inlet("orders", "billing"), "earliest", "none")])
    assert len(made) == 9
    assert all(each.startswith("kafka-topics.sh --bootstrap-server broker:9092 --create") for each in made)
    assert any("orders--billing--retry--30 " in each and "LogAppendTime" in each for each in made)
    assert not any("Old_Topic" in each for each in adapter.commands([(inlet("legacy"), "earliest", "none")]))
