"""Waves on a real ephemeral instance: what is handed out, and what is never touched while runs are under way."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.tags import HIDDEN_TAG_PREFIX
from dagster._core.test_utils import create_run_for_test

from pipeline.orchestration import waves
from pipeline.orchestration.partitions import (
    EXPORT_TAG,
    FILES_TAG,
    HEARD_TAG,
    LANE_TAG,
    LAUNCHER_TAG,
    NOTED_TAG,
    PROCESS_TAG,
    RANGE_END,
    RANGE_START,
    WAVE_TAG,
    key_order,
)
from pipeline.orchestration.sensors import look
from pipeline.orchestration.waves import Dispatch, dispatch
from pipeline_tests.world import World, open_world

FILES = 16
MAX_RANGES = 3


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(waves, "MAX_RANGES", MAX_RANGES)
    with open_world(tmp_path, detection={"files_per_run": 10}) as opened:
        for n in range(FILES):
            opened.write(f"doc-{n:02d}.md", f"# Document {n}\n\nText {n}.\n")
        yield opened


def decide(world: World, *, waiting_since: float | None = None, restore: bool = False) -> Dispatch:
    world.refresh()
    detection = asyncio.run(look(world.export))
    scope = (detection.index.project_id, detection.index.export_config_id)
    return dispatch(world.instance, world.export, scope, waiting_since=waiting_since, restore=restore)


def test_new_files_go_out_as_contiguous_ranges_of_bounded_size(world: World) -> None:
    decided = decide(world)
    assert [len(spec.keys) for spec in decided.runs] == [10, 6]
    order = key_order(world.instance, "default")
    for spec in decided.runs:
        tags = spec.tags("default")
        start, end = order.index(tags[RANGE_START]), order.index(tags[RANGE_END])
        assert tuple(order[start : end + 1]) == spec.keys


@pytest.mark.parametrize("restore", [False, True], ids=["a look", "one that tells Dagster of all"])
def test_new_files_go_out_in_the_order_in_which_llamacloud_has_updated_them(world: World, restore: bool) -> None:
    world.refresh()
    for n in range(0, FILES, 3):
        world.write(f"doc-{n:02d}.md", f"# Document {n}\n\nEdited before it was ever exported.\n")
    decided = decide(world, restore=restore)
    rows = world.export.ledger.files()
    carried = [rows[key] for spec in decided.runs for key in spec.keys]
    assert carried == sorted(rows.values(), key=lambda row: (row.updated_at, row.file_id))


@pytest.mark.parametrize(
    "tag", [WAVE_TAG, ".dagster/indexport/wave", "indexport/wave"], ids=["ours", "of the version before", "of an older one"]
)
def test_a_file_is_not_asked_for_again_while_a_run_carries_its_wave(world: World, tag: str) -> None:
    first = decide(world)
    wave = first.runs[0].wave
    carrying = create_run_for_test(world.instance, status=dg.DagsterRunStatus.STARTED, tags={EXPORT_TAG: "default", tag: wave})
    again = decide(world)
    assert again.runs == ()
    assert len(again.needs.in_flight) == FILES
    world.instance.delete_run(carrying.run_id)
    healed = decide(world)
    assert sum(len(spec.keys) for spec in healed.runs) == FILES


def test_the_runs_page_shows_of_a_runs_tags_those_that_tell_people_something(world: World) -> None:
    world.sync()
    for run in world.runs():
        ours = {tag for tag in run.tags if "indexport" in tag}
        shown = {tag for tag in ours if not tag.startswith(HIDDEN_TAG_PREFIX)}
        assert shown == {EXPORT_TAG, LANE_TAG, FILES_TAG}
        assert ours > shown


def test_dagster_has_nothing_against_the_names_of_a_runs_tags(world: World) -> None:
    tags = {**decide(world).runs[0].tags("default"), PROCESS_TAG: "", LAUNCHER_TAG: "", HEARD_TAG: "", f"{NOTED_TAG}.default": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dg.RunRequest(tags=tags)


def test_a_file_that_stands_is_done_once_no_run_carries_its_wave_and_not_before(world: World) -> None:
    world.sync()
    ledger = world.export.ledger
    stands = sorted(ledger.files())[0]
    ledger.request([stands], "wave")
    tags = {EXPORT_TAG: "default", WAVE_TAG: "wave"}
    launched = create_run_for_test(world.instance, status=dg.DagsterRunStatus.NOT_STARTED, tags=tags)
    assert decide(world).needs.in_flight == [stands]
    assert ledger.files()[stands].status == "requested"
    world.instance.delete_run(launched.run_id)
    assert decide(world).settled
    assert ledger.files()[stands].status == "done"


def edit(world: World, chosen: list[str]) -> None:
    rows = world.export.ledger.files()
    for file_id in chosen:
        name = rows[file_id].display_name
        world.write(name, f"# {name}\n\nEdited.\n")


def scatter(world: World) -> list[str]:
    """Edit every third file: more ranges than are worth a run each."""
    world.sync()
    edit(world, chosen := key_order(world.instance, "default")[::3])
    return chosen


def test_scattered_changes_are_moved_together_in_a_quiet_moment(world: World) -> None:
    changed = scatter(world)
    assert len(changed) > MAX_RANGES
    decided = decide(world)
    assert len(decided.runs) == 1
    assert set(decided.runs[0].keys) == set(changed)
    assert set(key_order(world.instance, "default")[-len(changed) :]) == set(changed)
    assert len(key_order(world.instance, "default")) == FILES


def test_scattered_files_that_a_sink_lacks_are_moved_together_too(world: World) -> None:
    world.change(sinks={name: {"type": "lancedb", "uri": str(world.root / name)} for name in ("first", "second")})
    world.sync()
    order = key_order(world.instance, "default")
    lacking = {"first": order[0::4], "second": order[2::4]}
    for sink, files in lacking.items():
        world.export.ledger.register.let_go(sink, files)
    decided = decide(world)
    assert {spec.assets: set(spec.keys) for spec in decided.runs} == {(sink,): set(files) for sink, files in lacking.items()}
    assert len(decided.runs) == 2
    order = key_order(world.instance, "default")
    for spec in decided.runs:
        start, end = order.index(spec.keys[0]), order.index(spec.keys[-1])
        assert tuple(order[start : end + 1]) == spec.keys
    assert world.sync().ok


@pytest.mark.parametrize("lacking", [True, False])
def test_a_look_that_dies_while_it_moves_keys_is_healed_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch, lacking: bool
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    changed = scatter(world)
    if lacking:
        world.sync()
        changed = key_order(world.instance, "default")[::3]
        world.export.ledger.register.let_go("lancedb", changed)
    with monkeypatch.context() as patched:
        patched.setattr(waves, "add_keys", die)
        with pytest.raises(KeyboardInterrupt):
            decide(world)
    assert len(key_order(world.instance, "default")) == FILES - len(changed)
    [spec] = decide(world).runs
    assert set(spec.keys) == set(changed)
    assert len(key_order(world.instance, "default")) == FILES


def test_a_sink_that_lacks_nearly_all_files_gets_them_as_they_lie(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waves, "_KEYS_A_RUN", 1)
    world.change(detection={"files_per_run": 3})
    world.sync()
    before = key_order(world.instance, "default")
    world.export.ledger.register.let_go("lancedb", [key for key in before if key not in before[2:13:5]])
    assert len(decide(world).runs) > -(-13 // 3)
    assert key_order(world.instance, "default") == before


@pytest.mark.parametrize("full", [0, 1])
def test_while_a_range_is_under_way_only_full_ranges_go_out_and_the_order_is_left_alone(world: World, full: int) -> None:
    world.sync()
    before = key_order(world.instance, "default")
    world.change(detection={"files_per_run": 3})
    edit(world, [*before[0:8:2], *before[10 : 12 + full]])
    create_run_for_test(
        world.instance, job_name="default_ingest", status=dg.DagsterRunStatus.STARTED, tags={RANGE_START: "x", RANGE_END: "y"}
    )
    decided = decide(world)
    assert [spec.keys for spec in decided.runs] == [tuple(before[10:13])] * full
    assert decided.waiting_since is not None
    assert key_order(world.instance, "default") == before


def test_the_key_of_a_removed_file_stays_while_a_range_is_under_way(world: World) -> None:
    world.sync()
    gone = world.file_id("doc-00.md")
    world.remove("doc-00.md")
    world.export.ledger.update_files([{"file_id": gone, "status": "removed"}])
    tags = {RANGE_START: "x", RANGE_END: "y"}
    under_way = create_run_for_test(world.instance, job_name="default_ingest", status=dg.DagsterRunStatus.STARTED, tags=tags)
    decide(world)
    assert gone in key_order(world.instance, "default")
    world.instance.report_run_canceled(under_way)
    decide(world)
    assert gone not in key_order(world.instance, "default")


def test_after_the_longest_wait_small_ranges_go_out_as_they_lie(world: World) -> None:
    scatter(world)
    create_run_for_test(
        world.instance, job_name="default_ingest", status=dg.DagsterRunStatus.STARTED, tags={RANGE_START: "x", RANGE_END: "y"}
    )
    before = key_order(world.instance, "default")
    waited = time.time() - world.settings.detection.max_wait_seconds - 1
    decided = decide(world, waiting_since=waited)
    assert len(decided.runs) == MAX_RANGES
    assert key_order(world.instance, "default") == before


def test_a_few_scattered_changes_go_out_without_reordering(world: World) -> None:
    world.sync()
    before = key_order(world.instance, "default")
    edit(world, [before[3], before[12]])
    decided = decide(world)
    assert [len(spec.keys) for spec in decided.runs] == [1, 1]
    assert key_order(world.instance, "default") == before


def test_a_run_whose_range_has_changed_under_it_fails_and_materializes_nothing(world: World) -> None:
    world.sync()
    spec_keys = key_order(world.instance, "default")[:3]
    from pipeline.components.index_export import export_definitions

    job = export_definitions(world.settings).resolve_job_def("default_ingest")
    result = job.execute_in_process(
        instance=world.instance,
        tags={RANGE_START: spec_keys[0], RANGE_END: spec_keys[-1], "indexport/files": "5"},
        raise_on_error=False,
    )
    assert not result.success
    assert result.get_asset_materialization_events() == []


def test_a_busy_export_holds_up_no_other_on_the_instance_and_its_keys_stay_where_they_are(world: World) -> None:
    changed = set(scatter(world))
    gone = min(changed)
    world.remove(world.export.ledger.files()[gone].display_name)
    world.instance.add_dynamic_partitions("busy_files", ["x", "y", "z"])
    tags = {EXPORT_TAG: "busy", RANGE_START: "x", RANGE_END: "z"}
    create_run_for_test(world.instance, status=dg.DagsterRunStatus.STARTED, tags=tags)
    report = world.sync()
    assert report.ok
    assert report.removed == [gone]
    order = key_order(world.instance, "default")
    assert gone not in order
    assert set(order[1 - len(changed) :]) == changed - {gone}
    assert key_order(world.instance, "busy") == ["x", "y", "z"]
    world.assert_settled()


def test_two_exports_that_work_at_once_keep_their_own_keys_and_ranges(world: World) -> None:
    world.sync()
    second = World(world.root, world.cloud, world.instance, world.settings.model_copy(update={"name": "second"}))
    assert second.sync().ok
    scatter(world)
    decided, other = decide(world), decide(second)
    for name, dispatched in (("default", decided), ("second", other)):
        order = key_order(world.instance, name)
        for spec in dispatched.runs:
            tags = spec.tags(name)
            start, end = order.index(tags[RANGE_START]), order.index(tags[RANGE_END])
            assert tuple(order[start : end + 1]) == spec.keys
    assert world.sync().ok
    assert second.sync().ok
    world.assert_settled()
    second.assert_settled()
