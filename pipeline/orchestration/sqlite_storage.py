"""Dagster's SQLite storage with whole batches of partition events written in one transaction, over engines that are kept, made
by one process at a time.

The stock classes make an engine for every statement, which compiles the statement anew: a third of what a run of one small file
costs. They also look whether a database is there and make it when it is not; two processes that do so at once may each record
the version of its schema, and then none can open it again.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.schedules import SqliteScheduleStorage
from dagster._core.storage.sqlite import create_db_conn_string
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy import Connection, Engine, create_engine, make_url
from sqlalchemy.pool import NullPool

from pipeline.errors import ConfigError
from pipeline.files import hold
from pipeline.orchestration.event_batches import event_rows, insert_events, last_of_each_asset, split, that_may_have_tags
from pipeline.orchestration.partition_keys import PlainPartitionKeys
from pipeline.orchestration.pools import SharedPoolsStorage
from pipeline.orchestration.remembered_schema import RememberedSchema

_BUSY_SECONDS = 30
"""How long a statement waits for another process's; the run storage of the stock class gives up after five."""

_FOUND_MADE: set[Path] = set()
"""Folders whose databases this process has made or found in place."""

_SHARDS = 16
"""Run databases whose engines are kept: those of the runs at work."""


def _kept_engine(url: str) -> Engine:
    """Connections are made and closed as in the stock classes: a database stays a file that may be deleted, copied or forked
    over at any time. What is kept are the compiled statements."""
    return create_engine(url, poolclass=NullPool, connect_args={"timeout": _BUSY_SECONDS})


class KeepingSqliteRunStorage(SqliteRunStorage):
    """The stock class over a kept engine."""

    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(conn_string, inst_data)
        self._engine = _kept_engine(conn_string)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._engine.begin() as connection:
            yield connection


class BatchingSqliteEventLogStorage(RememberedSchema, PlainPartitionKeys, SharedPoolsStorage, SqliteEventLogStorage):
    """Two transactions a batch (the run's shard and the index), where the stock class takes two an event."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engine_of_shard = lru_cache(maxsize=_SHARDS)(lambda shard: _kept_engine(self.conn_string_for_shard(shard)))
        super().__init__(base_dir, inst_data)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock:
            engine = self._engine_of_shard(shard)
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
            with engine.begin() as connection:
                yield connection

    def _initdb(self, engine: Engine, for_index_shard: bool = False) -> None:
        with _in_turn(Path(self._base_dir)):
            super()._initdb(engine, for_index_shard)

    def delete_events(self, run_id: str) -> None:
        """The run's own database goes too: the stock class leaves it, as large as it was."""
        super().delete_events(run_id)
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(self.path_for_shard(run_id) + suffix).unlink(missing_ok=True)
        self._initialized_dbs.discard(run_id)

    def store_event_batch(self, events: Sequence[dg.EventLogEntry]) -> None:
        together, alone = split(events)
        rows = event_rows(self, together)
        runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            runs[row["run_id"]].append(row)
        for run_id, of_run in runs.items():
            with self.run_connection(run_id) as connection:
                connection.execute(SqlEventLogStorageTable.insert(), of_run)
        if together:
            with self.index_transaction() as connection:
                ids = insert_events(connection, rows)
                self._store_asset_event_tags(connection, *that_may_have_tags(together, ids))
                for event, event_id in last_of_each_asset(together, rows, ids):
                    self._store_asset_event(connection, event, event_id)
        for event in alone:
            self.store_event(event)


class BatchingSqliteStorage(DagsterSqliteStorage):
    """Configured like the stock class, in the same files: either can read what the other wrote."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        """Raises ConfigError for a folder that Dagster, which writes its path into URLs as it is, would take for another."""
        url = create_db_conn_string(base_dir, "runs")
        if make_url(url).database != url.removeprefix("sqlite:///"):
            raise ConfigError(
                f"Dagster cannot keep its databases in {base_dir}: set DAGSTER_HOME, or INDEXPORT_HOME, to a path without ? and %"
            )
        folder = Path(base_dir).absolute()
        history, schedules = folder / "history", folder / "schedules"
        if folder in _FOUND_MADE and (history / "runs.db").exists() and (schedules / "schedules.db").exists():
            # To look again reads all of Alembic's scripts, ten times as long as the rest takes, and what it keeps of them stays
            # until the process ends; Dagster opens an instance for every look of a sensor.
            self.base_dir, self._inst_data = base_dir, inst_data
            self._schedule_storage = SqliteScheduleStorage(create_db_conn_string(str(schedules), "schedules"))
        else:
            with _in_turn(folder):
                super().__init__(base_dir, inst_data)
            _FOUND_MADE.add(folder)
        self._run_storage = KeepingSqliteRunStorage(create_db_conn_string(str(history), "runs"))
        self._event_log_storage = BatchingSqliteEventLogStorage(f"{history / 'runs'}/")

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> BatchingSqliteStorage:
        return cls.from_local(inst_data=inst_data, **config_value)


@contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """Of the processes that are in this block for one folder all but one wait."""
    folder.mkdir(parents=True, exist_ok=True)
    making = folder / ".making"
    descriptor = os.open(making, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        hold(descriptor, making)
        yield
    finally:
        os.close(descriptor)
