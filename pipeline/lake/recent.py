"""Tables this process has just written, for the stage that reads them next.

What belongs here: a bounded memory of local files. It never answers for a file that has changed since: a replaced file has
another inode.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

_MOST_BYTES = 64 * 2**20


class RecentTables:
    """The tables last written, at most 64 MB of them together. Safe to share between threads."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[tuple[int, int, int], pa.Table, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, path: str, version: os.stat_result, table: pa.Table) -> None:
        """Hold ``table`` as the content of the file ``version`` was read from."""
        size = table.nbytes
        with self._lock:
            self._drop(path)
            self._held[path] = _identity(version), table, size
            self._bytes += size
            while self._bytes > _MOST_BYTES:
                self._drop(next(iter(self._held)))

    def find(self, path: str) -> pa.Table | None:
        """What the file at ``path`` holds, or ``None`` when this must be read."""
        held = self._held.get(path)
        if held is None:
            return None
        with suppress(FileNotFoundError):
            if _identity(Path(path).stat()) == held[0]:
                return held[1]
        with self._lock:
            self._drop(path)
        return None

    def _drop(self, path: str) -> None:
        if path in self._held:
            self._bytes -= self._held.pop(path)[2]


def _identity(version: os.stat_result) -> tuple[int, int, int]:
    return version.st_ino, version.st_mtime_ns, version.st_size
