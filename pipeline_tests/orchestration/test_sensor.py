"""The sensor as the daemon evaluates it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg
import pytest

from pipeline.components.index_export import export_definitions
from pipeline.errors import LedgerUnavailable, SyncFailed
from pipeline.llama_cloud.indexes import IndexClient
from pipeline.orchestration.assets import DIRECTORY_FILES
from pipeline.orchestration.checks import INDEX_CHECK, files_check
from pipeline.orchestration.partitions import FILES_TAG
from pipeline.stages.detect import refresh
from pipeline.stages.plan import make_plan
from pipeline_tests.hostile.cloud import ServedFile, hostile_cloud
from pipeline_tests.world import World, open_world, world_over


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        write_five_files(opened)
        yield opened


def write_five_files(world: World) -> None:
    for n in range(5):
        world.write(f"doc-{n}.md", f"# Document {n}\n\nText {n}.\n")


def tick(world: World, cursor: str | None = None) -> tuple[dg.SensorResult | dg.SkipReason, str | None]:
    definitions = export_definitions(world.settings)
    sensor = definitions.resolve_sensor_def("default_directory_changes")
    assert definitions.resources is not None
    context = dg.build_sensor_context(
        instance=world.instance,
        cursor=cursor,
        definitions=definitions,
        resources={"indexport": definitions.resources["indexport"]},
    )
    answer = sensor(context)
    assert isinstance(answer, dg.SensorResult | dg.SkipReason)
    return answer, context.cursor


def test_a_damaged_ledger_is_told_by_the_tick_that_fails_over_it(world: World) -> None:
    ledger = world.root / "home" / "ledger.sqlite"
    ledger.parent.mkdir()
    ledger.write_bytes(b"no database" * 500)
    with pytest.raises(LedgerUnavailable, match=rf"^the ledger {ledger} is damaged \(.*then `indexport rebuild ledger`"):
        tick(world)


def test_the_first_tick_asks_for_every_file_and_observes_the_directory(world: World) -> None:
    world.refresh()
    answer, cursor = tick(world)
    assert isinstance(answer, dg.SensorResult)
    assert answer.run_requests is not None
    assert [request.tags[FILES_TAG] for request in answer.run_requests] == ["5"]
    kinds = {type(event) for event in answer.asset_events}
    assert kinds == {dg.AssetObservation, dg.AssetCheckEvaluation}
    left = json.loads(cursor or "{}")
    assert len(left.pop("failing")) == 16
    assert left == {"listing": None, "waiting_since": None, "restoring": False, "proof": None}


def test_a_removal_is_asked_for_as_a_run_of_the_removal_job(world: World) -> None:
    world.sync()
    file_id = world.file_id("doc-4.md")
    world.remove("doc-4.md")
    world.refresh()
    answer, _ = tick(world)
    assert isinstance(answer, dg.SensorResult)
    assert answer.run_requests is not None
    assert [request.job_name for request in answer.run_requests] == ["default_removal"]
    assert answer.run_requests[0].run_config == {"ops": {"default_remove_files": {"config": {"file_ids": [file_id]}}}}


def index_check_by_hand(world: World) -> dg.AssetCheckEvaluation:
    """The check of the index as a person executes it in the UI."""
    key = dg.AssetCheckKey(dg.AssetKey(["default", DIRECTORY_FILES]), INDEX_CHECK)
    job = dg.define_asset_job("by_hand", selection=dg.AssetSelection.checks(key))
    definitions = dg.Definitions.merge(export_definitions(world.settings), dg.Definitions(jobs=[job]))
    [found] = definitions.resolve_job_def("by_hand").execute_in_process(instance=world.instance).get_asset_check_evaluations()
    return found


def test_an_empty_listing_while_files_are_known_is_one_failed_check_until_they_are_back(world: World) -> None:
    world.sync()
    by_hand = [index_check_by_hand(world)]
    world.faults(hidden_files=["*"])
    world.refresh()
    first, cursor = tick(world)
    by_hand.append(index_check_by_hand(world))
    second, cursor = tick(world, cursor)
    by_hand.append(index_check_by_hand(world))
    world.faults()
    third, _ = tick(world, cursor)
    by_hand.append(index_check_by_hand(world))
    found = []
    for answer in (first, second, third):
        assert isinstance(answer, dg.SensorResult)
        found.append([e for e in answer.asset_events if isinstance(e, dg.AssetCheckEvaluation) and e.check_name == INDEX_CHECK])
    assert [[check.passed for check in checks] for checks in found] == [[False], [], [True]]
    assert "while 5 files are known" in str(found[0][0].metadata["directory"].value)
    assert [check.passed for check in by_hand] == [True, False, False, True]
    assert by_hand[1].metadata == found[0][0].metadata


def test_a_failed_sync_is_a_failed_check_with_the_vendors_message(world: World) -> None:
    world.sync()
    world.faults(sync_error="parse quota exceeded")
    with pytest.raises(Exception, match="parse quota exceeded"):
        world.refresh()
    answer, _ = tick(world)
    assert isinstance(answer, dg.SensorResult)
    check = next(event for event in answer.asset_events if isinstance(event, dg.AssetCheckEvaluation))
    assert not check.passed
    assert check.metadata["vendor_message"].value == "parse quota exceeded"


def test_documents_that_cannot_be_parsed_are_a_warning_that_names_them_until_they_can(world: World) -> None:
    world.sync()
    assert index_check_by_hand(world).passed
    world.write("doc-0.html", "<p>Text.</p>")
    world.write("broken.pdf", "no PDF")
    world.refresh()
    answer, _ = tick(world)
    assert isinstance(answer, dg.SensorResult)
    check = next(event for event in answer.asset_events if isinstance(event, dg.AssetCheckEvaluation))
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert str(check.metadata["vendor_message"].value).startswith("1 document could not be parsed: broken.pdf: ")
    by_hand = index_check_by_hand(world)
    assert (by_hand.passed, by_hand.severity, by_hand.metadata) == (False, check.severity, check.metadata)
    world.remove("broken.pdf")
    world.refresh()
    tick(world)
    assert index_check_by_hand(world).passed


def test_a_tick_that_asks_for_nothing_says_why_the_directory_was_not_read_whole(world: World) -> None:
    world.faults(hold_syncs=True)
    asyncio.run(refresh(world.export, wait=False))
    _, cursor = tick(world)
    answer, _ = tick(world, cursor)
    assert isinstance(answer, dg.SensorResult)
    assert answer.skip_reason == dg.SkipReason("the index 'documents' is being built or synced")
    world.faults()


def test_a_sync_that_llamacloud_throttles_does_not_keep_the_sensor_from_looking(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.refresh()
    world.change(detection={"sync_every_seconds": 60})
    world.export.ledger.update_state(sync_requested_at=0.0)

    async def refused(self: IndexClient) -> bool:
        return False

    monkeypatch.setattr(IndexClient, "start_sync", refused)
    answer, _ = tick(world)
    assert isinstance(answer, dg.SensorResult)
    assert answer.run_requests
    assert "it throttles" in caplog.text


@pytest.mark.usefixtures("impatient_sdk")
@pytest.mark.parametrize("status", [402, 403, 503])
def test_a_sync_that_llamacloud_refuses_is_told_and_does_not_keep_the_sensor_from_looking(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    detection = {"sync_every_seconds": 60}
    with hostile_cloud(ServedFile("dfl-1", b"")) as cloud, world_over(tmp_path, cloud, detection=detection) as world:
        cloud.failing["/sync$"] = status
        answer, cursor = tick(world)
        assert isinstance(answer, dg.SensorResult)
        assert answer.run_requests
        world.export.ledger.update_files(
            [{"file_id": "dfl-1", "status": "parked", "settings_digest": world.export.failure_digest}]
        )
        answer, _ = tick(world, cursor)
    assert isinstance(answer, dg.SensorResult)
    assert answer.skip_reason is not None
    told = answer.skip_reason.skip_message or ""
    assert f"HTTP {status}: not for you" in told
    assert "1 files parked" in told
    assert f"HTTP {status}: not for you" in caplog.text


def test_an_index_that_is_made_anew_under_its_name_is_found_by_the_process_that_knew_the_former_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"index": {"index_name": "hostile"}, "detection": {"sync_every_seconds": 60}}
    with hostile_cloud(ServedFile("dfl-1", b"")) as cloud, world_over(tmp_path, cloud, **settings) as world:
        tick(world)
        cloud.index_id = "idx-anew"
        world.export.ledger.update_state(sync_requested_at=0.0)
        answer, _ = tick(world)
        assert isinstance(answer, dg.SensorResult)
        assert world.export.index_id == "idx-anew"


def left_behind(answer: dg.SensorResult | dg.SkipReason) -> list[set[str]]:
    """The files that the look's events say are left behind, once a check it tells."""
    assert isinstance(answer, dg.SensorResult)
    told = [event for event in answer.asset_events if isinstance(event, dg.AssetCheckEvaluation)]
    tables = [event.metadata.get("left_behind") for event in told if event.check_name == "no_file_is_left_behind"]
    return [
        {str(record.data["file"]) for record in table.records} if isinstance(table, dg.TableMetadataValue) else set()
        for table in tables
    ]


