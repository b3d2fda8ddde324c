"""Tables of HTML as Markdown: every value under the name of its column."""

from __future__ import annotations

import time

import pytest

from pipeline.local_cloud.parsing import parse_html


def _text(page: str) -> str:
    return parse_html(page.encode()).pages[0].text


_SALES = "<tr><th>Region<th>Quarter<th>Sales</tr>"


@pytest.mark.parametrize(
    ("rows", "markdown"),
    [
        (
            "<tr><td rowspan=2>North<td>Q1<td>10</tr><tr><td>Q2<td>12</tr><tr><td>South<td>Q1<td>9</tr>",
            ["| North | Q1 | 10 |", "| North | Q2 | 12 |", "| South | Q1 | 9 |"],
        ),
        (
            "<tr><td>North<td rowspan='2'><b>all</b> year<td>10</tr><tr><td>South<td>9</tr>",
            ["| North | **all** year | 10 |", "| South | **all** year | 9 |"],
        ),
        ("<tr><td>North<td>Q1<td rowspan=3>10</tr><tr><td>South<td>Q2</tr>", ["| North | Q1 | 10 |", "| South | Q2 | 10 |"]),
        ("<tr><td colspan=2 rowspan=2>North<td>10</tr><tr><td>12</tr>", ["| North | | 10 |", "| North | | 12 |"]),
        (f"<tr><td rowspan=2>{'long ' * 50}<td>Q1<td>10</tr><tr><td>Q2<td>12</tr>", ["|  | Q2 | 12 |"]),
        ("<tr><td rowspan=2>North<td>Q1<td>10</tr></table><table><tr><td>apart</table>", ["| North | Q1 | 10 |", "| apart |"]),
        ("<tr><td rowspan=x>North<td rowspan=0>Q1<td rowspan=''>10</tr><tr><td>South</tr>", ["| North | Q1 | 10 |", "| South |"]),
    ],
    ids=["first column", "in between", "last column, too many", "two columns", "long", "another table", "no numbers"],
)
def test_a_cell_that_spans_rows_stands_in_each_of_them(rows: str, markdown: list[str]) -> None:
    lines = _text(f"<table>{_SALES}{rows}</table>").split("\n")
    assert lines[:2] == ["| Region | Quarter | Sales |", "| --- | --- | --- |"]
    assert [line for line in lines if line in markdown] == markdown


def test_a_cell_of_a_nested_table_spans_the_rows_of_that_table_alone() -> None:
    inner = "<table><tr><td rowspan=2>in<td>1</tr><tr><td>2</tr></table>"
    text = _text(f"<table>{_SALES}<tr><td>North<td>{inner}<td>10</tr><tr><td>South<td>Q1<td>9</tr></table>")
    assert text.count("in ") == 2
    assert text.endswith("| South | Q1 | 9 |")


def test_a_bar_in_a_cell_begins_no_other_cell() -> None:
    assert "| a \\| b | c |" in _text(f"<table>{_SALES}<tr><td>a | b<td>c</tr></table>")


@pytest.mark.parametrize("cells", ["<td rowspan=60000>a" * 300, "<td rowspan=60000 colspan=1000>a"])
def test_spans_without_measure_cost_no_more_than_their_page(cells: str) -> None:
    started = time.process_time()
    assert len(_text(f"<table><tr>{cells}</tr>" + "<tr><td>b" * 500)) < 2_000_000
    assert time.process_time() - started < 5
