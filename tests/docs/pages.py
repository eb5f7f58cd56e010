"""The pages of the documentation, taken apart: fenced blocks, headings, links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "anchors", "blocks", "links", "pages", "prose"]

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(.*)$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """
    One fenced block.

    info: what stands behind the opening fence. output: the `text` block that follows with nothing between, or None.
    """

    page: Path
    line: int
    info: str
    text: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Return README and everything under docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found: list[tuple[int, int, str, str]] = []
    begun, info, text = 0, "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence is None:
            text.append(line)
        elif begun:
            found.append((begun, number, info, "\n".join(text) + "\n"))
            begun = 0
        else:
            begun, info, text = number, fence[1].strip(), []
    assert not begun, f"{page}:{begun}: this fence is never closed"
    lines = page.read_text(encoding="utf-8").splitlines()
    return [
        Block(page, first, info, text, _output(lines, last, found[index + 1 :]))
        for index, (first, last, info, text) in enumerate(found)
    ]


def _output(lines: list[str], end: int, rest: list[tuple[int, int, str, str]]) -> str | None:
    if not rest or rest[0][2] != "text" or any(line.strip() for line in lines[end : rest[0][0] - 1]):
        return None
    return rest[0][3]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    kept: list[str] = []
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def links(page: Path) -> Iterator[str]:
    """Yield the targets of a page's links, less those that leave the repository."""
    for target in _LINK.findall(prose(page)):
        if "://" not in target:
            yield target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


_FAILED_ATTEMPT = re.compile(
    r"\S+: attempt \d+ of event \S+ failed \(.*\); (again in [\d.]+ s|to the dead letters)"
)


def unexpected(stderr: str) -> list[str]:
    """Return the lines of stderr that are more than the one line which brokerkit logs for a failed attempt."""
    return [line for line in stderr.splitlines() if not _FAILED_ATTEMPT.fullmatch(line)]
