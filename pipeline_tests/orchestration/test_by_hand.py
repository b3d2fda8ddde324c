"""Runs that people launch in the UI, with what only people give them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.components.index_export import export_definitions
from pipeline.orchestration.jobs import removal_config, removal_tags
from pipeline.orchestration.launcher import failures, sync
from pipeline.orchestration.liveness import command_run
from pipeline.orchestration.partitions import RANGE_END, RANGE_START, add_keys
from pipeline.stages.detect import detect
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """One file that stands everywhere."""
    with open_world(tmp_path) as opened:
        opened.write("a.md", "# A\n\nText.\n")
        assert opened.sync().ok
        yield opened


def launch(world: World, job: str, **options: Any) -> dg.ExecuteInProcessResult:
    definition = export_definitions(world.settings).resolve_job_def(f"default_{job}")
    return definition.execute_in_process(instance=world.instance, raise_on_error=False, **options)


def listed(world: World, name: str) -> str:
    """The id of a new file that the ledger knows and no run has taken."""
    world.write(name, f"# {name}\n\nOther.\n")
    world.refresh()
    asyncio.run(detect(world.export, complete=True))
    add_keys(world.instance, "default", [world.file_id(name)])
    return world.file_id(name)


def materialized(result: dg.ExecuteInProcessResult) -> list[str]:
    return [str(event.asset_key and event.asset_key.path[-1]) for event in result.get_asset_materialization_events()]


def observed(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    event = result.get_asset_observation_events()[0]
    return {name: value.value for name, value in event.asset_observation_data.asset_observation.metadata.items()}


def test_a_key_that_is_no_file_of_the_directory_fails_its_run(world: World) -> None:
    add_keys(world.instance, "default", ["typed-by-hand"])
    result = launch(world, "ingest", partition_key="typed-by-hand")
    assert failures(result) == ["typed-by-hand: no file of this export's directory"]
    assert materialized(result) == []


def test_the_page_of_a_partition_names_its_file(world: World) -> None:
    for name in ("b.md", "c.md"):
        world.write(name, f"# {name}\n\nOther.\n")
    assert world.sync().ok
    names = {file_id: row.display_name for file_id, row in world.export.ledger.files().items()}
    assert sorted(names.values()) == ["a.md", "b.md", "c.md"]
    for asset in ("parsed_payloads", "chunks", "embeddings", "lancedb"):
        assert named(world, asset) == names
    with command_run("repair") as other:
        ids = sorted(world.file_id(name) for name in ("b.md", "c.md"))
        world.export.claim(ids[:1], other)
        assert launch(world, "ingest", tags={RANGE_START: ids[0], RANGE_END: ids[1]}).success
    assert named(world, "lancedb") == names


def named(world: World, asset: str) -> dict[str | None, Any]:
    """What the newest materialization of each partition says of its file."""
    records = world.instance.fetch_materializations(dg.AssetKey(["default", asset]), limit=20).records
    made = [record.asset_materialization for record in reversed(records) if record.asset_materialization]
    return {each.partition: each.metadata["file"].value for each in made}


def test_an_ingest_without_files_says_that_it_lacks_them(world: World) -> None:
    result = launch(world, "ingest")
    assert failures(result) == ["this run carries no files: choose partitions of the export's assets to materialize"]


@pytest.mark.parametrize(
    ("job", "op", "config", "field"),
    [
        ("approve_removals", "default_approve", {"count": -5}, "count"),
        ("repair", "default_repair_sinks", {"allow_deletes": -3}, "allow_deletes"),
    ],
)
def test_a_count_of_deletes_below_0_is_refused_by_name(
    world: World, job: str, op: str, config: dict[str, int], field: str
) -> None:
    result = launch(world, job, run_config={"ops": {op: {"config": config}}})
    (failed,) = result.filter_events(lambda event: event.is_step_failure)
    error = failed.step_failure_data.error
    assert error is not None
    assert field in str(error)
    assert "greater than or equal to 0" in str(error)
    assert world.export.ledger.state().allowed_deletes == 0


def test_an_approval_shows_since_when_each_file_is_missing(world: World) -> None:
    world.export.ledger.update_files([{"file_id": world.file_id("a.md"), "missing_since": 86_400.0}])
    records, _ = observed(launch(world, "approve_removals", run_config={"ops": {"default_approve": {"config": {"count": 1}}}}))[
        "files"
    ]
    assert [record.data["missing_since"] for record in records] == ["1970-01-02 00:00:00Z"]


def test_a_repair_of_a_sink_that_is_none_says_which_there_are(world: World) -> None:
    result = launch(world, "repair", run_config={"ops": {"default_repair_sinks": {"config": {"sink": "lancdb"}}}})
    (failed,) = result.filter_events(lambda event: event.is_step_failure)
    assert failed.step_failure_data.user_failure_data is not None
    assert failures(result) == ["export 'default' has no sink 'lancdb'; it has: lancedb"]


def test_a_run_of_which_no_file_can_be_worked_on_fails_and_names_the_first_of_them(world: World) -> None:
    add_keys(world.instance, "default", [f"typed-{n}" for n in range(5)])
    result = launch(world, "ingest", tags={RANGE_START: "typed-0", RANGE_END: "typed-4"})
    unknown = "no file of this export's directory"
    told = "; ".join(f"typed-{n}: {unknown}" for n in range(3))
    assert failures(result) == [f"none of these 5 files can be worked on: {told}; and 2 more"]
    assert materialized(result) == []
    assert world.sync().ok


def test_a_stage_alone_of_several_files_that_all_lack_the_one_before_fails(world: World) -> None:
    tags = {RANGE_START: listed(world, "b.md"), RANGE_END: listed(world, "c.md")}
    result = launch(world, "ingest", tags=tags, asset_selection=[dg.AssetKey(["default", "chunks"])])
    assert materialized(result) == []
    assert ["b.md (" in reason and "payload" in reason for reason in failures(result)] == [True]
    assert world.sync().ok
    world.assert_settled()


def test_a_run_whose_files_another_one_holds_is_no_failure(world: World) -> None:
    world.write("b.md", "# B\n\nOther.\n")
    assert world.sync().ok
    ids = [world.file_id("a.md"), world.file_id("b.md")]
    with command_run("repair") as other:
        assert len(world.export.claim(ids, other)) == 2
        assert launch(world, "ingest", tags={RANGE_START: ids[0], RANGE_END: ids[1]}).success
    assert world.numbers("lancedb")["files_held_by_another_run"] == 2


def test_among_others_such_a_key_is_left_out_by_name(world: World) -> None:
    add_keys(world.instance, "default", ["typed-by-hand"])
    tags = {RANGE_START: world.file_id("a.md"), RANGE_END: "typed-by-hand"}
    assert launch(world, "ingest", tags=tags).success
    numbers = world.numbers("lancedb")
    assert (numbers["files_already_current"], numbers["files_failed"]) == (1, 1)
    assert "files_held_by_another_run" not in numbers
    records, _ = numbers["failures"]
    assert [(record.data["file"], record.data["file_id"]) for record in records] == [("", "typed-by-hand")]
    assert world.sync().ok


@pytest.mark.parametrize(("asset", "lacks"), [("chunks", "payload"), ("embeddings", "chunks"), ("lancedb", "vectors")])
def test_a_stage_alone_of_a_file_that_lacks_the_one_before_fails_and_says_which(world: World, asset: str, lacks: str) -> None:
    file_id = listed(world, "b.md")
    result = launch(world, "ingest", partition_key=file_id, asset_selection=[dg.AssetKey(["default", asset])])
    assert materialized(result) == []
    assert [lacks in reason for reason in failures(result)] == [True]
    row = world.export.ledger.files([file_id])[file_id]
    assert (row.status, row.attempts, row.last_error) == ("new", 0, None), "no attempt of the file's own"
    assert world.sync().ok
    world.assert_settled()


def test_among_others_such_a_file_is_counted_as_not_ready(world: World) -> None:
    tags = {RANGE_START: world.file_id("a.md"), RANGE_END: listed(world, "b.md")}
    for asset in ("chunks", "embeddings", "lancedb"):
        assert launch(world, "ingest", tags=tags, asset_selection=[dg.AssetKey(["default", asset])]).success
        numbers = world.numbers(asset)
        assert (numbers["files_already_current"], numbers["files_not_ready"], numbers["files_failed"]) == (1, 1, 0)
        [record], _ = numbers["not_ready"]
        assert (record.data["file"], "first" in str(record.data["reason"])) == ("b.md", True)


def remove(world: World, *file_ids: str) -> dg.ExecuteInProcessResult:
    return launch(world, "removal", run_config={"ops": {"default_remove_files": {"config": {"file_ids": list(file_ids)}}}})


def test_a_removal_of_nothing_but_unknown_ids_fails(world: World) -> None:
    assert failures(remove(world, "dfl-unknown")) == ["dfl-unknown: no file of this export's directory"]


def test_a_removal_of_nothing_but_files_of_the_directory_fails_and_says_why(world: World) -> None:
    file_id = world.file_id("a.md")
    unmarked = f"a.md ({file_id}): it is not marked for removal"
    assert failures(remove(world, file_id)) == [unmarked]
    [told] = failures(remove(world, file_id, "dfl-unknown"))
    assert "none of these 2 files can be worked on" in told
    assert unmarked in told
    assert "dfl-unknown: no file of this export's directory" in told
    world.assert_settled()


def test_a_removal_leaves_a_file_of_the_directory_and_says_so(world: World) -> None:
    gone = listed(world, "b.md")
    world.export.ledger.update_files([{"file_id": gone, "missing_since": 1.0}])
    world.export.ledger.mark_removing([gone])
    numbers = observed(remove(world, world.file_id("a.md"), "dfl-unknown", gone))
    assert (numbers["removed"], numbers["files_not_ready"], numbers["files_failed"]) == (1, 1, 1)
    assert numbers["files_already_current"] == 0
    assert "files_held_by_another_run" not in numbers
    [record], _ = numbers["not_ready"]
    assert record.data == {"file": "a.md", "file_id": world.file_id("a.md"), "reason": "it is not marked for removal"}
    assert remove(world, gone).success, "once more, of what is gone"


def test_a_removal_of_the_sensors_whose_files_have_come_back_is_no_failure(world: World) -> None:
    config = removal_config(world.settings, (world.file_id("a.md"),))
    result = launch(world, "removal", run_config=config, tags=removal_tags(world.settings))
    assert observed(result)["removed"] == 0
    world.assert_settled()


def release(world: World, *files: str, refetch: bool = False) -> dg.ExecuteInProcessResult:
    config = {"files": list(files), "refetch": refetch}
    return launch(world, "release", run_config={"ops": {"default_release_files": {"config": config}}})


def test_failed_files_that_are_released_by_name_or_id_are_tried_again_at_the_next_look(world: World) -> None:
    ids = [listed(world, name) for name in ("b.md", "c.md")]
    world.export.record_failures(dict.fromkeys(ids, "refused"), "a run")
    assert sorted(sync(world.settings, world.instance).needs.backing_off) == sorted(ids)
    result = release(world, "b.md", ids[1], world.file_id("a.md"))
    assert result.success
    records, _ = observed(result)["files"]
    assert [record.data["file"] for record in records] == ["b.md", "c.md"], "the other has not failed"
    report = sync(world.settings, world.instance)
    assert (report.ok, report.runs, sorted(report.ingested)) == (True, 1, sorted(ids))
    assert [event.run_id for event in world.export.ledger.history(ids[0]) if event.event == "released"] == [result.run_id]


def test_the_payload_of_a_file_that_stands_is_fetched_again_where_a_person_says_so(world: World) -> None:
    assert failures(release(world, "a.md")) == [
        "none of these files has failed; `refetch: true` has them fetched again all the same"
    ]
    assert release(world, "a.md", refetch=True).success
    report = sync(world.settings, world.instance)
    assert (report.ok, report.runs, report.ingested) == (True, 1, [world.file_id("a.md")])
    assert (world.numbers("parsed_payloads")["files_worked_on"], world.numbers("lancedb")["files_worked_on"]) == (1, 0)
    world.assert_settled()


def test_a_release_of_what_is_no_file_changes_nothing(world: World) -> None:
    file_id = listed(world, "b.md")
    world.export.record_failures({file_id: "refused"}, "a run")
    [told] = failures(release(world, "b.md", "typo.md"))
    assert "no file of 'default' has the id or name 'typo.md'" in told
    assert world.export.ledger.files([file_id])[file_id].status == "failed"
