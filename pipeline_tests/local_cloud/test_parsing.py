"""Parsers: text, HTML and PDF."""

from __future__ import annotations

import gzip
import re
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pypdf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from liteparse import AnnotationRect, LayoutBlock, LayoutCell
from markdownify import markdownify
from reportlab.pdfgen.canvas import Canvas

from pipeline.local_cloud.layout import block_items
from pipeline.local_cloud.parsed import DocumentRefused, FailedPage, PageContent, ParsedDocument
from pipeline.local_cloud.parsing import ParsedCache, parse_html, parse_text, parser_revision
from pipeline.local_cloud.payloads import Provenance, build_payload
from pipeline.local_cloud.pdf import parse_pdf
from pipeline_tests.local_cloud.conftest import SAMPLES


def _texts(document: ParsedDocument) -> list[str]:
    return [page.text for page in document.pages]


@pytest.mark.parametrize(
    ("content", "pages"),
    [
        (b"", [""]),
        (b"one", ["one"]),
        (b"one\ftwo\f", ["one", "two"]),
        (b"one\f\fthree", ["one", "", "three"]),
        (b"a\r\nb\rc", ["a\nb\nc"]),
        ("\ufeffmark".encode(), ["mark"]),
        ("vann 水".encode("utf-16"), ["vann 水"]),
    ],
)
def test_text_is_split_at_form_feeds(content: bytes, pages: list[str]) -> None:
    assert _texts(parse_text(content)) == pages


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"caf\xe9", b"a\x00b"])
def test_bytes_that_are_no_text_are_refused(content: bytes) -> None:
    with pytest.raises(DocumentRefused):
        parse_text(content)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\ufeff")))
def test_text_loses_nothing_but_the_page_ends(text: str) -> None:
    assert "\f".join(_texts(parse_text(text.encode()))) == text.removesuffix("\f")


def test_html_becomes_markdown_without_scripts_and_styles() -> None:
    (text,) = _texts(parse_html((SAMPLES / "support" / "warranty-and-returns.html").read_bytes()))
    assert text.startswith("# Warranty and returns\n")
    assert "| New radar horn | 390 EUR | 9 days |" in text
    assert "1. Write to [support@tidewater.example](mailto:support@tidewater.example)" in text
    assert "must never reach" not in text
    assert "border-collapse" not in text


def test_html_in_another_encoding_is_read_as_it_says() -> None:
    page = '<html><head><meta charset="iso-8859-1"></head><body><p>Sæby</p></body></html>'
    assert _texts(parse_html(page.encode("iso-8859-1"))) == ["Sæby"]
    assert _texts(parse_html(page.replace("iso-8859-1", "utf-8").encode())) == ["Sæby"]


def test_html_that_says_nothing_of_its_encoding_and_is_utf8_is_read_as_that() -> None:
    assert _texts(parse_html("<p>😀 𝒳 \ud7ff</p>".encode())) == ["😀 𝒳 \ud7ff"]


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<ul><li>a<li>b<p>more<li>c</ul><p>after", "* a\n* b\n\n  more\n* c\n\nafter"),
        ("<h1>T</h1><p>one<p>two<h2>S</h2><p>three", "# T\n\none\n\ntwo\n\n## S\n\nthree"),
        ("<table><tr><th>a<th>b<tr><td><p>1<td>2<tr><td>3<td>4</table>", "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"),
        ("<dl><dt>a<dd>b<dt>c<dd>d</dl>", "a\n:   b\n\nc\n:   d"),
        ("<head><title>T</title><main><p>text</p></main>", "text"),
        ("<!DOCTYPE html><title>T</title><h1>T</h1><p>text", "# T\n\ntext"),
        ("<p>a<wbr>b<p>c<p><picture><source srcset=x><img alt=i src=y></picture>", "ab\n\nc\n\n![i](y)"),
        ("<p>Hello</p><![ endif]><?xml x?>", "Hello"),
        ("<header>One</header><nav>two<aside>three</aside></nav>four", "One\n\ntwo\n\nthree\n\nfour"),
        ("<details><summary>More</summary>Body</details>after", "More\n\nBody\n\nafter"),
        ("<p>a<select><option>b<option>c</select>d", "a\n\nb\n\nc\n\nd"),
    ],
)
def test_html_may_leave_out_tags(page: str, text: str) -> None:
    assert _texts(parse_html(page.encode())) == [text]


