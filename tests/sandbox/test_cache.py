from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from brokerkit.sandbox.cache import Cache


def write(folder: Path) -> None:
    (folder / "jar").write_text("made", "ascii")


def test_what_is_there_is_not_built_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        write(folder)

    assert (cache.get("thing-1", build) / "jar").read_text("ascii") == "made"
    assert cache.get("thing-1", build) == tmp_path / "thing-1"
    assert len(built) == 1


def test_two_that_want_the_same_build_it_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        write(folder)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(cache.get, ["thing-1"] * 8, [build] * 8))

    assert set(found) == {tmp_path / "thing-1"}
    assert len(built) == 1


def test_a_build_that_fails_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(folder: Path) -> None:
        write(folder)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        cache.get("thing-1", fail)

    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert cache.get("thing-1", write).is_dir()


def test_the_cache_is_where_the_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("BROKERKIT_CACHE", raising=False)
    assert Cache().folder == tmp_path / "home" / ".cache" / "brokerkit"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache().folder == tmp_path / "xdg" / "brokerkit"

    monkeypatch.setenv("BROKERKIT_CACHE", str(tmp_path / "own"))
    assert Cache().folder == tmp_path / "own"
    assert Cache(tmp_path / "given").folder == tmp_path / "given"
