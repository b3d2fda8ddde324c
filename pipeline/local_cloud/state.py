"""The database: one SQLite file that survives restarts, read by many threads and written by one transaction at a time."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, SourceUnavailable, damaged, disk_remedy, sqlite_says
from pipeline.files import lack_of_locks

Row = sqlite3.Row
DATABASE = "state.sqlite3"
_LOCK = "lock.sqlite3"

_MADE_ANEW = (
    "sync again: it is made anew from the folder, with the same ids unless an earlier version gave them, and no text is embedded "
    "again; uploads, and what else it was told by its API, are forgotten"
)
_BUSY_SECONDS = 30.0
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value BLOB NOT NULL);

CREATE TABLE directory (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    description TEXT,
    system_metadata TEXT,
    connector_subscription_id TEXT,
    follows_folder INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);

CREATE TABLE file (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    origin TEXT NOT NULL,           -- upload | document | payload
    purpose TEXT,
    external_file_id TEXT,
    media_type TEXT NOT NULL,
    encoding TEXT,                  -- gzip: the stored bytes are compressed
    digest TEXT,
    document_path TEXT,             -- where the bytes of a folder's document are read from
    last_modified_at TEXT,
    superseded_at TEXT              -- a payload replaced by a newer one, kept until the sync after
);

CREATE TABLE directory_file (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    directory_id TEXT NOT NULL REFERENCES directory (id) ON DELETE CASCADE,
    display_name TEXT NOT NULL,
    unique_id TEXT NOT NULL,
    file_id TEXT,
    source_metadata TEXT NOT NULL DEFAULT '{}',
    user_metadata TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    deleted_at TEXT,
    document_path TEXT,             -- set on a source file that a folder's document stands behind
    stamp TEXT,
    digest TEXT,
    removed_by_user INTEGER NOT NULL DEFAULT 0,
    build_key TEXT,                 -- set on a parsed file: everything its payload was made from
    warning TEXT                    -- what the parser had to say about it
);
CREATE INDEX directory_file_listing ON directory_file (directory_id, seq);
CREATE INDEX directory_file_live ON directory_file (directory_id, seq) WHERE deleted_at IS NULL;
CREATE INDEX directory_file_changes ON directory_file (directory_id, updated_at);
CREATE INDEX directory_file_file ON directory_file (file_id);
CREATE UNIQUE INDEX directory_file_unique ON directory_file (directory_id, unique_id) WHERE deleted_at IS NULL;

CREATE TABLE attachment (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    file_id TEXT NOT NULL,
    name TEXT NOT NULL,
    blob_id TEXT NOT NULL UNIQUE,
    media_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    last_modified TEXT NOT NULL,
    UNIQUE (file_id, name)
);

CREATE TABLE "index" (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    export_config_id TEXT NOT NULL UNIQUE,
    sync_config_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    source_directory_id TEXT NOT NULL REFERENCES directory (id),
    output_directory_id TEXT NOT NULL REFERENCES directory (id),
    store_attachments TEXT NOT NULL,
    metadata TEXT NOT NULL,
    settled_metadata TEXT,          -- what metadata was before the sync in progress
    sync_in_progress INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    last_synced_at TEXT,
    last_exported_at TEXT
);
"""


class State:
    """Owns the database under ``folder``. Readers never wait: the journal is write-ahead."""

    def __init__(self, folder: Path) -> None:
        """Raises ``ConfigError`` if the folder is of another version, ``SourceUnavailable`` if it is used by another server or
        cannot be written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unusable(folder, error) from error
        self.folder = folder
        self._lock_connection = _lock_folder(folder)
        self._write_lock = threading.RLock()
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = [self._lock_connection]
        try:
            self._writer = self._connect()
            self._create_schema()
        except sqlite3.DatabaseError as error:
            self.close()
            raise unusable(folder, error) from error

    def query(self, sql: str, *parameters: Any) -> list[Row]:
        """Rows of a read."""
        return self._reader().execute(sql, parameters).fetchall()

    def one(self, sql: str, *parameters: Any) -> Row | None:
        """The first row of a read."""
        row: Row | None = self._reader().execute(sql, parameters).fetchone()
        return row

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: all of it is seen at once, or none of it."""
        with self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")

    def secret(self, name: str) -> bytes:
        """A random key made on first use and kept. Raises ``SourceUnavailable``, and closes everything, if it cannot be."""
        try:
            with self.transaction() as write:
                write.execute("INSERT OR IGNORE INTO setting VALUES (?, ?)", (name, secrets.token_bytes(32)))
                value: bytes = write.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()[0]
                return value
        except sqlite3.DatabaseError as error:
            self.close()
            raise unusable(self.folder, error) from error

    def close(self) -> None:
        """Closes every connection and frees the folder. Call it when no thread uses the state any more."""
        for connection in self._connections:
            connection.close()

    def _reader(self) -> sqlite3.Connection:
        reader: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if reader is None:
            reader = self._connect()
            reader.execute("PRAGMA query_only = ON")
            self._local.connection = reader
        return reader

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self.folder)
        self._connections.append(connection)
        return connection

    def _create_schema(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._writer.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
        elif version != _SCHEMA_VERSION:
            self.close()
            raise ConfigError(
                f"{self.folder / DATABASE} was written by another version of the local server; delete its folder to start anew"
            )


def connect(folder: Path) -> sqlite3.Connection:
    """A connection to the database under ``folder``, for one thread at a time."""
    # Another thread may close it.
    connection = sqlite3.connect(folder / DATABASE, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;")
    return connection


def _lock_folder(folder: Path) -> sqlite3.Connection:
    """An exclusive lock that the operating system frees when the process ends, however it ends."""
    connection = None
    try:
        connection = sqlite3.connect(folder / _LOCK, timeout=0, isolation_level=None, check_same_thread=False)
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.DatabaseError as error:
        if connection:
            connection.close()
        if sqlite_says(error, sqlite3.SQLITE_BUSY):
            if lack := lack_of_locks(folder):
                raise unusable(folder, lack) from error
            raise SourceUnavailable(
                f"{folder} is in use by another command with --documents, `indexport local-cloud` or `indexport dev`; "
                "wait until it has ended, or leave out --documents and use the address that the latter two show"
            ) from error
        raise unusable(folder, error, _LOCK, "sync again: it holds nothing") from error
    return connection


def unusable(folder: Path, error: BaseException, database: str = DATABASE, then: str = _MADE_ANEW) -> SourceUnavailable:
    """What to tell of a database that cannot be read or written."""
    if told := damaged(folder / database, error, then):
        return SourceUnavailable(told)
    remedy = disk_remedy(error) or "check its space and its rights"
    return SourceUnavailable(f"the local server cannot keep its state in {folder}: {error}; {remedy}")
