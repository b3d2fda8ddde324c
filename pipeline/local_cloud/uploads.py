"""Uploaded files: streamed to disk first, recorded after."""

from __future__ import annotations

import hashlib
import sqlite3
import uuid
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.local_cloud.cloud import Cloud
from pipeline.local_cloud.identity import random_uuid

_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """Bytes on disk that nothing refers to yet. ``digest`` is their SHA-256."""

    id: str
    digest: str


def store_upload(cloud: Cloud, source: BinaryIO) -> StoredUpload:
    """Copies an upload to the blob store in bounded memory."""
    file_id = random_uuid()
    path = cloud.blobs.path(file_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with temporary.open("wb") as target:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            target.write(chunk)
    temporary.replace(path)
    return StoredUpload(file_id, digest.hexdigest())


def record_upload(
    write: sqlite3.Connection, now: str, stored: StoredUpload, *, name: str, purpose: str, external_file_id: str | None
) -> None:
    write.execute(
        "INSERT INTO file (id, name, origin, purpose, external_file_id, media_type, digest, last_modified_at)"
        " VALUES (?, ?, 'upload', ?, ?, 'application/octet-stream', ?, ?)",
        (stored.id, name, purpose, external_file_id, stored.digest, now),
    )
