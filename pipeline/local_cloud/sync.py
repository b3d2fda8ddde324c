"""One sync of one index: compare source with output, build what is missing, commit everything in a single transaction.

Nothing but content-addressed files is written before the commit, so a sync that dies leaves the old listing as it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.local_cloud.blobs import compress
from pipeline.local_cloud.cloud import Cloud
from pipeline.local_cloud.documents import UnreadableDocument
from pipeline.local_cloud.identity import parsed_file_id, stable_uuid, timestamp
from pipeline.local_cloud.parsed import DocumentRefused, ParsedDocument
from pipeline.local_cloud.parsing import parser_revision
from pipeline.local_cloud.payloads import BuiltPayload, Provenance, build_payload
from pipeline.local_cloud.pdf import screenshots
from pipeline.local_cloud.sources import DocumentRow, SourceChanges, SourceFile, SourceReader
from pipeline.local_cloud.state import Row, State
from pipeline.printable import printable

_log = logging.getLogger(__name__)

_LISTED_PROBLEMS = 1000
"""Failed files named in the index's metadata; all of them are counted."""
_NAMED = 3
_COMPRESS_FROM_BYTES = 1024


class SyncCancelled(Exception):
    """The sync was cancelled; nothing was committed."""


class SyncError(Exception):
    """The sync failed for the reason given; nothing was committed."""


@dataclass(frozen=True, slots=True)
class _StoredBlob:
    id: str
    name: str
    media_type: str
    size: int


@dataclass(frozen=True, slots=True)
class _Output:
    """A parsed file to write. ``encoding`` and ``attachments`` matter only with a new payload."""

    id: str
    unique_id: str
    display_name: str
    metadata: str
    build_key: str
    file_id: str | None
    previous_file_id: str | None
    new_payload: bool
    warning: str | None = None
    encoding: str | None = None
    attachments: tuple[_StoredBlob, ...] = ()


@dataclass(slots=True)
class _Plan:
    outputs: list[_Output] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    failed: list[dict[str, str]] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)


