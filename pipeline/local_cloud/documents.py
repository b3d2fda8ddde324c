"""The folder of documents: what lies in it, and its bytes, on any fsspec filesystem."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from unicodedata import normalize

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.api_keys import store_secrets
from pipeline.documents.models import MetadataValue
from pipeline.errors import ConfigError
from pipeline.quoting import quoted
from pipeline.urls import DRIVER_REMEDY, as_stored, without_password, without_secrets

SIDECAR_SUFFIX = ".meta.json"
_HIDDEN_OR_LOCK = (".", "~$")
_LOCK_OR_UNFINISHED = ("~", ".lock", ".lck", ".tmp", ".part", ".crdownload", ".download", ".swp")
_ICON = "Icon\r"
"""The Finder's file of a folder's own icon."""
_BATCH_FILES = 64
_BATCH_BYTES = 64 * 1024 * 1024
_SETTLED_SECONDS = 2.0
"""A file touched this recently may be written again within one tick of its clock; its stamp is not trusted yet."""

_NOT_UTF8 = "\ufffd"
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
    sidecar: str | None
    """Path of its metadata, if there is any."""


class _Entry(NamedTuple):
    size: int
    modified_at: datetime | None
    stamp: str | None


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Metadata from ``<name>.meta.json``; ``problem`` says why it could not be used."""

    metadata: dict[str, MetadataValue] = field(default_factory=dict)
    problem: str | None = None


class DocumentFolder:
    """Reads documents under ``url``, a local path or an fsspec URL."""

    def __init__(self, url: str, storage_options: dict[str, Any]) -> None:
        """Raises ``ConfigError`` for a URL whose filesystem is unknown, not installed or does not answer."""
        self.shown = without_secrets(url)
        try:
            # Listings are never cached: a scan must see what is there now.
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **storage_options)
        except Exception as error:  # noqa: BLE001 - each driver raises what it likes, and what it says may hold the password
            others = "use a local folder, or a URL whose filesystem is known and answers"
            remedy = DRIVER_REMEDY if isinstance(error, ImportError) else others
            raise ConfigError(f"documents={self.shown!r} cannot be opened: {_reason(error)}; {remedy}") from None
        self._root = str(root).rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)
        self.address = _local_address(self._root) if self._local else without_password(url).rstrip("/")
        """The same however the folder is named, and never another folder's; without a password."""

    def scan(self) -> list[FoundDocument]:
        """Every document in path order; hidden files, lock files, unfinished downloads and sidecars are left out.

        Raises ``DocumentsUnavailable`` unless the listing is complete.
        """
        try:
            if not self._fs.isdir(self._root):
                raise DocumentsUnavailable(f"{self.shown} does not exist or is not a folder")
            found = _local_entries(Path(self._root)) if self._local else self._remote_entries()
            entries = {_shown(path): entry for path, entry in found}
        except DocumentsUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise DocumentsUnavailable(f"{self.shown} cannot be listed: {_reason(error)}") from None
        documents = [path for path in sorted(entries) if _is_document(path)]
        sidecars = _sidecars_of(documents, entries)
        return [FoundDocument(path, *entries[path], sidecars.get(path)) for path in documents]

    def would_scan(self, path: Path) -> bool:
        """Whether files under a local path would be taken for documents."""
        if not self._local:
            return False
        root, path = as_stored(Path(self._root)), as_stored(path)
        return path.is_relative_to(root) and not any(map(_is_left_out, path.relative_to(root).parts))

    def read(self, path: str) -> bytes:
        """The content of one document. Raises ``UnreadableDocument``."""
        try:
            content: bytes = self._fs.cat_file(f"{self._root}/{path}")
        except Exception as error:
            if isinstance(error, FileNotFoundError) and _NOT_UTF8 in path:
                raise UnreadableDocument("its name is not UTF-8; rename it") from error
            raise _unreadable(error) from None
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

    def read_sidecars(self, documents: Iterable[FoundDocument]) -> dict[str, Sidecar]:
        """The metadata beside documents by their paths, which must be a flat JSON object as LlamaCloud's metadata is."""
        sidecars: dict[str, Sidecar] = {}
        named = [(document.path, document.sidecar) for document in documents if document.sidecar is not None]
        for start in range(0, len(named), _BATCH_FILES):
            part = named[start : start + _BATCH_FILES]
            contents = self._read_all([sidecar for _, sidecar in part])
            for (path, sidecar), content in zip(part, contents, strict=True):
                sidecars[path] = _sidecar(sidecar, content)
        return sidecars

    def _read_all(self, paths: Sequence[str]) -> list[bytes | UnreadableDocument]:
        if self._local or len(paths) < 2:
            return [self._read_or_error(path) for path in paths]
        # cat() would take brackets and stars in names for patterns; whole "ranges" are fetched in parallel and as they are.
        found = self._fs.cat_ranges([f"{self._root}/{path}" for path in paths], None, None, on_error="return")
        return [_unreadable(outcome) if isinstance(outcome, Exception) else outcome for outcome in found]

    def _read_or_error(self, path: str) -> bytes | UnreadableDocument:
        try:
            return self.read(path)
        except UnreadableDocument as error:
            return error

    def _remote_entries(self) -> Iterator[tuple[str, _Entry]]:
        for name, info in self._fs.find(self._root, detail=True).items():
            path = name[len(self._root) + 1 :]
            # Consoles of object stores make a folder as an empty object whose name ends in a slash.
            if info["type"] == "file" and path and not path.endswith("/"):
                size = int(info["size"] or 0)
                modified = info.get("LastModified") or info.get("last_modified") or info.get("updated")
                tag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
                yield path, _Entry(size, _moment(modified), f"{size}:{tag}" if tag else None)


