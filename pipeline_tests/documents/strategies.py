"""Hypothesis strategies: pages of plain, odd and hostile Markdown."""

from __future__ import annotations

from hypothesis import strategies as st

from pipeline.documents.models import Attachment, Page

_ODD = "a \t\n\r\x0b\x0c\x1c\x85\u00a0\u2028\u3000|-#`~:.é\u0301ﷺ漢👩‍👧🇩🇪\u200d𝒳"
_WORDS = st.lists(
    st.sampled_from(["alpha", "beta,", "Gamma.", "12.5", "naïve", "x" * 130, "漢字。", "[SEP]"]), min_size=1, max_size=60
)

_PROSE = _WORDS.map(" ".join)
_HEADING = st.builds("{} {}".format, st.sampled_from(["#", "##", "###", "######"]), st.text("abc ", max_size=8) | _PROSE)
_SETEXT = st.builds("{}\n{}".format, st.text("abc", min_size=1, max_size=9), st.sampled_from(["===", "---"]))
_CODE = st.builds("```\n{}\n```".format, st.text("ab #|\n", max_size=60))
_LIST = st.lists(
    st.sampled_from(
        ["- ", "1. ", "-\t", "  ", "\t", "a\n", "# a\n", "```\n", "    ~~~\n", "***\n", "<!--\n", "-->\n", "<pre>\n", "\n"]
    ),
    max_size=20,
).map("".join)
_ODD_TEXT = st.text(st.sampled_from(_ODD), max_size=80)
_ANY_TEXT = st.text(max_size=30)
_LONG = st.builds(lambda piece, times: piece * times, st.text(min_size=1, max_size=6), st.integers(20, 400))


@st.composite
def tables(draw: st.DrawFn) -> str:
    columns = draw(st.integers(1, 3))
    cell = st.sampled_from(["a", "long cell text", "", "x" * 90, "1 2 3 4 5 6 7 8 9"])
    rows = draw(st.lists(st.lists(cell, min_size=columns, max_size=columns), min_size=1, max_size=25))
    delimiter = ["---"] * columns
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], delimiter, *rows[1:]))


def _html_tables(cells: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """In one line or many, with and without a header; what is joined by other pieces of tags is nested, unclosed or torn."""
    row = st.builds("<tr>\n{}</tr>".format, st.lists(cells, max_size=4).map("".join))
    return st.builds(
        lambda start, rows, end, joiner: joiner.join([start, *rows, end]),
        st.sampled_from(["<table>", "<TABLE border='1'><thead><tr><th>a b<th>c</tr></thead><tbody>", "<table", "<tr>"]),
        st.lists(row, max_size=20),
        st.sampled_from(["</table>", "</tbody></TABLE >", "</thead></table>", "</table", ""]),
        st.sampled_from(["", "\n", " \n\n  "]),
    )


_CELLS = st.builds(
    "<{}>{}".format, st.sampled_from(["td", "th", "td rowspan=2"]), _ODD_TEXT | st.sampled_from(["1 2 3", "x" * 90])
)

bodies = st.builds(
    lambda blocks, joiner: joiner.join(blocks),
    st.lists(
        _PROSE
        | _HEADING
        | _SETEXT
        | _CODE
        | _LIST
        | _ODD_TEXT
        | _ANY_TEXT
        | _LONG
        | tables()
        | _html_tables(_CELLS | _html_tables(_CELLS)),
        max_size=7,
    ),
    st.sampled_from(["\n\n", "\n", "\r\n\r\n", "\r\n", "\n\n\n \n"]),
)

_ATTACHMENTS = st.lists(
    st.builds(Attachment, st.sampled_from(["page.png", "items.json"]), st.sampled_from(["s1", "s2"]), st.just("screenshot")),
    max_size=2,
).map(tuple)


@st.composite
def page_lists(draw: st.DrawFn) -> list[Page]:
    numbers = draw(st.lists(st.integers(1, 9), unique=True, max_size=4))
    optional = st.none() | _ODD_TEXT
    return [
        Page(number, draw(bodies), header=draw(optional), footer=draw(optional), attachments=draw(_ATTACHMENTS))
        for number in sorted(numbers)
    ]


file_attachments = _ATTACHMENTS
