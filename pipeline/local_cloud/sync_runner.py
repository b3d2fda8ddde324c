"""Starts, cancels and finishes syncs: one at a time in the background, at most one for each index."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from pipeline.errors import DAMAGE, SourceUnavailable, sqlite_says
from pipeline.local_cloud.cloud import Cloud
from pipeline.local_cloud.documents import DocumentsUnavailable
from pipeline.local_cloud.state import Row, unusable
from pipeline.local_cloud.sync import IndexSync, SyncCancelled, SyncError
from pipeline.printable import printable

_log = logging.getLogger(__name__)

_SETTLE = 'UPDATE "index" SET sync_in_progress = 0, metadata = ?, settled_metadata = NULL, updated_at = ? WHERE id = ?'


class SyncConflict(Exception):
    """The index is syncing already, or is not syncing and cannot be cancelled."""


class _Run:
    """One sync of one index. ``cancelled`` is set inside a write transaction, so a commit sees it or has happened."""

    def __init__(self, index_id: str) -> None:
        self.index_id = index_id
        self.cancelled = threading.Event()

    def check(self) -> None:
        if self.cancelled.is_set():
            raise SyncCancelled


class SyncRunner:
    """Owns the background thread. One thread is enough: PDFium parses one document at a time."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._runs: dict[str, _Run] = {}
        self._unwritten: dict[str, str] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-cloud-sync")

    def recover(self) -> None:
        """Clears what a killed server left behind; the listing it had committed is intact."""
        with self._cloud.state.transaction() as write:
            for row in write.execute('SELECT * FROM "index" WHERE sync_in_progress').fetchall():
                _log.warning("the last sync of index %s was interrupted", row["name"])
                write.execute(*_settled(row, self._cloud.now, "was interrupted"))

    def shown(self, row: Row) -> Mapping[str, Any]:
        """The index of ``row`` as it is: failed, too, where a full disk kept the failure out of the database."""
        failed = self._unwritten.get(row["id"])
        return {**row, "sync_in_progress": 0, "metadata": failed} if failed else dict(row)

    def start(self, index_id: str) -> Row:
        """Starts a sync in the background; returns the index as it is then. Raises ``SyncConflict`` while one is running."""
        run = _Run(index_id)
        with self._cloud.state.transaction() as write:
            found = write.execute('SELECT * FROM "index" WHERE id = ?', (index_id,)).fetchone()
            row = self.shown(found) if found else None
            if row is None or row["sync_in_progress"]:
                raise SyncConflict("a sync of this index is in progress")
            metadata = {**json.loads(row["metadata"]), "status": "syncing" if row["last_synced_at"] else "building"}
            metadata.pop("error_message", None)
            write.execute(
                'UPDATE "index" SET sync_in_progress = 1, settled_metadata = ?, metadata = ?, updated_at = ? WHERE id = ?',
                (row["metadata"], json.dumps(metadata), self._cloud.now, index_id),
            )
            self._runs[index_id] = run
            started = _row(write, index_id)
        self._unwritten.pop(index_id, None)
        self._pool.submit(self._work, run).add_done_callback(partial(self._done, run))
        return started

    def cancel(self, index_id: str) -> Row:
        """Ends the running sync without a change to the listing; returns the index as it is then.

        Raises ``SyncConflict`` if none is running.
        """
        with self._cloud.state.transaction() as write:
            row = write.execute('SELECT * FROM "index" WHERE id = ? AND sync_in_progress', (index_id,)).fetchone()
            run = self._runs.pop(index_id, None)
            if row is None or run is None:
                raise SyncConflict("no sync of this index is in progress")
            run.cancelled.set()
            write.execute(*_settled(row, self._cloud.now, "was cancelled"))
            settled = _row(write, index_id)
        self._cloud.faults.wake()
        return settled

    def close(self) -> None:
        """Cancels what is running and waits for the thread to end."""
        for index_id in list(self._runs):
            try:
                self.cancel(index_id)
            except SyncConflict:
                _log.debug("the sync of %s ended by itself", index_id)
        self._pool.shutdown(wait=True)

    def _work(self, run: _Run) -> None:
        self._cloud.faults.wait_while_held(run.cancelled.is_set)
        run.check()
        row = self._cloud.state.one('SELECT * FROM "index" WHERE id = ?', run.index_id)
        if row is not None:
            IndexSync(self._cloud, row, run.check).run()

    def _done(self, run: _Run, outcome: Future[None]) -> None:
        """Whatever ended the sync, the index must not stay in progress."""
        error = outcome.exception()
        row = self._cloud.state.one('SELECT * FROM "index" WHERE id = ?', run.index_id)
        if error is None or row is None or run.cancelled.is_set():
            self._forget(run)
            return
        if sqlite_says(error, *DAMAGE):
            error = unusable(self._cloud.state.folder, error)
        told = isinstance(error, (DocumentsUnavailable, SourceUnavailable, SyncError, sqlite3.OperationalError, OSError))
        _log.error("the sync of index %s failed: %s", row["name"], printable(str(error)), exc_info=None if told else error)
        before = json.loads(row["settled_metadata"] or "{}")
        failed = json.dumps({**before, "status": "failed", "error_message": str(error) or type(error).__name__})
        try:
            with self._cloud.state.transaction() as write:
                if not run.cancelled.is_set():
                    write.execute(_SETTLE, (failed, self._cloud.now, run.index_id))
        except sqlite3.DatabaseError as full:
            _log.error("that it failed cannot be written down: %s", full)
            self._unwritten[run.index_id] = failed
        self._forget(run)

    def _forget(self, run: _Run) -> None:
        if self._runs.get(run.index_id) is run:
            del self._runs[run.index_id]


def _row(connection: sqlite3.Connection, index_id: str) -> Row:
    row: Row = connection.execute('SELECT * FROM "index" WHERE id = ?', (index_id,)).fetchone()
    return row


def _settled(row: Row, now: str, what_happened: str) -> tuple[str, tuple[str, str, str]]:
    """The statement that ends a sync as if it had never begun; an index that was never synced has nothing to go back to."""
    before = row["settled_metadata"] or "{}"
    if row["last_synced_at"] is None:
        before = json.dumps({"status": "failed", "error_message": f"the first sync {what_happened}; sync the index again"})
    return _SETTLE, (before, now, row["id"])
