"""From blocks to drafts of chunks: where to cut and what context each piece needs.

What belongs here: the structural part of chunking. Nothing here is final: sizes are sums of what blocks add, which are the
size of the whole or a little more with every tokenizer that joins white space with what is behind it; the chunker counts what
it gets and mends what does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from pipeline.documents.anchors import content_key, pack
from pipeline.documents.blocks import Block, BlockKind, is_delimiter_row
from pipeline.documents.outline import Outline, heading_context
from pipeline.documents.splitting import TextSizer, split_long

_REACH_IN_CHUNKS = 2
_MOST_PATH = 1 / 4
_MOST_TABLE_HEADER = 2 / 3
_MOST_LEAD_IN = 1 / 4
"""Shares of a chunk's tokens that a heading path and a repeated table header may take, and what leads into a block that is cut;
a larger one is left out."""
_DASHES = re.compile("-{4,}")
_TAG = re.compile("<[^<>]*>")
_NAME = re.compile(r"[^\s|:*_-]")


class Draft(NamedTuple):
    """``text[start:end]`` with its context. An overlap may reach back to ``floor``, in a table only to one of its ``rows``."""

    start: int
    end: int
    context: str
    floor: int
    rows: tuple[int, ...] | None = None
    markdown: bool = True


class Drafter:
    """Cuts one text. ``room`` is what context and content of a chunk may have together, in tokens of the sizer."""

    def __init__(self, text: str, blocks: Sequence[Block], sizer: TextSizer, room: int, *, markdown: bool) -> None:
        self._text = text
        self._blocks = blocks
        self._sizer = sizer
        self._room = room
        self._markdown = markdown
        self._outline = Outline(blocks)
        self._ends = [0, *accumulate(self._sizes([(block.start, block.end) for block in blocks]))]
        self._floors = _floors(blocks)
        self._contexts: dict[tuple[str, ...], tuple[str, int]] = {(): ("", 0)}

    def drafts(self) -> Iterator[Draft]:
        """All of the text's non-blank characters, in order."""
        if self._blocks:
            yield from self._divide(0, len(self._blocks))

    def _sizes(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Of each span at least 1: any number of spans that hold nothing the tokenizer sees would fit a chunk."""
        return [max(1, size) for size in self._sizer.sizes(_additions(self._text, spans))]

    def _size(self, first: int, last: int) -> int:
        return self._ends[last] - self._ends[first]

    def _context(self, block: int) -> tuple[str, int]:
        """The heading path in force at a block, and its size."""
        path = self._outline.paths[block]
        if path not in self._contexts:
            context = heading_context(path, int(self._room * _MOST_PATH), self._sizer.sizes)
            self._contexts[path] = context, self._sizer.context_size(context) if context else 0
        return self._contexts[path]

    def _room_at(self, block: int) -> int:
        return self._room - self._context(block)[1]

    def _divide(self, first: int, last: int) -> Iterator[Draft]:
        if self._size(first, last) <= self._room_at(first):
            yield self._draft(first, last)
            return
        parts = self._with_lead_ins(self._outline.parts(first, last))
        if len(parts) == 1:
            yield from self._split_block(first, last)
        else:
            yield from self._divide_parts(parts)

    def _divide_parts(self, parts: Sequence[tuple[int, int]]) -> Iterator[Draft]:
        ranges = pack(
            sizes=[self._size(*part) for part in parts],
            rooms=[self._room_at(part[0]) for part in parts],
            keys=[content_key(self._text, self._blocks[part[0]].start) for part in parts],
            reach=_REACH_IN_CHUNKS * self._room,
        )
        for low, high in ranges:
            yield from self._divide(parts[low][0], parts[high - 1][1])

    def _with_lead_ins(self, parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Parts that end in a line that leads into the next one, such as a table's caption, are one with it where that one has to
        be cut: alone the line says nothing, and the beginning of what it introduces can make room for it."""
        joined = [parts[0]]
        for part in parts[1:]:
            if self._leads_in(joined[-1], part):
                joined[-1] = joined[-1][0], part[1]
            else:
                joined.append(part)
        return joined

    def _leads_in(self, part: tuple[int, int], following: tuple[int, int]) -> bool:
        lead_in, block = self._blocks[part[1] - 1], self._blocks[following[0]]
        if block.kind is BlockKind.HEADING or lead_in.kind is not BlockKind.PARAGRAPH or following[1] - following[0] > 1:
            return False
        if self._size(*following) <= self._room_at(following[0]) or self._size(*part) > self._room_at(part[0]) * _MOST_LEAD_IN:
            return False
        line = self._text[lead_in.start : lead_in.end].strip()
        if "\n" in line or not any(map(str.isalnum, line)):
            return False
        return block.kind is BlockKind.TABLE or line.endswith((":", "："))

    def _draft(self, first: int, last: int) -> Draft:
        start, end = self._blocks[first].start, self._blocks[last - 1].end
        return Draft(start, end, self._context(first)[0], self._floors[first], markdown=self._markdown)

    def _split_block(self, first: int, last: int) -> Iterator[Draft]:
        """One block that is too large, with the headings and the line right before it that lead into it."""
        body = last if self._blocks[last - 1].kind is BlockKind.HEADING else last - 1
        if body < last and self._blocks[body].kind is BlockKind.TABLE:
            yield from self._split_table(first, body)
            return
        room = self._room_behind(first, body) if first < body < last else 0
        if room >= self._room // 2:
            opening, *rest = self._text_pieces(body, room)
            yield opening._replace(start=self._blocks[first].start, context=self._context(first)[0])
            yield from rest
        elif last - first > 1:
            yield from self._divide_parts([(block, block + 1) for block in range(first, last)])
        else:
            yield from self._text_pieces(first, self._room_at(first))

    def _room_behind(self, first: int, body: int) -> int:
        """What the blocks that lead into ``body``, and the white space between it and them, leave for its beginning."""
        [leading] = self._sizer.sizes([self._text[self._blocks[first].start : self._blocks[body].start]])
        return min(self._room_at(first) - leading, self._room_at(body))

    def _text_pieces(self, block: int, room: int) -> list[Draft]:
        """The block in pieces of at most ``room`` tokens."""
        markdown = self._markdown and self._blocks[block].kind is not BlockKind.CODE
        start, end = self._blocks[block].start, self._blocks[block].end
        ranges = split_long(self._text, start, end, self._size(block, block + 1), room, self._sizer, markdown=markdown)
        context, floor = self._context(block)[0], self._floors[block]
        return [Draft(*piece, context, floor, markdown=markdown) for piece in ranges]

    def _split_table(self, first: int, body: int) -> Iterator[Draft]:
        """Cut between rows; every piece that starts at a row repeats the table's header in its context."""
        table = self._blocks[body]
        borders = [*table.row_starts, table.end]
        header = _repeated(self._text[table.start : borders[0]])
        context, room = self._row_context(body, header)
        units = [(self._blocks[first].start, borders[0]), *pairwise(borders)]
        sizes = self._sizes(units)
        ranges = pack(
            sizes=sizes,
            rooms=[self._room_at(first), *[room] * (len(units) - 1)],
            keys=[content_key(self._text, start) for start, _ in units],
            reach=_REACH_IN_CHUNKS * self._room,
        )
        opening = Draft(0, 0, self._context(first)[0], self._blocks[first].start, table.row_starts, self._markdown)
        rows = Draft(0, 0, context, borders[0], table.row_starts, self._markdown)
        for low, high in ranges:
            template, limit = (opening, self._room_at(first)) if low == 0 else (rows, room)
            start, end = units[low][0], units[high - 1][1]
            if high - low > 1 or sizes[low] <= limit:
                yield template._replace(start=start, end=end)
                continue
            pieces = split_long(self._text, start, end, sizes[low], limit, self._sizer, markdown=self._markdown)
            yield from (template._replace(start=piece_start, end=piece_end) for piece_start, piece_end in pieces)

    def _row_context(self, block: int, header: str) -> tuple[str, int]:
        """Heading path and table header, as much as may be repeated, and the room they leave for rows."""
        path, path_size = self._context(block)
        header_size = self._sizer.context_size(header)
        limit = int(self._room * _MOST_TABLE_HEADER)
        if header_size > limit:
            return path, self._room - path_size
        if path_size + header_size > limit:
            return header, self._room - header_size
        return path + header, self._room - path_size - header_size


def _repeated(header: str) -> str:
    """A table's header as a context has it: nothing where it names no column. A delimiter row as wide as its columns, of which
    many tokenizers make a token a dash, would take more of each chunk than all names of the columns together: three dashes of
    each cell stay."""
    if not _NAME.search(_TAG.sub("", header)):
        return ""
    names, newline, delimiter = header.rstrip().rpartition("\n")
    if is_delimiter_row(delimiter):
        delimiter = _DASHES.sub("---", " ".join(delimiter.split()))
    return f"{names}{newline}{delimiter}\n"


def _additions(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """What each span adds to those before it: with the white space between them, which tokenizers join with what is behind it."""
    ends = [start + len(text[start:end].rstrip()) for start, end in spans]
    return [text[first:last] for first, last in pairwise([spans[0][0], *ends])] if spans else []


def _floors(blocks: Sequence[Block]) -> list[int]:
    """For each block, the start of its stretch: one that no heading interrupts and at most its last block is a table."""
    floors: list[int] = []
    run_start: int | None = None
    for block in blocks:
        if block.kind is BlockKind.HEADING:
            run_start = None
            floors.append(block.start)
            continue
        run_start = block.start if run_start is None else run_start
        floors.append(run_start)
        if block.kind is BlockKind.TABLE:
            run_start = None
    return floors
