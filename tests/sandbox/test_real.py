"""The real servers: each keeps what it has over a kill, is missed when frozen, and lets in whom it should."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import aio_pika
import pytest

from brokerkit.sandbox import SERVERS, SandboxError
from tests.conftest import StartOwn
from tests.servers import Certificates, RealServer

# Untyped, or partly so.
aiokafka: Final[Any] = import_module("aiokafka")
botocore: Final[Any] = import_module("botocore.session")
nats: Final[Any] = import_module("nats")
redis: Final[Any] = import_module("redis.asyncio")


class Client(Protocol):
    """Puts something into a server, and finds it again."""

    async def put(self, url: str) -> None: ...
    async def find(self, url: str) -> None: ...


def address(url: str) -> str:
    """Return host and port."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}"


class KafkaClient:
    async def put(self, url: str) -> None:
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=address(url)) as producer:
            await producer.send_and_wait("kept", b"o-17")

    async def find(self, url: str) -> None:
        consumer = aiokafka.AIOKafkaConsumer(
            "kept", bootstrap_servers=address(url), auto_offset_reset="earliest"
        )
        async with consumer, asyncio.timeout(30):
            assert (await consumer.getone()).value == b"o-17"


class RabbitClient:
    async def put(self, url: str) -> None:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue("kept", durable=True)
            message = aio_pika.Message(b"o-17", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, queue.name)

    async def find(self, url: str) -> None:
        async with await aio_pika.connect(url) as connection:
            queue = await (await connection.channel()).get_queue("kept")
            assert (await queue.get(no_ack=True)).body == b"o-17"


class NatsClient:
    async def put(self, url: str) -> None:
        connection = await nats.connect(url)
        await connection.jetstream().add_stream(name="kept", subjects=["kept"])
        await connection.jetstream().publish("kept", b"o-17")
        await connection.close()

    async def find(self, url: str) -> None:
        connection = await nats.connect(url)
        assert (await connection.jetstream().get_msg("kept", 1)).data == b"o-17"
        await connection.close()


class SqsClient:
    @staticmethod
    def _client(url: str) -> Any:
        return botocore.get_session().create_client(
            "sqs",
            region_name="eu-west-1",
            endpoint_url=f"http://{address(url)}",
            aws_access_key_id="x",
            aws_secret_access_key="x",
        )

    async def put(self, url: str) -> None:
        client = self._client(url)
        queue = (await asyncio.to_thread(client.create_queue, QueueName="kept"))["QueueUrl"]
        await asyncio.to_thread(client.send_message, QueueUrl=queue, MessageBody="o-17")
        client.close()

    async def find(self, url: str) -> None:
        client = self._client(url)
        queue = (await asyncio.to_thread(client.get_queue_url, QueueName="kept"))["QueueUrl"]
        received = await asyncio.to_thread(client.receive_message, QueueUrl=queue, WaitTimeSeconds=5)
        assert [message["Body"] for message in received["Messages"]] == ["o-17"]
        client.close()


class PostgresClient:
    async def put(self, url: str) -> None:
        await self._run(url, "CREATE TABLE kept (id text)", "INSERT INTO kept VALUES ('o-17')")

    async def find(self, url: str) -> None:
        assert await self._run(url, "SELECT id FROM kept") == [("o-17",)]

    async def _run(self, url: str, *statements: str) -> list[tuple[Any, ...]]:
        import psycopg

        async with await psycopg.AsyncConnection.connect(url) as connection:
            cursor = connection.cursor()
            for statement in statements:
                await cursor.execute(statement.encode())
            return await cursor.fetchall() if cursor.description else []


class RedisClient:
    async def put(self, url: str) -> None:
        async with redis.Redis.from_url(url) as client:
            await client.set("kept", "o-17")

    async def find(self, url: str) -> None:
        async with redis.Redis.from_url(url) as client:
            assert await client.get("kept") == b"o-17"


CLIENTS: Final[dict[str, Client]] = {
    "kafka": KafkaClient(),
    "rabbitmq": RabbitClient(),
    "nats": NatsClient(),
    "sqs": SqsClient(),
    "postgres": PostgresClient(),
    "redis": RedisClient(),
}


def test_every_server_that_keeps_something_is_tested_here() -> None:
    assert {*CLIENTS, "sns"} == {*SERVERS}  # moto keeps everything in memory


@pytest.fixture
def shared_server(request: pytest.FixtureRequest) -> RealServer:
    found: RealServer = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.mark.parametrize("shared_server", CLIENTS, indirect=True)
