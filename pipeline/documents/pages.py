"""Which pages a slice of a document comes from.

What belongs here: offsets back to page numbers and attachments.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final

from pipeline.documents.models import Attachment, Document

MARKS_ALONE: Final = re.compile(
    r"(?:[-*_=|:.+~#>`\s]|<!--(?:(?!-->).){0,200}-->|</?(?!img\b)[a-z][^<>]{0,100}>){1,80}+", re.IGNORECASE
)
"""Nothing but Markdown's marks and HTML's comments and tags, as the rule under a page's header: it says nothing alone. An image
does, by its name."""


class PageLookup:
    """Answers for one document."""

    def __init__(self, document: Document) -> None:
        spans = [span for span in document.page_spans if document.text[span.start : span.end].strip()]
        self._text = document.text
        self._numbers = [span.page_number for span in spans]
        self._starts = [span.start for span in spans]
        self._ends = [span.end for span in spans]
        self._of_file: list[Attachment] = []
        self._of_page: dict[int, list[Attachment]] = {}
        for page_number, attachment in document.attachments:
            owner = self._of_file if page_number is None else self._of_page.setdefault(page_number, [])
            owner.append(attachment)

    def touched(self, start: int, end: int) -> Sequence[int]:
        """Numbers of the pages that own a non-blank character of ``text[start:end]``, in page order; for a slice whose
        ends are of the same pages as its first and last such character, as a chunk's are. Pages at its ends of which it has
        nothing but Markdown's marks are left out, unless it has nothing else."""
        first, after = bisect_right(self._ends, start), bisect_left(self._starts, end)
        saying = [page for page in range(first, after) if not self._is_marks_alone(page, start, end)]
        return self._numbers[saying[0] : saying[-1] + 1] if saying else self._numbers[first:after]

    def _is_marks_alone(self, page: int, start: int, end: int) -> bool:
        return MARKS_ALONE.fullmatch(self._text, max(start, self._starts[page]), min(end, self._ends[page])) is not None

    def attachments(self, pages: Sequence[int]) -> tuple[Attachment, ...]:
        """Those of these pages and those of the whole file, each once."""
        if not self._of_page:
            return tuple(dict.fromkeys(self._of_file))
        of_pages = (attachment for page in pages for attachment in self._of_page.get(page, ()))
        return tuple(dict.fromkeys([*of_pages, *self._of_file]))
