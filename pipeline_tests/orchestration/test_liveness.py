"""Runs whose process is gone are over; those of a living process are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from pipeline.orchestration.launcher import sync
from pipeline.orchestration.liveness import end_dead_runs, process_mark
from pipeline.orchestration.partitions import EXPORT_TAG, PROCESS_TAG, WAVE_TAG, is_quiet
from pipeline_tests.soak.crash import Killed, dies_at_write
from pipeline_tests.world import open_world

HOLDER = """
import os, signal
from pipeline.orchestration.liveness import process_mark
with process_mark() as mark:
    print(mark, flush=True)
    signal.pause()
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)


def started(instance: dg.DagsterInstance, mark: str) -> str:
    tags = {PROCESS_TAG: mark, EXPORT_TAG: "default", WAVE_TAG: "wave"}
    run = dg.DagsterRun(job_name="any", status=dg.DagsterRunStatus.STARTED, tags=tags)
    instance.add_run(run)
    return run.run_id


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_the_run_of_a_killed_process_is_failed_and_that_of_a_living_one_is_left() -> None:
    with dg.DagsterInstance.ephemeral() as instance, process_mark() as own:
        with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            mark = process.stdout.readline().strip()
            theirs, ours = started(instance, mark), started(instance, own)
            assert end_dead_runs(instance, "default") == set()
            assert status(instance, theirs) is dg.DagsterRunStatus.STARTED
            process.kill()
        assert end_dead_runs(instance, "other") == set()
        assert end_dead_runs(instance, "default") == {"wave"}
        assert status(instance, theirs) is dg.DagsterRunStatus.FAILURE
        assert status(instance, ours) is dg.DagsterRunStatus.STARTED


def test_a_mark_of_another_machine_says_nothing() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run_id = started(instance, "0" * 32)
        assert end_dead_runs(instance, "default") == set()
        assert status(instance, run_id) is dg.DagsterRunStatus.STARTED


def test_nothing_is_left_of_a_process_that_ends_in_order(tmp_path: Path) -> None:
    with process_mark():
        assert len(list((tmp_path / "home/dagster/processes").iterdir())) == 1
    assert list((tmp_path / "home/dagster/processes").iterdir()) == []


@pytest.mark.parametrize("after", [20, 34])
def test_a_killed_sync_holds_up_neither_its_files_nor_its_partitions_nor_the_quiet_moment(tmp_path: Path, after: int) -> None:
    with open_world(tmp_path) as world:
        world.write("a.md", "# A\n\nText.\n")
        world.refresh()
        with dies_at_write(after), pytest.raises(Killed):
            sync(world.settings, world.instance)
        assert [run.status for run in world.runs()] == [dg.DagsterRunStatus.STARTED]
        assert world.sync().ok
        assert {row.status for row in world.export.ledger.files().values()} == {"done"}
        for asset in ("parsed_payloads", "chunks", "embeddings", "lancedb"):
            assert world.instance.get_materialized_partitions(dg.AssetKey(["default", asset])) == {world.file_id("a.md")}
        assert is_quiet(world.instance)
        world.assert_settled()
