"""The source side of a sync: what a directory holds now, from its folder and from uploads, compared with what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from pipeline.documents.models import MetadataValue
from pipeline.local_cloud.cloud import Cloud
from pipeline.local_cloud.documents import FoundDocument, Sidecar, UnreadableDocument, content_digest
from pipeline.local_cloud.identity import document_file_id, stable_uuid
from pipeline.local_cloud.parsed import DocumentRefused
from pipeline.local_cloud.parsing import parser_revision
from pipeline.local_cloud.state import Row


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A live file of the source directory. ``problem`` says why it has no payload; otherwise ``digest`` is set.

    ``load`` gives bytes with that digest or raises ``UnreadableDocument``.
    """

    id: str
    unique_id: str
    display_name: str
    file_name: str
    metadata: dict[str, MetadataValue]
    digest: str = ""
    modified_at: datetime | None = None
    load: Callable[[], bytes] = bytes
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """What a folder's document is recorded as. ``visible`` says whether clients see a difference."""

    id: str
    path: str
    file_id: str
    source_metadata: str
    stamp: str | None
    digest: str
    modified_at: datetime | None
    visible: bool


@dataclass(slots=True)
class SourceChanges:
    """What the commit writes to the source directory, and what people should be told."""

    rows: list[DocumentRow] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)


class SourceReader:
    """Reads one source directory for one sync."""

    def __init__(self, cloud: Cloud, directory: Row) -> None:
        self._cloud = cloud
        self._directory = directory
        self.changes = SourceChanges()

    def files(self) -> Iterator[SourceFile]:
        """Every live file, documents of the folder first. Raises ``DocumentsUnavailable``."""
        if self._directory["follows_folder"]:
            yield from self._documents()
        yield from self._uploads()

    def _documents(self) -> Iterator[SourceFile]:
        found = self._cloud.folder.scan()
        sidecars = self._cloud.folder.read_sidecars(found)
        self.changes.warnings += [{"name": path, "reason": s.problem} for path, s in sidecars.items() if s.problem]
        known = {row["document_path"]: row for row in self._rows("document_path IS NOT NULL")}
        uploads = {row["unique_id"] for row in self._rows("document_path IS NULL AND deleted_at IS NULL")}
        present = {document.path for document in found}
        self.changes.gone = [
            row["id"]
            for path, row in known.items()
            if path not in present and (row["deleted_at"] is None or row["removed_by_user"])
        ]
        fresh: list[FoundDocument] = []
        for document in found:
            row, sidecar = known.get(document.path), sidecars.get(document.path, Sidecar())
            if document.path in uploads and row is None:
                yield self._source(document, sidecar, row, problem="an uploaded file already has this unique_id")
            elif (reason := self._unparsable(document)) is not None:
                unread = f"unread:{document.stamp or (document.size, document.modified_at)}"
                if self._record(document, unread, sidecar, row):
                    yield self._source(document, sidecar, row, problem=reason)
            elif row is not None and document.stamp is not None and row["stamp"] == document.stamp:
                if self._record(document, row["digest"], sidecar, row):
                    load = partial(self._reread, document.path, row["digest"])
                    yield self._source(document, sidecar, row, digest=row["digest"], load=load)
            else:
                fresh.append(document)
        for document, content in self._cloud.folder.read_batches(fresh):
            row, sidecar = known.get(document.path), sidecars.get(document.path, Sidecar())
            if isinstance(content, UnreadableDocument):
                yield self._source(document, sidecar, row, problem=str(content))
                continue
            digest = content_digest(content)
            if self._record(document, digest, sidecar, row):
                yield self._source(document, sidecar, row, digest=digest, load=partial(bytes, content))

    def _uploads(self) -> Iterator[SourceFile]:
        for row in self._rows("document_path IS NULL AND deleted_at IS NULL"):
            file = self._cloud.state.one("SELECT * FROM file WHERE id = ?", row["file_id"])
            metadata = merged_metadata(row)
            if file is None:
                problem = "its file was deleted"
                yield SourceFile(row["id"], row["unique_id"], row["display_name"], "", metadata, problem=problem)
                continue
            yield SourceFile(
                id=row["id"],
                unique_id=row["unique_id"],
                display_name=row["display_name"],
                file_name=file["name"],
                metadata=metadata,
                digest=file["digest"],
                modified_at=datetime.fromisoformat(file["last_modified_at"]),
                load=partial(self._stored, file),
            )

    def _rows(self, condition: str) -> list[Row]:
        sql = f"SELECT * FROM directory_file WHERE directory_id = ? AND {condition} ORDER BY seq"  # noqa: S608  # our own literals
        return self._cloud.state.query(sql, self._directory["id"])

    def _unparsable(self, document: FoundDocument) -> str | None:
        try:
            parser_revision(document.path)
        except DocumentRefused as refusal:
            return str(refusal)
        limit = self._cloud.settings.max_document_bytes
        return f"{document.size} bytes; max_document_bytes allows {limit}" if document.size > limit else None

    def _record(self, document: FoundDocument, digest: str, sidecar: Sidecar, row: Row | None) -> bool:
        """Notes what to write; ``False`` for a document that was removed through the API and has not changed since."""
        if row is not None and row["removed_by_user"] and row["digest"] == digest:
            return False
        metadata = json.dumps(sidecar.metadata, sort_keys=True)
        if sidecar.problem and row is not None:
            metadata = row["source_metadata"]
        same = row is not None and row["digest"] == digest and row["source_metadata"] == metadata and row["deleted_at"] is None
        if same and row is not None and row["stamp"] == document.stamp:
            return True
        file_id = document_file_id(self._directory["id"], document.path)
        self.changes.rows.append(
            DocumentRow(
                id=file_id,
                path=document.path,
                file_id=stable_uuid(file_id, digest),
                source_metadata=metadata,
                stamp=document.stamp,
                digest=digest,
                modified_at=document.modified_at,
                visible=not same,
            )
        )
        return True

    def _source(
        self,
        document: FoundDocument,
        sidecar: Sidecar,
        row: Row | None,
        *,
        digest: str = "",
        load: Callable[[], bytes] = bytes,
        problem: str | None = None,
    ) -> SourceFile:
        return SourceFile(
            id=row["id"] if row else document_file_id(self._directory["id"], document.path),
            unique_id=row["unique_id"] if row else document.path,
            display_name=row["display_name"] if row else document.path,
            file_name=document.path,
            metadata=_metadata_of(sidecar, row),
            digest=digest,
            modified_at=document.modified_at,
            load=load,
            problem=problem,
        )

    def _reread(self, path: str, digest: str) -> bytes:
        content = self._cloud.folder.read(path)
        if content_digest(content) != digest:
            raise UnreadableDocument("changed while it was read; the next sync takes it")
        return content

    def _stored(self, file: Row) -> bytes:
        if file["document_path"] is not None:
            return self._reread(file["document_path"], file["digest"])
        try:
            return self._cloud.blobs.read(file["id"])
        except FileNotFoundError as error:
            raise UnreadableDocument("its file was deleted") from error


def merged_metadata(row: Row) -> dict[str, MetadataValue]:
    """Metadata as clients see it: what a user set overrides what came with the document."""
    return {**json.loads(row["source_metadata"]), **json.loads(row["user_metadata"])}


def _metadata_of(sidecar: Sidecar, row: Row | None) -> dict[str, MetadataValue]:
    if row is None:
        return sidecar.metadata
    return merged_metadata(row) if sidecar.problem else {**sidecar.metadata, **json.loads(row["user_metadata"])}
