"""Pools whose stores take one writer at a time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.execution.plan import active
from dagster._utils.concurrency import ConcurrencySlotStatus

from pipeline.home import Home
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.launcher import sync
from pipeline.orchestration.pools import SharedPoolsStorage, limit_pools, pool_of
from pipeline.orchestration.resources import EXPORTS
from pipeline.stages.settings import ExportSettings
from pipeline_tests.orchestration.another_process import inserts_first
from pipeline_tests.world import World, open_world

SETTINGS = ExportSettings(
    name="default",
    sinks={"lancedb": {}, "files": {"type": "storage_context"}, "own": {"type": "their.own_store:Exporter"}},
)


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """As an installation has it, with our ``dagster.yaml``."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path))
    with open_instance(Home.from_environment()) as opened:
        yield opened


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path, sinks={"storage_context": {}}) as opened, open_instance(Home.from_environment()) as stored:
        opened.instance = stored
        opened.write("a.md", "# A\n\nText.\n")
        yield opened


def limits(instance: dg.DagsterInstance) -> dict[str, int]:
    return {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}


def claim(instance: dg.DagsterInstance, pool: str, run_id: str) -> ConcurrencySlotStatus:
    return instance.event_log_storage.claim_concurrency_slot(pool, run_id, "step").slot_status


def test_a_sinks_pool_is_its_kind() -> None:
    assert [pool_of(SETTINGS, sink) for sink in SETTINGS.sinks] == ["lancedb", "storage_context", "own_store"]


def test_of_two_runs_one_writes_a_storage_context_and_the_other_waits(instance: dg.DagsterInstance) -> None:
    EXPORTS.open(SETTINGS, instance)
    assert limits(instance) == {"storage_context": 1}
    assert claim(instance, "storage_context", "run-1") == ConcurrencySlotStatus.CLAIMED
    assert claim(instance, "storage_context", "run-2") == ConcurrencySlotStatus.BLOCKED
    instance.event_log_storage.free_concurrency_slots_for_run("run-1")
    assert claim(instance, "storage_context", "run-2") == ConcurrencySlotStatus.CLAIMED


def test_a_pool_that_has_taken_the_default_is_limited_too(instance: dg.DagsterInstance) -> None:
    instance.event_log_storage.initialize_concurrency_limit_to_default("storage_context")
    assert limits(instance) == {"storage_context": 2}
    limit_pools(SETTINGS, instance)
    assert limits(instance) == {"storage_context": 1}


def test_a_pool_that_takes_the_default_at_the_same_moment_is_limited_too(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    [index] = tmp_path.rglob("index.db")
    taken = {"concurrency_key": "storage_context", "limit": 2, "using_default_limit": 1}
    with inserts_first(index, "concurrency_limits", [taken]):
        limit_pools(SETTINGS, instance)
    assert limits(instance) == {"storage_context": 1}


def test_a_limit_somebody_has_set_stays(instance: dg.DagsterInstance) -> None:
    instance.event_log_storage.set_concurrency_slots("storage_context", 0)
    limit_pools(SETTINGS, instance)
    assert limits(instance) == {"storage_context": 0}


def test_exports_without_such_a_sink_set_no_limit(instance: dg.DagsterInstance) -> None:
    limit_pools(ExportSettings(name="default", sinks={"lancedb": {}}), instance)
    assert limits(instance) == {}


def test_a_place_given_back_while_another_run_asks_for_it_is_that_runs(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = instance.event_log_storage
    assert isinstance(storage, SharedPoolsStorage)
    storage.set_concurrency_slots("storage_context", 1)
    assert claim(instance, "storage_context", "run-1") == ConcurrencySlotStatus.CLAIMED
    asked: list[bool] = []
    real = type(storage).has_unassigned_slots

    def freed_after_the_answer(self: SharedPoolsStorage, pool: str) -> bool:
        asked.append(real(self, pool))
        if len(asked) == 1:
            storage.free_concurrency_slots_for_run("run-1")
        return asked[-1]

    monkeypatch.setattr(type(storage), "has_unassigned_slots", freed_after_the_answer)
    assert claim(instance, "storage_context", "run-2") == ConcurrencySlotStatus.CLAIMED
    assert asked[0] is False


def test_a_run_that_waits_for_a_place_sleeps_meanwhile_and_hears_signals(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = world.instance.event_log_storage
    storage.set_concurrency_slots("storage_context", 1)
    claim(world.instance, "storage_context", "another")
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    world.refresh()
    monkeypatch.setattr(active, "time", SimpleNamespace(time=time.time, sleep=nap))
    with pytest.raises(KeyboardInterrupt):
        sync(world.settings, world.instance)
    assert len(naps) >= 3
    assert min(naps) > 0
