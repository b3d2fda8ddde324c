"""Joining pages."""

from __future__ import annotations

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
