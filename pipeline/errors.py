"""The tree of errors Indexport raises.

What belongs here: every typed error that crosses a package border. The caller's question decides the branch: is it the
configuration (``ConfigError``), one file (``FileError``: the file is poison, its batch goes on), or something every file
depends on (``Unavailable``: back off and try again later)?

Messages name the file or setting and the remedy. They never hold a secret or a presigned URL.
"""

from __future__ import annotations

import errno

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
}
"""What the system says of a disk that is full, read-only, not ours, broken or (network disks) without locks, and of a file where
a folder should be."""


def disk_remedy(error: BaseException) -> str | None:
    """What to do about a disk error other than to look after its space and rights."""
    if isinstance(error, OSError) and error.errno in _WITHOUT_LOCKS:
        return "that disk has no file locks: set INDEXPORT_HOME, or DAGSTER_HOME, to a folder on a local disk"
    return None


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


class LakeError(IndexportError):
    """The lake refused a read or a write (disk full, read-only) or cannot be reached (a store that is down, no credentials)."""
