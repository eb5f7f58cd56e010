"""A user without rights, and a server that presents another host's certificate: one clear error for each call."""

import re

import pytest

from brokerkit.adapters.kafka import KafkaAdapter
from brokerkit.errors import ConfigurationError, Unauthorised
from brokerkit.message import Address
from tests.adapters.kafka.kit import connected, fresh, inlet, join, send, text
from tests.servers import Certificates, Park, RealServer

LOGIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_brokerkit="brokerkit" user_clerk="clerk";'
SETTINGS = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS;User:brokerkit",
    "listener.name.client.plain.sasl.jaas.config": LOGIN,
}


@pytest.fixture
def guarded(park: Park, certificates: Certificates) -> RealServer:
    """A Kafka that lets `clerk` in and allows nothing, with a certificate for broker.example.org."""
    return park.get("kafka", place="guarded", settings=SETTINGS, security=certificates.elsewhere)


def as_clerk(server: RealServer) -> str:
    return server.url.replace("brokerkit:brokerkit@", "clerk:clerk@")


async def test_a_certificate_for_another_host_is_refused_and_says_so(
    guarded: RealServer, certificates: Certificates
) -> None:
    adapter = KafkaAdapter(guarded.url, tls_ca=str(certificates.authority))
    with pytest.raises(ConfigurationError, match=r"(?i)host ?name|not valid for"):
        await adapter.connect()
    await adapter.close()


async def test_without_rights_each_call_is_unauthorised_and_names_the_place(guarded: RealServer) -> None:
    channel = fresh()
    async with connected(guarded.url, tls_verify=False) as owner:
        member = await join(owner, inlet(channel), 30)
        await send(owner, Address(channel), [text("1")])
        async with connected(as_clerk(guarded), tls_verify=False) as clerk:
            (error,) = await clerk.send(Address(channel), [text("2")])
            assert isinstance(error, Unauthorised)
            assert channel in str(error)
            with pytest.raises(Unauthorised, match=re.escape(channel)):
                await clerk.provision([(Address(channel), "earliest", "none")], create=False)
            with pytest.raises(Unauthorised):
                await clerk.provision([(Address(fresh()), "earliest", "none")], create=True)
            with pytest.raises(Unauthorised):
                await join(clerk, inlet(channel), 30)
        assert [each.message.body for each in await member.take(1, ack=True)] == [b"1"]
