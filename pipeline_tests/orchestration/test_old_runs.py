"""Old runs are deleted for the room they take; nothing that stands goes with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.utils import make_new_run_id

from benchmarks.orchestration import use_postgres
from pipeline.lake.lake import DATASETS
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.old_runs import delete_old_runs
from pipeline.orchestration.partitions import EXPORT_TAG, JOBS
from pipeline_tests.command_line import invoke
from pipeline_tests.postgres import fresh_database, postgres, sqlalchemy_url
from pipeline_tests.world import World, home_of, open_world


@pytest.fixture(params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with open_world(tmp_path) as ephemeral:
        if request.param == "postgres":
            server = request.getfixturevalue("server")
            use_postgres(home_of(tmp_path).root)
            monkeypatch.setenv("DAGSTER_PG_URL", sqlalchemy_url(fresh_database(server)))
        with open_instance(home_of(tmp_path)) as instance:
            world = World(tmp_path, ephemeral.cloud, instance, ephemeral.settings)
            for n in range(3):
                world.write(f"doc-{n}.md", f"# Document {n}\n\nThis is the body of document {n}.\n")
            assert world.sync().ok
            yield world


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as running:
        yield running


def delete_runs(world: World, before: datetime | None = None) -> int:
    return delete_old_runs(world.instance, world.settings, before=before or datetime.now(UTC))


def materialized(world: World) -> dict[str, set[str]]:
    """The partitions of each asset whose materialization can be looked at."""
    return {
        asset: world.instance.get_materialized_partitions(dg.AssetKey(["default", asset]))
        for asset in (*DATASETS, *world.settings.sinks)
    }


def test_they_go_with_their_logs_and_events_and_every_file_stays_shown(world: World) -> None:
    world.write("doc-0.md", "# Document 0\n\nEdited.\n")
    assert world.sync().ok
    old = [run.run_id for run in world.runs()]
    logs = home_of(world.root).root / "dagster" / "storage"
    assert {*old} <= {folder.name for folder in logs.iterdir()}
    before = materialized(world)
    assert delete_runs(world) == len(old) == 2
    assert world.runs() == []
    assert [event for run_id in old for event in world.instance.all_logs(run_id)] == []
    assert {*old}.isdisjoint(folder.name for folder in logs.iterdir())
    assert materialized(world) == before
    world.assert_no_partition_is_behind()


def test_afterwards_nothing_is_done_again_and_new_files_are_shown_beside_the_old(world: World) -> None:
    delete_runs(world)
    assert world.sync().runs == 0
    world.write("new.md", "# New\n\nA new file.\n")
    report = world.sync()
    assert report.ingested == [world.file_id("new.md")]
    world.assert_no_partition_is_behind()
    assert delete_runs(world) == 1
    world.assert_no_partition_is_behind()


def runless(world: World) -> dict[str, Counter[str]]:
    """How many events without a run each asset has wherever they are stored, by kind; checks are of none there."""
    storage = world.instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    c = SqlEventLogStorageTable.c
    found: dict[str, Counter[str]] = {}
    for name, connect in (("index", storage.index_connection), ("shard", lambda: storage.run_connection(""))):
        with connect() as connection:
            rows = connection.execute(sa.select(c.asset_key, c.dagster_event_type).where(c.run_id == "")).all()
        found[name] = Counter(f"{row.asset_key or ''} {row.dagster_event_type}" for row in rows)
    return found


def evaluations(world: World, asset: str, check: str) -> list[Any]:
    key = dg.AssetCheckKey(dg.AssetKey(["default", asset]), check)
    records = world.instance.event_log_storage.get_asset_check_execution_history(key, limit=100)
    return [record.evaluation.metadata["n"].value for record in records if record.evaluation]


def test_what_was_told_outside_of_runs_goes_once_it_was_told_anew_and_the_newest_stays(world: World) -> None:
    payloads, directory = dg.AssetKey(["default", "parsed_payloads"]), dg.AssetKey(["default", "directory_files"])
    others = dg.AssetKey(["other", "parsed_payloads"])
    seen = []
    for n in range(3):
        world.write("doc-0.md", f"# Document 0\n\nEdit {n}.\n")
        assert world.sync().ok
        for asset in (payloads, others):
            for check in ("first", "second"):
                told = dg.AssetCheckEvaluation(asset_key=asset, check_name=check, passed=True, metadata={"n": n})
                world.instance.report_runless_asset_event(told)
        world.instance.report_runless_asset_event(dg.AssetObservation(directory, metadata={"n": n}))
        world.instance.report_runless_asset_event(dg.AssetObservation(others, metadata={"n": n}))
        delete_runs(world)
        assert world.runs() == []
        world.assert_no_partition_is_behind()
        seen.append(runless(world))
    assert [evaluations(world, "parsed_payloads", check) for check in ("first", "second")] == [[2], [2]]
    newest = world.instance.fetch_observations(directory, limit=9).records
    assert [record.asset_observation.metadata["n"].value for record in newest if record.asset_observation] == [2]
    of_others = f"{others.to_string()} ASSET_OBSERVATION"
    assert [found["index"].pop(of_others) for found in seen] == [1, 2, 3]
    # Four checks told once, with the two that a sync tells, and the two of the other export as often as they were told.
    assert [found["index"].pop(" ASSET_CHECK_EVALUATION") for found in seen] == [4 + 2, 4 + 4, 4 + 6]
    assert seen[0]["index"] == seen[2]["index"]
    assert sum(seen[2]["index"].values()) == 1 + 3 * len(materialized(world))
    assert sum(seen[2]["shard"].values()) == sum(runless(world)["index"].values())


def test_what_was_told_outside_of_runs_since_then_stays(world: World) -> None:
    moment = datetime.now(UTC)
    directory = dg.AssetKey(["default", "directory_files"])
    for n in range(2):
        world.instance.report_runless_asset_event(dg.AssetObservation(directory, metadata={"n": n}))
    delete_runs(world, moment)
    assert len(world.instance.fetch_observations(directory, limit=9).records) == 2


def test_younger_ones_unfinished_ones_and_those_of_others_stay(world: World) -> None:
    def run(status: dg.DagsterRunStatus, export: str = "default", assets: frozenset[dg.AssetKey] | None = None) -> str:
        tags = {} if assets else {EXPORT_TAG: export}
        name = "__ASSET_JOB" if assets else f"{export}_ingest"
        made = dg.DagsterRun(name, make_new_run_id(), status=status, tags=tags, asset_selection=assets)
        return world.instance.add_run(made).run_id

    (first,) = [run.run_id for run in world.runs()]
    done = dg.DagsterRunStatus.SUCCESS
    both = frozenset({dg.AssetKey(["default", "chunks"]), dg.AssetKey(["other", "chunks"])})
    kept = {
        run(dg.DagsterRunStatus.STARTED),
        run(dg.DagsterRunStatus.CANCELING),
        run(done, "other"),
        run(done, assets=both),
    }
    by_hand = run(done, assets=frozenset({dg.AssetKey(["default", "chunks"])}))
    moment = datetime.now(UTC)
    younger = run(done)
    assert delete_runs(world, moment) == len({first, by_hand})
    assert {run.run_id for run in world.runs()} == {*kept, younger}


def test_those_that_people_launch_go_too(world: World) -> None:
    for job in JOBS:
        made = dg.DagsterRun(f"default_{job}", make_new_run_id(), status=dg.DagsterRunStatus.SUCCESS)
        world.instance.add_run(made)
    assert delete_runs(world) == 1 + len(JOBS)
    assert world.runs() == []
    world.assert_no_partition_is_behind()


def test_one_that_is_broken_off_is_finished_by_the_next(world: World) -> None:
    world.write("doc-0.md", "# Document 0\n\nEdited.\n")
    assert world.sync().ok

    def break_off(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        delete_old_runs(world.instance, world.settings, before=datetime.now(UTC), progress=break_off)
    assert len(world.runs()) == 1
    assert delete_runs(world) == 1
    world.assert_no_partition_is_behind()


def test_the_command_tells_how_many_and_gives_their_room_back(world: World) -> None:
    runs = home_of(world.root).root / "dagster" / "history" / "runs"
    own = [runs / f"{run.run_id}.db" for run in world.runs()]
    on_sqlite = runs.exists()
    assert all(file.exists() for file in own) == on_sqlite
    assert invoke("prune", "--older-than-days", "1").strip() == "0 runs deleted"
    assert all(file.exists() for file in own) == on_sqlite
    assert invoke("prune", "--older-than-days", "0").strip() == "1 runs deleted"
    assert not any(file.exists() for file in own)
    world.assert_no_partition_is_behind()
