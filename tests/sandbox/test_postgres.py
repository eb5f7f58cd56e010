import os
import stat
from pathlib import Path

import pytest

from brokerkit.sandbox import postgres, tools
from brokerkit.sandbox.cache import Cache
from brokerkit.sandbox.postgres import Postgres
from brokerkit.sandbox.tools import Tools


def test_programs_off_the_path_that_a_package_has_just_brought_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, packages, model = tmp_path / "bin", tmp_path / "postgresql", tmp_path / "model"
    path.mkdir()
    for needed in ("sh", "mkdir", "cp"):
        (path / needed).symlink_to(f"/bin/{needed}")
    model.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 15.18 (Debian)'\n", "utf-8")
    model.chmod(stat.S_IRWXU)
    folder = packages / "15" / "bin"
    copies = "".join(f"cp {model} {folder}/{name}\n" for name in ("initdb", "postgres", "pg_isready"))
    (path / "apt-get").write_text(f"#!/bin/sh\nmkdir -p {folder}\n{copies}", "utf-8")
    (path / "apt-get").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setattr(postgres, "_PACKAGES", packages)
    monkeypatch.setattr(tools, "_POLICY", tmp_path / "policy")
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    installed = Postgres().install(Tools(Cache(tmp_path / "cache"), print))

    assert installed.version == "15.18"
    assert installed.programs["initdb"] == folder / "initdb"


def test_for_root_the_data_are_where_the_other_user_can_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(postgres, "_other_user", lambda: "nobody")
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")

    elsewhere = Postgres().data(closed / "postgres")

    assert elsewhere.parent == Path("/tmp")
    assert elsewhere != Postgres().data(closed / "another")


def test_who_is_not_root_has_the_data_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert Postgres().data(tmp_path) == tmp_path / "data"


def test_the_lock_of_a_server_that_lives_is_left_alone(tmp_path: Path) -> None:
    alive, dead = tmp_path / "alive", tmp_path / "dead"
    alive.write_text(f"{os.getpid()}\n/data\n", "ascii")
    dead.write_text("4194305\n/data\n", "ascii")  # above the highest number that Linux gives
    for lock in (alive, dead):
        postgres._forget_the_dead(lock)

    assert alive.exists()
    assert not dead.exists()
