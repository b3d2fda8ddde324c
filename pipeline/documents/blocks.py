"""The block scan: where headings, fenced code, tables and paragraphs of a Markdown text lie.

What belongs here: one pass over the lines, no more Markdown than the chunker needs. Rules are CommonMark's and GFM's but
for three, because parsed pages are not always tidy: a setext heading has one line (a bare rule under running text is no
heading), a table's delimiter row need not have as many cells as its header, and an HTML table reaches to its closing tag.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple

from pipeline.documents.html_tables import HtmlTable, html_tables

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_SETEXT = re.compile(r" {0,3}(?:(=+)|-+)\s*")
_DEEPEST_LEVEL = 6
_CODE_INDENT = "    "
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^\n]*)")


class BlockKind(Enum):
    """What a block is, as far as the chunker treats it differently."""

    HEADING = auto()
    PARAGRAPH = auto()
    CODE = auto()
    TABLE = auto()


class Block(NamedTuple):
    """``text[start:end]``, whole lines; an HTML table is cut out of its lines. Blocks are in order and disjoint; between them is
    nothing but white space.

    ``level`` and ``title`` are a heading's, ``row_starts`` the offsets of a table's body rows: its header stands before them.
    """

    kind: BlockKind
    start: int
    end: int
    level: int = 0
    title: str = ""
    row_starts: tuple[int, ...] = ()


def scan_paragraphs(text: str) -> list[Block]:
    """Runs of non-blank lines, whatever they hold."""
    scan = _Scan()
    for match in _LINE.finditer(text):
        line = match.group()
        if line.isspace():
            scan.close()
        else:
            scan.extend(match.start(), match.end(), line)
    scan.close()
    return scan.blocks


def scan_markdown(text: str) -> list[Block]:
    """Headings (ATX, setext), fenced code, tables, and paragraphs for all the rest."""
    scan = _Scan()
    tables = html_tables(text)
    end = 0
    while match := _LINE.match(text, end):
        line = match.group()
        start, end = match.span()
        if scan.fence:
            scan.continue_code(end, line)
            continue
        first = line.lstrip(" ")[:1]
        if not first or (first.isspace() and line.isspace()):
            scan.close()
        elif first == "#" and (atx := _atx_heading(line)):
            scan.add_heading(start, end, *atx)
        elif first in "`~" and (fence := _opening_fence(line)):
            scan.open_code(start, end, fence)
        elif first in "=-" and scan.has_one_line and (setext := _SETEXT.fullmatch(line)):
            scan.turn_into_heading(end, 1 if setext[1] else 2)
        elif first in "|-:" and scan.may_be_table_header and _is_delimiter_row(line):
            scan.turn_into_table(end)
        elif first == "<" and (table := tables.get(tag := start + line.index("<"))):
            scan.add_html_table(tag, table)
            end = table.end
        else:
            scan.extend(start, end, line)
    scan.close()
    return scan.blocks


def _atx_heading(line: str) -> tuple[int, str] | None:
    content = line.strip()
    rest = content.lstrip("#")
    level = len(content) - len(rest)
    if level > _DEEPEST_LEVEL or line.startswith(_CODE_INDENT) or not (rest == "" or rest[0] in " \t"):
        return None
    title = rest.strip()
    unclosed = title.rstrip("#")
    if unclosed == "" or unclosed[-1] in " \t":
        title = unclosed.rstrip()
    return level, title


def _is_delimiter_row(line: str) -> bool:
    row = line.strip()
    return "|" in row and all(_is_delimiter_cell(cell.strip()) for cell in row.strip("|").split("|"))


def _is_delimiter_cell(cell: str) -> bool:
    dashes = cell.removeprefix(":").removesuffix(":")
    return dashes != "" and dashes.strip("-") == ""


def _opening_fence(line: str) -> str | None:
    fence = _FENCE.match(line)
    if fence is None or (fence[1][0] == "`" and "`" in fence[2]):
        return None
    return fence[1]


class _Scan:
    """The blocks found so far and the one still open, if any (``start < end``)."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.fence = ""
        self._kind = BlockKind.PARAGRAPH
        self._start = self._end = 0
        self._last_start = 0
        self._last_line = ""
        self._row_starts: list[int] = []

    @property
    def has_one_line(self) -> bool:
        """Whether the open block is a paragraph of one line, short enough for a title and not indented like code."""
        return (
            self._kind is BlockKind.PARAGRAPH
            and self._start < self._end
            and self._start == self._last_start
            and not self._last_line.startswith((_CODE_INDENT, "\t", "|"))
        )

    @property
    def may_be_table_header(self) -> bool:
        return self._kind is BlockKind.PARAGRAPH and self._start < self._end and "|" in self._last_line

    def close(self) -> None:
        if self._start < self._end:
            self.blocks.append(Block(self._kind, self._start, self._end, row_starts=tuple(self._row_starts)))
        self._kind = BlockKind.PARAGRAPH
        self._start = self._end = 0
        self._row_starts = []
        self.fence = ""

    def extend(self, start: int, end: int, line: str) -> None:
        if self._start == self._end:
            self._start = start
        if self._kind is BlockKind.TABLE:
            self._row_starts.append(start)
        self._end = end
        self._last_start, self._last_line = start, line

    def add_heading(self, start: int, end: int, level: int, title: str) -> None:
        self.close()
        self.blocks.append(Block(BlockKind.HEADING, start, end, level, " ".join(title.split())))

    def turn_into_heading(self, end: int, level: int) -> None:
        """The open one-line paragraph was a setext heading's title."""
        title = " ".join(self._last_line.split())
        self.blocks.append(Block(BlockKind.HEADING, self._start, end, level, title))
        self._start = self._end = 0

    def turn_into_table(self, end: int) -> None:
        """The open paragraph's last line was a table's header, and the line ending at ``end`` its delimiter row."""
        header_start = self._last_start
        if self._start < header_start:
            self.blocks.append(Block(BlockKind.PARAGRAPH, self._start, header_start))
        self._kind = BlockKind.TABLE
        self._start, self._end = header_start, end

    def add_html_table(self, start: int, table: HtmlTable) -> None:
        self.close()
        self.blocks.append(Block(BlockKind.TABLE, start, table.end, row_starts=table.row_starts))

    def open_code(self, start: int, end: int, fence: str) -> None:
        self.close()
        self._kind, self.fence = BlockKind.CODE, fence
        self._start, self._end = start, end

    def continue_code(self, end: int, line: str) -> None:
        self._end = end
        closing = line.strip()
        if closing.startswith(self.fence) and not closing.strip(self.fence[0]) and not line.startswith(_CODE_INDENT):
            self.close()
