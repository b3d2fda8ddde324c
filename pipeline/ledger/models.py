"""Rows of the ledger as the rest of the pipeline sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FileStatus = Literal["new", "requested", "done", "failed", "parked", "removing", "removed"]
LEAVING: tuple[FileStatus, ...] = ("removing", "removed")
"""Of files that are being removed from every sink, or are gone from them."""
FAILING: tuple[FileStatus, ...] = ("failed", "parked")
"""Of files whose last attempt has failed: those that are tried again, and those that are not until something changes."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """What is known of one file. Times are Unix seconds; ``metadata`` and ``provenance`` are JSON.

    ``change_token`` is what the listing says now, ``fetched_token`` what the stored payload was fetched at; ``run_id``
    holds the file's lease until ``lease_until``.
    """

    file_id: str
    display_name: str
    storage_id: str | None
    metadata: str
    updated_at: float | None
    change_token: str
    listing_id: int
    missing_since: float | None
    status: FileStatus
    wave: str | None
    run_id: str | None
    lease_until: float | None
    attempts: int
    next_retry_at: float | None
    last_error: str | None
    fetched_token: str | None
    payload_digest: str | None
    text_digest: str | None
    provenance: str | None
    chunks_key: str | None
    vectors_key: str | None
    records_key: str | None
    record_set_hash: str | None
    settings_digest: str | None
    chunk_count: int | None
    token_count: int | None
    refetch: bool

    @property
    def is_fetched(self) -> bool:
        """The stored payload is the one that is listed now."""
        return self.fetched_token is not None and self.fetched_token == self.change_token and not self.refetch

    @property
    def is_leaving(self) -> bool:
        return self.status in LEAVING

    @property
    def is_failing(self) -> bool:
        return self.status in FAILING


@dataclass(frozen=True, slots=True)
class ExportState:
    """What is known of the export as a whole; see ``schema.exports``. ``index_status`` is LlamaCloud's or, while the directory
    shows no file though some are known, ``empty``; ``index_error`` says why, or which documents could not be
    parsed."""

    tenant_id: str | None = None
    export_config_id: str | None = None
    index_status: str | None = None
    index_error: str | None = None
    change_key: str | None = None
    listing_id: int = 0
    listed_at: float | None = None
    complete_at: float | None = None
    refetch_cursor: str | None = None
    sync_requested_at: float | None = None
    allowed_deletes: int = 0


MODEL = "the embedding model"
"""What stands for it among the sinks that are down; no sink can be called so."""


@dataclass(frozen=True, slots=True)
class SinkState:
    """Back-off of a sink, or of ``MODEL``, that is down; ``down_until`` is ``None`` while it may be used."""

    sink: str
    attempts: int = 0
    down_until: float | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """One line of a file's history; ``details`` is JSON."""

    file_id: str
    at: float
    event: str
    run_id: str | None
    details: str


@dataclass(frozen=True, slots=True)
class SinkCollection:
    """What a sink holds of one model; ``settings`` are the sink's as they were when it was last written, with ``type``."""

    sink: str
    slug: str
    model: str
    fingerprint: str
    dimension: int
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tombstone:
    """An erased file; ``proved_at`` is when nothing of it was found any more, ``None`` until then. Unix seconds."""

    file_id: str
    erased_at: float
    proved_at: float | None
