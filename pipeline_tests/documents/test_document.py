"""Joining pages."""

from __future__ import annotations

import base64
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents.document import build_document
from pipeline.documents.models import Attachment, Page, PageSpan
from pipeline_tests.documents.strategies import page_lists


def test_bodies_are_joined_by_a_blank_line_in_page_order() -> None:
    document = build_document([Page(3, "third"), Page(1, "first"), Page(2, "")])
    assert document.text == "first\n\n\n\nthird"
    assert document.page_spans == (PageSpan(1, 0, 5), PageSpan(2, 7, 7), PageSpan(3, 9, 14))


def test_headers_and_footers_are_left_out_unless_asked_for() -> None:
    page = Page(1, "Body", header="Top", footer="Bottom")
    assert build_document([page]).text == "Body"
    included = build_document([page, Page(2, "Next", header="", footer="2")], include_headers_footers=True)
    assert included.text == "Top\n\nBody\n\nBottom\n\nNext\n\n2"
    assert included.page_spans == (PageSpan(1, 0, 17), PageSpan(2, 19, 26))


def test_attachments_keep_their_page_and_those_of_the_file_have_none() -> None:
    shot, original = Attachment("p2.png", "s", "screenshot"), Attachment("a.pdf", "s", "original")
    document = build_document([Page(1, "a"), Page(2, "b", attachments=(shot,))], [original])
    assert document.attachments == ((2, shot), (None, original))


def test_attachments_of_the_file_that_are_named_after_a_page_are_that_pages() -> None:
    names = ["screenshots/page_2.jpg", "items/page_12.json", "page_1.png", "a_page_2.png", "page_0.png", "page_2", "pages_2.png"]
    document = build_document([Page(1, "a"), Page(2, "b")], [Attachment(name, "s", "by-product") for name in names])
    assert [number for number, _ in document.attachments] == [2, 12, 1, 2, None, None, None]


_IMAGE = base64.b64encode(random.Random(5).randbytes(3_000)).decode()


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("![pump](data:image/png;base64,{} 'A pump') runs", "![pump](data:image/png;base64,… 'A pump') runs"),
        ("[image1]: <data:image/jpeg;base64,{}>", "[image1]: <data:image/jpeg;base64,…>"),
        ('<img src="data:image/svg+xml;charset=utf-8;base64,{}"/>', '<img src="data:image/svg+xml;charset=utf-8;base64,…"/>'),
        ("https://badge?logo=DATA:image/png;base64,{}&style=flat", "https://badge?logo=DATA:image/png;base64,…&style=flat"),
        ("a data:{} that is none", "a data:{} that is none"),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "data:image/gif;base64,R0lGODlhAQABAAAAACw="),
    ],
    ids=["image", "reference", "HTML", "in an address", "no address", "short"],
)
def test_the_bytes_of_an_image_written_into_a_page_are_no_text(written: str, kept: str) -> None:
    first, second = written.format(_IMAGE), f"Next. {written.format(_IMAGE)}"
    document = build_document([Page(1, first, header=first), Page(2, second)], include_headers_footers=True)
    kept = kept.format(_IMAGE)
    assert [document.text[span.start : span.end] for span in document.page_spans] == [f"{kept}\n\n{kept}", f"Next. {kept}"]


@pytest.mark.parametrize(
    "hostile", ["data:", "data:a/", "data:a/b;c", ";base64,", "data:a/b;base64,", "data:a/b;c=d;", "a" * 99 + " "]
)
def test_a_page_of_what_looks_like_images_is_read_once(hostile: str) -> None:
    started = time.process_time()
    build_document([Page(1, hostile * 100_000 + ";base64,")])
    assert time.process_time() - started < 5


@settings(max_examples=100, deadline=None)
@given(pages=page_lists(), include=st.booleans())
def test_every_span_is_what_its_page_contributed_and_nothing_lies_between_but_the_joiner(
    pages: list[Page], include: bool
) -> None:
    document = build_document(pages, include_headers_footers=include)
    parts = [document.text[span.start : span.end] for span in document.page_spans]
    assert "\n\n".join(parts) == document.text
    for page, part in zip(pages, parts, strict=True):
        assert page.text in part
        assert include or part == page.text