@pytest.mark.parametrize("many", ["<p>paragraph", "<wbr>part", "<a href='x>link</a> it's ", "<p><!-- note ", "<tr><td>cell"])
def test_html_that_leaves_out_tags_and_quotes_takes_no_longer_a_byte(many: str) -> None:
    started = time.process_time()
    (text,) = _texts(parse_html(f"first{many * 5_000}".encode()))
    assert text.startswith("first")
    assert time.process_time() - started < 5


_TAGS = st.sampled_from(
    ["p", "div", "ul", "li", "table", "tr", "td", "main", "span", "b", "dl", "dd", "head", "body", "wbr", "x-y"]
)


@given(st.lists(st.tuples(st.sampled_from(["<", "</"]), _TAGS), max_size=60))
def test_no_word_of_html_is_lost_however_its_tags_stand(tags: list[tuple[str, str]]) -> None:
    page = "".join(f"{opening}{tag}>word{number} " for number, (opening, tag) in enumerate(tags))
    (text,) = _texts(parse_html(page.encode()))
    assert re.findall(r"word\d+", text) == [f"word{number}" for number in range(len(tags))]


@pytest.mark.parametrize(
    "page",
    [
        "<ol><li>one</li><li></li><li>three</li></ol><ol><li>one</li></ol>",
        "<ol start=9><li>nine<p>more</p></li>\n<li>ten<p>more</p></li></ol>",
        "<ol start=x> <li>one</li> text <b>bold</b> <li>two</li></ol>",
        "<ol><li>one<ol><li>deep</li><li>deeper<ul><li>dot</li></ul></li></ol></li><li>two<ol><li>new</li></ol></li></ol>",
        "<ul><li>dot<ol><li>one</li><li>two<ul><li>dash</li></ul></li></ol></li></ul>",
        "<ol><div><li>apart</li></div><li>one</li></ol><li>alone</li>",
        "<ol><li>never<li>closed<li>at all",
    ],
)
def test_lists_of_html_are_numbered_as_markdownify_numbers_them(page: str) -> None:
    assert _texts(parse_html(page.encode())) == [markdownify(page, bs4_options="lxml").strip()]


def test_a_long_html_list_is_numbered_as_fast_as_a_short_one() -> None:
    started = time.process_time()
    (text,) = _texts(parse_html(b"<ol>" + b"<li>reference</li>" * 10_000 + b"</ol>"))
    assert text.endswith("\n10000. reference")
    assert time.process_time() - started < 5


def test_html_without_end_is_refused_not_fatal() -> None:
    with pytest.raises(DocumentRefused, match="nested too deeply"):
        parse_html(b"<div>" * 20_000)


@pytest.mark.parametrize("depth", [257, 2_049, 20_000])
def test_html_nested_deeply_is_kept_whole_or_refused(depth: int) -> None:
    try:
        (text,) = _texts(parse_html(b"<div>" * depth + b"deep" + b"</div>" * depth + b"<p>after</p>"))
    except DocumentRefused:
        assert depth > 257
    else:
        assert text == "deep\n\nafter"


def test_a_long_text_and_a_long_attribute_of_html_end_nothing() -> None:
    (text,) = _texts(parse_html(b"<pre>" + b"x" * 11_000_000 + b"</pre><i title='" + b"y" * 11_000_000 + b"'>after</i>"))
    assert (len(text) > 11_000_000, text[-7:]) == (True, "*after*")


@pytest.mark.parametrize(
    "name", ["manuals/ts-400-field-manual.pdf", "policies/security-policy.pdf", "reports/annual-report-2025.pdf"]
)
def test_every_word_of_a_pdf_is_on_its_page(name: str) -> None:
    content = (SAMPLES / name).read_bytes()
    document = parse_pdf(content)
    expected = pypdf.PdfReader(BytesIO(content)).pages
    assert [page.page_number for page in document.pages] == list(range(1, len(expected) + 1))
    for page, other in zip(document.pages, expected, strict=True):
        found = _letters(f"{page.header}{page.text}{page.footer}")
        assert all(_letters(word) in found for word in other.extract_text().split())


def test_page_headers_and_footers_are_told_from_the_body() -> None:
    for page in parse_pdf((SAMPLES / "manuals" / "ts-400-field-manual.pdf").read_bytes()).pages:
        assert page.header == "TS-400 Field Manual, revision 7"
        assert page.footer == f"Tidewater Instruments, Drammen Page {page.page_number}"
        assert "revision 7" not in page.text
        assert "Drammen" not in page.text