class IndexSync:
    """Syncs ``index``. ``check`` raises ``SyncCancelled`` once the sync is no longer wanted."""

    def __init__(self, cloud: Cloud, index: Row, check: Callable[[], None]) -> None:
        self._cloud = cloud
        self._index = index
        self._check = check
        self._kinds: list[str] = json.loads(index["store_attachments"])
        self._plan = _Plan()

    def run(self) -> None:
        """Raises ``SyncCancelled``, ``SyncError`` or ``DocumentsUnavailable``; then nothing was changed."""
        state = self._cloud.state
        directory = state.one("SELECT * FROM directory WHERE id = ?", self._index["source_directory_id"])
        if directory is None:
            raise SyncError("the source directory was deleted")
        outputs = state.query("SELECT * FROM directory_file WHERE directory_id = ?", self._index["output_directory_id"])
        existing = {row["id"]: row for row in outputs}
        reader = SourceReader(self._cloud, directory)
        for source in reader.files():
            self._check()
            self._plan_file(source, existing)
        self._plan.warnings += reader.changes.warnings
        _log_by_reason("no payload for ", self._plan.failed)
        _log_by_reason("", self._plan.warnings)
        error = self._cloud.faults.current.sync_error
        if error is not None:
            raise SyncError(error)
        removed = [row for row in outputs if row["deleted_at"] is None and row["id"] not in self._plan.kept]
        self._commit(reader.changes, removed)

    def _plan_file(self, source: SourceFile, existing: dict[str, Row]) -> None:
        output_id = parsed_file_id(self._index["output_directory_id"], source.unique_id)
        self._plan.kept.add(output_id)
        row = existing.get(output_id)
        try:
            if source.problem is not None:
                raise DocumentRefused(source.problem)
            build_key = self._build_key(source)
            if row is None or row["deleted_at"] is not None or row["build_key"] != build_key:
                self._plan.outputs.append(self._build(source, output_id, build_key, row))
            elif json.loads(row["source_metadata"]) != source.metadata:
                self._plan.outputs.append(_with_metadata(row, source))
            elif row["warning"] is not None:
                self._warn(source, row["warning"])
        except (DocumentRefused, UnreadableDocument) as problem:
            # A payload from before the document broke stays: it is still the best answer there is.
            self._plan.failed.append({"name": source.display_name, "reason": str(problem)})

    def _build_key(self, source: SourceFile) -> str:
        parts = (source.id, source.digest, parser_revision(source.file_name), source.display_name, *sorted(self._kinds))
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()

    def _build(self, source: SourceFile, output_id: str, build_key: str, row: Row | None) -> _Output:
        document = self._cloud.cache.parse(source.file_name, source.digest, source.load)
        if document.warning is not None:
            self._warn(source, document.warning)
        payload = self._payload(source, output_id, document)
        file_id = stable_uuid(output_id, hashlib.sha256(payload.body).hexdigest())
        compressed = len(payload.body) >= _COMPRESS_FROM_BYTES
        self._cloud.blobs.write(file_id, compress(payload.body) if compressed else payload.body)
        return _Output(
            id=output_id,
            unique_id=source.unique_id,
            display_name=source.display_name,
            metadata=_dumped(source),
            build_key=build_key,
            file_id=file_id,
            previous_file_id=row["file_id"] if row else None,
            new_payload=True,
            warning=document.warning,
            encoding="gzip" if compressed else None,
            attachments=self._store_attachments(file_id, payload),
        )

    def _payload(self, source: SourceFile, output_id: str, document: ParsedDocument) -> BuiltPayload:
        is_pdf = source.file_name.lower().endswith(".pdf")
        images = screenshots(source.load()) if is_pdf and "screenshots" in self._kinds else {}
        provenance = Provenance(
            parsed_file_id=output_id,
            source_file_id=source.id,
            source_directory_id=self._index["source_directory_id"],
            display_name=source.display_name,
            digest=source.digest,
            modified_at=source.modified_at,
        )
        return build_payload(document, provenance, with_items="items" in self._kinds, images=images)

    def _warn(self, source: SourceFile, reason: str) -> None:
        self._plan.warnings.append({"name": source.display_name, "reason": reason})

    def _store_attachments(self, file_id: str, payload: BuiltPayload) -> tuple[_StoredBlob, ...]:
        stored = []
        for attachment in payload.attachments:
            blob_id = stable_uuid(file_id, attachment.name)
            self._cloud.blobs.write(blob_id, attachment.content)
            stored.append(_StoredBlob(blob_id, attachment.name, attachment.media_type, len(attachment.content)))
        return tuple(stored)

    def _commit(self, source: SourceChanges, removed: list[Row]) -> None:
        with self._cloud.state.transaction() as write:
            self._check()
            now = self._cloud.now
            write_documents(write, self._index["source_directory_id"], source, now)
            self._write_outputs(write, now)
            superseded = [(now, o.previous_file_id) for o in self._plan.outputs if o.previous_file_id not in (None, o.file_id)]
            superseded += [(now, row["file_id"]) for row in removed]
            write.executemany("UPDATE file SET superseded_at = ? WHERE id = ?", superseded)
            gone = [(now, now, row["id"]) for row in removed]
            write.executemany("UPDATE directory_file SET deleted_at = ?, updated_at = ? WHERE id = ?", gone)
            obsolete = purge_superseded(write, self._index["last_synced_at"])
            self._finish(write, now)
        self._cloud.blobs.remove(obsolete)
        self._cloud.cache.keep(live_digests(self._cloud.state))  # Syncs, which alone parse, come one after the other.
        _log.info("index %s synced: %d files written, %d removed", self._index["name"], len(self._plan.outputs), len(removed))

    def _write_outputs(self, write: sqlite3.Connection, now: str) -> None:
        directory = self._index["output_directory_id"]
        fresh = [output for output in self._plan.outputs if output.new_payload]
        write.executemany(
            "INSERT INTO file (id, name, origin, media_type, encoding, last_modified_at) VALUES (?, ?, 'payload', ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET superseded_at = NULL, last_modified_at = excluded.last_modified_at",
            [(o.file_id, o.display_name, "application/json", o.encoding, now) for o in fresh],
        )
        write.executemany(
            "INSERT OR REPLACE INTO attachment (file_id, name, blob_id, media_type, size, last_modified)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [(o.file_id, a.name, a.id, a.media_type, a.size, now) for o in fresh for a in o.attachments],
        )
        write.executemany(
            "INSERT INTO directory_file"
            " (id, directory_id, display_name, unique_id, file_id, source_metadata, created_at, updated_at, build_key, warning)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET display_name = excluded.display_name, file_id = excluded.file_id,"
            " source_metadata = excluded.source_metadata, updated_at = excluded.updated_at, deleted_at = NULL,"
            " build_key = excluded.build_key, warning = excluded.warning",
            [
                (o.id, directory, o.display_name, o.unique_id, o.file_id, o.metadata, now, now, o.build_key, o.warning)
                for o in self._plan.outputs
            ],
        )

    def _finish(self, write: sqlite3.Connection, now: str) -> None:
        plan = self._plan
        metadata = {
            "status": "ready",
            "failed_file_count": len(plan.failed),
            "failed_files": sorted(plan.failed, key=lambda problem: problem["name"])[:_LISTED_PROBLEMS],
            "warnings": sorted(plan.warnings, key=lambda problem: problem["name"])[:_LISTED_PROBLEMS],
        }
        write.execute(
            'UPDATE "index" SET metadata = ?, settled_metadata = NULL, sync_in_progress = 0, last_synced_at = ?,'
            " last_exported_at = ?, updated_at = ? WHERE id = ?",
            (json.dumps(metadata), now, now, now, self._index["id"]),
        )


