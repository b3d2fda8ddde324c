"""HTML tables made plain enough for Markdown, whose rows all have the same columns.

What belongs here: cells that span rows. Without a stand-in in each of its rows the cells behind it would stand under the names of
other columns.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

from bs4 import BeautifulSoup, Tag

_LONGEST_REPEATED = 200
"""Characters of a cell that are said again in each row; a longer one leaves its place empty there."""
_COPIES_PER_CELL = 4
"""So many cells are added for each that a page has: a span without measure costs no more than its page."""

_MOST_DIGITS = 5


class _Spanning(NamedTuple):
    """A cell that goes on in so many rows below."""

    cell: Tag
    rows: int


def spread_cells(soup: BeautifulSoup) -> None:
    """Puts what spans rows into each of them, and a number of columns at its place where it spans those too."""
    spanning = soup.find_all(_spans_rows)
    left = _COPIES_PER_CELL * len(soup.find_all(["td", "th"])) if spanning else 0
    for table in {id(table): table for cell in spanning if (table := cell.find_parent("table"))}.values():
        left = _spread_in(table, left)


def _spread_in(table: Tag, left: int) -> int:
    """Answers how many of the ``left`` copies are left."""
    carried: dict[int, _Spanning] = {}
    section = None
    for row in (row for row in table.find_all("tr") if row.find_parent("table") is table):
        if row.parent is not section:
            section, carried = row.parent, {}
        if len(carried) > left:
            break
        left -= len(carried)
        carried = _spread_in_row(row, carried)
    return left


def _spread_in_row(row: Tag, carried: dict[int, _Spanning]) -> dict[int, _Spanning]:
    """Answers what goes on in the row below, by its column."""
    below: dict[int, _Spanning] = {}
    column = position = 0
    cells = row.find_all(["td", "th"], recursive=False)
    while column in carried or position < len(cells):
        following = cells[position] if position < len(cells) else None
        if column in carried:
            cell, rows = carried[column]
            _insert(row, _stand_in(cell), following)
        else:
            cell, rows = cells[position], _number(cells[position], "rowspan")
            position += 1
        if rows > 1:
            below[column] = _Spanning(cell, rows - 1)
        column += _number(cell, "colspan")
    return below


def _insert(row: Tag, cell: Tag, following: Tag | None) -> None:
    if following is None:
        row.append(cell)
    else:
        following.insert_before(cell)


def _stand_in(cell: Tag) -> Tag:
    if len(cell.get_text()) <= _LONGEST_REPEATED:
        return copy.copy(cell)
    return Tag(name=cell.name, attrs={"colspan": str(_number(cell, "colspan"))})


def _spans_rows(tag: Tag) -> bool:
    return tag.name in ("td", "th") and _number(tag, "rowspan") > 1


def _number(cell: Tag, attribute: str) -> int:
    value = str(cell.get(attribute) or "")
    return max(1, int(value)) if value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS else 1
