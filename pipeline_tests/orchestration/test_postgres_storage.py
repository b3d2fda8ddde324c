"""Dagster's storage in PostgreSQL when its server is down, and how it is let in."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dagster_postgres.auth import PgTokenProvider
from dagster_postgres.schedule_storage import PostgresScheduleStorage

from pipeline.errors import ConfigError, InstanceUnavailable
from pipeline.home import Home
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.postgres_storage import (
    BatchingPostgresEventLogStorage,
    BatchingPostgresStorage,
    KeepingPostgresRunStorage,
)
from pipeline_tests.postgres import fresh_database, postgres, sqlalchemy_url

NOWHERE: dict[str, Any] = {"hostname": "127.0.0.1", "port": 9, "username": "user", "password": "canary", "db_name": "dagster"}


def test_a_server_that_is_down_is_named_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    (tmp_path / "dagster.yaml").write_text(
        "storage:\n  custom:\n    module: pipeline.orchestration.postgres_storage\n    class: BatchingPostgresStorage\n"
        "    config: {postgres_url: 'postgresql+psycopg2://user:canary@127.0.0.1:9/dagster'}\n"
    )
    with pytest.raises(InstanceUnavailable, match="port 9 failed: Connection refused") as caught, open_instance(Home(tmp_path)):
        pass
    assert "canary" not in str(caught.value)


def test_a_server_that_takes_no_writes_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with postgres() as server:
        url = sqlalchemy_url(fresh_database(server))
        for options in ("", "&options=-cdefault_transaction_read_only%3Don"):  # as a standby's
            monkeypatch.setenv("DAGSTER_PG_URL", url + options)
            (tmp_path / "dagster.yaml").write_text(
                "storage:\n  custom:\n    module: pipeline.orchestration.postgres_storage\n    class: BatchingPostgresStorage\n"
                "    config: {postgres_url: {env: DAGSTER_PG_URL}}\n"
            )
            told = "cannot be used: cannot execute INSERT in a read-only transaction; check"
            expected = pytest.raises(InstanceUnavailable, match=told) if options else nullcontext()
            with expected as caught, open_instance(Home(tmp_path)) as instance:
                instance.add_dynamic_partitions("files", ["a"])
        assert "\n" not in str(caught and caught.value)


def test_what_dagster_prints_of_an_error_holds_no_statement_and_none_of_its_values() -> None:
    with postgres() as server:
        url = sqlalchemy_url(fresh_database(server))
        BatchingPostgresStorage(url)
        storage = BatchingPostgresStorage(f"{url}&options=-cdefault_transaction_read_only%3Don", should_autocreate_tables=False)
        with pytest.raises(sa.exc.InternalError) as refused:
            storage.event_log_storage.add_dynamic_partitions("files", ["zq-canary"] * 1000)
    assert "cannot execute INSERT in a read-only transaction" in str(refused.value)
    assert "zq-canary" not in str(refused.value)
    assert "dynamic_partitions" not in str(refused.value)


class _Asked(Exception):
    """A connection asks for its token."""


class _Tokens(PgTokenProvider):
    def _fetch_token(self) -> tuple[str, float]:
        raise _Asked


def test_every_part_asks_the_token_provider_that_is_configured_as_the_stock_class_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagster_postgres.auth.create_token_provider", lambda _auth, _db: _Tokens())
    config = {"postgres_db": NOWHERE, "auth_provider": {"azure_wif": {}}, "should_autocreate_tables": False}
    storage = BatchingPostgresStorage.from_config_value(None, config)
    assert isinstance(storage.run_storage, KeepingPostgresRunStorage)
    assert isinstance(storage.event_log_storage, BatchingPostgresEventLogStorage)
    assert isinstance(storage.schedule_storage, PostgresScheduleStorage)
    for part in (storage.run_storage, storage.event_log_storage, storage.schedule_storage):
        with pytest.raises(_Asked):
            part._engine.connect()


def test_a_password_that_would_be_taken_for_a_host_and_shown_is_refused() -> None:
    with pytest.raises(ConfigError, match="Dagster's storage: its host has an '@'; percent-encode") as refused:
        BatchingPostgresStorage.from_config_value(None, {"postgres_url": "postgresql://bob:secret@canary@127.0.0.1:9/db"})
    assert "canary" not in str(refused.value)
