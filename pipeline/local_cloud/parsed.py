"""What a parser gives for one document, independent of its name, its index and where it is stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


class DocumentRefused(Exception):
    """A document has no payload: its type is not supported or its content is broken. The message is shown to people."""


@dataclass(frozen=True, slots=True)
class PageContent:
    """One page. ``width`` and ``height`` are points, ``None`` where a document has no fixed pages."""

    page_number: int
    text: str
    header: str | None = None
    footer: str | None = None
    items: list[dict[str, Any]] | None = None
    width: float | None = None
    height: float | None = None


@dataclass(frozen=True, slots=True)
class FailedPage:
    """A page the parser could not read."""

    page_number: int
    error: str


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """All pages of a document; ``warning`` is worth telling but no reason to refuse it."""

    pages: tuple[PageContent, ...]
    failed_pages: tuple[FailedPage, ...] = ()
    warning: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values that ``from_json`` reads back."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> ParsedDocument:
        return ParsedDocument(
            pages=tuple(PageContent(**page) for page in value["pages"]),
            failed_pages=tuple(FailedPage(**page) for page in value["failed_pages"]),
            warning=value["warning"],
        )
