"""PDF pages through LiteParse: Markdown, structured items, and page headers and footers told from the body.

LiteParse has no header and footer fields, and its own removal of repeated lines also drops real headings at the top of
pages. So everything is kept, and only a line in the outer band of the page that repeats from page to page is moved out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from liteparse import LayoutBlock, LiteParse, ParsedPage, ParseError

from pipeline.local_cloud.layout import block_items
from pipeline.local_cloud.parsed import DocumentRefused, FailedPage, PageContent, ParsedDocument

_BAND = 0.08
"""Share of the page's height, at the top and at the bottom, in which headers and footers are looked for."""
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"[^\W_]+")
_MAX_PAGES = 2**31 - 1
"""All of them: without it LiteParse ends after a thousand pages, and says nothing."""


@dataclass(frozen=True, slots=True)
class _Furniture:
    headers: list[LayoutBlock]
    body: list[LayoutBlock]
    footers: list[LayoutBlock]


def parse_pdf(content: bytes) -> ParsedDocument:
    """Pages of a PDF with a text layer; nothing is recognised from images. Raises ``DocumentRefused``."""
    if b"%PDF-" not in content[:1024]:
        raise DocumentRefused("not a PDF")
    # continue_on_page_error: one damaged page is reported, the others are kept.
    parser = LiteParse(
        output_format="markdown",
        ocr_enabled=False,
        quiet=True,
        keep_headers_footers=True,
        extract_blocks=True,
        continue_on_page_error=True,
        max_pages=_MAX_PAGES,
    )
    try:
        result = parser.parse(content)
    except ParseError as error:
        raise DocumentRefused(f"PDF cannot be parsed: {error}") from error
    failed = tuple(FailedPage(page_number=error.page_num, error=error.message) for error in result.page_errors)
    broken = {page.page_number for page in failed}
    pages = [page for page in result.pages if page.page_num not in broken]
    repeated = _repeated_lines(pages)
    contents = tuple(_page(page, repeated) for page in pages)
    warning = None if any(page.text for page in contents) else "no text layer; scanned pages are not recognised"
    return ParsedDocument(pages=contents, failed_pages=failed, warning=warning)


def screenshots(content: bytes) -> dict[int, bytes]:
    """A PNG of every page by page number. Raises ``DocumentRefused``."""
    try:
        result = LiteParse(ocr_enabled=False, quiet=True, extract_screenshots=True, dpi=72, max_pages=_MAX_PAGES).parse(content)
    except ParseError as error:
        raise DocumentRefused(f"PDF cannot be rendered: {error}") from error
    return {shot.page_num: shot.image_bytes for shot in result.screenshots}


def _page(page: ParsedPage, repeated: frozenset[str]) -> PageContent:
    furniture = _split(page, repeated)
    # A page without text is rendered as an empty code block.
    text = page.markdown.strip() if page.text.strip() else ""
    headers: list[LayoutBlock] = []
    for block in furniture.headers:
        if not text.startswith(block.text or ""):
            break
        text = text.removeprefix(block.text or "").lstrip()
        headers.append(block)
    footers: list[LayoutBlock] = []
    for block in reversed(furniture.footers):
        if not text.endswith(block.text or ""):
            break
        text = text.removesuffix(block.text or "").rstrip()
        footers.insert(0, block)
    text = "\n\n".join(filter(None, [text, *_lost_lines(page)]))
    body = [*furniture.headers[len(headers) :], *furniture.body, *furniture.footers[: len(furniture.footers) - len(footers)]]
    return PageContent(
        page_number=page.page_num,
        header=_joined(headers),
        text=text,
        footer=_joined(footers),
        items=block_items(body, headers=headers, footers=footers),
        width=round(page.width, 2),
        height=round(page.height, 2),
    )


def _lost_lines(page: ParsedPage) -> list[str]:
    """Lines that LiteParse has read and left out of its Markdown, as it does with prose that runs sideways: those most of whose
    words, two at least (one may be the rest of a hyphenated word), the Markdown lacks."""
    lacking = Counter(_WORD.findall(page.text))
    lacking.subtract(_WORD.findall(page.markdown))
    lines = ((line.strip(), [lacking[word] > 0 for word in _WORD.findall(line)]) for line in page.text.splitlines())
    return [line for line, lost in lines if sum(lost) > max(1, len(lost) // 2)]


def _split(page: ParsedPage, repeated: frozenset[str]) -> _Furniture:
    """The leading and trailing runs of repeated lines in the bands; anything between them is body."""
    blocks = list(page.blocks or ())
    start, end = 0, len(blocks)
    while start < end and _in_band(blocks[start], page.height) == "top" and _masked(blocks[start]) in repeated:
        start += 1
    while end > start and _in_band(blocks[end - 1], page.height) == "bottom" and _masked(blocks[end - 1]) in repeated:
        end -= 1
    return _Furniture(blocks[:start], blocks[start:end], blocks[end:])


def _repeated_lines(pages: Sequence[ParsedPage]) -> frozenset[str]:
    """Band lines, numbers masked, that stand on more than half of the pages and on two at least."""
    counts: Counter[str] = Counter()
    for page in pages:
        counts.update({_masked(block) for block in page.blocks or () if block.text and _in_band(block, page.height)})
    return frozenset(line for line, count in counts.items() if count >= 2 and count * 2 > len(pages))


def _in_band(block: LayoutBlock, height: float) -> str | None:
    if block.bbox is None or block.kind not in ("paragraph", "heading"):
        return None
    if block.bbox.y + block.bbox.height <= height * _BAND:
        return "top"
    return "bottom" if block.bbox.y >= height * (1 - _BAND) else None


def _masked(block: LayoutBlock) -> str:
    return _NUMBER.sub("#", block.text or "").strip()


def _joined(blocks: Sequence[LayoutBlock]) -> str | None:
    return "\n".join(block.text or "" for block in blocks) or None
