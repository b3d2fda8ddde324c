"""A folder on any fsspec URL: reads, writes that are whole or absent, exclusive creation, typed errors.

What belongs here: the difference between a local folder and an object store. Credentials of an object store are read from
the environment by its own driver (``AWS_ACCESS_KEY_ID`` and its kin, documented by the vendors).

Everything here blocks; callers run it in threads. Paths are relative to the folder.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import fsspec
import pyarrow.parquet as pq

from pipeline.api_keys import store_secrets
from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.object_stores import remove_folder
from pipeline.quoting import quoted
from pipeline.urls import DRIVER_REMEDY, without_secrets

_DRIVER_ERRORS: Final = {
    "aiohttp": "ClientError",
    "azure.core.exceptions": "AzureError",
    "botocore.exceptions": "BotoCoreError",
    "gcsfs.retry": "HttpError",
    "google.auth.exceptions": "GoogleAuthError",
}
"""What the drivers of object stores raise that is no OSError."""

_EXISTS: Final = ("PreconditionFailed", "412")
"""How S3 says that a conditional write found an object. s3fs raises FileExistsError only where the answer names the condition,
which MinIO's and Versity's do not."""

_CONFLICT: Final = ("ConditionalRequestConflict", "409")
"""How AWS says that it cannot tell yet (documented: try again)."""

_STORE_REMEDY: Final = "check the store, its credentials and what they may do"
_CREATE_ATTEMPTS: Final = 5
_CONFLICT_PAUSE: Final = 0.1


class FolderStore:
    """One folder, made when first written to."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.shown = without_secrets(uri)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        try:
            filesystem, root = fsspec.core.url_to_fs(self._uri, use_listings_cache=False, skip_instance_cache=True)
        except (ValueError, ImportError) as error:
            told = f"storage_context cannot use uri {self.shown!r}: {quoted(str(error))}; {DRIVER_REMEDY}"
            raise ConfigError(told) from None
        except _store_errors() as error:  # some drivers connect at once
            raise self._unavailable("be opened", error, _STORE_REMEDY) from None
        return filesystem, root.rstrip("/")

    @property
    def filesystem(self) -> Any:
        """The fsspec file system, for readers that want one."""
        return self._opened[0]

    def path(self, relative: str) -> str:
        """The path as the file system knows it."""
        return f"{self._opened[1]}/{relative}"

    @cached_property
    def is_local(self) -> bool:
        protocol = self.filesystem.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def read(self, relative: str) -> bytes | None:
        """``None`` for a file that is not there."""
        with self._errors(f"read {relative}"), suppress(FileNotFoundError):
            data: bytes = self.filesystem.cat_file(self.path(relative))
            return data
        return None

    def put(self, relative: str, data: bytes) -> None:
        """Replace a file whole."""
        with self._errors(f"write {relative}"):
            if self.is_local:
                target = Path(self.path(relative))
                with _beside(target, data) as written:
                    written.replace(target)
                _sync(target.parent)
            else:
                self.filesystem.pipe_file(self.path(relative), data)

    def create(self, relative: str, data: bytes) -> bool:
        """Write a file unless there is one, and say which: of several at once, one is told True.

        That is exact on a local disk and on stores with conditional writes (S3 and what speaks its protocol); other
        drivers look first and then write.
        """
        with self._errors(f"create {relative}"), suppress(FileExistsError):
            if self.is_local:
                with _beside(Path(self.path(relative)), data) as written:
                    os.link(written, self.path(relative))
                return True
            return any(self._create_object(relative, data) for _ in range(_CREATE_ATTEMPTS))
        return False

    def _create_object(self, relative: str, data: bytes) -> bool:
        """False when another conditional write of the same object is under way. Raises FileExistsError."""
        try:
            self.filesystem.pipe_file(self.path(relative), data, mode="create")
        except OSError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if code in _EXISTS:
                raise FileExistsError(relative) from error
            if code not in _CONFLICT:
                raise
            time.sleep(_CONFLICT_PAUSE)
            return False
        return True

    def sizes(self, relative: str) -> dict[str, int]:
        """Name and size of everything in a folder; of nothing in one that is not there."""
        with self._errors(f"list {relative}"), suppress(FileNotFoundError):
            found = self.filesystem.ls(self.path(relative), detail=True)
            return {entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] or 0 for entry in found}
        return {}

    def remove(self, relative: str) -> None:
        """A folder with all it holds; one that is not there is no error."""
        with self._errors(f"remove {relative}"), suppress(FileNotFoundError):
            remove_folder(self.filesystem, self.path(relative))

    def remove_file(self, relative: str) -> None:
        """One that is not there is no error."""
        with self._errors(f"remove {relative}"), suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path(relative))

    @contextmanager
    def filling(self, relative: str) -> Iterator[Path]:
        """A local folder to write files into; they are in the store when the block has ended."""
        with self._errors(f"write {relative}"):
            if self.is_local:
                folder = Path(self.path(relative))
                folder.mkdir(parents=True)
                yield folder
                _sync(*folder.iterdir(), folder, folder.parent)
                return
            with tempfile.TemporaryDirectory(prefix="indexport-") as temporary:
                yield Path(temporary)
                for file in sorted(Path(temporary).iterdir()):
                    self.filesystem.put_file(str(file), f"{self.path(relative)}/{file.name}")

    @contextmanager
    def parquet(self, relative: str) -> Iterator[pq.ParquetFile]:
        """Raises FileNotFoundError when the file is not there, or is removed while it is read."""
        with (
            self._errors(f"read {relative}", FileNotFoundError),
            self.filesystem.open(self.path(relative), "rb") as opened,
            pq.ParquetFile(opened) as file,
        ):
            yield file

    @contextmanager
    def _errors(self, action: str, *passed: type[OSError]) -> Iterator[None]:
        try:
            yield
        except passed:
            raise
        except _store_errors() as error:
            remedy = "check its space and rights" if self.is_local else _STORE_REMEDY
            raise self._unavailable(action, error, remedy) from None

    def _unavailable(self, action: str, error: Exception, remedy: str) -> SinkUnavailable:
        reason = quoted(str(error).replace(self._uri, self.shown), *store_secrets())
        return SinkUnavailable(f"storage_context at {self.shown} cannot {action}: {reason}; {remedy}")


def _store_errors() -> tuple[type[Exception], ...]:
    """What a store can have raised: of the drivers only those that are loaded."""
    loaded = ((sys.modules.get(module), name) for module, name in _DRIVER_ERRORS.items())
    return (OSError, *(getattr(module, name) for module, name in loaded if module is not None))


@contextmanager
def _beside(target: Path, data: bytes) -> Iterator[Path]:
    """A file with this content next to ``target``, on disk, and gone afterwards unless it was moved away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync(*paths: Path) -> None:
    """Have the disk hold these files, and which files these folders have."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
