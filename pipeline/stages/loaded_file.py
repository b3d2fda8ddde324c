"""Whether the file an export was loaded from still says what was loaded."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.stages.settings import ExportSettings, exports_in


class LoadedFile:
    """A ``defs.yaml`` and what it said of one export when Dagster loaded that.

    Runs read the file anew and the sensor does not: what they make of an edited one it would find stale at every look.
    """

    def __init__(self, path: Path, export: str) -> None:
        """Raises ConfigError or OSError for a file that cannot be read."""
        self.path = path
        self._export = export
        self._touched = _touched(path)  # taken before it is read: an edit in between is read at the first look
        self._loaded = self._said()
        self._edited = False

    def is_edited(self) -> bool:
        """Whether it says anything else of the export now, or cannot be read. It is read only when it was touched."""
        try:
            touched = _touched(self.path)
            if touched != self._touched:
                self._edited = self._said() != self._loaded
                self._touched = touched
        except (ConfigError, OSError):
            return True  # and is read again at the next look
        return self._edited

    def _said(self) -> ExportSettings | None:
        return next((settings for settings in exports_in(self.path) if settings.name == self._export), None)


def _touched(path: Path) -> tuple[int, int, int]:
    """What differs after whatever is done to a file, access to it included."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size
