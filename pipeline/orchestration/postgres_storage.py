"""Dagster's PostgreSQL storage with whole batches of partition events written in one statement, over kept connections.

Dagster's own batch writer covers materializations, in a statement it compiles anew for every batch. The planned events that
precede them are what this adds, so that partitions in progress and failed partitions stay truthful in the UI at a tenth of
the price. The stock class also connects anew for every statement, hundreds of times a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.event_log.schema import DynamicPartitionsTable
from dagster._serdes import ConfigurableClassData
from dagster._utils.concurrency import ConcurrencyClaimStatus
from dagster_postgres.auth import PgTokenProvider
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.storage import DagsterPostgresStorage
from dagster_postgres.utils import create_pg_engine, get_token_provider_from_config, pg_url_from_config
from sqlalchemy.dialects import postgresql

from pipeline.ledger.engine import check_address
from pipeline.orchestration.event_batches import event_rows, insert_events, last_of_each_asset, split, that_may_have_tags
from pipeline.orchestration.partition_keys import PlainPartitionKeys
from pipeline.orchestration.pools import SharedPoolsStorage
from pipeline.orchestration.remembered_schema import RememberedSchema


def _keeping_engine(postgres_url: str, token_provider: PgTokenProvider | None) -> sa.Engine:
    """As in the webserver: one connection is kept, more are made and dropped as they are needed."""
    kept = {"isolation_level": "AUTOCOMMIT", "pool_size": 1, "max_overflow": -1, "pool_pre_ping": True}
    engine = create_pg_engine(postgres_url, token_provider, hide_parameters=True, **kept)
    sa.event.listen(engine, "handle_error", _leave_out_statement)
    return engine


def _leave_out_statement(context: sa.engine.ExceptionContext) -> None:
    """Dagster prints the errors of batches, which would come with up to a thousand events."""
    if context.sqlalchemy_exception:
        context.sqlalchemy_exception.statement = None


class KeepingPostgresRunStorage(PostgresRunStorage):
    """The stock class over a kept connection."""

    def __init__(self, postgres_url: str, should_autocreate_tables: bool, token_provider: PgTokenProvider | None) -> None:
        super().__init__(postgres_url, should_autocreate_tables, token_provider=token_provider)
        self._engine = _keeping_engine(postgres_url, token_provider)

    def dispose(self) -> None:
        super().dispose()
        self._engine.dispose()


class BatchingPostgresEventLogStorage(RememberedSchema, PlainPartitionKeys, SharedPoolsStorage, PostgresEventLogStorage):
    """One INSERT a batch, where the stock class takes one for every planned event."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: PgTokenProvider | None = None,
    ) -> None:
        super().__init__(postgres_url, should_autocreate_tables, inst_data, token_provider)
        self._engine = _keeping_engine(postgres_url, token_provider)

    def dispose(self) -> None:
        super().dispose()
        self._engine.dispose()

    def claim_concurrency_slot(
        self, concurrency_key: str, run_id: str, step_key: str, priority: int | None = None
    ) -> ConcurrencyClaimStatus:
        """One claim on a pool at a time: the stock method locks a free place on a connection that commits every statement, so
        that two runs may be given the same one."""
        with self.index_transaction() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(f"indexport pool {concurrency_key}"))))
            return super().claim_concurrency_slot(concurrency_key, run_id, step_key, priority)

    def add_dynamic_partitions(self, partitions_def_name: str, partition_keys: Sequence[str]) -> None:
        """The keys as one array: the stock method makes a row of VALUES of each, at several times the price for either side."""
        if not partition_keys:
            return
        self._check_partitions_table()
        c = DynamicPartitionsTable.c
        array = sa.bindparam(None, list(partition_keys), type_=postgresql.ARRAY(c.partition.type))
        rows = sa.select(sa.literal(partitions_def_name), sa.func.unnest(array))
        statement = postgresql.insert(DynamicPartitionsTable).from_select([c.partitions_def_name, c.partition], rows)
        with self.index_connection() as connection:
            connection.execute(statement.on_conflict_do_nothing())

    def store_event_batch(self, events: Sequence[dg.EventLogEntry]) -> None:
        together, alone = split(events)
        if together:
            rows = event_rows(self, together)
            with self._connect() as connection:
                ids = insert_events(connection, rows)
            with self.index_transaction() as connection:
                self._store_asset_event_tags(connection, *that_may_have_tags(together, ids))
                for event, event_id in last_of_each_asset(together, rows, ids):
                    self._store_asset_event(connection, event, event_id)
        for event in alone:
            self.store_event(event)


class BatchingPostgresStorage(DagsterPostgresStorage):
    """Configured like the stock class, over the same tables: either can read what the other wrote."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: PgTokenProvider | None = None,
    ) -> None:
        super().__init__(postgres_url, should_autocreate_tables, inst_data, token_provider)
        self._run_storage = KeepingPostgresRunStorage(postgres_url, should_autocreate_tables, token_provider)
        self._event_log_storage = BatchingPostgresEventLogStorage(
            postgres_url, should_autocreate_tables, token_provider=token_provider
        )

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> BatchingPostgresStorage:
        postgres_url = pg_url_from_config(config_value)
        check_address(sa.make_url(postgres_url), "the address of Dagster's storage")
        return cls(
            postgres_url=postgres_url,
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            inst_data=inst_data,
            token_provider=get_token_provider_from_config(config_value),
        )
