"""Ids and times as the wire shows them: deterministic where a restart or a new state directory must find the same thing."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]

_NAMESPACE = uuid.UUID("6f3b0a52-4a44-5d0e-9d3f-1f6f5b6b7c01")


def utc_now() -> datetime:
    """The current time; tests pass another clock."""
    return datetime.now(UTC)


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: its lexical order is its order in time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def stable_uuid(*parts: str) -> str:
    """The same UUID for the same parts, on every machine."""
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join(parts)))


def random_uuid() -> str:
    return str(uuid.uuid4())


PROJECT_ID = stable_uuid("project")
"""The one project every object of this server belongs to."""


def document_file_id(directory_id: str, path: str) -> str:
    """Id of a folder's document in its source directory."""
    return f"dfl-{stable_uuid(directory_id, path)}"


def parsed_file_id(output_directory_id: str, unique_id: str) -> str:
    """Id of a parsed file: stable per source file, whatever its content."""
    return f"dfl-{stable_uuid(output_directory_id, unique_id)}"
