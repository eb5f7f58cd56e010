"""
The usual transport: aiohttp and our own signature, an eighth of botocore's work for a message.
"""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from brokerkit.adapters.sqs.calls import Answer, Arguments, CallFailed, date_of
from brokerkit.adapters.sqs.failure import short
from brokerkit.adapters.sqs.signer import Keys, Signer

__all__ = ["HttpTransport"]

_SKEWED = frozenset(
    {"RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "InvalidSignatureException"}
)
_SKEW = 240.0
_CONNECT = 5.0
_BAD = 400

_log = logging.getLogger(__name__)

Wall = Callable[[], float]


class HttpTransport:
    """
    Signs and posts.

    keys: returns the credentials of now. A wall clock that is minutes off is seen by the service's own `Date` and put
    right for the signature; the machine's clock is not touched.
    """

    def __init__(
        self,
        endpoint: str,
        region: str,
        keys: Callable[[], Awaitable[Keys]],
        *,
        tls: ssl.SSLContext | None,
        wall: Wall = time.time,
    ) -> None:
        self._url = endpoint.rstrip("/") + "/"
        self._signer = Signer(_host_of(endpoint), region)
        self._keys = keys
        self._wall = wall
        self._skew = 0.0
        # No limit: each long poll holds a connection of its own.
        connector = aiohttp.TCPConnector(limit=0, ssl=tls if tls is not None else True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            proxy=_proxy_of(endpoint),
            auto_decompress=True,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": _user_agent()},
        )

    async def call(self, operation: str, arguments: Arguments, *, timeout: float) -> Answer:
        """Make one call; once more if only our clock was wrong."""
        target = f"AmazonSQS.{operation}"
        body = json.dumps(arguments, separators=(",", ":"), ensure_ascii=False).encode()
        for again in (True, False):
            answer, status, date = await self._post(target, body, timeout)
            if status < _BAD:
                return Answer(answer, date)
            error = _refused(answer, status)
            if not (again and error.code in _SKEWED and self._correct(date)):
                raise error
        raise AssertionError

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _post(
        self, target: str, body: bytes, timeout: float
    ) -> tuple[dict[str, Any], int, float | None]:
        headers = self._signer.headers(await self._keys(), target, body, self._wall() + self._skew)
        limits = aiohttp.ClientTimeout(total=timeout, connect=min(_CONNECT, timeout))
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, timeout=limits, allow_redirects=False
            ) as response:
                text = await response.read()
                code = response.headers.get("x-amzn-query-error", "").partition(";")[0]
                date = date_of(response.headers.get("date"))
                return _parsed(text, response.status, code), response.status, date
        except aiohttp.ClientConnectorCertificateError as error:
            message = (
                f"the server's certificate is not trusted ({error.certificate_error}); see option tls_ca"
            )
            raise CallFailed(message, code="certificate") from error
        except aiohttp.ClientConnectorSSLError as error:
            message = "TLS cannot be agreed on with the server; see options tls and tls_ca"
            raise CallFailed(message, code="certificate") from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            message = f"no connection to {self._url} ({type(error).__name__})"
            raise CallFailed(message, code="unreachable") from error
        except TimeoutError as error:
            message = f"no answer from {self._url} within {timeout:g} s"
            raise CallFailed(message, code="timeout", sent=True) from error
        except (aiohttp.ClientError, OSError) as error:
            message = f"the connection to {self._url} broke ({type(error).__name__})"
            raise CallFailed(message, code="unreachable", sent=True) from error
        except RuntimeError as error:  # aiohttp: the session is closed
            message = "the adapter is closed"
            raise CallFailed(message, code="closed") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                message = "the client gave up by itself"
                raise CallFailed(message, code="unreachable", sent=True) from error
            raise

    def _correct(self, date: float | None) -> bool:
        """Take over the service's idea of the time if ours is minutes off; True if that changes the signature."""
        if date is None:
            return False
        skew = date - self._wall()
        if abs(skew - self._skew) < _SKEW:
            return False
        _log.warning(
            "the clock of this machine is %.0f s away from the service's; requests are signed by the latter",
            skew,
        )
        self._skew = skew
        return True


def _proxy_of(endpoint: str) -> str | None:
    """Return the proxy that the environment names, found once: aiohttp would look for it, and for a netrc, at each call."""
    parts = urlsplit(endpoint)
    if proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)


def _user_agent() -> str:
    try:
        return f"brokerkit/{version('brokerkit-bus')}"
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "brokerkit"


def _parsed(text: bytes, status: int, code: str) -> dict[str, Any]:
    data: Any
    try:
        data = json.loads(text) if text else {}
    except ValueError:
        data = {"__type": f"HTTP {status}", "message": text[:200].decode(errors="replace")}
    answer: dict[str, Any] = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    if code:
        answer["__type"] = code
    return answer


def _refused(data: dict[str, Any], status: int) -> CallFailed:
    code = short(str(data.get("__type") or f"HTTP{status}"))
    text = str(data.get("message") or data.get("Message") or "")[:500]
    return CallFailed(f"{text} (HTTP {status})", code=code, status=status, sent=status >= 500)  # noqa: PLR2004


def _host_of(endpoint: str) -> str:
    scheme, _, rest = endpoint.partition("://")
    host = rest.partition("/")[0].lower()
    default = ":443" if scheme == "https" else ":80"
    return host.removesuffix(default)
