"""Where the state of a folder of documents is kept: every folder has its own, so that two are never one source."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

from pipeline.local_cloud.documents import DocumentFolder, UnreadableDocument, content_digest
from pipeline.local_cloud.state import DATABASE, connect, unusable

_LOOKED_AT = 100
_SERVED = "served_folder"


def state_folder(root: Path, folder: DocumentFolder) -> Path:
    """The state directory of a folder of documents under ``root``; it need not exist.

    Earlier versions kept one state, right under ``root``, for whatever folder they were given: it goes on where it is, with
    the ids that it gave, for the folder that it served. Raises ``SourceUnavailable`` if that state cannot be used.
    """
    own = root / hashlib.sha256(folder.address.encode()).hexdigest()[:32]
    former = (root / DATABASE).exists() and not (own / DATABASE).exists() and _is_of(root, folder)
    return root if former else own


def _is_of(root: Path, folder: DocumentFolder) -> bool:
    """Whether a former state is this folder's: the first one that has its documents keeps it."""
    try:
        with closing(connect(root)) as connection:
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:  # Nothing was ever written.
                return False
            known = "SELECT value FROM setting WHERE name = ?"
            if connection.execute(known, (_SERVED,)).fetchone() is None and _has_its_documents(connection, folder):
                connection.execute("INSERT OR IGNORE INTO setting VALUES (?, ?)", (_SERVED, folder.address))
            served = connection.execute(known, (_SERVED,)).fetchone()
            return served is not None and served[0] == folder.address
    except sqlite3.DatabaseError as error:
        raise unusable(root, error) from error


def _has_its_documents(connection: sqlite3.Connection, folder: DocumentFolder) -> bool:
    """Whether at least half of the first documents that a state knows are in the folder as they were: a name alone, like
    index.md, proves nothing. Of a state that knows none nothing tells, and it is nobody else's."""
    rows = connection.execute(
        "SELECT document_path, digest FROM directory_file"
        " WHERE document_path IS NOT NULL AND deleted_at IS NULL AND digest NOT LIKE 'unread:%' ORDER BY seq LIMIT ?",
        (_LOOKED_AT,),
    ).fetchall()
    return 2 * sum(_holds(folder, row["document_path"], row["digest"]) for row in rows) >= len(rows)


def _holds(folder: DocumentFolder, path: str, digest: str) -> bool:
    try:
        return content_digest(folder.read(path)) == digest
    except UnreadableDocument:
        return False