def test_the_check_of_failing_files_is_told_when_they_change_and_after_the_run_they_fail_in(world: World) -> None:
    world.refresh()
    answer, cursor = tick(world)
    assert left_behind(answer) == [set()]
    world.faults(payloads={"doc-0.md": "not_json"})
    world.sync()
    answer, cursor = tick(world, cursor)
    assert left_behind(answer) == [{"doc-0.md"}]
    answer, cursor = tick(world, cursor)
    assert isinstance(answer, dg.SensorResult)
    assert answer.asset_events == []
    world.remove("doc-0.md")
    world.refresh()
    answer, _ = tick(world, cursor)
    assert left_behind(answer) == [set()]


def test_the_check_of_failing_files_is_told_again_once_files_were_loaded(world: World) -> None:
    world.refresh()
    _, cursor = tick(world)
    world.sync()
    answer, cursor = tick(world, cursor)
    assert left_behind(answer) == [set()]
    answer, _ = tick(world, cursor)
    assert left_behind(answer) == []


def test_the_check_of_failing_files_counts_all_and_names_a_few(world: World) -> None:
    world.ingest()
    row = next(iter(world.export.ledger.files().values()))
    found = files_check(world.settings, {f"dfl-{n}": row for n in range(500)})
    named = found.metadata["left_behind"]
    assert isinstance(named, dg.TableMetadataValue)
    assert (found.metadata["files"].value, len(named.records)) == (500, 20)


