"""Old runs are deleted for the room they take; nothing that stands goes with them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
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
