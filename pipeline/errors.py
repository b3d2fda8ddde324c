"""The tree of errors Indexport raises.

What belongs here: every typed error that crosses a package border. The caller's question decides the branch: is it the
configuration (``ConfigError``), one file (``FileError``: the file is poison, its batch goes on), or something every file
depends on (``Unavailable``: back off and try again later)?

Messages name the file or setting and the remedy. They never hold a secret or a presigned URL.
"""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

_WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
DISK_ERRORS = _WITHOUT_LOCKS | {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
"""What the system says of a disk that is full, read-only, not ours, broken or (network disks) without locks, and of a path that
is none: a file where a folder should be, a name too long, links in a circle."""

DAMAGE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
"""What SQLite says of a file that is no database, or one with broken pages."""

_NO_RIGHT = "42501"
"""PostgreSQL's insufficient_privilege; its drivers have it among errors of wrong SQL."""

_PRIMARY_CODE = 0xFF
"""What is above says more of the same error: https://www.sqlite.org/rescode.html"""


def disk_remedy(error: BaseException) -> str | None:
    """What to do about a disk error other than to look after its space and rights."""
    if isinstance(error, OSError) and error.errno in _WITHOUT_LOCKS:
        return "that disk has no file locks: set INDEXPORT_HOME, or DAGSTER_HOME, to a folder on a local disk"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "set INDEXPORT_HOME, or DAGSTER_HOME, to a shorter path"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "its links lead to themselves: set INDEXPORT_HOME, or DAGSTER_HOME, to a folder that can be reached"
    if sqlite_says(error, sqlite3.SQLITE_CANTOPEN):
        return "check its space and rights, and that its path has at most 500 bytes"
    return None


def sqlite_says(error: BaseException | None, *codes: int) -> bool:
    """Whether this is SQLite's error, of one of these primary result codes."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", -1) & _PRIMARY_CODE in codes


def lacks_right(error: BaseException | None) -> bool:
    """Whether PostgreSQL says that a role may not do this, through whichever of its drivers."""
    return _NO_RIGHT in (getattr(error, "sqlstate", None), getattr(error, "pgcode", None))


def damaged(database: Path | str, error: BaseException | None, then: str) -> str | None:
    """What to tell of a file with DAMAGE; ``None`` of any other error. ``then`` says how what it held is had back."""
    if not sqlite_says(error, *DAMAGE):
        return None
    return f"{database} is damaged ({error}): stop what uses it, move it and its -wal and -shm away, then {then}"


class IndexportError(Exception):
    """Base of everything Indexport raises on purpose."""


class ConfigError(IndexportError):
    """A setting is wrong or missing; the message names it and says what to do."""


class FileError(IndexportError):
    """One file cannot be processed; every other file of its batch can.

    ``file_id`` is the parsed file's directory-file id, ``reason`` the text without it.
    """

    def __init__(self, file_id: str, reason: str) -> None:
        super().__init__(f"{file_id}: {reason}")
        self.file_id = file_id
        self.reason = reason


class PayloadError(FileError):
    """The parsed payload is missing, too large, not JSON or of an unknown shape."""


class PayloadOutOfReach(PayloadError):
    """The download failed in a way that may pass; only how other files fare tells whether the fault is this file's."""


class RecordRefused(FileError):
    """A sink cannot hold a record of this file (a documented limit, a type it has no room for)."""


class Unavailable(IndexportError):
    """A service does not answer, throttles or refuses our credentials; nothing is wrong with any file."""


class SourceUnavailable(Unavailable):
    """LlamaCloud (or its stand-in) cannot be reached or refuses us."""


class SinkUnavailable(Unavailable):
    """A sink cannot be reached, refuses our credentials or is out of quota."""


class SinkDamaged(SinkUnavailable):
    """What a sink keeps in files cannot be read any more; the message names the command that makes it anew."""


class EmbedderUnavailable(Unavailable):
    """The embedding model or endpoint cannot be loaded or reached."""


class LedgerUnavailable(Unavailable):
    """The ledger's database cannot be reached or written (disk full, read-only, locked for too long)."""


class InstanceUnavailable(Unavailable):
    """Dagster's own storage cannot be reached or written (disk full, read-only, its database down)."""


class IncompleteListing(SourceUnavailable):
    """A directory listing stopped half way; it is evidence of what it shows, never of what it lacks."""


class Throttled(SourceUnavailable):
    """LlamaCloud refuses a request only because there were too many."""


class SyncFailed(SourceUnavailable):
    """The index reports ``failed``; the message is the vendor's."""


class SinkConflict(ConfigError):
    """What exists in the store is not ours or does not fit (dimension, metric, model); the message says what to do."""


SINK_ERRORS = (SinkUnavailable, ConfigError)
"""What keeps one sink from its work, and no other: it is down, or set up wrong."""


SOURCE_ERRORS = (SourceUnavailable, ConfigError)
"""What keeps LlamaCloud from being asked: it is down, refuses us, or is set up wrong."""


class LakeError(IndexportError):
    """The lake refused a read or a write (disk full, read-only) or cannot be reached (a store that is down, no credentials)."""
