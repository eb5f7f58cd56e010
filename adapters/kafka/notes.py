"""
What a commit says beside its offset, for the next owner of a partition: 4,096 characters at the most.

- whether the owner has drained (`drained`) or is at work (`open`): a partition taken over `open` was left by a crash;
- the offset map: which offsets above the commit are not finished, in runs, and so which are, however many;
- how often each unfinished one was handed out, and how many of these ended politely;
- the marks (`Marks.mark`) of single offsets.

Whatever does not fit is cut where cutting costs a duplicate and never a message: the map from its end.
"""

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["LIMIT", "Note", "Run", "decode", "encode", "fits"]

LIMIT = 4096
_VERSION = "bk1"
_STATES = {"open": False, "drained": True}
_PARTS = 3
_BITS = 7
_MOST_BITS = 70
_MORE = 0x80


class Run(NamedTuple):
    """
    Neighbouring unfinished offsets that have come equally often.

    arrivals: hand-outs so far; the next one is one more. returns: how many of them ended politely.
    """

    first: int
    length: int
    arrivals: int
    returns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """
    What stands beside a committed offset.

    upto: the map covers the offsets from the commit to here (exclusive): in it, what is in no run is finished.
    handed: how many were in handlers when it was written.
    """

    drained: bool
    upto: int
    runs: Sequence[Run] = ()
    handed: int = 0
    marks: Mapping[int, bytes] = field(default_factory=dict[int, bytes])

    def tells(self, head: int) -> bool:
        """Say whether it tells anything of offsets from a commit at `head` on; a drained one usually does not."""
        return not self.drained or self.upto != head or bool(self.runs) or bool(self.marks)


def encode(note: Note, head: int, *, limit: int = LIMIT) -> tuple[str, int]:
    """
    Return the text for a commit at `head`, and up to where its map goes.

    The map is shortened from its end until the text fits; marks are never dropped, `fits` has to be asked before one
    is taken in.
    """
    text = _written(note, note.runs, note.upto, head)
    runs = list(note.runs)
    upto = note.upto
    while len(text) > limit and runs:
        del runs[len(runs) // 2 :]
        upto = runs[-1].first + runs[-1].length if runs else head
        text = _written(note, runs, upto, head)
    if len(text) > limit:
        text, upto = f"{_VERSION} {_state(note)}", head
    return text, upto


def fits(marks: Mapping[int, bytes], head: int, *, limit: int = LIMIT) -> bool:
    """Say whether these marks leave a quarter of the room to the map."""
    note = Note(drained=False, upto=head, marks=marks)
    return len(_written(note, (), head, head)) <= limit * 3 // 4


def decode(text: str, head: int) -> Note | None:
    """Return what a commit at `head` says, or None if it says nothing that we can read (a stranger's commit)."""
    parts = text.split(" ")
    if len(parts) not in {2, _PARTS} or parts[0] != _VERSION or parts[1] not in _STATES:
        return None
    drained = _STATES[parts[1]]
    if len(parts) < _PARTS:
        return Note(drained=drained, upto=head)
    try:
        return _read(zlib.decompress(base64.b85decode(parts[2])), head, drained=drained)
    except (ValueError, IndexError, zlib.error):
        return None


def _state(note: Note) -> str:
    return "drained" if note.drained else "open"


def _written(note: Note, runs: Sequence[Run], upto: int, head: int) -> str:
    state = f"{_VERSION} {_state(note)}"
    if not runs and not note.marks and not note.handed and upto == head:
        return state
    out = bytearray()
    _put(out, (upto - head, note.handed, len(runs)))
    at = head
    for first, length, arrivals, returns in runs:
        _put(out, (first - at, length, arrivals, returns))
        at = first + length
    _put(out, (len(note.marks),))
    at = head
    for offset in sorted(note.marks):
        value = note.marks[offset]
        _put(out, (offset - at, len(value)))
        out += value
        at = offset
    return f"{state} {base64.b85encode(zlib.compress(bytes(out), 6)).decode('ascii')}"


def _read(data: bytes, head: int, *, drained: bool) -> Note:
    reader = _Reader(data)
    upto, handed, count = head + reader.number(), reader.number(), reader.number()
    runs: list[Run] = []
    at = head
    for _ in range(count):
        run = Run(at + reader.number(), reader.number(), reader.number(), reader.number())
        runs.append(run)
        at = run.first + run.length
    marks: dict[int, bytes] = {}
    at = head
    for _ in range(reader.number()):
        at += reader.number()
        marks[at] = reader.take(reader.number())
    return Note(drained=drained, upto=upto, runs=runs, handed=handed, marks=marks)


def _put(out: bytearray, numbers: Iterable[int]) -> None:
    for given in numbers:
        number = given
        while number >= _MORE:
            out.append(number & (_MORE - 1) | _MORE)
            number >>= _BITS
        out.append(number)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self) -> int:
        number = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            number |= (byte & (_MORE - 1)) << shift
            if byte < _MORE:
                return number
            shift += _BITS
            if shift > _MOST_BITS:
                message = "a number without an end"
                raise ValueError(message)

    def take(self, size: int) -> bytes:
        value = self._data[self._at : self._at + size]
        if len(value) != size:
            message = "a mark without an end"
            raise ValueError(message)
        self._at += size
        return value
