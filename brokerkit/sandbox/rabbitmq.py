"""
RabbitMQ as the system's package has it, with an Erlang port mapper of its own.
"""

import base64
import hashlib
import json
import signal
from pathlib import Path
from typing import Any, ClassVar, Final

from brokerkit.sandbox.ports import LOOPBACK
from brokerkit.sandbox.probe import http_ok
from brokerkit.sandbox.recipe import PASSWORD, USER, Installation, Launch, Site
from brokerkit.sandbox.tools import Tools

__all__ = ["RabbitMQ"]

_HOME: Final = Path("/usr/lib/rabbitmq")
_ADVANCED: Final = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}].\n"
"""
How long an expired message of a retry queue that could not be delivered waits for its next try, in milliseconds. The server's
own three minutes make a delayed retry that late when it falls due while the server starts.
"""

_PLUGINS: Final = "[rabbitmq_management,rabbitmq_consistent_hash_exchange].\n"
_ERLANG: Final = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
"""Two schedulers that do not spin, and no port of the distribution beyond loopback."""


class RabbitMQ:
    """
    RabbitMQ with management and consistent-hash exchange.

    User and password are both `brokerkit`; `guest` is there as well. With security the port `client` speaks TLS.
    """

    name: ClassVar[str] = "rabbitmq"
    ports: ClassVar[tuple[str, ...]] = ("client", "management", "distribution", "mapper")
    patience: ClassVar[float] = 240.0
    stop_by: ClassVar[signal.Signals] = signal.SIGTERM
    secure: ClassVar[bool] = True

    def install(self, tools: Tools) -> Installation:
        """Find the server and the port mapper, or install the package."""
        # Not the wrapper in /usr/sbin: it insists on root or on the service's own user.
        server = tools.program("rabbitmq-server", package="rabbitmq-server", where=[_HOME / "bin"])
        mapper = tools.program("epmd", package="erlang-base")
        version = server.resolve().parents[1].name.removeprefix("rabbitmq_server-")
        return Installation(version, {"server": server, "mapper": mapper})

    def data(self, folder: Path) -> Path:
        """Return the folder of the node's database."""
        return folder / "data"

    def prepare(self, site: Site, installed: Installation) -> Launch:
        """Write everything that the package would else take from the system's own broker."""
        (site.folder / "enabled_plugins").write_text(_PLUGINS, "ascii")
        definitions = site.folder / "definitions.json"
        definitions.write_text(json.dumps(_definitions()), "ascii")
        lines = {
            "load_definitions": str(definitions),
            "management.tcp.ip": LOOPBACK,
            "management.tcp.port": str(site.ports["management"]),
            "loopback_users": "none",  # nothing else than loopback can reach it
        }
        if site.security is None:
            lines["listeners.tcp.1"] = f"{LOOPBACK}:{site.ports['client']}"
        else:
            lines |= {
                "listeners.tcp": "none",
                "listeners.ssl.1": f"{LOOPBACK}:{site.ports['client']}",
                "ssl_options.certfile": str(site.security.certificate),
                "ssl_options.keyfile": str(site.security.key),
                "ssl_options.verify": "verify_none",
                "ssl_options.fail_if_no_peer_cert": "false",
            }
        lines |= site.settings
        config = site.folder / "rabbitmq.conf"
        config.write_text("".join(f"{name} = {value}\n" for name, value in lines.items()), "utf-8")
        advanced = site.folder / "advanced.config"
        advanced.write_text(_ADVANCED, "ascii")
        mapper = str(site.ports["mapper"])
        environment = {
            "HOME": str(site.folder),
            "RABBITMQ_NODENAME": "brokerkit@localhost",
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_CONF_ENV_FILE": str(site.folder / "none.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(advanced),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(site.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(site.data),
            "RABBITMQ_LOG_BASE": str(site.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_DIST_PORT": str(site.ports["distribution"]),
            "RABBITMQ_PID_FILE": str(site.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG,
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the server instead of watching over it
            "ERL_EPMD_PORT": mapper,
            "ERL_EPMD_ADDRESS": LOOPBACK,
        }
        # Started by us, and therefore ours to stop: left to the server it would become everybody's daemon.
        mapping: list[str | Path] = [installed.programs["mapper"], "-port", mapper, "-address", LOOPBACK]
        return Launch([installed.programs["server"]], environment, before=[mapping])

    def probe(self, site: Site, _: Installation) -> str | None:
        """Let the management check the client port."""
        check = f"/api/health/checks/port-listener/{site.ports['client']}"
        return http_ok(site.ports["management"], check, user=USER, password=PASSWORD)

    def url(self, site: Site) -> str:
        """Return the address with user and password, `amqps` with security."""
        scheme = "amqps" if site.security else "amqp"
        return f"{scheme}://{USER}:{PASSWORD}@{LOOPBACK}:{site.ports['client']}/"


def _definitions() -> dict[str, Any]:
    users = {USER: PASSWORD, "guest": "guest"}
    everything = {"configure": ".*", "write": ".*", "read": ".*", "vhost": "/"}
    return {
        "users": [
            {
                "name": name,
                "password_hash": _hashed(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "administrator",
            }
            for name, password in users.items()
        ],
        "vhosts": [{"name": "/"}],
        "permissions": [{"user": name, **everything} for name in users],
    }


def _hashed(password: str) -> str:
    salt = b"bkit"
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode("ascii")