async def test_a_server_keeps_what_it_has_taken_over_a_freeze_and_a_kill(shared_server: RealServer) -> None:
    server, client = shared_server.control, CLIENTS[shared_server.name]
    url, pid = server.url, server.pid
    await client.put(url)

    await asyncio.to_thread(server.freeze)
    assert (await asyncio.to_thread(server.status)).state == "frozen"
    await asyncio.to_thread(server.thaw)
    await asyncio.to_thread(server.kill)
    assert (await asyncio.to_thread(server.status)).state == "crashed"
    await asyncio.to_thread(server.start)

    assert server.url == url
    assert server.pid != pid
    await client.find(url)


async def test_sns_is_an_empty_server_after_a_kill(own_server: StartOwn) -> None:
    server = await asyncio.to_thread(own_server, "sns")
    pid = server.pid
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)

    assert server.alive
    assert server.pid != pid


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


async def to_kafka(url: str, context: ssl.SSLContext, password: str, mechanism: str = "PLAIN") -> None:
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=address(url),
        security_protocol="SASL_SSL",
        ssl_context=context,
        sasl_mechanism=mechanism,
        sasl_plain_username="brokerkit",
        sasl_plain_password=password,
    )
    try:
        await producer.start()
    finally:
        await producer.stop()


async def to_rabbitmq(url: str, context: ssl.SSLContext, password: str) -> None:
    where = url.replace(":brokerkit@", f":{password}@")
    async with await aio_pika.connect(where, ssl_context=context):
        pass


async def to_nats(url: str, context: ssl.SSLContext, password: str) -> None:
    where = f"tls://{address(url)}"
    connection = await nats.connect(
        where, tls=context, user="brokerkit", password=password, allow_reconnect=False, error_cb=silent
    )
    await connection.close()


async def silent(_: Exception) -> None:
    """The error is raised as well."""


SECURE: Final[dict[str, Callable[[str, ssl.SSLContext, str], Coroutine[Any, Any, None]]]] = {
    "kafka": to_kafka,
    "rabbitmq": to_rabbitmq,
    "nats": to_nats,
}


@pytest.fixture
def secure_server(request: pytest.FixtureRequest) -> RealServer:
    found: RealServer = request.getfixturevalue(f"secure_{request.param}_server")
    return found


@pytest.mark.parametrize("secure_server", SECURE, indirect=True)
async def test_a_secure_server_lets_in_only_the_right_password_and_only_a_client_that_trusts_it(
    secure_server: RealServer, certificates: Certificates
) -> None:
    connect, url = SECURE[secure_server.name], secure_server.url

    await connect(url, trusting(certificates.authority), "brokerkit")
    with pytest.raises(Exception, match=r"(?i)auth|refused|login|unable to bootstrap"):
        await connect(url, trusting(certificates.authority), "wrong")
    with pytest.raises(Exception, match=r"(?i)certificate|unable to bootstrap|ssl"):
        await connect(url, trusting(certificates.stranger), "brokerkit")


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_kafka_takes_scram_too(
    mechanism: str, secure_kafka_server: RealServer, certificates: Certificates
) -> None:
    url, context = secure_kafka_server.url, trusting(certificates.authority)

    await to_kafka(url, context, "brokerkit", mechanism)
    with pytest.raises(aiokafka.errors.KafkaError):
        await to_kafka(url, context, "wrong", mechanism)


async def test_nats_takes_a_token(token_nats_server: RealServer, certificates: Certificates) -> None:
    where, context = f"tls://{address(token_nats_server.url)}", trusting(certificates.authority)
    connection = await nats.connect(where, tls=context, token="s3cret", allow_reconnect=False)
    await connection.close()

    with pytest.raises(nats.errors.Error):
        await nats.connect(where, tls=context, token="wrong", allow_reconnect=False, error_cb=silent)


async def test_a_certificate_for_another_host_is_seen(
    own_server: StartOwn, certificates: Certificates
) -> None:
    server = await asyncio.to_thread(own_server, "nats", security=certificates.elsewhere)

    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        await to_nats(server.url, trusting(certificates.authority), "brokerkit")


async def test_a_setting_reaches_the_server(own_server: StartOwn) -> None:
    settings = {"max_payload": "1000", "jetstream.sync_interval": "always"}
    server = await asyncio.to_thread(own_server, "nats", settings=settings)
    connection = await nats.connect(server.url)

    assert connection.max_payload == 1000
    assert "sync_interval: always" in (server.folder / "nats.conf").read_text("utf-8")
    await connection.close()


def test_kafka_names_the_form_of_key_that_it_wants(
    own_server: StartOwn, certificates: Certificates, tmp_path: Path
) -> None:
    key = tmp_path / "old.key"
    key.write_text("-----BEGIN EC PRIVATE KEY-----\n", "ascii")

    with pytest.raises(SandboxError, match=r"is no PKCS#8 key; openssl pkcs8"):
        own_server("kafka", security=replace(certificates.server, key=key))
