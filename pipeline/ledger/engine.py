"""The engine of a ledger: its database's settings, and errors that name it."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pipeline.errors import ConfigError, LedgerUnavailable, damaged, disk_remedy, lacks_right, sqlite_says
from pipeline.files import lack_of_locks
from pipeline.quoting import masked

_DATABASES = ("sqlite", "postgresql")
_URL = "it reads postgresql+psycopg2://user@host/db (`pip install 'indexport[postgres]'`) or sqlite:////path/to/file"
_UNUSABLE = (sa.exc.OperationalError, sa.exc.InternalError)
"""The latter is also what PostgreSQL says when it takes no writes, as a standby after a failover."""
_BUSY_SECONDS = 30
"""How long a statement waits for the database of another."""


def open_engine(url: str) -> sa.Engine:
    """An engine for a SQLAlchemy URL; the folder of a SQLite file is made. Its statements raise LedgerUnavailable.

    Raises ConfigError for a URL of another database, or whose driver is not installed.
    """
    try:
        address = sa.make_url(url)
        if (kind := address.get_backend_name()) not in _DATABASES:
            raise ConfigError(f"INDEXPORT_LEDGER_URL: a ledger cannot be in {kind!r}; {_URL}")
        check_address(address, "INDEXPORT_LEDGER_URL")
        # Without the values of a statement, which are of documents, in what an error shows.
        engine = sa.create_engine(address, pool_pre_ping=True, hide_parameters=True, **_of_postgresql(address))
    except ImportError as error:
        raise ConfigError(f"INDEXPORT_LEDGER_URL: its driver {error.name!r} is not installed; {_URL}") from None
    except (sa.exc.ArgumentError, ValueError):  # their words may hold the password
        raise ConfigError(f"INDEXPORT_LEDGER_URL is no SQLAlchemy URL; {_URL}") from None
    sa.event.listen(engine, "handle_error", _explained)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _tune_sqlite)
        if engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
    return engine


def check_address(url: sa.URL, setting: str) -> None:
    """Raise ConfigError where part of a password stands in what drivers take for the host: their errors show it."""
    if "@" in (url.host or ""):
        raise ConfigError(f"{setting}: its host has an '@'; percent-encode the special characters of the password, @ as %40")


def _explained(context: sa.engine.ExceptionContext) -> LedgerUnavailable | None:
    """What stands in for the driver's error; ``None`` leaves it."""
    if context.is_pre_ping:
        return None
    error = context.original_exception
    database = context.engine.url.database if context.engine else None
    if told := damaged(f"the ledger {database}", error, "`indexport rebuild ledger`, for each export"):
        return LedgerUnavailable(told)
    if not (isinstance(context.sqlalchemy_exception, _UNUSABLE) or context.is_disconnect or lacks_right(error)):
        return None
    # Also without a query, which may hold the password.
    where = context.engine.url.set(password=None, query={}).render_as_string() if context.engine else "its URL"
    secrets = _passwords(context.engine.url) if context.engine else []
    if database and sqlite_says(error, sqlite3.SQLITE_BUSY):
        error = lack_of_locks(Path(database).parent) or error
    remedy = disk_remedy(error) if error else None
    said = " ".join(masked(str(error), *secrets).split())
    told = f"{said}; {remedy or 'check its space, its rights, that it runs and takes writes'}"
    return LedgerUnavailable(f"the ledger at {where} cannot be used: {told}")


def _passwords(url: sa.URL) -> list[str]:
    return [str(url.password or ""), str(url.query.get("password", "")), os.environ.get("PGPASSWORD", "")]


def _of_postgresql(url: sa.URL) -> dict[str, Any]:
    """Whoever waits for its turn must see what was written meanwhile, whatever isolation the database has by default.

    psycopg2 sends the rows of an ``executemany`` one round trip each unless asked to batch them; psycopg pipelines them. It
    prepares statements too, which are lost behind a connection pooler that gives every transaction another connection.
    """
    if url.get_backend_name() != "postgresql":
        return {}
    of_drivers: dict[str, dict[str, Any]] = {
        "psycopg2": {"executemany_mode": "values_plus_batch"},
        "psycopg": {"connect_args": {"prepare_threshold": None}},
    }
    return {"isolation_level": "READ COMMITTED", **of_drivers.get(url.get_dialect().driver, {})}


def _tune_sqlite(connection: Any, _record: Any) -> None:
    connection.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA secure_delete=ON")  # what an erasure drops leaves no byte; not every build does that unasked


def _write_ahead(connection: Any) -> None:
    """Of two connections that set this mode of a new database at once SQLite turns one away without waiting for the other."""
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if not sqlite_says(error, sqlite3.SQLITE_BUSY) or time.monotonic() >= until:
                raise
        time.sleep(random.uniform(0.005, 0.05))  # noqa: S311 - jitter, not a secret