def _log_by_reason(what: str, problems: list[dict[str, str]]) -> None:
    """One line a reason, with the first few names: a folder may hold thousands of files of a kind that nobody parses."""
    names: dict[str, list[str]] = {}
    for problem in problems:
        names.setdefault(problem["reason"], []).append(problem["name"])
    for reason, some in names.items():
        shown = ", ".join(some[:_NAMED])
        _log.warning("%s", printable(f"{what}{shown if len(some) <= _NAMED else f'{len(some)} files ({shown}, ...)'}: {reason}"))


def write_documents(write: sqlite3.Connection, directory_id: str, changes: SourceChanges, now: str) -> None:
    """Records the documents of a folder in its source directory."""
    write.executemany(
        "INSERT OR IGNORE INTO file (id, name, origin, media_type, digest, document_path, last_modified_at)"
        " VALUES (?, ?, 'document', ?, ?, ?, ?)",
        [_document_file(row, now) for row in changes.rows],
    )
    write.executemany(
        "INSERT INTO directory_file"
        " (id, directory_id, display_name, unique_id, file_id, source_metadata, created_at, updated_at, document_path,"
        " stamp, digest)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET file_id = excluded.file_id, source_metadata = excluded.source_metadata,"
        " updated_at = CASE WHEN ? THEN excluded.updated_at ELSE updated_at END,"
        " deleted_at = NULL, stamp = excluded.stamp, digest = excluded.digest, removed_by_user = 0",
        [
            (r.id, directory_id, r.path, r.path, r.file_id, r.source_metadata, now, now, r.path, r.stamp, r.digest, r.visible)
            for r in changes.rows
        ],
    )
    write.executemany(
        "UPDATE directory_file SET deleted_at = coalesce(deleted_at, ?), updated_at = ?, removed_by_user = 0 WHERE id = ?",
        [(now, now, gone) for gone in changes.gone],
    )


def live_digests(state: State) -> set[str]:
    """SHA-256 of the content of every file that any directory holds."""
    sql = "SELECT DISTINCT f.digest FROM directory_file d JOIN file f ON f.id = d.file_id WHERE d.deleted_at IS NULL"
    return {row["digest"] for row in state.query(sql)}


def purge_superseded(write: sqlite3.Connection, before: str | None) -> list[str]:
    """Forgets payloads replaced by an earlier sync, whose URLs and ids a client may have held until now; returns their blobs."""
    rows = write.execute("SELECT id FROM file WHERE superseded_at <= ?", (before or "",)).fetchall()
    return forget_files(write, [row["id"] for row in rows])


def forget_files(write: sqlite3.Connection, file_ids: list[str]) -> list[str]:
    """Deletes files and their attachments; returns the blobs to remove once that is committed."""
    blobs = list(file_ids)
    for file_id in file_ids:
        attached = write.execute("DELETE FROM attachment WHERE file_id = ? RETURNING blob_id", (file_id,)).fetchall()
        blobs += [row["blob_id"] for row in attached]
    write.executemany("DELETE FROM file WHERE id = ?", [(file_id,) for file_id in file_ids])
    return blobs


def _document_file(row: DocumentRow, now: str) -> tuple[str | None, ...]:
    modified = timestamp(row.modified_at) if row.modified_at else now
    return (row.file_id, row.path, "application/octet-stream", row.digest, row.path, modified)


def _dumped(source: SourceFile) -> str:
    return json.dumps(source.metadata, sort_keys=True)


def _with_metadata(row: Row, source: SourceFile) -> _Output:
    return _Output(
        id=row["id"],
        unique_id=row["unique_id"],
        display_name=row["display_name"],
        metadata=_dumped(source),
        build_key=row["build_key"],
        file_id=row["file_id"],
        previous_file_id=row["file_id"],
        new_payload=False,
        warning=row["warning"],
    )
