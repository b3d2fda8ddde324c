"""When the sensor asks for a proof of what stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.components.index_export import export_definitions
from pipeline.llama_cloud.api import CloudApi
from pipeline.orchestration import sensors
from pipeline_tests.orchestration.test_sensor import jobs_asked_for, tick, write_five_files
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        write_five_files(opened)
        yield opened


def test_an_unchanged_directory_costs_one_request_and_asks_for_one_proof_of_what_stands(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sync()
    asked: list[str] = []
    real = CloudApi.call

    async def counted(self: CloudApi, *args: Any, doing: str, **options: Any) -> Any:
        asked.append(doing)
        return await real(self, *args, doing=doing, **options)

    monkeypatch.setattr(CloudApi, "call", counted)
    (answer, _), (again, _) = tick(world), tick(world)
    proofs = []
    for one in (answer, again):
        assert isinstance(one, dg.SensorResult)
        assert one.run_requests is not None
        assert [request.job_name for request in one.run_requests] == ["default_verification"]
        proofs.append(one.run_requests[0].run_key)
    assert proofs[0] == proofs[1]
    assert asked == ["reading the index"] * 2


def proofs(answer: dg.SensorResult | dg.SkipReason) -> list[str | None]:
    """The run keys of the proofs a look asks for."""
    assert isinstance(answer, dg.SensorResult)
    return [request.run_key for request in answer.run_requests or () if request.job_name == "default_verification"]


def test_a_proof_is_asked_for_once_a_change_and_a_settled_look_says_what_waits_for_a_person(world: World) -> None:
    world.change(removal={"grace_period_seconds": 0, "max_delete_fraction": 0.2})
    world.sync()
    standing, cursor = tick(world)
    idle, cursor = tick(world, cursor)
    for n in range(3):
        world.remove(f"doc-{n}.md")
    world.refresh()
    waiting, cursor = tick(world, cursor)
    still_waiting, cursor = tick(world, cursor)
    world.export.ledger.update_state(allowed_deletes=3)
    removing, cursor = tick(world, cursor)
    world.sync()
    gone, cursor = tick(world, cursor)
    settled, _ = tick(world, cursor)
    asked = [proofs(answer) for answer in (standing, idle, waiting, still_waiting, removing, gone, settled)]
    assert [len(keys) for keys in asked] == [1, 0, 1, 0, 0, 1, 0]
    assert len({key for keys in asked for key in keys}) == 3
    assert proofs(tick(world)[0]) == asked[5], "a new cursor asks by the same key, which Dagster runs once"
    reasons = [answer.skip_reason for answer in (idle, still_waiting, settled) if isinstance(answer, dg.SensorResult)]
    assert [reason.skip_message for reason in reasons if reason] == [
        "the index is unchanged",
        "the index is unchanged; 3 files awaiting approval to delete",
        "the index is unchanged",
    ]


def test_a_change_of_settings_that_makes_nothing_stale_is_proved_once_too(world: World) -> None:
    world.change(metadata_fields={"n": "integer"})
    world.sync()
    _, cursor = tick(world)
    found = []
    for change in ({"detection": {"max_wait_seconds": 7}}, {"metadata_fields": {"n": "string"}}, {}):
        world.change(**change)
        answer, cursor = tick(world, cursor)
        found.append(jobs_asked_for(answer))
    assert found == [[], ["default_verification"], []]


JOINED = {"lancedb": {}, "vectors": {"type": "lancedb", "table_prefix": "vectors"}}


def steps(world: World, run: dg.DagsterRun) -> set[str | None]:
    """What a run has done."""
    of_type = dg.DagsterEventType.STEP_START
    return {entry.step_key for entry in world.instance.all_logs(run.run_id, of_type=of_type)}


def test_a_run_for_some_of_the_sinks_leaves_the_proof_of_the_whole_sink_alone(world: World) -> None:
    world.ingest()
    world.change(sinks=JOINED)
    answer, _ = tick(world)
    assert isinstance(answer, dg.SensorResult)
    [request] = answer.run_requests or ()
    assert (request.asset_selection, request.asset_check_keys) == ([dg.AssetKey(["default", "vectors"])], [])
    assert world.sync().ok
    [run] = world.runs()
    assert run.asset_selection == {dg.AssetKey(["default", "vectors"])}
    assert steps(world, run) == {"default__vectors"}


def test_nothing_is_proved_while_something_is_to_be_done(world: World) -> None:
    world.sync()
    world.write("doc-0.md", "# Document 0\n\nEdited.\n")
    world.refresh()
    answer, _ = tick(world)
    assert isinstance(answer, dg.SensorResult)
    assert answer.run_requests is not None
    assert [request.job_name for request in answer.run_requests] == ["default_ingest"]


def test_a_look_that_has_listed_for_long_leaves_it_to_the_next_to_tell_dagster_what_stands_and_to_prove_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "_LONG_SECONDS", 0.0)
    world.sync()
    chunks = dg.AssetKey(["default", "chunks"])
    world.instance.wipe_assets([chunks])
    world.export.ledger.update_state(change_key="another")
    found = []
    cursor: str | None = json.dumps({"restoring": False})
    for _ in range(3):
        answer, cursor = tick(world, cursor)
        left = json.loads(cursor or "{}")
        told = len(world.instance.get_materialized_partitions(chunks))
        found.append((told, left["restoring"], len(proofs(answer))))
    assert found == [(0, True, 0), (5, False, 1), (5, False, 0)]


def test_no_proof_is_asked_for_while_a_persons_runs_are_unfinished(world: World) -> None:
    world.sync()
    ingest = export_definitions(world.settings).resolve_job_def("default_ingest")
    tags = {"dagster/partition": world.file_id("doc-0.md"), "dagster/backfill": "theirs"}
    run = world.instance.create_run_for_job(ingest, tags=tags, status=dg.DagsterRunStatus.STARTING)
    first, cursor = tick(world)
    second, cursor = tick(world, cursor)
    assert [*proofs(first), *proofs(second)] == []
    world.instance.report_run_canceled(run)
    assert len(proofs(tick(world, cursor)[0])) == 1


def test_a_proof_whose_run_was_killed_is_asked_for_again_three_times_in_all(world: World) -> None:
    world.sync()
    job = export_definitions(world.settings).resolve_job_def("default_verification")
    keys, cursor = [], None
    for _ in range(5):
        answer, cursor = tick(world, cursor)
        assert isinstance(answer, dg.SensorResult)
        for request in answer.run_requests or []:
            assert request.run_key is not None
            keys.append(request.run_key)
            run = world.instance.create_run_for_job(job, tags={**request.tags, "dagster/run_key": request.run_key})
            world.instance.report_run_failed(run, "killed")
    assert len(keys) == len(set(keys)) == 3
