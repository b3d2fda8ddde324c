"""The JSON payload of a parsed file and its attachments, in the shapes LlamaCloud's parser uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.local_cloud.identity import timestamp
from pipeline.local_cloud.parsed import PageContent, ParsedDocument


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a payload comes from. ``digest`` is the SHA-256 of the source's bytes; a touched file keeps its payload."""

    parsed_file_id: str
    source_file_id: str
    source_directory_id: str
    display_name: str
    digest: str
    modified_at: datetime | None


@dataclass(frozen=True, slots=True)
class BuiltAttachment:
    """A by-product stored beside the payload."""

    name: str
    type: str
    media_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class BuiltPayload:
    """The payload's JSON and what it refers to."""

    body: bytes
    attachments: tuple[BuiltAttachment, ...]


def build_payload(
    document: ParsedDocument, provenance: Provenance, *, with_items: bool, images: Mapping[int, bytes]
) -> BuiltPayload:
    """The same input gives the same bytes. Bounding boxes are given only ``with_items``, as the vendor documents."""
    attachments = [*_item_attachments(document, with_items=with_items), *_screenshots(images)]
    pages: list[dict[str, Any]] = [_page(page, boxes=with_items) for page in document.pages]
    pages += [{"page_number": page.page_number, "success": False, "error": page.error} for page in document.failed_pages]
    listed = [{"attachment_name": a.name, "source_id": provenance.parsed_file_id, "type": a.type} for a in attachments]
    pages.sort(key=lambda page: int(page["page_number"]))
    payload = {
        "parse": {"version": "v1", "pages": pages, "attachments": listed},
        "content_fingerprint_hash": provenance.digest,
        "source_modified_at": timestamp(provenance.modified_at) if provenance.modified_at else None,
        "source": {
            "display_name": provenance.display_name,
            "source_directory_file_id": provenance.source_file_id,
            "source_directory_id": provenance.source_directory_id,
        },
    }
    return BuiltPayload(_json(payload), tuple(attachments))


def _page(page: PageContent, *, boxes: bool) -> dict[str, Any]:
    items = page.items or []
    return {
        "page_number": page.page_number,
        "header": page.header,
        "text": page.text,
        "footer": page.footer,
        "items": items if boxes else [_without_boxes(item) for item in items],
    }


def _without_boxes(item: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in item.items() if key != "bbox"}
    if isinstance(plain.get("items"), list):
        plain["items"] = [_without_boxes(inner) for inner in plain["items"]]
    return plain


def _item_attachments(document: ParsedDocument, *, with_items: bool) -> list[BuiltAttachment]:
    if not with_items:
        return []
    return [
        BuiltAttachment(f"items/page_{page.page_number}.json", "items", "application/json", _json(_item_page(page)))
        for page in document.pages
        if page.items
    ]


def _item_page(page: PageContent) -> dict[str, Any]:
    return {
        "page_number": page.page_number,
        "page_width": page.width,
        "page_height": page.height,
        "success": True,
        "items": page.items,
    }


def _screenshots(images: Mapping[int, bytes]) -> list[BuiltAttachment]:
    return [
        BuiltAttachment(f"screenshots/page_{number}.png", "screenshot", "image/png", image)
        for number, image in sorted(images.items())
    ]


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
