"""Pages to a document.

What belongs here: joining page bodies into one text and keeping where each page lies in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pipeline.documents.models import Attachment, Document, Page, PageSpan

_JOINER = "\n\n"
_INLINED = re.compile(r"(data:[\w.+-]+/[\w.+-]+(?:;[\w.=+-]+)*;base64,)[\w+/=%-]{100,}", re.ASCII | re.IGNORECASE)
"""A file written into a text as an address: its media type, and more of its bytes than an icon of a few dots has."""
_PAGE_OF_NAME = re.compile(r"(?:.*[/_-])?page_([1-9]\d{0,8})\.\w+", re.DOTALL)


def build_document(
    pages: Sequence[Page], attachments: Iterable[Attachment] = (), *, include_headers_footers: bool = False
) -> Document:
    """Join the pages' bodies by a blank line, in page order.

    With ``include_headers_footers`` a page contributes its header, body and footer, those it has, joined the same way; its
    span covers all of them. Of an image written into a page as a ``data:`` address an ellipsis stands for the bytes: they are
    no text, and a photograph would be a thousand chunks. ``attachments`` are those that LlamaCloud lists for the whole file:
    what is named after a page (``screenshots/page_3.jpg``) is that page's, whether there is such a page or not.
    """
    ordered = sorted(pages, key=lambda page: page.page_number)
    bodies = [_without_bytes(_body(page, include_headers_footers)) for page in ordered]
    spans = []
    position = 0
    for page, body in zip(ordered, bodies, strict=True):
        spans.append(PageSpan(page.page_number, position, position + len(body)))
        position += len(body) + len(_JOINER)
    return Document(
        text=_JOINER.join(bodies),
        page_spans=tuple(spans),
        attachments=(
            *((page.page_number, attachment) for page in ordered for attachment in page.attachments),
            *((_page_of(attachment), attachment) for attachment in attachments),
        ),
    )


def _page_of(attachment: Attachment) -> int | None:
    named = _PAGE_OF_NAME.fullmatch(attachment.attachment_name)
    return int(named[1]) if named else None


def _body(page: Page, include_headers_footers: bool) -> str:
    if not include_headers_footers:
        return page.text
    return _JOINER.join(part for part in (page.header, page.text, page.footer) if part)


def _without_bytes(body: str) -> str:
    return _INLINED.sub(r"\1…", body) if ";base64," in body.lower() else body
