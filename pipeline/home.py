"""Where one installation keeps its local state, and what it brings along.

What belongs here: paths and URLs under ``INDEXPORT_HOME``, the folder of the exports, and the environment variables that move
them elsewhere. Two homes never share a file.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError


def packaged(name: str) -> Path:
    """A file or folder of the project: in an installed wheel beside the package's modules, in a checkout at its top."""
    package = Path(__file__).parent
    return package / name if (package / name).exists() else package.parent / name


OWN_DEFS = Path(__file__).parent / "defs"


def defs_folder() -> Path:
    """Under which the ``defs.yaml`` files of the exports lie: in this package, or where ``INDEXPORT_DEFS`` says, as for those of
    another Dagster project. Raises ConfigError where that is no folder that can be read."""
    given = os.environ.get("INDEXPORT_DEFS")
    if not given:
        return OWN_DEFS
    folder = Path(given).expanduser()
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise ConfigError(f"INDEXPORT_DEFS: {folder} cannot be read: {error.strerror}") from error
    return folder


_MOVES_A_PART = re.compile(r"INDEXPORT_(LEDGER_URL|[A-Z_]+_URI)")
"""Variables that move a part of a home elsewhere."""


@dataclass(frozen=True, slots=True)
class Home:
    """The directory of one installation (``INDEXPORT_HOME``, default ``.indexport`` in the working directory)."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """Raises OSError for links that lead to themselves."""
        given = Path(os.environ.get("INDEXPORT_HOME") or ".indexport").expanduser()
        try:
            return cls(given.resolve())
        except RuntimeError:  # before Python 3.13 its own error
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(given)) from None

    def move_in(self) -> None:
        """Make this the home of this process and its children, with everything under it."""
        for name in [name for name in os.environ if _MOVES_A_PART.fullmatch(name)]:
            del os.environ[name]
        os.environ |= {"INDEXPORT_HOME": str(self.root), "DAGSTER_HOME": str(self.root / "dagster")}

    @property
    def dagster_home(self) -> Path:
        """Dagster's own home; ``DAGSTER_HOME`` wins, so that a deployment keeps the one it has."""
        return Path(os.environ.get("DAGSTER_HOME") or self.root / "dagster").absolute()

    @property
    def lake_uri(self) -> str:
        """Any fsspec URL; ``INDEXPORT_LAKE_URI`` moves it to an object store."""
        return os.environ.get("INDEXPORT_LAKE_URI") or str(self.root / "lake")

    @property
    def ledger_url(self) -> str:
        """A SQLAlchemy URL; ``INDEXPORT_LEDGER_URL`` moves it to PostgreSQL when several machines share it."""
        return os.environ.get("INDEXPORT_LEDGER_URL") or _sqlite_url(self.root / "ledger.sqlite")

    def sink_uri(self, sink: str) -> str:
        """The folder of a sink that needs no server; ``INDEXPORT_<SINK>_URI`` moves it to an object store."""
        return os.environ.get(f"INDEXPORT_{sink.upper()}_URI") or str(self.root / sink)

    @property
    def local_cloud(self) -> Path:
        """State of the LlamaCloud stand-in."""
        return self.root / "local_cloud"


def _sqlite_url(path: Path) -> str:
    """The URL of a file, whatever in its path would mean something else in a URL. Raises ConfigError for what SQLAlchemy before
    2.1 cannot write as one."""
    from sqlalchemy import URL, make_url  # not for those who only want paths

    url = URL.create("sqlite", database=str(path)).render_as_string()
    if make_url(url).database != str(path):
        raise ConfigError(f"{path} cannot be a URL; set INDEXPORT_HOME to a path without '?', or install sqlalchemy>=2.1")
    return url
