"""Pages, documents and chunks: the data every later stage shares.

What belongs here: frozen data only. Offsets are code points of ``Document.text`` (Python ``str`` indices), half open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MetadataValue = str | int | float | bool | None | list[str]
"""LlamaCloud's file metadata is flat; these are its value types."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A stored by-product of parsing; field names are LlamaCloud's own."""

    attachment_name: str
    source_id: str
    type: str


@dataclass(frozen=True, slots=True)
class Page:
    """One parsed page. ``page_number`` is 1-based as LlamaCloud counts; ``items`` are its structured items, as JSON values."""

    page_number: int
    text: str
    header: str | None = None
    footer: str | None = None
    items: tuple[dict[str, Any], ...] = ()
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class PageSpan:
    """Where a page's body lies in the joined text: ``text[start:end]``."""

    page_number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """Page bodies joined by a blank line, in page order, with the span of every page."""

    text: str
    page_spans: tuple[PageSpan, ...]
    attachments: tuple[tuple[int | None, Attachment], ...] = ()
    """``(page number, attachment)``; a ``None`` page belongs to the whole file."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A slice of a document: ``content == document.text[chunk_start_char:chunk_end_char]``, exactly.

    ``context`` is what the slice lacks to be understood alone (heading path; header rows of a split table).
    ``chunk_token_count`` counts ``embedding_text`` with the model's special tokens. ``content_hash`` is the hex SHA-256
    of ``content``. Pages are LlamaCloud page numbers; both are ``None`` only for a document without pages.
    """

    chunk_index: int
    content: str
    context: str
    chunk_start_char: int
    chunk_end_char: int
    chunk_token_count: int
    page_range_start: int | None
    page_range_end: int | None
    attachments: tuple[Attachment, ...]
    content_hash: str

    @property
    def embedding_text(self) -> str:
        """What is embedded: ``context + content``."""
        return self.context + self.content


class ChunkingSettings(BaseModel):
    """How documents are cut. Every field is part of the chunker's fingerprint: a change re-chunks, nothing else does."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    max_tokens: int | None = Field(
        default=None,
        ge=32,
        description="Upper limit of a chunk with its context, special tokens included. Default: 256 (1,024 where tokens are "
        "bounded by bytes), or the model's lower limit.",
    )
    overlap: int = Field(default=0, ge=0, description="Tokens of the previous chunk repeated at the start of the next one.")
    strategy: Literal["markdown", "text"] = Field(
        default="markdown", description="`text` knows no headings, tables and code, only paragraphs."
    )
    include_headers_footers: bool = Field(default=False, description="Put page headers and footers into the text.")
