"""Tables this process has just written, for the stage that reads them next.

What belongs here: a bounded memory of local files, each handed out once. It never answers for a file that has changed since:
a replaced file has another inode.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

_MOST_BYTES = 64 * 2**20
_BYTES_OF_A_TABLE = 16 * 2**10
"""What a table of a dozen columns takes beside its values, measured: more than the values of a small file."""


class RecentTables:
    """The tables last written and not read yet, at most 64 MB of them together. Safe to share between threads."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[tuple[int, int, int], pa.Table, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, path: str, version: os.stat_result, table: pa.Table, size: int) -> None:
        """Hold ``table``, whose values take about ``size`` bytes, as the content of the file ``version`` was read from."""
        size += _BYTES_OF_A_TABLE
        with self._lock:
            self._drop(path)
            self._held[path] = _identity(version), table, size
            self._bytes += size
            while self._bytes > _MOST_BYTES:
                self._drop(next(iter(self._held)))

    def take(self, path: str) -> pa.Table | None:
        """What the file at ``path`` holds, no longer held here, or ``None`` when this must be read."""
        with self._lock:
            held = self._drop(path)
        with suppress(FileNotFoundError):
            if held and _identity(Path(path).stat()) == held[0]:
                return held[1]
        return None

    def _drop(self, path: str) -> tuple[tuple[int, int, int], pa.Table, int] | None:
        held = self._held.pop(path, None)
        if held:
            self._bytes -= held[2]
        return held


def _identity(version: os.stat_result) -> tuple[int, int, int]:
    return version.st_ino, version.st_mtime_ns, version.st_size
