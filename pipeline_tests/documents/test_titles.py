"""A heading's title as people read it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.documents.titles import plain_title


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("Install", "Install"),
        ("  Two   words ", "Two words"),
        ('Intro<a name="intro"></a>', "Intro"),
        ("<b>Safety</b> first<br/>", "Safety first"),
        ("[Online demo](https://example.org/a_(b)?c=d)", "Online demo"),
        ("What is [`tomli`](https://example.org 'a title')?", "What is `tomli`?"),
        ("[![build](https://ci/x.svg)](https://ci/x) Pumps", "Pumps"),
        ("![Pumps and valves](logo.png)", "Pumps and valves"),
        ("[![Pumps](logo.png)](https://example.org)", "Pumps"),
        ("[0.12.0] - 2020-02-28", "[0.12.0] - 2020-02-28"),
        ("std::vector<T> and `<b>`", "std::vector<T> and `<b>`"),
        ("a < b and b > a", "a < b and b > a"),
        ("**1. Scope** of *this* ***policy***", "1. Scope of this policy"),
        ("**Pumps (`2*3*4`)**", "Pumps (`2*3*4`)"),
        ("int read(char *name, void **value, int * len)", "int read(char *name, void **value, int * len)"),
        ("2*3*4 and ** and __init__", "2*3*4 and ** and __init__"),
        (r"1\. Use of file\_name\* and `a\.b`", "1. Use of file_name* and `a\\.b`"),
        (r"\*not slanted\*", "*not slanted*"),
        ("R&amp;D, vector&lt;T&gt;, `&amp;`&nbsp;", "R&D, vector<T>, `&amp;`"),
        ('Install[¶](#install "Permalink to this heading")', "Install"),
        ("Install {#install}", "Install"),
        ("Install {: .no_toc #install }", "Install"),
        ("GET /files/{id}", "GET /files/{id}"),
        ("Page [1](", "Page [1]("),
        ("<a id='x'></a>", ""),
        ("a \0 `b`", "a `b`"),
        ("a <b `c`> d", "a <b `c`> d"),
        ("", ""),
    ],
)
def test_a_title_is_what_people_read_of_a_heading(line: str, title: str) -> None:
    assert plain_title(line) == title


@given(st.text("ab1 .,;:-–é漢\t", max_size=40))
def test_a_title_without_marks_stays_as_it_is(line: str) -> None:
    assert plain_title(line) == " ".join(line.split())


@pytest.mark.parametrize(
    "hostile",
    [
        "[",
        "![",
        "[a](",
        "<a ",
        "`",
        "[a](b(",
        "<a href=[x](y)",
        "](",
        "(",
        ")",
        "*",
        "**a",
        "*a* ",
        "\\",
        "&",
        "&a",
        "{#",
        "{:",
        " {#a",
    ],
)
def test_a_long_line_of_marks_is_read_once(hostile: str) -> None:
    started = time.process_time()
    plain_title(hostile * 100_000)
    assert time.process_time() - started < 5
