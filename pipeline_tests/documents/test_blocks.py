"""What the block scan takes for a heading, a table, code or a paragraph."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents.blocks import BlockKind, scan_markdown, scan_paragraphs
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
        ("\t# Indented code", None),
        ("1. Numbered title\n---\n", (2, "1. Numbered title")),
        ("*Title*\n---\n", (2, "Title")),
        ("- item\n---\n", None),
        ("* item\n===\n", None),
        ("> quote\n---\n", None),
        ("two lines\nof text\n---\n", None),
        ("---\n", None),
        ("---\n---\n", None),
        ("---\ntitle: of front matter\n---\n", None),
        ("text\n***\nTitle\n---\n", None),
    ],
)
def test_headings_are_commonmarks(line: str, heading: tuple[int, str] | None) -> None:
    [block, *rest] = scan_markdown(line)
    assert rest == []
    assert (block.kind is _H) == (heading is not None)
    if heading:
        assert (block.level, block.title) == heading


@pytest.mark.parametrize(
    "before", ["***\n", "* * *\n", "___\n", " - - -\r\n", "text\n\n---\n", "# Before\n---\n", "- item\n\n***\n"]
)
@pytest.mark.parametrize("underline", ["===", "---"])
def test_a_title_may_stand_right_under_a_rule(before: str, underline: str) -> None:
    text = f"{before}Title\n{underline}\ntext"
    [*_, rule, heading, paragraph] = scan_markdown(text)
    assert (rule.kind, heading.kind, heading.title, paragraph.kind) == (_P, _H, "Title", _P)


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
        ("text\n <TABLE class='x'>\n\n<tr><td># 1</td></tr>\n\n</table> \n# H", [_P, _T, _H]),
        ("<table><tr></tr></table><table><tr></tr></table>\nafter", [_T, _T, _P]),
        ("<table><tr><td><table><tr></tr></table></td></tr></table>", [_T]),
        ("<table>\n<tr>\n# H\n\n<table><tr></tr></table>", [_P, _H, _T]),
        ("<table>\n\nof contents\n\n</table>", [_P, _P, _P]),
        ("```\n<table><tr></tr></table>\n```", [_C]),
        ("1. ```sh\n   # comment\n   ```\n\n# H", [_C, _H]),
        ("- 2) ```sh\n     # comment\n     ```\n# H", [_C, _H]),
        ("-\t~~~\n\t# comment\n\t~~~\n# H", [_C, _H]),
        ("-  item\n\n   ```\n   # comment\n      ```\n# H", [_P, _C, _H]),
        ("-  item\nthat goes on\n\n   ```\n   # comment\n    ```\n# H", [_P, _C, _H]),
        ("- item\n\n      ```\n\n# H", [_P, _P, _H]),
        ("- item\n  ```\n  # comment\n\n# H", [_P, _C, _H]),
        ("- item\n\n# H\n\n    ```\n\n# H", [_P, _H, _P, _H]),
        ("- - -\n\n    ```\n\n# H", [_P, _P, _H]),
        ("- -\n\n    ```\n    # comment\n    ```\n# H", [_P, _C, _H]),
        ("--\nno rule", [_P]),
        ("```\n# comment\n    ```\n# comment", [_C]),
        ("- item\n\n\t| a | b |\n\t|---|---|\n\t| 1 | 2 |\n", [_P, _T]),
        ("text\n<!--\n# hidden\n--> \n# H", [_P, _C, _H]),
        ("<PRE class='x'>\n# as it stands\n\n| a |\n|---|\n</pre>\n# H", [_C, _H]),
        ("<!-- a -->\ntext\n<pre>a</pre>\ntext", [_P]),
        ("<!-- a\n\n# H\n\n<pre>\n\n# H", [_P, _H, _P, _H]),
        ("an inline <table><tr></tr></table>", [_P]),
        (" \t\n\u3000\n", []),
        ("text\n   ", [_P]),
    ],
)
def test_blocks_end_where_the_next_kind_begins(text: str, kinds: list[BlockKind]) -> None:
    assert [block.kind for block in scan_markdown(text)] == kinds


_MARKERS = st.sampled_from(["- ", "*   ", "+ ", "1. ", "10)  ", "-\t", "1.\t"])
_CODE_LINES = st.lists(st.sampled_from(["# comment", "| a | b |", "|---|---|", "- item", "  ```", "Title\n===", ""]), max_size=5)


@settings(max_examples=300, deadline=None)
@given(
    markers=st.lists(_MARKERS, min_size=1, max_size=3),
    opening=st.sampled_from(["", "text\n", "text\n\n", "text\nthat goes on\n"]),
    code=_CODE_LINES,
    to_the_right=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    closed=st.booleans(),
)
def test_code_in_a_list_item_leaves_what_follows_as_it_is(
    markers: list[str], opening: str, code: list[str], to_the_right: tuple[int, int], closed: bool
) -> None:
    item = "".join(markers)
    indent = " " * len(item.expandtabs(4))
    inside = "".join(f"{indent}{line}\n" for text in code for line in text.split("\n"))
    first, last = (" " * blanks for blanks in to_the_right)
    fence = f"{indent}{first}~~~sh\n" if opening else "~~~sh\n"
    item_text = f"{item}{opening}{fence}{inside}" + f"{indent}{last}~~~\n" * closed
    blocks = scan_markdown(f"# Before\n\n{item_text}\n# After\n\n| a |\n|---|\n| 1 |\n")
    assert [block.kind for block in blocks] == [_H, *[_P] * bool(opening), _C, _H, _T]
    assert [block.title for block in blocks if block.kind is _H] == ["Before", "After"]


def test_a_tables_rows_start_after_its_delimiter_row() -> None:
    text = "intro\n| a |\n|---|\n| 1 |\n"
    table = scan_markdown(text)[1]
    assert [text[start : table.end] for start in table.row_starts] == ["| 1 |\n"]


_ROW, _HEAD, _NAMED = "<tr><td>1</td></tr>", "<tr><th>a</th></tr>", "<tr><th>a</th><td>1</td></tr>"
_WIDE = "<tr><th>b</th><th>c</th></tr>"


@pytest.mark.parametrize(
    ("table", "header"),
    [
        (
            f"<table><thead>{_HEAD}{_HEAD}</thead>\n<tbody>{_ROW}{_ROW}</tbody></table>",
            f"<table><thead>{_HEAD}{_HEAD}</thead>\n<tbody>",
        ),
        (f"<table>{_HEAD}{_ROW}{_ROW}</table>", f"<table>{_HEAD}"),
        (f"<table><tr><th>a<tr><td>1{_ROW}</table>", "<table><tr><th>a"),
        (f"<table><caption>C</caption>{_ROW}{_ROW}</table>", "<table><caption>C</caption>"),
        (f"<table>{_HEAD}{_WIDE}{_WIDE}{_ROW}{_ROW}</table>", f"<table>{_HEAD}{_WIDE}{_WIDE}"),
        (f"<table>{_WIDE}{_HEAD}{_ROW}</table>", f"<table>{_WIDE}"),
        (f"<table><tr><td></td><th>a</th><th>b</th></tr>{_ROW}{_ROW}</table>", "<table><tr><td></td><th>a</th><th>b</th></tr>"),
        (f"<table>{_NAMED}{_NAMED}</table>", "<table>"),
        (f"<table>{_HEAD}{_NAMED}{_NAMED}</table>", f"<table>{_HEAD}"),
        (f"<table>{_HEAD}{_HEAD}{_HEAD}</table>", f"<table>{_HEAD}"),
        (f"<table>{_ROW}{_HEAD}</table>", "<table>"),
        (f"<table>{_ROW}<tr><td><table><thead>{_HEAD}</thead></table></td></tr></table>", "<table>"),
    ],
    ids=[
        "thead",
        "first row",
        "closing tags left out",
        "no header",
        "a title and two rows",
        "the name of a part of it",
        "a corner",
        "rows with names",
        "names and header",
        "heading cells alone",
        "heading cells further down",
        "a nested table's own",
    ],
)
def test_an_html_tables_header_is_its_thead_or_the_first_rows_of_heading_cells(table: str, header: str) -> None:
    [block] = scan_markdown(table)
    assert table[: block.row_starts[0]] == header
    assert len(block.row_starts) == 2


@settings(max_examples=200, deadline=None)
@given(text=bodies)
def test_blocks_are_whole_lines_or_html_tables_in_order_with_nothing_but_blanks_between(text: str) -> None:
    lines = {0, len(text)} | {match.end() for match in re.finditer("\n", text)}
    tables = {border for match in re.finditer("(?i)<table|</table\\s*>", text) for border in match.span()}
    for blocks in (scan_markdown(text), scan_paragraphs(text)):
        position = 0
        for block in blocks:
            assert position <= block.start < block.end
            assert not text[position : block.start].strip()
            assert {block.start, block.end} <= lines | tables
            position = block.end
        assert not text[position:].strip()


def test_a_fence_that_is_not_closed_ends_with_its_page() -> None:
    first, second = "Intro\n\n```\ncode that was cut off", "# Chapter\n\n```\n# a comment\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    text = f"{first}\n\n\n\n{second}"
    starts = [0, len(first) + 2, len(first) + 4]
    assert [block.kind for block in scan_markdown(text, starts)] == [_P, _C, _H, _C, _T]
    assert [(block.kind, block.title) for block in scan_markdown(text)][2] == (_H, "a comment")
