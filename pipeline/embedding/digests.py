"""Digests of large files, and the user's cache directory that remembers them.

What belongs here: hashing a model file once, not at every start.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import write_whole

CACHE_VARIABLE = "INDEXPORT_MODEL_CACHE"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def model_cache() -> Path:
    """The directory of converted models and remembered digests; created on first use.

    Raises ConfigError when it cannot be created.
    """
    cache = _cache_path()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(cache, error) from error
    return cache


def cache_error(cache: Path, error: OSError) -> ConfigError:
    """The error of a cache directory that cannot be written."""
    return ConfigError(
        f"The model cache {cache} cannot be used ({error.strerror}); point {CACHE_VARIABLE} at a writable directory"
    )


def file_sha256(path: Path) -> str:
    """The hex SHA-256 of a file, read in full."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """The hex SHA-256 of a file, read again only when its path, size or modification time changes."""
    stat = path.stat()
    identity = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    note = _cache_path() / "digests" / hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if _SHA256.fullmatch(noted := note.read_text("ascii")):  # a disk may have lost what was noted
            return noted
    digest = file_sha256(path)
    with contextlib.suppress(OSError):  # A cache baked read-only into an image costs a re-read at each start, nothing else.
        write_whole(note, digest.encode("ascii"))
    return digest


def _cache_path() -> Path:
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    try:
        return Path.home() / ".cache" / "indexport" / "models"
    except RuntimeError as error:  # a container's user without a name and without HOME
        raise ConfigError(
            f"this user has no home directory for the model cache; point {CACHE_VARIABLE} at a writable directory, or set HOME"
        ) from error
