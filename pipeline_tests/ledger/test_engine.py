from __future__ import annotations

import sqlite3

import pytest

from pipeline.ledger.engine import _write_ahead


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
