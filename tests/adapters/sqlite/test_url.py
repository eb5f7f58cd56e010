"""What a URL says, and that nothing is touched by a wrong one."""

from pathlib import Path

import pytest

from brokerkit.adapters.sqlite import SqliteAdapter
from brokerkit.adapters.sqlite.url import read_url
from brokerkit.errors import ConfigurationError


@pytest.mark.parametrize(
    "url", ["sqlite:///file.db", "sqlite://file.db", "sqlite://./file.db", "sqlite:///fil%65.db"]
)
def test_three_and_two_slashes_are_relative(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_url(url, {}).path == tmp_path.resolve() / "file.db"


def test_four_slashes_are_absolute(tmp_path: Path) -> None:
    assert read_url(f"sqlite:///{tmp_path}/file.db", {}).path == tmp_path.resolve() / "file.db"


def test_a_link_and_its_target_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "file.db")
    assert read_url(f"sqlite:///{tmp_path}/link.db", {}).path == tmp_path.resolve() / "file.db"


def test_options_come_from_the_query_and_keywords_win(tmp_path: Path) -> None:
    options = read_url(f"sqlite:///{tmp_path}/file.db?lease=5&retention=60&max_message=100", {"lease": 7})
    assert (options.lease, options.retention, options.max_message) == (7.0, 60.0, 100)


@pytest.mark.parametrize(
    "tail",
    [
        "file.db?leese=5",
        "file.db?lease=soon",
        "file.db?lease=nan",
        "file.db?lease=0",
        "file.db?lease=",
        "file.db?lease=1&lease=2",
        "file.db?max_message=2000000000",
        "file.db?path=other.db",
        "",
        "directory/",
        "missing/file.db",
        "a%00b.db",
    ],
)
def test_a_wrong_url_is_a_configuration_error_and_touches_nothing(tail: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        SqliteAdapter(f"sqlite:///{tmp_path}/{tail}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///", "sqlite:file.db", "memory://"]
)
def test_a_url_without_a_file_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        SqliteAdapter(url)


def test_an_unknown_keyword_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="leese"):
        SqliteAdapter(f"sqlite:///{tmp_path}/file.db", leese=5)
