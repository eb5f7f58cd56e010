import json
from pathlib import Path

import pytest

from brokerkit.sandbox import SandboxError, Security
from brokerkit.sandbox.process import Process
from brokerkit.sandbox.record import Record


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = Record(
        version="1.2",
        ports={"client": 20_001, "inside": 20_002},
        data=tmp_path / "data",
        programs={"server": tmp_path / "server"},
        settings={"a.b": "c"},
        security=Security(tmp_path / "cert.pem", tmp_path / "key.pem", "t"),
        ephemeral=True,
        process=Process(7, "boot/1"),
        companions=[Process(8, "boot/2")],
    )
    record.write(tmp_path / "kafka")

    assert Record.read(tmp_path / "kafka") == record


def test_where_nothing_was_written_there_is_no_record(tmp_path: Path) -> None:
    assert Record.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 2}', '{"schema": 1, "version": "1"}'])
def test_a_record_that_cannot_be_understood_is_an_error_that_says_what_to_do(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "server.json").write_text(text, "ascii")

    with pytest.raises(SandboxError, match="brokerkit sandbox reset --yes"):
        Record.read(tmp_path)


def test_writing_leaves_one_file(tmp_path: Path) -> None:
    record = Record(version="1", ports={"client": 1}, data=tmp_path)
    record.write(tmp_path)
    record.write(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["server.json"]
    assert json.loads((tmp_path / "server.json").read_text("utf-8"))["schema"] == 1