@pytest.mark.usefixtures("impatient_sdk")
def test_an_unreachable_index_decides_nothing(world: World) -> None:
    world.sync()
    with patch.dict(os.environ, {"LLAMA_CLOUD_BASE_URL": "http://127.0.0.1:9"}):
        answer, _ = tick(world)
    assert isinstance(answer, dg.SkipReason)
    assert "nothing is decided" in (answer.skip_message or "")


def index_is_shown_healthy(world: World) -> bool:
    return world.check_passed(DIRECTORY_FILES, INDEX_CHECK)


def stored_tick(world: World, cursor: str | None) -> str | None:
    """A tick whose events Dagster keeps, as its daemon does."""
    answer, cursor = tick(world, cursor)
    assert isinstance(answer, dg.SensorResult)
    for event in answer.asset_events:
        world.instance.report_runless_asset_event(event)
    return cursor


def test_the_check_of_the_index_is_told_also_when_a_command_has_seen_the_change_first(world: World) -> None:
    world.sync()
    cursor = stored_tick(world, None)
    world.faults(sync_error="parse quota exceeded")
    with pytest.raises(SyncFailed):
        world.refresh()
    with suppress(SyncFailed):
        asyncio.run(make_plan(world.export, run_id="command-plan"))
    assert index_is_shown_healthy(world)
    cursor = stored_tick(world, cursor)
    assert not index_is_shown_healthy(world)
    world.faults()
    world.refresh()
    asyncio.run(make_plan(world.export, run_id="command-plan"))
    cursor = stored_tick(world, cursor)
    assert index_is_shown_healthy(world)
    answer, _ = tick(world, cursor)
    assert isinstance(answer, dg.SensorResult)
    assert not answer.asset_events


def jobs_asked_for(answer: dg.SensorResult | dg.SkipReason) -> list[str | None]:
    assert isinstance(answer, dg.SensorResult)
    return [request.job_name for request in answer.run_requests or []]


def test_the_removal_of_a_renamed_file_waits_until_its_new_name_has_its_vectors(world: World) -> None:
    world.sync()
    (world.documents / "doc-3.md").rename(world.documents / "renamed.md")
    world.refresh()
    answer, cursor = tick(world)
    assert jobs_asked_for(answer) == ["default_ingest"]
    assert isinstance(answer, dg.SensorResult)
    [request] = answer.run_requests or []
    ingest = export_definitions(world.settings).resolve_job_def("default_ingest")
    run = ingest.execute_in_process(instance=world.instance, tags=request.tags, partition_key=request.partition_key)
    assert run.success
    assert (world.numbers("embeddings")["computed"], world.numbers("embeddings")["reused"]) == (0, 1)
    answer, _ = tick(world, cursor)
    assert "default_removal" in jobs_asked_for(answer)


def test_a_removal_waits_no_longer_than_changes_do(world: World) -> None:
    world.sync()
    world.change(detection={"max_wait_seconds": 0})
    (world.documents / "doc-3.md").rename(world.documents / "renamed.md")
    world.refresh()
    assert sorted(map(str, jobs_asked_for(tick(world)[0]))) == ["default_ingest", "default_removal"]
