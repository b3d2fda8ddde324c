"""What writers that were killed have left in the directory of a local LanceDB table.

What belongs here: which files no version of a table names. Lance drops such files itself, but only after seven days, as until
then another writer may be at work on them (documented by the vendor), and its temporary files never (seen in release 0.40).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

from pipeline.sinks.lancedb_table import FORMAT_KEY

ABANDONED_AFTER: Final = timedelta(hours=1)
"""Since something was last written to a file: four times as long as a run that has died keeps its files from others."""

_INDEXES: Final = "_indices/" + "-".join("[0-9a-f]" * digits for digits in (8, 4, 4, 4, 12))


def sweep(table: Path) -> None:
    """Delete data files and indexes that no version names, and temporary files, once they are abandoned."""
    limit = time.time() - ABANDONED_AFTER.total_seconds()
    names = {path: path.name.encode() for path in table.glob("data/*.lance") if _is_older(path, limit)}
    names |= {path: uuid.UUID(path.name).bytes for path in table.glob(_INDEXES) if _is_older(path, limit)}
    temporary = [path for path in table.rglob(".tmp*") if _is_older(path, limit)]
    for path in (*temporary, *_without_a_version(table, names)):
        for file in _files(path):
            file.unlink(missing_ok=True)


def _without_a_version(table: Path, names: Mapping[Path, bytes]) -> Mapping[Path, bytes]:
    """Those whose name, as versions spell it, is in none of them; nothing when one cannot be read, or is gone meanwhile."""
    for manifest in sorted(table.rglob("*.manifest")):  # the newest, which names nearly all, comes first
        if not names:
            break
        try:
            held = manifest.read_bytes()
        except FileNotFoundError:
            return {}
        if FORMAT_KEY not in held:
            return {}
        names = {path: name for path, name in names.items() if name not in held}
    return names


def _is_older(path: Path, limit: float) -> bool:
    """Whether nothing has been written to it, or to any file in it, since; False when it is gone meanwhile."""
    try:
        return all(file.stat().st_mtime < limit for file in _files(path))
    except FileNotFoundError:
        return False


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
