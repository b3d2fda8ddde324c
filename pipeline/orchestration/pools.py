"""Pools: how many steps write to one store at once.

What belongs here: which pool a sink is in, and the limits that follow from what a store is. ``dagster.yaml`` has one limit for
all pools; a single one can only be set in the instance.
"""

from __future__ import annotations

from typing import Final

import dagster as dg

from pipeline.stages.settings import ExportSettings

ONE_WRITER: Final = frozenset({"storage_context"})
"""Pools of sinks that write everything anew: a second writer would wait for the lease of the first, in a place of its own."""


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
        storage.set_concurrency_slots(pool, 1)
