"""
Real servers for tests: each started once in a session, when the first test wants it, and stopped at the end.

`BROKERKIT_TEST_KAFKA_URL` and its like name a running server to use instead; it is not ours, so tests that would kill or
freeze it are skipped. What cannot be had is a skip on a laptop and, with `CI` set, a failure that says `setup failed: ...`.
"""

import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from brokerkit.sandbox import Sandbox, Security, Server, SetupFailed
from brokerkit.sandbox.process import Process

__all__ = ["Certificates", "Park", "RealServer", "certificates_in"]

ROOT: Final = Path(__file__).parents[1]
PLACE: Final = ROOT / ".cache" / "servers"
"""One folder for each test run, called after its process."""


@dataclass(frozen=True)
class RealServer:
    """
    A server that a test talks to.

    url: where it is, login included. own: what controls it; None if it was lent to us.
    """

    name: str
    url: str
    own: Server | None = None

    @property
    def control(self) -> Server:
        """Return what kills, freezes and restarts it. Skips the test if the server is not ours."""
        if self.own is None:
            pytest.skip(f"the test controls its {self.name}, and this one was lent: {variable_of(self.name)}")
        return self.own

    def mend(self) -> None:
        """Make sure that it runs, whatever the last test did to it."""
        if self.own is not None:
            self.own.start()


@dataclass(frozen=True)
class Certificates:
    """
    PEM files: an authority, and what it gave to a server at 127.0.0.1 and localhost.

    stranger: an authority that did not sign it. elsewhere: a certificate of the right authority for another host.
    """

    authority: Path
    server: Security
    stranger: Path
    elsewhere: Security


class Park:
    """The servers of one test session."""

    def __init__(self) -> None:
        self._folder = PLACE / str(os.getpid())
        self._opened: dict[str, Sandbox] = {}
        self._reasons: dict[str, str] = {}

    def get(
        self,
        name: str,
        *,
        place: str = "shared",
        settings: Mapping[str, str] | None = None,
        security: Security | None = None,
    ) -> RealServer:
        """
        Return a server that runs; the same for the same name and place.

        Skips the test where it cannot be had, or fails it where `CI` is set.
        """
        if place == "shared" and (lent := os.environ.get(variable_of(name))):
            return RealServer(name, lent)
        if name in self._reasons:  # tried once: nobody wants to wait for the same download again
            _without(self._reasons[name])
        box = self._box(place)
        try:
            server = box.up(name, settings=settings, security=security, ephemeral=True)
        except SetupFailed as error:
            self._reasons[name] = str(error)
            _without(str(error))
        return RealServer(name, server.url, server)

    @contextmanager
    def own(
        self, name: str, *, settings: Mapping[str, str] | None = None, security: Security | None = None
    ) -> Generator[Server]:
        """Give a server that nobody else uses; it is gone when the block ends."""
        place = f"own-{len(self._opened)}"
        try:
            yield self.get(name, place=place, settings=settings, security=security).control
        finally:
            self._box(place).down(ephemeral=True)

    def close(self) -> None:
        """Stop everything and leave nothing behind."""
        for box in self._opened.values():
            box.down(ephemeral=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _box(self, place: str) -> Sandbox:
        if not self._opened:
            _clear_up()
            self._folder.mkdir(parents=True, exist_ok=True)
            me = Process.of(os.getpid())
            assert me is not None
            (self._folder / "owner").write_text(me.started, "utf-8")
        return self._opened.setdefault(place, Sandbox(self._folder / place, say=print))


def variable_of(name: str) -> str:
    """Return the variable that names a running server: `BROKERKIT_TEST_KAFKA_URL`."""
    return f"BROKERKIT_TEST_{name.upper()}_URL"


def certificates_in(folder: Path) -> Certificates:
    """Make them, in files."""
    authority, stranger = trustme.CA(), trustme.CA()
    for ca, name in ((authority, "authority.pem"), (stranger, "stranger.pem")):
        ca.cert_pem.write_to_path(str(folder / name))
    return Certificates(
        authority=folder / "authority.pem",
        server=_issued(authority.issue_cert("127.0.0.1", "localhost"), folder, "server"),
        stranger=folder / "stranger.pem",
        elsewhere=_issued(authority.issue_cert("broker.example.org"), folder, "elsewhere"),
    )


def _issued(leaf: trustme.LeafCert, folder: Path, name: str) -> Security:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(b"".join(each.bytes() for each in leaf.cert_chain_pems))
    private = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Security(certificate, key)


def _without(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _clear_up() -> None:
    """End what a test run left that was killed itself."""
    for folder in PLACE.glob("*/"):
        owner, now = folder / "owner", Process.of(int(folder.name))
        if now is not None and now.alive and (not owner.exists() or owner.read_text("utf-8") == now.started):
            continue  # another run, at work or about to begin
        for box in folder.glob("*/"):
            Sandbox(box).down(ephemeral=True)
        shutil.rmtree(folder)
