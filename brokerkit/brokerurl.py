"""
What a broker's URL says, read once and the same way for every adapter that goes over a network.

    scheme://user:password@host:port,host:port/path?option=value&tls_ca=ca.pem

A keyword option of the adapter means the same as the query's and wins. Everything is checked before anything connects,
and no error text holds a secret.
"""

import ipaddress
import math
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from brokerkit.adapter import redacted
from brokerkit.errors import ConfigurationError

__all__ = ["COMMON", "BrokerUrl", "parse_url"]

COMMON = frozenset({"tls", "tls_ca", "tls_cert", "tls_key", "tls_verify", "insecure"})
"""
The options that every network adapter has.

tls: `on` for TLS; a scheme that says so already (`amqps`, `kafka+tls`) needs none. tls_ca: a file of trusted certificates
instead of the system's. tls_cert, tls_key: files of the client's own certificate. tls_verify: `off` trusts
any server, for tests. insecure: `on` sends credentials over a connection to another machine that is not encrypted.
"""

_ON = {
    "on": True,
    "true": True,
    "1": True,
    "yes": True,
    "off": False,
    "false": False,
    "0": False,
    "no": False,
}
_PORT = re.compile(r"\d{1,5}")
_MOST_PORTS = 65_535
Option = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerUrl:
    """
    A URL in its parts; the password shows in no `repr`.

    text: the URL without its secrets, for logs and errors. hosts: (host, port), at least one. path: decoded, without its
    first slash. options: what query and keywords gave, as text; read them with `number`, `flag` and `text_of`.
    """

    text: str
    scheme: str
    hosts: tuple[tuple[str, int], ...]
    user: str | None
    password: str | None = field(repr=False)
    path: str
    options: Mapping[str, str] = field(repr=False)
    tls: bool

    def number(self, name: str, default: float, *, least: float = 0.0, most: float = math.inf) -> float:
        """Return a number of seconds or bytes; raises `ConfigurationError` that names the option and its range."""
        given = self.options.get(name)
        if given is None:
            return default
        try:
            number = float(given)
        except ValueError:
            number = math.nan
        if not least <= number <= most or not math.isfinite(number):
            message = f"{self.text}: option {name} is a number from {least:g} to {most:g}"
            raise ConfigurationError(message)
        return number

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a switch: `on` or `off`."""
        given = self.options.get(name)
        if given is None:
            return default
        if given.lower() not in _ON:
            message = f"{self.text}: option {name} is 'on' or 'off'"
            raise ConfigurationError(message)
        return _ON[given.lower()]

    def text_of(self, name: str, default: str = "", *, choices: Iterable[str] = ()) -> str:
        """Return a text, one out of `choices` if there are any."""
        given = self.options.get(name, default)
        known = tuple(choices)
        if known and given not in known:
            message = f"{self.text}: option {name} is one of {', '.join(known)}"
            raise ConfigurationError(message)
        return given

    def context(self) -> ssl.SSLContext | None:
        """
        Return what TLS needs, or None where the connection is not encrypted.

        The server's certificate and host name are verified unless `tls_verify=off` was asked for by name. Raises
        `ConfigurationError` that names the option whose file cannot be read.
        """
        if not self.tls:
            return None
        context = ssl.create_default_context()
        if ca := self.options.get("tls_ca"):
            context = self._trusting(ca)
        if cert := self.options.get("tls_cert"):
            self._present(context, cert)
        if not self.flag("tls_verify", default=True):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _trusting(self, path: str) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=str(Path(path).expanduser()))
        except (OSError, ssl.SSLError) as error:
            message = f"{self.text}: option tls_ca: {path!r} cannot be read as certificates ({error})"
            raise ConfigurationError(message) from error

    def _present(self, context: ssl.SSLContext, path: str) -> None:
        key = self.options.get("tls_key")
        try:
            context.load_cert_chain(
                str(Path(path).expanduser()), None if key is None else str(Path(key).expanduser())
            )
        except (OSError, ssl.SSLError) as error:
            message = f"{self.text}: options tls_cert and tls_key cannot be read as a certificate and its key ({error})"
            raise ConfigurationError(message) from error


def parse_url(
    url: str,
    *,
    port: int,
    known: Iterable[str],
    options: Mapping[str, Option | None] | None = None,
    secrets: Iterable[str] = (),
    secure: Iterable[str] = ("amqps",),
) -> BrokerUrl:
    """
    Read a URL and the keyword options beside it.

    port: where the URL names none. known: the adapter's own options; `COMMON` is always known. secrets: those among
    them that hold a credential. secure: schemes that mean TLS, beside those that end in `+tls`.

    Raises `ConfigurationError` for what cannot be read, an unknown option, an option twice,
    and credentials that would travel unencrypted to another machine without `insecure=on`.
    """
    text = redacted(url)
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        message = f"{text} is no URL of a broker: write scheme://host:port"
        raise ConfigurationError(message)
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    user, password, hosts = _authority(text, authority, port)
    scheme = scheme.lower()
    given = _options(text, query, options or {}, frozenset(known) | COMMON)
    encrypted = scheme.endswith("+tls") or scheme in secure
    made = BrokerUrl(
        text=text,
        scheme=scheme,
        hosts=hosts,
        user=user,
        password=password,
        path=unquote(path),
        options=given,
        tls=encrypted,
    )
    if "tls" in given:
        if encrypted and not made.flag("tls"):
            message = f"{text}: tls=off contradicts the scheme {scheme}"
            raise ConfigurationError(message)
        made = replace(made, tls=made.flag("tls"))
    _refuse_plaintext(made, [name for name in secrets if name in given])
    return made


def _authority(
    text: str, authority: str, port: int
) -> tuple[str | None, str | None, tuple[tuple[str, int], ...]]:
    credentials, at, places = authority.rpartition("@")
    user, colon, password = credentials.partition(":")
    hosts = tuple(_host(text, place, port) for place in (places or "localhost").split(","))
    return (
        unquote(user) if at and user else None,
        unquote(password) if colon else None,
        hosts,
    )


def _host(text: str, place: str, port: int) -> tuple[str, int]:
    if place.startswith("["):
        host, bracket, behind = place[1:].partition("]")
        given = behind.removeprefix(":")
        right = bool(bracket) and (not behind or behind.startswith(":"))
    else:
        host, colon, given = place.partition(":")
        right = not colon or bool(given)
    if not host or not right or (given and not (_PORT.fullmatch(given) and 0 < int(given) <= _MOST_PORTS)):
        message = (
            f"{text}: a host is name:port or [address]:port, several are parted by commas; percent-encode what is "
            "special in a user name or password"
        )
        raise ConfigurationError(message)
    return host, int(given) if given else port


def _options(
    text: str, query: str, keywords: Mapping[str, Option | None], known: frozenset[str]
) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in given:
            message = f"{text}: option {name!r} is given twice"
            raise ConfigurationError(message)
        given[name] = value
    for keyword, said in keywords.items():
        if said is not None:
            given[keyword] = ("on" if said else "off") if isinstance(said, bool) else str(said)
    if unknown := sorted(given.keys() - known):
        name = repr(unknown[0])
        if "@" in query and unknown[0] not in keywords:
            name = "of that name (is it part of a password? then percent-encode its ? and @)"
        message = f"{text}: there is no option {name}; there are {', '.join(sorted(known))}"
        raise ConfigurationError(message)
    return given


def _refuse_plaintext(url: BrokerUrl, secrets: Iterable[str]) -> None:
    if url.tls or url.flag("insecure") or not (url.password or list(secrets)):
        return
    far = [host for host, _ in url.hosts if not _is_near(host)]
    if far:
        message = (
            f"{url.text}: the credentials would travel to {far[0]} unencrypted; use TLS (tls=on), or say insecure=on if "
            "that is meant"
        )
        raise ConfigurationError(message)


def _is_near(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
