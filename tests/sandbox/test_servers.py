"""The test-suite's own servers, and what every server of the sandbox keeps."""

from tests.servers import RealServer


def test_nats_is_had(nats_server: RealServer, secure_nats_server: RealServer, token_nats_server: RealServer) -> None:
    print(nats_server.url, secure_nats_server.url, token_nats_server.url)


def test_kafka(secure_kafka_server: RealServer,secure_rabbitmq_server: RealServer) -> None:
    print(secure_kafka_server.url)
