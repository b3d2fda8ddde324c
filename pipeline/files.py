"""Files written whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: Path, data: bytes | memoryview) -> os.stat_result:
    """Write beside ``path`` and rename, so that a reader or a crash never meets half a file; answers what the new one's directory
    entry says. Folders are made when they are missing. Raises OSError and leaves nothing then."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
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
