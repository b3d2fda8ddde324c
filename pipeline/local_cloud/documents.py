"""The folder of documents: what lies in it, and its bytes, on any fsspec filesystem."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.documents.models import MetadataValue
from pipeline.errors import ConfigError

SIDECAR_SUFFIX = ".meta.json"
_LOCK_PREFIXES = ("~$", ".~lock.")
_LOCK_SUFFIXES = ("~", ".lock", ".lck", ".tmp", ".part", ".crdownload", ".swp")
_BATCH_FILES = 64
_BATCH_BYTES = 64 * 1024 * 1024
_SETTLED_SECONDS = 2.0
"""A file touched this recently may be written again within one tick of its clock; its stamp is not trusted yet."""

_METADATA: TypeAdapter[dict[str, MetadataValue]] = TypeAdapter(
    dict[str, MetadataValue], config=ConfigDict(strict=True, allow_inf_nan=False)
)


class DocumentsUnavailable(Exception):
    """The folder cannot be listed; the message says why. Never a reason to believe that its files are gone."""


class UnreadableDocument(Exception):
    """One document cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class FoundDocument:
    """A document seen by a scan. ``stamp`` is equal only while the content is; ``None`` when that cannot be known yet."""

    path: str
    size: int
    modified_at: datetime | None
    stamp: str | None
    has_sidecar: bool


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Metadata from ``<name>.meta.json``; ``problem`` says why it could not be used."""

    metadata: dict[str, MetadataValue] = field(default_factory=dict)
    problem: str | None = None


class DocumentFolder:
    """Reads documents under ``url``, a local path or an fsspec URL."""

    def __init__(self, url: str, storage_options: dict[str, Any]) -> None:
        """Raises ``ConfigError`` for a URL whose filesystem is unknown or not installed."""
        try:
            # Listings are never cached: a scan must see what is there now.
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **storage_options)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"documents={url!r} cannot be opened: {error}; use a local folder or an installed filesystem"
            ) from error
        self._url = url
        self._root = str(root).rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    def scan(self) -> list[FoundDocument]:
        """Every document in path order; hidden files, lock files and sidecars are left out.

        Raises ``DocumentsUnavailable`` unless the listing is complete.
        """
        now = datetime.now(UTC).timestamp()
        try:
            if not self._fs.isdir(self._root):
                raise DocumentsUnavailable(f"{self._url} does not exist or is not a folder")
            entries = {self._relative(info["name"]): info for info in self._list()}
        except OSError as error:
            raise DocumentsUnavailable(f"{self._url} cannot be listed: {error}") from error
        return [
            self._describe(path, info, now, has_sidecar=f"{path}{SIDECAR_SUFFIX}" in entries)
            for path, info in sorted(entries.items())
            if _is_document(path)
        ]

    def read(self, path: str) -> bytes:
        """The content of one document. Raises ``UnreadableDocument``."""
        try:
            content: bytes = self._fs.cat_file(f"{self._root}/{path}")
        except OSError as error:
            raise _unreadable(error) from error
        return content

    def read_batches(self, documents: Iterable[FoundDocument]) -> Iterator[tuple[FoundDocument, bytes | UnreadableDocument]]:
        """Contents in order, fetched some at a time so that a remote store answers in parallel and memory stays bounded."""
        batch: list[FoundDocument] = []
        for document in documents:
            if batch and (len(batch) == _BATCH_FILES or sum(d.size for d in batch) + document.size > _BATCH_BYTES):
                yield from zip(batch, self._read_all([d.path for d in batch]), strict=True)
                batch = []
            batch.append(document)
        yield from zip(batch, self._read_all([d.path for d in batch]), strict=True)

    def read_sidecars(self, paths: Sequence[str]) -> dict[str, Sidecar]:
        """The metadata beside these documents, which must be a flat JSON object as LlamaCloud's metadata is."""
        sidecars: dict[str, Sidecar] = {}
        for start in range(0, len(paths), _BATCH_FILES):
            part = paths[start : start + _BATCH_FILES]
            contents = self._read_all([f"{path}{SIDECAR_SUFFIX}" for path in part])
            sidecars.update({path: _sidecar(path, content) for path, content in zip(part, contents, strict=True)})
        return sidecars

    def _read_all(self, paths: Sequence[str]) -> list[bytes | UnreadableDocument]:
        if self._local or len(paths) < 2:
            return [self._read_or_error(path) for path in paths]
        found = self._fs.cat([f"{self._root}/{path}" for path in paths], on_error="return")
        return [_content_or_error(found[f"{self._root}/{path}"]) for path in paths]

    def _read_or_error(self, path: str) -> bytes | UnreadableDocument:
        try:
            return self.read(path)
        except UnreadableDocument as error:
            return error

    def _list(self) -> Iterator[dict[str, Any]]:
        if not self._local:
            yield from (info for info in self._fs.find(self._root, detail=True).values() if info["type"] == "file")
            return
        # find() leaves out a folder it may not read, which would look like removed documents.
        for _folder, _folders, files in self._fs.walk(self._root, detail=True, on_error="raise"):
            for info in files.values():
                target = _followed(info) if info.get("islink") else info
                if target is not None:
                    yield target

    def _relative(self, name: str) -> str:
        return name[len(self._root) + 1 :]

    def _describe(self, path: str, info: dict[str, Any], now: float, *, has_sidecar: bool) -> FoundDocument:
        size = int(info["size"] or 0)
        if self._local:
            modified = datetime.fromtimestamp(info["mtime"], UTC)
            settled = now - max(info["mtime"], info["created"]) > _SETTLED_SECONDS
            stamp = f"{size}:{info['mtime']!r}:{info['created']!r}:{info['ino']}" if settled else None
            return FoundDocument(path, size, modified, stamp, has_sidecar)
        remote = info.get("LastModified") or info.get("last_modified") or info.get("updated") or info.get("mtime")
        tag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
        return FoundDocument(path, size, _moment(remote), f"{size}:{tag}" if tag else None, has_sidecar)


