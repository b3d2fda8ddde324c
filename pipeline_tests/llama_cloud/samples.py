"""Payloads and files the tests of this package share."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any

from pipeline.llama_cloud.models import DirectoryFile

FILE = DirectoryFile(
    id="dfl-0001",
    display_name="q3.pdf",
    file_id="file-1",
    metadata={"team": "fin", "tags": ["a", "b"]},
    updated_at=datetime(2026, 11, 20, 10, 3, 40, 123456, tzinfo=UTC),
)

_HEADING = {"type": "heading", "level": 1, "value": "Revenue", "md": "# Revenue", "bbox": [{"x": 72, "y": 90, "w": 200, "h": 20}]}

FORM_A: dict[str, Any] = {
    "parse": {
        "version": "v1",
        "pages": [
            {"page_number": 1, "header": "ACME", "text": "# Revenue\n\nIt grew.", "footer": "Page 1", "items": [_HEADING]},
            {"page_number": 2, "header": None, "text": "| EU | 3 |", "footer": None, "items": []},
        ],
        "attachments": [{"attachment_name": "screenshots/page_1.jpg", "source_id": "dfl-0001", "type": "screenshot"}],
    },
    "content_fingerprint_hash": "9f2c",
    "source_modified_at": "2026-11-18T09:30:00.123999Z",
    "source": {"display_name": "q3.pdf"},
}

FORM_B: dict[str, Any] = {
    "parse": {
        "markdown": {
            "pages": [
                {"page_number": 1, "markdown": "# Revenue\n\nIt grew.", "success": True, "header": "ACME", "footer": "Page 1"},
                {"page_number": 2, "success": False, "error": "unreadable scan"},
                {"page_number": 3, "markdown": "| EU | 3 |", "success": True},
            ]
        },
        "text": {"pages": [{"page_number": 1, "text": "Revenue It grew."}]},
        "items": {"pages": [{"page_number": 1, "page_width": 595, "page_height": 842, "success": True, "items": [_HEADING]}]},
        "metadata": {"pages": [{"page_number": 1, "confidence": 0.9}], "content_fingerprint_hash": "nested"},
    }
}

FORM_C: dict[str, Any] = {"parse": copy.deepcopy(FORM_A["parse"]["pages"]), "provenance": {"content_fingerprint_hash": "c"}}


def body(value: object) -> bytes:
    """As stored."""
    return json.dumps(value).encode()


def variant(form: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A deep copy of ``form`` with top-level keys replaced; ``None`` removes one."""
    changed = copy.deepcopy(form) | changes
    return {key: value for key, value in changed.items() if value is not None}
