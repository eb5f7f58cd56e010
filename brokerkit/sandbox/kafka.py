"""
Kafka in KRaft mode, one node that is broker and controller, from Maven coordinates.
"""

import signal
import subprocess
from pathlib import Path
from typing import ClassVar, Final

from brokerkit.sandbox.errors import SandboxError
from brokerkit.sandbox.ports import LOOPBACK
from brokerkit.sandbox.probe import kafka_lists_itself
from brokerkit.sandbox.recipe import PASSWORD, USER, Installation, Launch, Security, Site
from brokerkit.sandbox.tools import Tools, last_lines

__all__ = ["Kafka"]

VERSION: Final = "4.4.0"

_JARS: Final = (
    f"org.apache.kafka:kafka_2.13:{VERSION}",
    "org.apache.logging.log4j:log4j-core:2.25.1",  # Kafka's own POM leaves the logging back end out
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.1",  # not slf4j2: Kafka is on slf4j 1.7
)
_CLUSTER: Final = "YnJva2Vya2l0LWthZmthMA"
_MEMORY: Final = ("-Xms128m", "-Xmx640m", "-XX:+UseSerialGC")
_LOGGING: Final = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %m (%c)%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""
_PEM_KEY: Final = "-----BEGIN PRIVATE KEY-----"
_SCRAM: Final = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


class Kafka:
    """
    Apache Kafka.

    With security: SASL_SSL with PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512 for clients; brokers and the probe go over a second
    listener without either, on the port `inside`.
    """

    name: ClassVar[str] = "kafka"
    ports: ClassVar[tuple[str, ...]] = ("client", "controller", "inside")
    patience: ClassVar[float] = 240.0
    stop_by: ClassVar[signal.Signals] = signal.SIGTERM
    secure: ClassVar[bool] = True

    def install(self, tools: Tools) -> Installation:
        """Find Java, and get the jars."""
        jars = tools.maven(f"kafka-{VERSION}", _JARS)
        return Installation(VERSION, {"java": tools.java(), "jars": jars})

    def data(self, folder: Path) -> Path:
        """Return the folder of the log; a newer Kafka's is not readable for an older one."""
        return folder / f"data-{VERSION}"

    def prepare(self, site: Site, installed: Installation) -> Launch:
        """Write `server.properties`; format the storage if it is new."""
        config = site.folder / "server.properties"
        lines = {**_plain(site), **(_secure(site, site.security) if site.security else {}), **site.settings}
        config.write_text("".join(f"{name}={value}\n" for name, value in lines.items()), "utf-8")
        config.chmod(0o600)
        logging = site.folder / "log4j2.properties"
        logging.write_text(_LOGGING, "utf-8")
        java: list[str | Path] = [installed.programs["java"], f"-Dlog4j2.configurationFile={logging}"]
        jars = ["-cp", f"{installed.programs['jars']}/*"]
        if not (site.data / "meta.properties").exists():
            _format([*java, *jars, "kafka.tools.StorageTool", "format"], site, config)
        return Launch([*java, *_MEMORY, *jars, "kafka.Kafka", config])

    def probe(self, site: Site, _: Installation) -> str | None:
        """Ask for the metadata."""
        return kafka_lists_itself(site.ports["inside" if site.security else "client"])

    def url(self, site: Site) -> str:
        """Return the bootstrap address; with security it holds the login."""
        scheme, login = ("kafka+tls", f"{USER}:{PASSWORD}@") if site.security else ("kafka", "")
        return f"{scheme}://{login}{LOOPBACK}:{site.ports['client']}"


def _plain(site: Site) -> dict[str, str]:
    client, controller = (f"{LOOPBACK}:{site.ports[name]}" for name in ("client", "controller"))
    listeners = f"CLIENT://{client},CONTROLLER://{controller}"
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.bootstrap.servers": controller,
        "listeners": listeners,
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "CLIENT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(site.data),
        "num.partitions": "3",
        "auto.create.topics.enable": "true",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "3",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "3",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "3",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",  # so that a test need not wait for the usual ten seconds
        # A killed broker is let in again when its old registration has expired: after 9 s by default.
        "broker.session.timeout.ms": "5000",
        "broker.heartbeat.interval.ms": "1000",
        "log.retention.hours": "24",
        "log.cleaner.dedupe.buffer.size": "8388608",  # 128 MiB of heap by default
    }


def _secure(site: Site, security: Security) -> dict[str, str]:
    keys = site.folder / "server.pem"
    private = security.key.read_text("ascii")
    if not private.lstrip().startswith(_PEM_KEY):
        message = (
            f"{security.key} is no PKCS#8 key; openssl pkcs8 -topk8 -nocrypt -in {security.key} makes one"
        )
        raise SandboxError(message)
    keys.write_text(f"{private}\n{security.certificate.read_text('ascii')}", "ascii")
    keys.chmod(0o600)
    client, inside, controller = (
        f"{LOOPBACK}:{site.ports[name]}" for name in ("client", "inside", "controller")
    )
    listeners = f"CLIENT://{client},INSIDE://{inside},CONTROLLER://{controller}"
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    return {
        "listeners": listeners,
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "CLIENT:SASL_SSL,INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "INSIDE",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.client.plain.sasl.jaas.config": f'{plain} user_{USER}="{PASSWORD}";',
        "listener.name.client.scram-sha-256.sasl.jaas.config": _SCRAM,
        "listener.name.client.scram-sha-512.sasl.jaas.config": _SCRAM,
        "listener.name.client.ssl.keystore.type": "PEM",
        "listener.name.client.ssl.keystore.location": str(keys),
    }


def _format(command: list[str | Path], site: Site, config: Path) -> None:
    scram = [
        f"--add-scram={mechanism}=[name={USER},password={PASSWORD}]"
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
    ]
    log = site.folder / "format.log"
    with log.open("wb") as file:
        done = subprocess.run(  # noqa: S603 - our own words
            [*command, "--standalone", "-t", _CLUSTER, "-c", config, "--ignore-formatted", *scram],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=240,
        )
    if done.returncode:
        message = f"kafka's storage could not be formatted: {last_lines(log)}"
        raise SandboxError(message)