def test_headings_at_the_top_of_pages_stay_in_the_body() -> None:
    pages = parse_pdf(_pdf([[(780, 18, "Tides"), (700, 11, "Body one")], [(780, 18, "Rivers"), (700, 11, "Body two")]])).pages
    assert [page.header for page in pages] == [None, None]
    assert "Tides" in pages[0].text
    assert "Rivers" in pages[1].text


def test_a_single_page_has_no_headers() -> None:
    (page,) = parse_pdf(_pdf([[(820, 8, "Top line"), (700, 11, "Body")]])).pages
    assert (page.header, page.footer) == (None, None)
    assert "Top line" in page.text


def test_a_pdf_of_more_than_a_thousand_pages_is_read_to_its_end() -> None:
    pages = parse_pdf(_pdf([[(700, 11, f"page{number}")] for number in range(1, 1_003)])).pages
    assert (len(pages), pages[-1].page_number, pages[-1].text) == (1_002, 1_002, "page1002")


@pytest.mark.parametrize("upright", [True, False])
def test_prose_that_runs_sideways_is_kept(upright: bool) -> None:
    buffer = BytesIO()
    canvas = Canvas(buffer, pagesize=(595, 842), invariant=1)
    if upright:
        canvas.drawString(300, 780, "Upright words here.")
    canvas.rotate(90)
    lines = [f"sideways{number} prose{number} of line{number}" for number in range(10)]
    for number, line in enumerate(lines):
        canvas.drawString(72, -100 - 14 * number, line)
    canvas.save()
    parsed = parse_pdf(buffer.getvalue())
    words = parsed.pages[0].text.split()
    assert parsed.warning is None
    assert all(words.count(word) == 1 for line in lines for word in line.split() if word != "of")
    assert ("Upright" in words) == upright


def test_boxes_lie_where_the_words_are() -> None:
    (page,) = parse_pdf(_pdf([[(700, 12, "A sentence in the middle of the page.")]])).pages
    assert page.items is not None
    (box,) = page.items[0]["bbox"]
    assert page.height is not None
    assert abs(box["x"] - 72) < 2
    assert abs(page.height - 700 - (box["y"] + box["h"])) < 6


def test_a_pdf_without_text_is_a_warning() -> None:
    document = parse_pdf(_pdf([[]]))
    assert document.warning is not None
    assert "no text layer" in document.warning


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 a word document", b"%PDF-1.7 cut off"])
def test_what_is_no_pdf_is_refused(content: bytes) -> None:
    with pytest.raises(DocumentRefused):
        parse_pdf(content)


def test_an_encrypted_pdf_is_refused() -> None:
    writer = pypdf.PdfWriter(BytesIO(_pdf([[(700, 12, "secret")]])))
    writer.encrypt("password", algorithm="RC4-128")
    buffer = BytesIO()
    writer.write(buffer)
    with pytest.raises(DocumentRefused):
        parse_pdf(buffer.getvalue())


def test_blocks_become_the_items_of_the_vendors_parser() -> None:
    box = AnnotationRect(x=1.004, y=2, width=3, height=4)
    blocks = [
        LayoutBlock(kind="heading", text="Title", level=2, bbox=box),
        LayoutBlock(kind="list_item", text="one", level=0, ordered=True, marker="1.", bbox=box),
        LayoutBlock(kind="list_item", text="two", level=1, ordered=True, marker="a.", bbox=box),
        LayoutBlock(kind="table", header=[LayoutCell("A"), LayoutCell("B|C")], rows=[[LayoutCell("<1>"), LayoutCell("2,3")]]),
        LayoutBlock(kind="rule", bbox=box),
        LayoutBlock(kind="code", lines=["x = 1"], lang="python", bbox=box),
        LayoutBlock(kind="grid_fallback", lines=["a  b"], bbox=box),
        LayoutBlock(kind="figure", id="p1_1", format="png", bbox=box),
    ]
    items: list[dict[str, Any]] = block_items(blocks, headers=[LayoutBlock(kind="paragraph", text="Head", bbox=box)], footers=[])
    assert [item["type"] for item in items] == ["header", "heading", "list", "table", "code", "text", "image"]
    header, heading, listing, table, code, text, image = items
    assert header["items"][0]["value"] == "Head"
    assert (heading["md"], heading["bbox"]) == ("## Title", [{"x": 1.0, "y": 2, "w": 3, "h": 4}])
    assert (listing["ordered"], listing["md"], len(listing["bbox"])) == (True, "1. one\n  a. two", 2)
    assert table["md"] == "| A | B\\|C |\n|---|---|\n| <1> | 2,3 |"
    assert table["csv"] == 'A,B|C\n<1>,"2,3"\n'
    assert "<td>&lt;1&gt;</td>" in table["html"]
    assert (table["rows"], table["bbox"]) == ([["A", "B|C"], ["<1>", "2,3"]], [])
    assert code["md"] == "```python\nx = 1\n```"
    assert text["value"] == "a  b"
    assert image["url"] == "img_p1_1.png"


