"""
Fixtures for all tests: real servers, each started once in a session by the first test that asks for it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Protocol

import pytest

from brokerkit.sandbox import Security, Server
from tests.servers import Certificates, Park, RealServer, certificates_in


@pytest.fixture(scope="session")
def park() -> Iterator[Park]:
    """All servers of this run of the tests."""
    park = Park()
    yield park
    park.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority and certificates by it, in files."""
    return certificates_in(tmp_path_factory.mktemp("certificates"))


def _shared(name: str) -> Callable[[Park], Iterator[RealServer]]:
    def server(park: Park) -> Iterator[RealServer]:
        found = park.get(name)
        found.mend()
        yield found

    server.__doc__ = f"A real {name}, shared by all tests; running when a test begins."
    return pytest.fixture(name=f"{name}_server")(server)


kafka_server = _shared("kafka")
rabbitmq_server = _shared("rabbitmq")
nats_server = _shared("nats")
sqs_server = _shared("sqs")
sns_server = _shared("sns")
postgres_server = _shared("postgres")
redis_server = _shared("redis")


def _secure(name: str) -> Callable[[Park, Certificates], RealServer]:
    def server(park: Park, certificates: Certificates) -> RealServer:
        return park.get(name, place="secure", security=certificates.server)

    server.__doc__ = f"A real {name} with TLS and a login: brokerkit, brokerkit."
    return pytest.fixture(name=f"secure_{name}_server")(server)


secure_kafka_server = _secure("kafka")
secure_rabbitmq_server = _secure("rabbitmq")
secure_nats_server = _secure("nats")


@pytest.fixture
def token_nats_server(park: Park, certificates: Certificates) -> RealServer:
    """A real NATS with TLS that wants the token `s3cret`."""
    return park.get("nats", place="token", security=replace(certificates.server, token="s3cret"))


class StartOwn(Protocol):
    """`own_server("nats", settings={...}, security=...)`."""

    def __call__(
        self, name: str, *, settings: Mapping[str, str] | None = None, security: Security | None = None
    ) -> Server: ...


@pytest.fixture
def own_server(park: Park) -> Iterator[StartOwn]:
    """Start servers for this test alone, with settings of their own; they are gone when it ends."""
    with ExitStack() as stack:

        def start(
            name: str, *, settings: Mapping[str, str] | None = None, security: Security | None = None
        ) -> Server:
            return stack.enter_context(park.own(name, settings=settings, security=security))

        yield start
