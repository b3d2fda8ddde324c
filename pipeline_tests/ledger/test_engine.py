from __future__ import annotations

import errno
import fcntl
import sqlite3
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from pipeline.errors import ConfigError, LedgerUnavailable
from pipeline.ledger import Ledger, schema
from pipeline.ledger.engine import _tune_sqlite, _write_ahead, open_engine
from pipeline_tests.postgres import fresh_database
from pipeline_tests.security.echoes import refusing_postgres


class Turning:
    """A connection to a database whose mode another one is changing, for as many questions as it is given errors."""

    def __init__(self, *codes: int) -> None:
        self._codes = list(codes)
        self.asked: list[str] = []

    def execute(self, statement: str) -> None:
        self.asked.append(statement)
        if self._codes:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = self._codes.pop(0)
            raise error


def test_a_new_database_that_another_process_is_setting_up_is_asked_again() -> None:
    connection = Turning(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY)
    _write_ahead(connection)
    assert connection.asked == ["PRAGMA journal_mode=WAL"] * 3


def test_another_error_is_raised_at_once() -> None:
    connection = Turning(sqlite3.SQLITE_READONLY)
    with pytest.raises(sqlite3.OperationalError):
        _write_ahead(connection)
    assert len(connection.asked) == 1


def test_a_database_that_stays_locked_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ledger.engine._BUSY_SECONDS", 0)
    connection = Turning(sqlite3.SQLITE_BUSY)
    with pytest.raises(sqlite3.OperationalError):
        _write_ahead(connection)


def test_a_ledger_in_sqlite_overwrites_what_is_deleted_however_sqlite_was_built(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as connection:
        connection.execute("PRAGMA secure_delete=OFF")
        _tune_sqlite(connection, None)
        assert connection.execute("PRAGMA secure_delete").fetchone() == (1,)


def test_readers_of_a_ledger_in_sqlite_wait_for_no_writer(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", "default")
    ledger.update_state(listed_at=1.0)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert ledger.state().listed_at == 1.0
    ledger.close()


@pytest.mark.parametrize(
    ("code", "told"), [(errno.ENOLCK, "that disk has no file locks: set INDEXPORT_HOME"), (0, "locked; check")]
)
def test_a_disk_without_locks_is_told_from_a_database_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, told: str
) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        if code:
            raise OSError(code, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr("pipeline.ledger.engine._BUSY_SECONDS", 0)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerUnavailable, match=told):
            open_engine(f"sqlite:///{tmp_path}/ledger.sqlite").connect()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://bob:canary@127.0.0.1:9/db",
        "postgresql+psycopg2://bob@127.0.0.1:9/db?password=canary",
        "postgresql+psycopg2:///db?host=127.0.0.1&port=9&user=bob&password=canary",
    ],
)
def test_a_database_that_is_down_is_named_without_its_password_wherever_that_stands(url: str) -> None:
    with pytest.raises(LedgerUnavailable, match=r"/db cannot be used: .*refused") as told:
        open_engine(url).connect()
    assert "canary" not in str(told.value)


@pytest.mark.parametrize("url", ["bob:zq-canary@{}/db", "bob@{}/db?password=zq-canary"])
def test_a_password_that_a_database_repeats_is_not_told(url: str) -> None:
    words = "no access for zq-canary today"
    with refusing_postgres(words) as address, pytest.raises(LedgerUnavailable, match=r"no access for \*\*\* today") as told:
        open_engine(f"postgresql+psycopg2://{url.format(address)}").connect()
    assert "zq" not in str(told.value)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("default_transaction_read_only=on", "cannot execute UPDATE in a read-only transaction"),  # as a standby's
        ("role=pg_monitor", "permission denied for table indexport_exports"),
    ],
)
def test_a_database_that_takes_no_writes_is_told_in_one_line_without_what_was_to_be_written(
    server: str, driver: str, setting: str, told: str
) -> None:
    url = fresh_database(server).replace("postgresql://", f"postgresql+{driver}://")
    Ledger(url, "default").close()
    update = sa.update(schema.exports).values(export="zq-canary")
    engine = open_engine(f"{url}&options=-c{quote(setting, safe='')}")
    with (
        pytest.raises(LedgerUnavailable, match=f"cannot be used: {told}.*; check .* takes writes") as refused,
        engine.begin() as used,
    ):
        used.execute(update)
    engine.dispose()
    assert "zq-canary" not in "".join(traceback.format_exception(refused.value))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_connection_that_the_server_ends_is_told_in_one_line(server: str, driver: str) -> None:
    engine = open_engine(fresh_database(server).replace("postgresql://", f"postgresql+{driver}://"))
    with pytest.raises(LedgerUnavailable, match=r"cannot be used: .*terminat") as told, engine.begin() as used:
        used.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
    engine.dispose()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_nothing_is_prepared_which_a_pooler_would_lose_between_two_transactions(server: str, driver: str) -> None:
    engine = open_engine(fresh_database(server).replace("postgresql://", f"postgresql+{driver}://"))
    prepared = sa.text("SELECT count(*) FROM pg_prepared_statements")
    with engine.connect() as connection:
        assert [connection.execute(prepared).scalar_one() for _ in range(10)] == [0] * 10
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_who_waits_for_its_turn_sees_what_was_written_meanwhile_whatever_the_database_isolates(
    server: str, driver: str, level: str
) -> None:
    url = fresh_database(server).replace("postgresql://", f"postgresql+{driver}://")
    url += f"&options={quote(f'-cdefault_transaction_isolation={level}'.replace(' ', chr(92) + ' '))}"
    ledgers = [Ledger(url, "default") for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        begun = list(threads.map(lambda number: ledgers[number % 4].begin_listing(), range(40)))
    assert sorted(begun) == list(range(1, 41))
    for ledger in ledgers:
        ledger.close()


def test_a_password_that_would_be_taken_for_a_host_and_shown_is_refused() -> None:
    with pytest.raises(ConfigError, match="INDEXPORT_LEDGER_URL: its host has an '@'; percent-encode") as refused:
        open_engine("postgresql+psycopg2://bob:secret@canary@127.0.0.1:9/db")
    assert "canary" not in str(refused.value)
