"""
botocore's part: configuration, endpoint, credentials, and the calls that are made seldom; all of it in threads.

Everything that is untyped about the client library is in this module.
"""

import asyncio
import functools
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from botocore import xform_name  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    ConfigParseError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from botocore.loaders import create_loader  # type: ignore[import-untyped]
from botocore.session import Session  # type: ignore[import-untyped]
from urllib3 import disable_warnings
from urllib3.exceptions import InsecureRequestWarning

from brokerkit.adapters.sqs.calls import Answer, Arguments, CallFailed, date_of
from brokerkit.adapters.sqs.failure import short
from brokerkit.adapters.sqs.signer import Keys
from brokerkit.adapters.sqs.url import Options
from brokerkit.errors import ConfigurationError, Unauthorised

__all__ = ["AwsSession", "BotoTransport"]

T = TypeVar("T")

_CONNECT = 5
_THREADS = 8
_making = threading.Lock()  # clients of one loader are made one at a time


@functools.cache
def _loader() -> Any:
    """Return the one reader of botocore's service descriptions in this process: they are large."""
    return create_loader()


class AwsSession:
    """Configuration and credentials of one adapter, and its clients. Belongs to one event loop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="brokerkit-sqs")
        self._session: Any = None
        self._credentials: Any = None
        self._fixed: Keys | None = None
        self._frozen: Keys | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._sqs: Any = None
        self._sns: Any = None

    async def open(self) -> None:
        """Read configuration and credentials and make the clients; raises `ConfigurationError` and `Unauthorised`."""
        await self.run(self._open)

    @property
    def endpoint(self) -> str:
        """Return the URL of the service's endpoint, as botocore finds it."""
        return str(self._sqs.meta.endpoint_url)

    @property
    def region(self) -> str:
        """Return the region for signatures."""
        return str(self._sqs.meta.region_name)

    def tls(self) -> ssl.SSLContext | None:
        """Return what our own connections need, with the certificates that botocore would use too; None without TLS."""
        if not self.endpoint.startswith("https"):
            return None
        url = self._options.url
        context = url.context() if url.tls else None
        bundle = None if "tls_ca" in url.options else self._session.get_config_variable("ca_bundle")
        if context is None:
            context = ssl.create_default_context()
        if bundle:
            try:
                context.load_verify_locations(cafile=str(Path(bundle).expanduser()))
            except (OSError, ssl.SSLError) as error:
                message = f"the ca_bundle {bundle!r} of the AWS configuration cannot be read ({error})"
                raise ConfigurationError(message) from error
        return context

    async def keys(self) -> Keys:
        """Return the credentials of now. They are refreshed in a thread, before they end; meanwhile the old ones serve."""
        if self._fixed is not None:
            return self._fixed
        if self._frozen is None or self._credentials.refresh_needed(refresh_in=0):
            await self._refresh()
        elif self._credentials.refresh_needed() and self._refreshing is None:
            _ = self._start_refresh()
        assert self._frozen is not None  # noqa: S101 - a refresh that fails raises
        return self._frozen

    async def control(
        self, operation: str, arguments: Arguments, *, service: str = "sqs", timeout: float
    ) -> Answer:
        """Make one seldom call. Raises `CallFailed`."""
        client = self._sns if service == "sns" else self._sqs
        call = functools.partial(_call, client, operation, arguments)
        try:
            async with asyncio.timeout(timeout):
                return await self.run(call)
        except TimeoutError as error:
            message = f"no answer within {timeout:g} s"
            raise CallFailed(message, code="timeout", sent=True) from error

    def transport(self) -> "BotoTransport":
        """Return botocore as the transport of the frequent calls too."""
        options = self._options
        waits = self._client("sqs", read=options.poll + options.send_timeout, pool=options.polls * 4)
        return BotoTransport(waits, self._client("sqs", read=options.send_timeout, pool=_THREADS * 2))

    async def run(self, work: Callable[[], T]) -> T:
        """Run something that blocks in a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Let go of the threads; a call that still hangs ends by its own time limit."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _open(self) -> None:
        options = self._options
        try:
            session: Any = Session(profile=options.profile)
            session.register_component("data_loader", _loader())
            self._session = session
            if _verify(options) is False:
                disable_warnings(
                    InsecureRequestWarning
                )  # it was asked for by name, and would come with every call
            self._use(options)
            self._sqs = self._client("sqs", read=options.send_timeout, pool=_THREADS)
            if options.sns != "off":
                self._sns = self._client("sns", read=options.send_timeout, pool=_THREADS)
        except NoRegionError as error:
            message = f"{options.text}: no region; write sqs://REGION, option region=, or set AWS_REGION"
            raise ConfigurationError(message) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            message = f"{options.text}: {error}"
            raise Unauthorised(message) from error
        except (ProfileNotFound, ConfigParseError, BotoCoreError, ValueError) as error:
            message = f"{options.text}: {error}"
            raise ConfigurationError(message) from error

    def _use(self, options: Options) -> None:
        if (given := options.credentials) is not None:
            self._fixed = Keys(*given)
            self._session.set_credentials(*given)
            return
        self._credentials = self._session.get_credentials()
        if self._credentials is None:
            message = f"{options.text}: no AWS credentials in environment, profile, SSO, web identity, container or instance"
            raise Unauthorised(message)
        self._freeze()
        if not hasattr(self._credentials, "refresh_needed"):
            self._fixed = self._frozen

    def _freeze(self) -> None:
        frozen = self._credentials.get_frozen_credentials()
        self._frozen = Keys(frozen.access_key, frozen.secret_key, frozen.token)

    def _client(self, service: str, *, read: float, pool: int) -> Any:
        options = self._options
        endpoint = options.endpoint if service == "sqs" else options.sns_endpoint or options.endpoint
        config: Any = Config(
            connect_timeout=_CONNECT,
            read_timeout=read,
            max_pool_connections=pool,
            retries={"total_max_attempts": 1, "mode": "standard"},
            parameter_validation=False,
        )
        with _making:
            return self._session.create_client(
                service,
                region_name=options.region,
                endpoint_url=endpoint,
                verify=_verify(options),
                config=config,
            )

    def _start_refresh(self) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self.run(self._freeze))
        self._refreshing = task
        task.add_done_callback(self._refreshed)
        return task

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(self._options.send_timeout):
                await asyncio.shield(self._refreshing or self._start_refresh())
        except (BotoCoreError, ClientError, RuntimeError, TimeoutError) as error:
            message = f"the AWS credentials could not be refreshed ({type(error).__name__})"
            raise CallFailed(message, code="unreachable") from error

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()  # who waits raises it; else it is tried again at the next call


class BotoTransport:
    """The fallback: botocore in threads, a thread for each poll. Nothing waits behind a poll, and no lease behind a delete."""

    def __init__(self, waits: Any, client: Any) -> None:
        self._waits = waits
        self._client = client
        self._polling = ThreadPoolExecutor(256, thread_name_prefix="brokerkit-sqs-poll")
        self._leases = ThreadPoolExecutor(_THREADS, thread_name_prefix="brokerkit-sqs-lease")
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="brokerkit-sqs-call")

    async def call(self, operation: str, arguments: Arguments, *, timeout: float) -> Answer:
        """Make one call in a thread. The thread ends by its own limit, whatever becomes of the caller."""
        client, threads = self._client, self._threads
        if operation == "ReceiveMessage":
            client, threads = self._waits, self._polling
        elif operation == "ChangeMessageVisibilityBatch":
            threads = self._leases
        work = functools.partial(_call, client, operation, arguments)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                return await loop.run_in_executor(threads, work)
        except TimeoutError as error:
            message = f"no answer within {timeout:g} s"
            raise CallFailed(message, code="timeout", sent=True) from error
        except RuntimeError as error:
            message = "the adapter is closed"
            raise CallFailed(message, code="closed") from error

    async def close(self) -> None:
        """Let go of the threads; a call that still hangs ends by its own time limit."""
        for threads in (self._polling, self._leases, self._threads):
            threads.shutdown(wait=False, cancel_futures=True)


def _call(client: Any, operation: str, arguments: Arguments) -> Answer:
    try:
        data = getattr(client, xform_name(operation))(**arguments)
    except ClientError as error:
        raise _refused(error) from error
    except SSLError as error:
        message = "the server's certificate is not trusted, or TLS cannot be agreed on; see option tls_ca"
        raise CallFailed(message, code="certificate") from error
    except (EndpointConnectionError, ConnectTimeoutError) as error:
        message = f"no connection ({type(error).__name__})"
        raise CallFailed(message, code="unreachable") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise CallFailed(str(error), code="NoCredentials", status=400) from error
    except BotoCoreError as error:
        message = f"the call broke ({type(error).__name__})"
        raise CallFailed(message, code="unreachable", sent=True) from error
    headers = data.pop("ResponseMetadata", {}).get("HTTPHeaders", {})
    return Answer(data, date_of(headers.get("date")))


def _refused(error: ClientError) -> CallFailed:
    found: Any = error.response
    detail = found.get("Error", {})
    status = int(found.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = short(str(detail.get("QueryErrorCode") or detail.get("Code") or f"HTTP{status}"))
    text = f"{str(detail.get('Message', ''))[:500]} (HTTP {status})"
    return CallFailed(text, code=code, status=status, sent=status >= 500)  # noqa: PLR2004


def _verify(options: Options) -> bool | str | None:
    url = options.url
    if not url.flag("tls_verify", default=True):
        return False
    return url.options.get("tls_ca")