def parse_metadata(raw: bytes | str) -> dict[str, MetadataValue]:
    """Flat metadata from JSON. Raises ``ValueError`` naming the first value LlamaCloud would not accept."""
    try:
        return check_metadata(json.loads(raw))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from error


def check_metadata(value: object) -> dict[str, MetadataValue]:
    """``value`` as flat metadata. Raises ``ValueError`` naming the first key whose value is nested."""
    try:
        return _METADATA.validate_python(value)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"][:1]) or "the document"
        allowed = "text, number, boolean, null or a list of texts"
        raise ValueError(f"metadata must be a flat JSON object; {where} must hold {allowed}") from error


def content_digest(content: bytes) -> str:
    """Hex SHA-256 of a document's bytes."""
    return hashlib.sha256(content).hexdigest()


def _sidecar(path: str, content: bytes | UnreadableDocument) -> Sidecar:
    if isinstance(content, UnreadableDocument):
        return Sidecar(problem=f"{path}{SIDECAR_SUFFIX}: {content}")
    try:
        return Sidecar(parse_metadata(content))
    except ValueError as error:
        return Sidecar(problem=f"{path}{SIDECAR_SUFFIX}: {error}")


def _content_or_error(outcome: bytes | Exception) -> bytes | UnreadableDocument:
    if isinstance(outcome, OSError):
        return _unreadable(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _unreadable(error: OSError) -> UnreadableDocument:
    return UnreadableDocument(f"cannot be read: {error.strerror or error}")


def _is_document(path: str) -> bool:
    parts = PurePosixPath(path).parts
    name = parts[-1]
    if any(part.startswith(".") for part in parts) or name.startswith(_LOCK_PREFIXES) or name.endswith(_LOCK_SUFFIXES):
        return False
    return not name.endswith(SIDECAR_SUFFIX)


def _followed(info: dict[str, Any]) -> dict[str, Any] | None:
    """A link to a file counts as that file (mounted configuration is made of links); links to folders may loop."""
    path = Path(info["name"])
    if not path.is_file():
        return None
    target = path.stat()
    return {**info, "size": target.st_size, "mtime": target.st_mtime, "created": target.st_ctime, "ino": target.st_ino}


def _moment(value: object) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return None
