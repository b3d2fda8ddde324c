"""The block scan: where headings, fenced code, tables and paragraphs of a Markdown text lie.

What belongs here: one pass over the lines, no more Markdown than the chunker needs. Rules are CommonMark's and GFM's, where
parsed pages are tidy enough for them:

- A setext heading has one line (a bare rule under running text is no heading), and that line may be numbered like a list.
- A table may be indented like code, and its delimiter row need not have as many cells as its header.
- A fence that is not closed ends with its page: pages are parsed one by one, and one that was cut off would take the headings
  and tables of all that follow.
- An HTML table reaches to its closing tag. HTML that is to be taken as it stands (comments, ``<pre>``) is code where it has
  more lines than one and is closed; all other HTML is text.
- A list item may interrupt a paragraph whatever its number, and without content.
- A rule is a paragraph of its own only where it begins one, and not at the very start, where dashes open front matter.

Not looked for, so that they are paragraphs: whatever stands in a block quote, indented code, headings on the line of a list
item's marker or indented by four columns, lines that end with a bare carriage return.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from pipeline.documents.html_tables import HtmlTable, html_tables
from pipeline.documents.titles import plain_title

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_SETEXT = re.compile(r" {0,3}(?:(=+)|-+)\s*")
_NO_TITLE = re.compile(r" {0,3}(?:>|[-+*][ \t])|\||-{3,}\s*$")
_DEEPEST_LEVEL = 6
_INDENTED = re.compile(r" {4}| {0,3}\t")
_TAB_STOP = 4
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^\n]*)")
_LIST_ITEM = re.compile(r" {0,3}(?:[-+*]|\d{1,9}[.)])(?: {1,4}(?![ \r\n])| (?=[ \r\n])|[\r\n]|$)")
_OPENING = frozenset("-+*0123456789`~")
"""What list items and fences begin with."""
_RAW_HTML = re.compile(r"<(!--|(?:pre|script|style|textarea)(?=[\s>]))", re.IGNORECASE)


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


def scan_markdown(text: str, page_starts: Sequence[int] = ()) -> list[Block]:
    """Headings (ATX, setext), fenced code, tables, and paragraphs for all the rest; ``page_starts`` are where pages begin."""
    scan = _Scan()
    items = _ListItems()
    tables = html_tables(text)
    raw_html = _RawHtml(text)
    end = 0
    while match := _LINE.match(text, end):
        line = match.group()
        start, end = match.span()
        if scan.fence and start >= scan.fence_until:
            scan.close()
        if scan.fence and scan.continue_code(end, line):
            continue
        first = line.lstrip(" \t")[:1]
        if not first or (first.isspace() and line.isspace()):
            scan.close()
            continue
        if first in _OPENING or (items.columns and (first in "#<" or not scan.is_paragraph)):
            column = items.follow(line)
            if ("```" in line or "~~~" in line) and (marks := _opening_fence(line, column)):
                following = bisect_right(page_starts, start)
                until = page_starts[following] if following < len(page_starts) else len(text)
                scan.open_code(start, end, marks, column, until)
                continue
        if first == "#" and (atx := _atx_heading(line)):
            scan.add_heading(start, end, *atx)
        elif first in "=-" and scan.may_be_title and (setext := _SETEXT.fullmatch(line)):
            scan.turn_into_heading(end, 1 if setext[1] else 2)
        elif first in "|-:" and scan.may_be_table_header and is_delimiter_row(line):
            scan.turn_into_table(end)
        elif first == "<" and (table := tables.get(tag := start + line.index("<"))):
            scan.add_html_table(tag, table)
            end = table.end
        elif first == "<" and (raw_end := raw_html.end(start + line.index("<"), end)):
            scan.add_code(start, raw_end)
            end = raw_end
        elif first in "-*_" and not scan.is_open and (start or not line.startswith("---")) and _is_rule(line):
            scan.add_rule(start, end)
        else:
            scan.extend(start, end, line)
    scan.close()
    return scan.blocks


def _atx_heading(line: str) -> tuple[int, str] | None:
    content = line.strip()
    rest = content.lstrip("#")
    level = len(content) - len(rest)
    if level > _DEEPEST_LEVEL or _INDENTED.match(line) or not (rest == "" or rest[0] in " \t"):
        return None
    title = rest.strip()
    unclosed = title.rstrip("#")
    if unclosed == "" or unclosed[-1] in " \t":
        title = unclosed.rstrip()
    return level, title


def is_delimiter_row(line: str) -> bool:
    """Whether a line is what GFM has between the header of a table and its rows."""
    row = line.strip()
    return "|" in row and all(_is_delimiter_cell(cell.strip()) for cell in row.strip("|").split("|"))


def _is_delimiter_cell(cell: str) -> bool:
    dashes = cell.removeprefix(":").removesuffix(":")
    return dashes != "" and dashes.strip("-") == ""


def _opening_fence(line: str, column: int) -> str | None:
    """Its marks, if one opens behind a column."""
    fence = _FENCE.match(line.expandtabs(_TAB_STOP), column)
    if fence is None or (fence[1][0] == "`" and "`" in fence[2]):
        return None
    return fence[1]


def _is_rule(line: str) -> bool:
    if line.strip("-*_ \t\r\n"):
        return False
    marks = "".join(line.split())
    return len(marks) > 2 and not marks.strip(marks[0])


class _ListItems:
    """The list items that are open: the columns their contents begin at, outermost first."""

    def __init__(self) -> None:
        self.columns: list[int] = []

    def follow(self, line: str) -> int:
        """Leave the items a line is outside of and enter those that begin in it.

        Answers the column at which the innermost one's content begins.
        """
        columns = self.columns
        spaced = line.expandtabs(_TAB_STOP)
        column = 0
        if columns:
            indent = len(spaced) - len(spaced.lstrip(" "))
            while columns and indent < columns[-1]:
                columns.pop()
            column = columns[-1] if columns else 0
        item = _LIST_ITEM.match(spaced, column)
        if item and _is_rule(line):
            return column
        while item:
            column = item.end()
            columns.append(column)
            item = _LIST_ITEM.match(spaced, column)
        return column


class _RawHtml:
    """Comments, and the elements whose content HTML takes as it stands."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._unclosed: set[str] = set()

    def end(self, start: int, line_end: int) -> int | None:
        """Where the one that opens at ``start`` and closes on a later line ends."""
        opening = _RAW_HTML.match(self._text, start)
        if opening is None or (name := opening[1].lower()) in self._unclosed:
            return None
        closing = re.compile("-->" if name == "!--" else f"</{name}>", re.IGNORECASE).search(self._text, opening.end())
        if closing is None:
            self._unclosed.add(name)
        if closing is None or closing.end() <= line_end:
            return None
        return self._text.find("\n", closing.end()) + 1 or len(self._text)


