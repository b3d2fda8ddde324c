"""Digests of what a payload says, independent of how it was written down.

What belongs here: the canonical form of pages and attachments, and the hex SHA-256 digests over it that decide whether
later stages must run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from pipeline.documents.models import Attachment, Page
from pipeline.llama_cloud.models import DirectoryFile, Payload


def pages_digest(pages: Iterable[Page]) -> str:
    """Hex SHA-256 of pages with everything on them: the fingerprint of a payload that carries none."""
    return _sha256([_text_of(page) | {"items": list(page.items)} for page in pages])


def text_digest(payload: Payload) -> str:
    """Hex SHA-256 of what chunking depends on: page texts, headers, footers, numbers and attachments.

    Structured items are left out: no chunk holds any, and their bounding boxes may move when nothing else does.
    """
    return _sha256({"pages": [_text_of(page) for page in payload.pages], "attachments": _attachments(payload.attachments)})


def payload_digest(payload: Payload, file: DirectoryFile) -> str:
    """Hex SHA-256 of everything later stages see: the normalised payload, the file's name, metadata and provenance."""
    modified = payload.source_modified_at
    return _sha256(
        {
            "pages": [_text_of(page) | {"items": list(page.items)} for page in payload.pages],
            "attachments": _attachments(payload.attachments),
            "failed_pages": list(payload.failed_pages),
            "content_fingerprint_hash": payload.content_fingerprint_hash,
            "source_modified_at": modified.isoformat() if modified else None,
            "display_name": file.display_name,
            "metadata": file.metadata,
        }
    )


def _text_of(page: Page) -> dict[str, Any]:
    return {
        "page_number": page.page_number,
        "text": page.text,
        "header": page.header,
        "footer": page.footer,
        "attachments": _attachments(page.attachments),
    }


def _attachments(attachments: Iterable[Attachment]) -> list[list[str]]:
    return [[attachment.attachment_name, attachment.source_id, attachment.type] for attachment in attachments]


def _sha256(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # A caller's own DirectoryFile may hold what the normaliser would have replaced: a digest must still exist.
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
