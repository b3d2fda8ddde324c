"""Pools: how many steps write to one store, or embed for one export, at once.

What belongs here: who is in which pool, and the limits that follow from what is behind it. ``dagster.yaml`` has one limit for all
pools; a single one can only be set in the instance.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

import dagster as dg
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import ConcurrencyLimitsTable
from dagster._utils.concurrency import ConcurrencyClaimStatus
from sqlalchemy.dialects import postgresql, sqlite

from pipeline.orchestration.collisions import again_when_refused
from pipeline.stages.settings import ExportSettings

ONE_WRITER: Final = frozenset({"storage_context"})
"""Pools of sinks that write everything anew: a second writer would wait for the lease of the first, in a place of its own."""

_DEAF_SECONDS = 1.0
"""The longest sleep before signals are looked for."""


def embedding_pool(settings: ExportSettings) -> str:
    """The export's own: how many of its runs use the model at once is a matter of the machine, or of what the endpoint takes."""
    return f"{settings.name}_embedding"


def pool_of(settings: ExportSettings, sink: str) -> str:
    """The sink's kind: its type, or the last part of a plug-in's module."""
    return str(settings.sinks[sink].get("type", sink)).split(":")[0].rsplit(".", 1)[-1]


def limit_pools(settings: ExportSettings, instance: dg.DagsterInstance) -> None:
    """Let one step at a time into the pools of this export that need it, unless somebody has set another limit."""
    storage = instance.event_log_storage
    wanted = ONE_WRITER & {pool_of(settings, sink) for sink in settings.sinks}
    if not wanted or not storage.supports_global_concurrency_limits:
        return
    decided = {pool.name for pool in storage.get_pool_limits() if not pool.from_default}
    for pool in sorted(wanted - decided):
        again_when_refused(partial(storage.set_concurrency_slots, pool, 1))


def _seconds_to_next_claim(waiting: InstanceConcurrencyContext) -> float:
    """How long the in-process executor may sleep while its only steps wait for places in pools.

    Dagster's own takes the smaller of that and 0: the executor asks without a pause, a whole core of it, and hears no signal
    either, for Dagster captures them between steps and looks for them in the other executors alone.
    """
    with dg.raise_execution_interrupts():
        due = min(waiting._pending_timeouts.values(), default=0.0)
    return min(max(due - time.time(), 0.0), _DEAF_SECONDS)


setattr(InstanceConcurrencyContext, "interval_to_next_pending_claim_check", _seconds_to_next_claim)  # noqa: B010 - a method


class SharedPoolsStorage(SqlEventLogStorage):
    """Either of Dagster's event storages, where several runs may meet at a pool."""

    def claim_concurrency_slot(
        self, concurrency_key: str, run_id: str, step_key: str, priority: int | None = None
    ) -> ConcurrencyClaimStatus:
        """A place given back between the stock method's question whether one is free and its entry in the queue wakes nobody:
        whoever has entered and got none asks once more."""
        claim = partial(super().claim_concurrency_slot, concurrency_key, run_id, step_key, priority)
        status = claim()
        if status.is_assigned or not self.has_unassigned_slots(concurrency_key):
            return status
        self.assign_pending_steps([concurrency_key])
        return claim()

    def initialize_concurrency_limit_to_default(self, concurrency_key: str) -> bool:
        """In one statement; a limit that somebody has set stays.

        The stock method tries an INSERT and then goes on. On PostgreSQL its transaction is over by then: of two runs that meet
        at a new pool one failed, and after a change of the default every run did. On SQLite it puts the default over a limit set
        after the run began.
        """
        limit = self._instance.global_op_concurrency_default_limit if self.has_instance else None
        if limit is None:
            return super().initialize_concurrency_limit_to_default(concurrency_key)
        table = ConcurrencyLimitsTable
        with self.index_transaction() as connection:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            row = insert(table).values(concurrency_key=concurrency_key, limit=limit, using_default_limit=True)
            taken = row.on_conflict_do_update(
                index_elements=[table.c.concurrency_key], set_={"limit": limit}, where=table.c.using_default_limit
            )
            if connection.execute(taken.returning(table.c.id)).first():
                self._allocate_concurrency_slots(connection, concurrency_key, limit)
        return True