class _Scan:
    """The blocks found so far and the one still open, if any (``start < end``)."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.fence = ""
        self.fence_until = 0
        self._fence_column = 0
        self._kind = BlockKind.PARAGRAPH
        self._start = self._end = 0
        self._last_start = 0
        self._last_line = ""
        self._row_starts: list[int] = []

    @property
    def is_open(self) -> bool:
        return self._start < self._end

    @property
    def is_paragraph(self) -> bool:
        """Whether the open block is one."""
        return self._kind is BlockKind.PARAGRAPH and self.is_open

    @property
    def may_be_title(self) -> bool:
        """Whether the open block is a paragraph of one line that is neither indented like code nor begins a list or a quote."""
        return (
            self.is_paragraph
            and self._start == self._last_start
            and not _INDENTED.match(self._last_line)
            and not _NO_TITLE.match(self._last_line)
        )

    @property
    def may_be_table_header(self) -> bool:
        return self.is_paragraph and "|" in self._last_line

    def close(self) -> None:
        if self.is_open:
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
        self.blocks.append(Block(BlockKind.HEADING, start, end, level, plain_title(title)))

    def turn_into_heading(self, end: int, level: int) -> None:
        """The open one-line paragraph was a setext heading's title."""
        self.blocks.append(Block(BlockKind.HEADING, self._start, end, level, plain_title(self._last_line)))
        self._start = self._end = 0

    def turn_into_table(self, end: int) -> None:
        """The open paragraph's last line was a table's header, and the line ending at ``end`` its delimiter row."""
        header_start = self._last_start
        if self._start < header_start:
            self.blocks.append(Block(BlockKind.PARAGRAPH, self._start, header_start))
        self._kind = BlockKind.TABLE
        self._start, self._end = header_start, end

    def add_rule(self, start: int, end: int) -> None:
        self.blocks.append(Block(BlockKind.PARAGRAPH, start, end))

    def add_html_table(self, start: int, table: HtmlTable) -> None:
        self.close()
        self.blocks.append(Block(BlockKind.TABLE, start, table.end, row_starts=table.row_starts))

    def add_code(self, start: int, end: int) -> None:
        self.close()
        self.blocks.append(Block(BlockKind.CODE, start, end))

    def open_code(self, start: int, end: int, fence: str, column: int, until: int) -> None:
        """A fence, in a list item whose content begins at ``column`` and on a page that ends before ``until``."""
        self.close()
        self._kind, self.fence, self._fence_column, self.fence_until = BlockKind.CODE, fence, column, until
        self._start, self._end = start, end

    def continue_code(self, end: int, line: str) -> bool:
        """Whether the line belongs to the open code: its closing fence does, what is outside its list item ends it."""
        if column := self._fence_column:
            line = line.expandtabs(_TAB_STOP)
            if line[:column].strip():
                self.close()
                return False
            line = line[column:]
        self._end = end
        closing = line.strip()
        if closing.startswith(self.fence) and not closing.strip(self.fence[0]) and not _INDENTED.match(line):
            self.close()
        return True