def test_boxes_are_left_out_unless_asked_for() -> None:
    box = {"x": 1.0, "y": 1.0, "w": 1.0, "h": 1.0}
    items = [{"type": "list", "items": [{"type": "text", "bbox": [box]}], "bbox": [box]}]
    document = ParsedDocument((PageContent(2, "text", items=items),), failed_pages=(FailedPage(1, "torn"),))
    origin = Provenance("dfl-p", "dfl-s", "dir-s", "a.pdf", "00", None)
    with_boxes = build_payload(document, origin, with_items=True, images={})
    without = build_payload(document, origin, with_items=False, images={})
    assert b"bbox" in with_boxes.body
    assert [attachment.name for attachment in with_boxes.attachments] == ["items/page_2.json"]
    assert b"bbox" not in without.body
    assert without.attachments == ()
    assert b'{"page_number":1,"success":false,"error":"torn"},{"page_number":2' in without.body


def test_a_parsed_document_comes_back_from_the_cache(tmp_path: Path) -> None:
    content = (SAMPLES / "policies" / "security-policy.pdf").read_bytes()
    cache = ParsedCache(tmp_path)
    first = cache.parse("a.pdf", "ab" * 32, lambda: content)
    assert cache.parse("b.PDF", "ab" * 32, lambda: pytest.fail("read again")) == first
    assert cache.parse("c.txt", "ab" * 32, lambda: b"text").pages[0].text == "text"


def test_refusals_are_cached_too(tmp_path: Path) -> None:
    cache = ParsedCache(tmp_path)
    for load in (lambda: b"\xff", lambda: pytest.fail("read again")):
        with pytest.raises(DocumentRefused, match="not UTF-8"):
            cache.parse("a.txt", "cd" * 32, load)


@pytest.mark.parametrize(
    "damage", [b"", b"\x1f\x8b\x08\x00", b"no gzip", gzip.compress(b"", mtime=0), gzip.compress(b'{"ref', mtime=0), None]
)
def test_a_damaged_entry_is_parsed_again(tmp_path: Path, damage: bytes | None) -> None:
    cache = ParsedCache(tmp_path)
    first = cache.parse("a.txt", "ef" * 32, lambda: b"text")
    (entry,) = (path for path in tmp_path.rglob("*") if path.is_file())
    entry.write_bytes(entry.read_bytes()[:-9] if damage is None else damage)
    assert cache.parse("a.txt", "ef" * 32, lambda: b"text") == first
    assert cache.parse("a.txt", "ef" * 32, lambda: pytest.fail("read again")) == first


def test_only_what_is_asked_for_is_kept(tmp_path: Path) -> None:
    cache = ParsedCache(tmp_path)
    cache.keep({"00" * 32})
    cache.parse("a.txt", "ab" * 32, lambda: b"kept")
    cache.parse("a.md", "ab" * 32, lambda: b"kept")
    cache.parse("b.txt", "cd" * 32, lambda: b"dropped")
    unfinished = tmp_path / "ab" / f".{'ab' * 32}.text-1.json.gz.0.tmp"
    unfinished.write_bytes(b"of a writer that was killed")
    cache.keep({"ab" * 32})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{'ab' * 32}.text-1.json.gz"]


def test_the_revision_names_the_parsers_version() -> None:
    assert parser_revision("a.pdf").startswith("pdf-2-")
    assert parser_revision("a.html").startswith("html-4-")
    with pytest.raises(DocumentRefused, match=r"unsupported type \.docx"):
        parser_revision("a.docx")


def _pdf(pages: list[list[tuple[float, float, str]]]) -> bytes:
    """Pages of lines: (height above the bottom edge, font size, text)."""
    buffer = BytesIO()
    canvas = Canvas(buffer, pagesize=(595, 842), invariant=1)
    for lines in pages:
        for y, size, text in lines:
            canvas.setFont("Helvetica", size)
            canvas.drawString(72, y, text)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def _letters(text: str) -> str:
    return "".join(character for character in text if character.isalnum())
