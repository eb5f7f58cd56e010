"""
ElasticMQ, a server that speaks SQS, from Maven coordinates.
"""

import json
import signal
from pathlib import Path
from typing import ClassVar, Final

from brokerkit.sandbox.ports import LOOPBACK
from brokerkit.sandbox.probe import http_ok
from brokerkit.sandbox.recipe import Installation, Launch, Site
from brokerkit.sandbox.tools import Tools

__all__ = ["ElasticMQ"]

VERSION: Final = "1.7.1"

# By default H2 writes up to half a second later, and closes at SIGTERM before ElasticMQ takes its last requests: in both
# cases messages are lost that were confirmed.
_DURABLE: Final = "WRITE_DELAY=0;DB_CLOSE_ON_EXIT=FALSE"

_JARS: Final = (f"org.elasticmq:elasticmq-server_2.13:{VERSION}",)
_MEMORY: Final = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC")


class ElasticMQ:
    """
    SQS, with queues and messages kept on the disk.

    It checks no credentials, so any will do. Settings are its configuration's, by their dotted names.
    """

    name: ClassVar[str] = "sqs"
    ports: ClassVar[tuple[str, ...]] = ("client",)
    patience: ClassVar[float] = 180.0
    stop_by: ClassVar[signal.Signals] = signal.SIGTERM
    secure: ClassVar[bool] = False

    def install(self, tools: Tools) -> Installation:
        """Find Java, and get the jars."""
        jars = tools.maven(f"elasticmq-{VERSION}", _JARS)
        return Installation(VERSION, {"java": tools.java(), "jars": jars})

    def data(self, folder: Path) -> Path:
        """Return the folder of its database."""
        return folder / "data"

    def prepare(self, site: Site, installed: Installation) -> Launch:
        """Write `elasticmq.conf`."""
        lines = {
            "node-address": json.dumps(
                {"protocol": "http", "host": LOOPBACK, "port": site.ports["client"], "context-path": ""}
            ),
            "rest-sqs": json.dumps(
                {
                    "enabled": True,
                    "bind-hostname": LOOPBACK,
                    "bind-port": site.ports["client"],
                    "sqs-limits": "strict",
                }
            ),
            "rest-stats.enabled": "false",
            "auto-create-queues.enabled": "false",
            "queues-storage": json.dumps({"enabled": True, "path": str(site.data / "queues.conf")}),
            "messages-storage": json.dumps(
                {"enabled": True, "uri": f"jdbc:h2:{site.data / 'messages'};{_DURABLE}"}
            ),
            **site.settings,
        }
        config = site.folder / "elasticmq.conf"
        text = "".join(f"{name} = {value}\n" for name, value in lines.items())
        config.write_text(f'include classpath("application.conf")\n{text}', "utf-8")
        options = [*_MEMORY, f"-Dconfig.file={config}", "-cp", f"{installed.programs['jars']}/*"]
        return Launch([installed.programs["java"], *options, "org.elasticmq.server.Main"])

    def probe(self, site: Site, _: Installation) -> str | None:
        """Ask for its health."""
        return http_ok(site.ports["client"], "/health")

    def url(self, site: Site) -> str:
        """Return the endpoint as a broker's URL; plain HTTP, because it is loopback."""
        return f"sqs://{LOOPBACK}:{site.ports['client']}"
