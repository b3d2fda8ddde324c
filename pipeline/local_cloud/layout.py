"""From LiteParse's layout blocks to LlamaParse's structured items, with bounding boxes in points from the top left."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from liteparse import LayoutBlock

Item = dict[str, Any]


def block_items(blocks: Sequence[LayoutBlock], *, headers: Sequence[LayoutBlock], footers: Sequence[LayoutBlock]) -> list[Item]:
    """Items of one page in reading order: page headers, body, page footers. Rules carry no content and are left out."""
    items = [_furniture_item("header", block) for block in headers]
    for is_list, run in groupby(blocks, key=lambda block: block.kind == "list_item"):
        group = list(run)
        items += [_list_item(group)] if is_list else [item for block in group if (item := _item(block)) is not None]
    return items + [_furniture_item("footer", block) for block in footers]


def _item(block: LayoutBlock) -> Item | None:
    match block.kind:
        case "heading":
            text, level = block.text or "", block.level or 1
            return {"type": "heading", "level": level, "value": text, "md": f"{'#' * level} {text}", "bbox": _bbox(block)}
        case "table":
            return _table_item(block)
        case "code":
            code, language = "\n".join(block.lines or ()), block.lang
            md = f"```{language or ''}\n{code}\n```"
            return {"type": "code", "language": language, "value": code, "md": md, "bbox": _bbox(block)}
        case "figure":
            name = f"img_{block.id}.{block.format}"
            return {"type": "image", "caption": "", "url": name, "md": f"![]({name})", "bbox": _bbox(block)}
        case "rule":
            return None
        case _:
            return _text_item(block)


def _text_item(block: LayoutBlock) -> Item:
    text = block.text if block.text is not None else "\n".join(block.lines or ())
    return {"type": "text", "value": text, "md": text, "bbox": _bbox(block)}


def _list_item(blocks: Sequence[LayoutBlock]) -> Item:
    ordered = bool(blocks[0].ordered)
    lines = [
        f"{'  ' * (block.level or 0)}{block.marker if ordered and block.marker else '-'} {block.text or ''}" for block in blocks
    ]
    return {
        "type": "list",
        "ordered": ordered,
        "items": [_text_item(block) for block in blocks],
        "md": "\n".join(lines),
        "bbox": [box for block in blocks for box in _bbox(block)],
    }


def _table_item(block: LayoutBlock) -> Item:
    header = [cell.text for cell in block.header or ()]
    body = [[cell.text for cell in row] for row in block.rows or ()]
    rows = [header, *body] if header else body
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return {
        "type": "table",
        "rows": rows,
        "csv": buffer.getvalue(),
        "html": _html_table(header, body),
        "md": _markdown_table(header, body),
        "bbox": _bbox(block),
    }


def _markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    columns = max((len(row) for row in (header, *body)), default=0)
    lines = [_markdown_row(header or [""] * columns), "|" + "---|" * columns, *(_markdown_row(row) for row in body)]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _html_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = "<thead>" + _html_row(header, "th") + "</thead>" if header else ""
    return f"<table>{head}<tbody>{''.join(_html_row(row, 'td') for row in body)}</tbody></table>"


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _furniture_item(kind: str, block: LayoutBlock) -> Item:
    inner = _text_item(block)
    return {"type": kind, "items": [inner], "md": inner["md"], "bbox": inner["bbox"]}


def _bbox(block: LayoutBlock) -> list[dict[str, float]]:
    box = block.bbox
    if box is None:
        return []
    return [{"x": round(box.x, 2), "y": round(box.y, 2), "w": round(box.width, 2), "h": round(box.height, 2)}]
