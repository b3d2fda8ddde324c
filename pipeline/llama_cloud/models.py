"""What the pipeline knows of an index, its files and their payloads, whatever version of the API said it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pipeline.documents.models import Attachment, MetadataValue, Page


@dataclass(frozen=True, slots=True)
class IndexState:
    """One index as the API describes it now. ``status`` is ``building`` for anything but the two stable values."""

    index_id: str
    export_config_id: str
    project_id: str
    name: str
    status: Literal["ready", "failed", "building"]
    error_message: str | None
    """Why it has failed, or which documents could not be parsed."""
    sync_in_progress: bool
    source_directory_id: str
    output_directory_id: str | None
    change_key: str
    """Digest of (status, last_exported_at, last_synced_at, updated_at, sync_in_progress): equal key = nothing to list."""

    @property
    def scope(self) -> tuple[str, str]:
        """The tenant_id and export_config_id of its records."""
        return self.project_id, self.export_config_id

    @property
    def idle(self) -> bool:
        """Neither being built nor syncing."""
        return self.status != "building" and not self.sync_in_progress

    @property
    def settled(self) -> bool:
        """Ready and not syncing: a listing taken now may be evidence of absence."""
        return self.idle and self.status == "ready"


@dataclass(frozen=True, slots=True)
class DirectoryFile:
    """One parsed file. ``id`` (``dfl-...``) is the partition key; ``file_id`` is ``None`` until the payload is stored."""

    id: str
    display_name: str
    file_id: str | None
    metadata: dict[str, MetadataValue] = field(default_factory=dict)
    updated_at: datetime | None = None
    deleted: bool = False

    @property
    def change_token(self) -> str:
        """Moves when the listing says the payload may have changed (updated_at, file_id, name)."""
        stamp = self.updated_at.isoformat() if self.updated_at else ""
        return f"{stamp}|{self.file_id or ''}|{self.display_name}"


@dataclass(frozen=True, slots=True)
class ListingPage:
    """One page of a listing; ``next_page_token`` is ``None`` on the last one."""

    files: tuple[DirectoryFile, ...]
    next_page_token: str | None


@dataclass(frozen=True, slots=True)
class Payload:
    """A parsed file, normalised: pages in page order.

    ``content_fingerprint_hash`` is the vendor's opaque string or, where absent, the hex SHA-256 of the canonical pages.
    ``source_modified_at`` is cut to milliseconds (UTC).
    """

    pages: tuple[Page, ...]
    attachments: tuple[Attachment, ...]
    content_fingerprint_hash: str
    source_modified_at: datetime | None
    failed_pages: tuple[int, ...] = ()
    """Numbers of pages the parser reported as failed; they are absent from ``pages``."""
    size: int = field(default=0, compare=False)
    """Bytes of JSON that it was read from, uncompressed: what it takes in memory follows them."""
