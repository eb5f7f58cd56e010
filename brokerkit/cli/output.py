"""
Data on stdout: a table for people, `json` or `ndjson` for programs.
"""

import json
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from brokerkit.cli.settings import Settings

__all__ = ["Output", "ReaderGone", "safe"]

VERSION: Final = 1
"""Of every schema; a field may be added under one number, never renamed or taken away."""


class ReaderGone(Exception):
    """Whoever read our output has enough (`| head`): no failure, and nothing more can be written."""


class Output:
    """
    Writes items in the form that was asked for; leave the block to finish.

    ndjson: each item at once, a line. json: at the end one object with `schema`, `items` and `next`. table: the
    rows given with the items at the end, under `columns`.
    """

    def __init__(self, settings: Settings, schema: str, columns: Sequence[str] = ()) -> None:
        self.machine = settings.output != "table"
        self.next: str | None = None
        """What continues a listing that was cut."""
        self._settings = settings
        self._schema = schema
        self._columns = columns
        self._items: list[dict[str, Any]] = []
        self._rows: list[Sequence[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()

    def item(self, item: dict[str, Any], row: Sequence[str] = ()) -> None:
        """Write one record; `row` is what a table shows of it."""
        if self._settings.output == "ndjson":
            self.text(json.dumps(item, ensure_ascii=False, separators=(",", ":")))
        elif self._settings.output == "json":
            self._items.append(item)
        else:
            self._rows.append([safe(cell) for cell in row])

    def text(self, text: str) -> None:
        """Write text as it is, at once. Raises `ReaderGone`."""
        self.raw(text.encode("utf-8", "backslashreplace"))

    def raw(self, line: bytes) -> None:
        """Write a line of bytes, at once. Raises `ReaderGone`."""
        try:
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError as error:
            raise ReaderGone from error

    def _finish(self) -> None:
        if self._settings.output == "json":
            schema = {"name": f"brokerkit.{self._schema}", "version": VERSION}
            whole = {"schema": schema, "items": self._items, "next": self.next}
            self.text(json.dumps(whole, ensure_ascii=False, indent=2))
        elif self._settings.output == "table" and self._rows:
            if sys.stdout.isatty():
                self._rich_table()
            else:
                self._plain_table()

    def _plain_table(self) -> None:
        """Write columns that a pipe can take apart: nothing cut, nothing wrapped."""
        rows = [self._columns, *self._rows]
        widths = [max(len(row[at]) for row in rows) for at in range(len(self._columns))]
        for row in rows:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.text(line.rstrip())

    def _rich_table(self) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in self._columns:
            table.add_column(Text(column), overflow="fold")
        for row in self._rows:
            table.add_row(*map(Text, row))
        Console(no_color=not self._settings.color, highlight=False, markup=False).print(table)


def safe(text: str) -> str:
    """Return text without what would steer a terminal: foreign bytes must not move a cursor or forge a line."""
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1] if character in "\n\r\t" else f"\\u{ord(character):04x}"
