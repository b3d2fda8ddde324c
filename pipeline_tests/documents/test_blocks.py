"""What the block scan takes for a heading, a table, code or a paragraph."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from pipeline.documents.blocks import BlockKind, lines, scan_markdown, scan_paragraphs
from pipeline_tests.documents.strategies import bodies

_H, _P, _C, _T = BlockKind.HEADING, BlockKind.PARAGRAPH, BlockKind.CODE, BlockKind.TABLE


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        ("# Title", (1, "Title")),
        ("   ### A  B ##\r\n", (3, "A B")),
        ("## C#", (2, "C#")),
        ("#\n", (1, "")),
        ("# #\n", (1, "")),
        ("Title\n=====\n", (1, "Title")),
        ("Title\r\n---\r\n", (2, "Title")),
        ("#No space", None),
        ("####### Seven", None),
        ("    # Indented code", None),
        ("two lines\nof text\n---\n", None),
        ("---\n", None),
    ],
)
def test_headings_are_commonmarks(line: str, heading: tuple[int, str] | None) -> None:
    [block, *rest] = scan_markdown(line)
    assert rest == []
    assert (block.kind is _H) == (heading is not None)
    if heading:
        assert (block.level, block.title) == heading


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("a\nb\n\nc", [_P, _P]),
        ("a\n# H\nb", [_P, _H, _P]),
        ("```py\n# no heading\n\n| a |\n|---|\n```\nafter", [_C, _P]),
        ("~~~\n```\n~~~~ \nafter", [_C, _P]),
        ("````\n```\nstill code", [_C]),
        ("``` not a `fence\n# H", [_P, _H]),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |\n\nafter", [_T, _P]),
        ("intro\na | b\n--|--\n1 | 2\n# H", [_P, _T, _H]),
        ("| a |\r\n|---|\r\n| 1 |\r\n", [_T]),
        ("no pipe here\n|---|", [_P]),
        ("| a |\n| b |", [_P]),
        (" \t\n\u3000\n", []),
        ("text\n   ", [_P]),
    ],
)
def test_blocks_end_where_the_next_kind_begins(text: str, kinds: list[BlockKind]) -> None:
    assert [block.kind for block in scan_markdown(text)] == kinds


def test_a_tables_rows_start_after_its_delimiter_row() -> None:
    text = "intro\n| a |\n|---|\n| 1 |\n"
    table = scan_markdown(text)[1]
    assert (text[table.start : table.rows_start], text[table.rows_start : table.end]) == ("| a |\n|---|\n", "| 1 |\n")


@settings(max_examples=200, deadline=None)
@given(text=bodies)
def test_blocks_are_whole_lines_in_order_with_nothing_but_blanks_between(text: str) -> None:
    borders = {0, len(text)} | {border for span in lines(text, 0, len(text)) for border in span}
    for blocks in (scan_markdown(text), scan_paragraphs(text)):
        position = 0
        for block in blocks:
            assert position <= block.start < block.end
            assert not text[position : block.start].strip()
            assert {block.start, block.end} <= borders
            position = block.end
        assert not text[position:].strip()
