"""Files written whole or not at all, and held by one process at a time."""

from __future__ import annotations

import fcntl
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import disk_remedy


def write_whole(path: Path, data: bytes | memoryview) -> os.stat_result:
    """Write beside ``path`` and rename, so that a reader or a crash never meets half a file; answers what the new one's directory
    entry says. Folders are made when they are missing. Raises OSError and leaves nothing then."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            temporary.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
        version = temporary.stat()
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return version


def unfinished(folder: Path) -> Iterator[tuple[str, Path]]:
    """The temporary files of ``write_whole`` in a folder, of writers that are at work or were killed; each after the name of the
    file it was to become."""
    for temporary in folder.glob(".*.tmp"):
        yield temporary.name[1:].rsplit(".", 2)[0], temporary


def hold(descriptor: int, path: Path, *, wait: bool = True) -> None:
    """Lock an open file until its descriptor is closed. Raises OSError: BlockingIOError for one that another process holds, and
    where the disk has no locks an error that, unlike the system's, names the file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        error.filename = str(path)
        raise


def lack_of_locks(folder: Path) -> OSError | None:
    """The error where a disk has no locks, for those whom SQLite tells then that another process is at work."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            hold(probe.fileno(), folder)
    except OSError as error:
        return error if disk_remedy(error) else None
    return None
