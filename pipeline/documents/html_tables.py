"""HTML tables in a Markdown text.

What belongs here: where they lie and where their rows begin. LlamaParse writes a table in HTML where Markdown cannot (merged
cells): https://developers.llamaindex.ai/llamaparse/parse/features/tables/.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

_TAG = re.compile(r"<(?:(/table|/thead)\s*>|(table|tr|th|td)(?=[\s/>]))", re.IGNORECASE)


class HtmlTable(NamedTuple):
    """Up to ``end``, behind its closing tag. Its header stands before the first of ``row_starts``, each a body row's ``<tr``."""

    end: int
    row_starts: tuple[int, ...]


def html_tables(text: str) -> dict[int, HtmlTable]:
    """The tables that have rows and are closed, nested ones too, by the offset of their opening tag."""
    found: dict[int, HtmlTable] = {}
    unclosed: list[tuple[int, list[tuple[str, int]]]] = []
    for match in _TAG.finditer(text):
        tag = (match[1] or match[2]).lower()
        if tag == "table":
            unclosed.append((match.start(), []))
        elif not unclosed:
            continue
        elif tag == "/table":
            start, tags = unclosed.pop()
            if any(name == "tr" for name, _ in tags):
                found[start] = HtmlTable(match.end(), _body_rows(tags))
        else:
            unclosed[-1][1].append((tag, match.start()))
    return found


def _body_rows(tags: list[tuple[str, int]]) -> tuple[int, ...]:
    """The rows below the header: what is behind ``</thead>``; without one, what is behind the first rows of heading cells. A
    table that has neither has no header, and of one that has nothing else the first row is it."""
    names = [name for name, _ in tags]
    if "/thead" in names:
        return tuple(offset for name, offset in tags[names.index("/thead") :] if name == "tr")
    rows = [index for index, name in enumerate(names) if name == "tr"]
    cells = [names[first + 1 : after] for first, after in pairwise([*rows, len(names)])]
    headers = next((row for row, of_row in enumerate(cells) if not _is_header(of_row, first=row == 0)), min(len(rows), 1))
    return tuple(tags[index][1] for index in rows[headers:])


def _is_header(cells: list[str], *, first: bool) -> bool:
    """A row that ends in a heading cell: in one that begins with it, it is the row's own name. Further down one such cell alone
    is the name of a part of the table."""
    return cells[-1:] == ["th"] and (first or len(cells) > 1)
