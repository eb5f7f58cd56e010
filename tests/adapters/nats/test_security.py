"""Logins, certificates, rights: what is refused says why, and says no secret."""

import asyncio
import json

import pytest

from brokerkit.adapters.nats import NatsAdapter
from brokerkit.errors import (
    BrokerkitError,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    Unauthorised,
)
from brokerkit.message import Address, Message
from tests.adapters.nats.conftest import Connect
from tests.adapters.nats.members import bodies, inlet, join, send
from tests.conftest import StartOwn
from tests.servers import Certificates, RealServer


def place_of(server: RealServer) -> str:
    return server.url.rpartition("@")[2].rpartition("/")[2]


async def refused(url: str, **options: object) -> BrokerkitError:
    adapter = NatsAdapter(url, **options)  # type: ignore[arg-type]
    with pytest.raises(BrokerkitError) as raised:
        await adapter.connect()
    await adapter.close()
    chain = [str(raised.value), str(raised.value.__cause__), repr(raised.value)]
    assert "s3cret" not in " ".join(chain)
    return raised.value


async def test_with_tls_and_a_login_everything_works(
    connect: Connect, channel: str, secure_nats_server: RealServer, certificates: Certificates
) -> None:
    place = place_of(secure_nats_server)
    adapter = await connect(f"nats+tls://brokerkit:brokerkit@{place}", tls_ca=str(certificates.authority))
    member = await join(adapter, inlet(channel))
    await send(adapter, Address(channel), "1")
    assert bodies(await member.take(1, ack=True)) == ["1"]
    assert adapter.server.startswith("NATS 2.")


async def test_a_token_is_a_login_too(
    connect: Connect, channel: str, token_nats_server: RealServer, certificates: Certificates
) -> None:
    place = place_of(token_nats_server)
    for url, options in ((f"nats+tls://s3cret@{place}", {}), (f"nats+tls://{place}", {"token": "s3cret"})):
        adapter = await connect(url, tls_ca=str(certificates.authority), **options)
        await send(adapter, Address(channel), "1")


@pytest.mark.parametrize("login", ["brokerkit:s3cret-wrong@", "nobody:s3cret@", ""])
async def test_a_wrong_login_is_unauthorised(
    secure_nats_server: RealServer, certificates: Certificates, login: str
) -> None:
    error = await refused(
        f"nats+tls://{login}{place_of(secure_nats_server)}", tls_ca=str(certificates.authority)
    )
    assert isinstance(error, Unauthorised)


async def test_an_unknown_authority_is_a_matter_of_certificates(
    secure_nats_server: RealServer, certificates: Certificates
) -> None:
    url = f"nats+tls://brokerkit:s3cret@{place_of(secure_nats_server)}"
    for options in ({}, {"tls_ca": str(certificates.stranger)}):
        error = await refused(url, **options)
        assert isinstance(error, ConfigurationError)
        assert "certificate" in str(error)
        assert "tls_ca" in str(error)


async def test_a_certificate_for_another_host_is_a_matter_of_certificates(
    own_server: StartOwn, certificates: Certificates
) -> None:
    server = await asyncio.to_thread(own_server, "nats", security=certificates.elsewhere)
    place = server.url.rpartition("@")[2]
    error = await refused(f"nats+tls://brokerkit:brokerkit@{place}", tls_ca=str(certificates.authority))
    assert isinstance(error, ConfigurationError)
    assert "certificate" in str(error)


async def test_tls_that_is_asked_for_and_not_offered_is_refused_and_no_password_is_sent(
    nats_server: RealServer,
) -> None:
    error = await refused(f"nats+tls://user:s3cret@{place_of(nats_server)}")
    assert isinstance(error, ConnectionLost)
    assert "no TLS" in str(error)


async def test_nobody_there_is_a_lost_connection_at_once() -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    assert isinstance(await refused("nats://user:s3cret@127.0.0.1:1,127.0.0.1:2"), ConnectionLost)
    assert loop.time() - begin < 4


async def test_somebody_who_is_no_nats_server_is_a_lost_connection() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        error = await refused(f"nats://127.0.0.1:{port}", connect_timeout=0.5)
        server.close()
    assert isinstance(error, ConnectionLost)


def rights(publish: list[str], subscribe: list[str]) -> str:
    """Return the block of a user who may do this and no more."""
    user = {
        "user": "limited",
        "password": "limited",
        "permissions": {"publish": {"allow": publish}, "subscribe": {"allow": subscribe}},
    }
    owner = {"user": "owner", "password": "owner"}
    return json.dumps({"users": [owner, user]})


async def test_a_sender_without_the_right_is_unauthorised_and_one_who_may_only_use_works_without_provisioning(
    connect: Connect, channel: str, own_server: StartOwn
) -> None:
    may = [
        f"{channel}.*",
        f"$JS.API.STREAM.INFO.{channel}",
        f"$JS.API.STREAM.INFO.{channel}--inlet",
        f"$JS.API.CONSUMER.INFO.{channel}.>",
        f"$JS.API.CONSUMER.INFO.{channel}--inlet.>",
        f"$JS.API.CONSUMER.MSG.NEXT.{channel}.>",
        f"$JS.API.CONSUMER.MSG.NEXT.{channel}--inlet.>",
        "$JS.ACK.>",
    ]
    server = await asyncio.to_thread(
        own_server, "nats", settings={"authorization": rights(may, ["_INBOX.>"])}
    )
    place = server.url.rpartition("/")[2]
    owner = await connect(f"nats://owner:owner@{place}")
    await owner.provision([(inlet(channel), "earliest", "none")], create=True)
    adapter = await connect(f"nats://limited:limited@{place}", send_timeout=5.0)
    member = await join(adapter, inlet(channel))
    await send(adapter, Address(channel), "1")
    assert bodies(await member.take(1, ack=True)) == ["1"]
    loop = asyncio.get_running_loop()
    begin = loop.time()
    (outcome,) = await adapter.send(inlet(channel), [Message(body=b"2")])
    assert isinstance(outcome, Unauthorised)
    assert f"{channel}--inlet" in str(outcome)
    with pytest.raises(Unauthorised):
        await join(adapter, inlet(channel, "another"))
    assert loop.time() - begin < 3


async def test_without_provisioning_what_is_missing_is_not_found_and_nothing_is_made(
    connect: Connect, channel: str
) -> None:
    adapter = await connect(provisioning="off")
    for to in (Address(channel), inlet(channel), Address(channel, "g", "dead")):
        (outcome,) = await adapter.send(to, [Message(body=b"1")])
        assert isinstance(outcome, NotFound)
    with pytest.raises(NotFound):
        await join(adapter, inlet(channel))
    assert await adapter.api.stream(channel) is None


async def test_a_server_without_jetstream_is_a_matter_of_configuration(
    channel: str, own_server: StartOwn
) -> None:
    settings = {"accounts": json.dumps({"plain": {"users": [{"user": "u", "password": "u"}]}})}
    server = await asyncio.to_thread(own_server, "nats", settings=settings)
    adapter = NatsAdapter(f"nats://u:u@{server.url.rpartition('/')[2]}")
    await adapter.connect()
    (outcome,) = await adapter.send(Address(channel), [Message(body=b"1")])
    assert outcome is not None
    assert "JetStream" in str(outcome)
    await adapter.close()