def parse_metadata(raw: bytes | str) -> dict[str, MetadataValue]:
    """Flat metadata from JSON. Raises ``ValueError`` naming the first value LlamaCloud would not accept."""
    try:
        value = json.loads(raw)
    except RecursionError:
        raise ValueError("metadata must be a flat JSON object; it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    return check_metadata(value)


def check_metadata(value: object) -> dict[str, MetadataValue]:
    """``value`` as flat metadata. Raises ``ValueError`` naming the first key whose value is nested or no text."""
    try:
        metadata = _METADATA.validate_python(value)
    except ValidationError as error:
        where = quoted(".".join(str(part) for part in error.errors()[0]["loc"][:1])) or "the document"
        allowed = "text, number, boolean, null or a list of texts"
        raise ValueError(f"metadata must be a flat JSON object; {where} must hold {allowed}") from error
    for key, member in metadata.items():
        try:
            json.dumps([key, member], ensure_ascii=False).encode()
        except UnicodeEncodeError:  # JSON can write half a surrogate pair; UTF-8, and so our answers, cannot.
            raise ValueError(f"metadata must be text in UTF-8; {quoted(key)!a} has half a surrogate pair") from None
    return metadata


def content_digest(content: bytes) -> str:
    """Hex SHA-256 of a document's bytes."""
    return hashlib.sha256(content).hexdigest()


def _sidecars_of(documents: Sequence[str], paths: Collection[str]) -> dict[str, str]:
    """Document -> its sidecar: the one of its very name, else one of the same letters in another form of Unicode (macOS writes
    accents apart) that is no other document's."""
    own = {path: f"{path}{SIDECAR_SUFFIX}" for path in documents if f"{path}{SIDECAR_SUFFIX}" in paths}
    taken = set(own.values())
    spare = {normalize("NFC", path): path for path in paths if path.endswith(SIDECAR_SUFFIX) and path not in taken}
    alike = ((path, spare.get(normalize("NFC", f"{path}{SIDECAR_SUFFIX}"))) for path in documents if path not in own)
    return own | {path: sidecar for path, sidecar in alike if sidecar is not None}


def _sidecar(path: str, content: bytes | UnreadableDocument) -> Sidecar:
    if isinstance(content, UnreadableDocument):
        return Sidecar(problem=f"{path}: {content}")
    try:
        return Sidecar(parse_metadata(content))
    except ValueError as error:
        return Sidecar(problem=f"{path}: {error}")


def _unreadable(error: Exception) -> UnreadableDocument:
    said = error.strerror if isinstance(error, OSError) else None  # Without the path, which those who are told know.
    return UnreadableDocument(f"cannot be read: {_reason(said or error)}")


def _reason(said: Exception | str) -> str:
    """What a driver says, in one line and without secrets."""
    return quoted(" ".join(str(said).split()), *store_secrets()) or type(said).__name__


def _local_address(root: str) -> str:
    """An absolute path as it is stored, as text also where it is not UTF-8."""
    return os.fsencode(as_stored(Path(root))).decode("utf-8", "backslashreplace")


def _shown(path: str) -> str:
    """A name as text: what is not UTF-8 in it, which neither the wire nor a database can hold, is marked."""
    return os.fsencode(path).decode("utf-8", "replace") if not path.isascii() else path


def _is_document(path: str) -> bool:
    return not (path.endswith(SIDECAR_SUFFIX) or any(map(_is_left_out, PurePosixPath(path).parts)))


def _is_left_out(name: str) -> bool:
    """A file of this name, or what lies in a folder of it: Safari keeps an unfinished download in ``<name>.download/``."""
    return name.startswith(_HIDDEN_OR_LOCK) or name.endswith(_LOCK_OR_UNFINISHED) or name == _ICON


def _local_entries(folder: Path, prefix: str = "") -> Iterator[tuple[str, _Entry]]:
    """Files under a local folder. Unlike fsspec's walk, a folder that may not be read is an error, not an empty folder.

    A link to a file counts as that file (mounted configuration is made of links); links to folders, which may loop, do not.
    """
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    for entry in entries:
        path = Path(entry)
        try:
            if entry.is_dir(follow_symlinks=False):
                if not _is_left_out(entry.name):
                    yield from _local_entries(path, f"{prefix}{entry.name}/")
            elif path.is_file():
                yield f"{prefix}{entry.name}", _local_entry(path.stat())
        except FileNotFoundError:
            # Removed since the folder was read: not there, which is what the scan will say.
            continue


def _local_entry(found: os.stat_result) -> _Entry:
    changed = max(found.st_mtime, found.st_ctime)
    settled = time.time() - changed > _SETTLED_SECONDS
    stamp = f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_ino}" if settled else None
    modified: datetime | None = None
    with suppress(ValueError, OverflowError, OSError):  # Some filesystems hold times outside the years 1 to 9999.
        modified = datetime.fromtimestamp(found.st_mtime, UTC)
    return _Entry(found.st_size, modified, stamp)


def _moment(value: object) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return None
