"""The Dagster instance of an installation: opened, and what is wrong with it told in one line."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dagster as dg
import sqlalchemy.exc
import yaml
from dagster._core.storage.runs.sqlite import SqliteRunStorage
from dagster_shared.check import CheckError

from pipeline.errors import DAMAGE, DISK_ERRORS, ConfigError, InstanceUnavailable, damaged, disk_remedy, lacks_right, sqlite_says
from pipeline.files import write_whole
from pipeline.home import Home, packaged

_log = logging.getLogger(__name__)
_SHARED_IN_PART = (
    "the ledger is in PostgreSQL and Dagster's storage is this machine's alone: what runs on other machines is not seen, and is "
    "done again; if there are others, share that storage too (%s says how)"
)
_DATABASE_ERRORS = (sqlite3.DatabaseError, sqlalchemy.exc.DatabaseError)
_UNSET = re.compile(r'environment variable "(\w+)" which is not set')
_UNLOADED = re.compile(r"Couldn't find class .*")
_BEFORE_VALUES = re.compile(r"\. | of original value")
"""Where what Dagster says of a wrong setting goes on with what it is set to."""


@contextmanager
def open_instance(home: Home) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance of this installation; its home is made, with our ``dagster.yaml``, when there is none.

    Raises InstanceUnavailable where its storage cannot be used, now or in the block, and ConfigError where its settings are
    wrong or name what is not installed.
    """
    folder = home.dagster_home
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "dagster.yaml"
        if not settings.exists():
            write_whole(settings, packaged("dagster.yaml").read_bytes())
        os.environ["DAGSTER_HOME"] = str(folder)
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "1000")
        with _instance(settings) as instance:
            if home.ledger_url.startswith("postgresql") and isinstance(instance.run_storage, SqliteRunStorage):
                _log.warning(_SHARED_IN_PART, settings)
            yield instance
    except errors_of_storages() + _DATABASE_ERRORS as error:
        if not (told := _of_storage(folder, error)):
            raise
        raise InstanceUnavailable(told) from error


def _instance(settings: Path) -> dg.DagsterInstance:
    try:
        return dg.DagsterInstance.get()
    except (CheckError, dg.DagsterInvalidConfigError, yaml.YAMLError, sqlalchemy.exc.ArgumentError) as error:
        if not (reason := _what_is_wrong(error)):
            raise
        raise ConfigError(f"{settings}: {reason}") from error


def _what_is_wrong(error: Exception) -> str | None:
    """What is wrong with the settings, without quoting a value, which may be a secret; ``None`` if the error is about something
    else."""
    if isinstance(error, yaml.YAMLError):
        mark = getattr(error, "problem_mark", None)
        return f"line {mark.line + 1} is no YAML" if mark else "it is no YAML"
    if isinstance(error, sqlalchemy.exc.ArgumentError):
        return "the address of its storage is no SQLAlchemy URL, such as postgresql+psycopg2://user@host/db"
    if isinstance(missing := error.__context__, ModuleNotFoundError):
        return f"it names what is not installed: {missing}; for storage in PostgreSQL: pip install 'indexport[postgres]'"
    if unset := _UNSET.search(str(error)):
        return f"it names the environment variable {unset[1]}, which is not set"
    if isinstance(error, dg.DagsterInvalidConfigError):
        return _BEFORE_VALUES.split(error.errors[0].message)[0]
    unloaded = _UNLOADED.search(str(error))
    return unloaded and unloaded[0]


def _of_storage(folder: Path, error: Exception) -> str | None:
    """What to tell of an error of the storage; ``None`` if it is about something else."""
    reason: BaseException = error
    while reason.__cause__:  # the driver's own
        reason = reason.__cause__
    if sqlite_says(reason, *DAMAGE):
        broken = next((path for path in sorted(folder.rglob("*.db")) if _is_damaged(path)), f"a database of {folder}")
        return damaged(broken, reason, "sync again: what stands is shown again, what else it held of past runs is gone")
    known = isinstance(error, errors_of_storages()) or lacks_right(reason)
    if not known or (isinstance(error, OSError) and error.errno not in DISK_ERRORS):
        return None
    remedy = disk_remedy(reason) or "check its space, its rights, that it runs and takes writes"
    return (
        f"the storage of the Dagster instance in {folder} cannot be used: {' '.join(str(reason).split())}; {remedy}, "
        "then sync again: what was not done is done then"
    )


def _is_damaged(database: Path) -> bool:
    """Whether it is this one: the errors do not name it."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            return connection.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]
    except sqlite3.Error as error:
        return sqlite_says(error, *DAMAGE)


def errors_of_storages() -> tuple[type[Exception], ...]:
    """With what Dagster's storage in PostgreSQL, an extra, raises when it takes no writes, as a standby, and when it has tried
    often enough."""
    postgres = sys.modules.get("dagster_postgres.utils")
    tried_enough = (postgres.DagsterPostgresException,) if postgres else ()
    return (OSError, sqlite3.OperationalError, sqlalchemy.exc.OperationalError, sqlalchemy.exc.InternalError, *tried_enough)
