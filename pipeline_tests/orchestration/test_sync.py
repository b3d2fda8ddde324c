"""The main job end to end: a folder, the real SDK, real Dagster runs, a real store."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg
import pytest
from rich.console import Console

from pipeline.cli_output import print_sync
from pipeline.errors import SyncFailed
from pipeline.llama_cloud.models import ListingPage
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline.orchestration.assets import DIRECTORY_FILES
from pipeline.orchestration.checks import FILES_CHECK, INDEX_CHECK
from pipeline.orchestration.launcher import SyncReport, jobs_of_a_sync, sync
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline_tests.hostile.cloud import ServedFile, hostile_cloud
from pipeline_tests.hostile.corpus import paged
from pipeline_tests.world import World, open_world, world_over

LONG = "\n\n".join(
    f"## Part {n}\n\n" + f"Sentence number {n} speaks of river gauges and of nothing else. " * 12 for n in range(12)
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        write_seven_files(opened)
        yield opened


def write_seven_files(world: World) -> None:
    """Six of a chunk each, and one of many."""
    for n in range(6):
        world.write(f"doc-{n}.md", f"# Document {n}\n\nThis is the body of document {n}.\n")
    world.write("long.md", "# Long\n\n" + LONG)


def told(world: World, report: SyncReport) -> str:
    """What ``indexport sync`` prints for people."""
    console = Console(width=200)
    with console.capture() as printed:
        print_sync(console, world.export, report)
    return printed.get()


def test_a_folder_becomes_records_and_a_second_sync_has_nothing_to_do(world: World) -> None:
    report = world.sync()
    assert report.ok
    assert (len(report.ingested), report.runs) == (7, 1)
    world.assert_settled()
    again = world.sync()
    assert again.ok
    assert (again.ingested, again.runs) == ([], 0)


def test_what_a_run_loads_into_is_imported_while_the_model_computes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def ask(kind: str) -> None:
        asked.append((kind, threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr("pipeline.orchestration.assets.import_sdk", ask)
    assert world.sync().ok
    assert asked == [("lancedb", False)]
    ingest, _ = jobs_of_a_sync(world.settings)
    options: dict[str, Any] = {
        "partition_key": next(iter(world.export.ledger.files())),
        "asset_selection": [dg.AssetKey(["default", "embeddings"])],
    }
    assert ingest.execute_in_process(instance=world.instance, **options).success
    assert len(asked) == 1


def test_a_file_that_two_runs_work_on_is_counted_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def break_(self: LanceDBExporter, files: object) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(LanceDBExporter, "replace_files", break_)
    report = world.sync()
    assert (report.runs, report.failed_runs) == (2, 2)
    assert sorted(report.ingested) == sorted(world.export.ledger.files())


def test_an_edit_works_on_that_file_and_embeds_only_what_is_new(world: World) -> None:
    world.sync()
    world.write("long.md", "# Long\n\n" + LONG.replace("Sentence number 5 speaks", "A changed sentence speaks", 1))
    report = world.sync()
    assert report.ingested == [world.file_id("long.md")]
    assert 1 <= world.numbers("embeddings")["computed"] <= 3
    world.assert_settled()


def test_a_shrunken_file_leaves_no_stale_tail(world: World) -> None:
    world.sync()
    world.write("long.md", "# Long\n\nNothing is left.\n")
    world.sync()
    world.assert_settled()


def test_an_emptied_file_is_a_valid_empty_record_set(world: World) -> None:
    world.sync()
    world.write("doc-0.md", "")
    assert world.sync().ok
    assert "doc-0.md" not in world.names()
    world.assert_settled()
    assert world.sync().runs == 0


def test_a_metadata_change_rewrites_the_records_and_embeds_nothing(world: World) -> None:
    world.sync()
    world.write("doc-1.md.meta.json", json.dumps({"team": "gauges"}))
    report = world.sync()
    assert report.ingested == [world.file_id("doc-1.md")]
    assert next(r for r in world.held() if r.file_name == "doc-1.md").metadata == {"team": "gauges"}
    assert world.numbers("lancedb")["records"] == 1
    assert world.numbers("embeddings")["files_worked_on"] == 0


def test_metadata_that_moves_without_the_listings_tokens_reaches_the_records(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sync()
    real = LlamaCloudSource.list_files

    async def with_a_team(self: LlamaCloudSource, **given: Any) -> AsyncGenerator[ListingPage]:
        async for page in real(self, **given):
            files = (replace(f, metadata={"team": "gauges"}) if f.display_name == "doc-1.md" else f for f in page.files)
            yield replace(page, files=tuple(files))

    monkeypatch.setattr(LlamaCloudSource, "list_files", with_a_team)
    report = world.sync()
    assert report.ok
    assert report.ingested == [world.file_id("doc-1.md")]
    assert next(r for r in world.held() if r.file_name == "doc-1.md").metadata == {"team": "gauges"}
    assert world.numbers("embeddings")["files_worked_on"] == 0
    assert world.sync().runs == 0


def test_a_renamed_file_moves_its_vectors_along(world: World) -> None:
    world.sync()
    (world.documents / "long.md").rename(world.documents / "renamed.md")
    report = world.sync()
    assert report.ok
    assert len(report.removed) == 1
    assert world.numbers("embeddings").get("computed", 0) == 0
    assert "renamed.md" in world.names()
    assert "long.md" not in world.names()
    world.assert_settled()


def test_a_removed_file_disappears_from_sink_lake_and_partitions(world: World) -> None:
    world.sync()
    file_id = world.file_id("doc-2.md")
    world.remove("doc-2.md")
    report = world.sync()
    assert report.removed == [file_id]
    world.assert_settled()
    assert file_id not in world.instance.get_dynamic_partitions("default_files")
    assert file_id not in world.export.lake.partitions("embeddings")
    assert [event.event for event in world.export.ledger.history(file_id)][-2:] == ["removed", "forgotten"]


def test_a_file_that_returns_is_new_again(world: World) -> None:
    world.sync()
    world.remove("doc-2.md")
    world.sync()
    world.write("doc-2.md", "# Document 2\n\nIt is back.\n")
    assert world.sync().ok
    world.assert_settled()


def test_more_deletes_than_the_fuse_lets_through_wait_for_approval(world: World) -> None:
    world.sync()
    for n in range(5):
        world.remove(f"doc-{n}.md")
    report = world.sync()
    assert not report.ok
    assert len(report.needs.awaiting_approval) == 5
    assert len(world.names()) == 7
    world.export.ledger.update_state(allowed_deletes=5)
    approved = world.sync()
    assert len(approved.removed) == 5
    assert world.names() == {"doc-5.md", "long.md"}


def test_a_grace_period_keeps_a_missing_file_answering(tmp_path: Path) -> None:
    with open_world(tmp_path, removal={"grace_period_seconds": 3600}) as world:
        world.write("a.md", "# A\n\nText.\n")
        world.write("b.md", "# B\n\nText.\n")
        world.sync()
        world.remove("b.md")
        report = world.sync()
        assert report.removed == []
        assert len(report.needs.awaiting_grace) == 1
        assert world.names() == {"a.md", "b.md"}


def test_what_leaves_a_folder_goes_at_once_and_what_leaves_llamacloud_after_an_hour_unless_it_is_set(tmp_path: Path) -> None:
    with open_world(tmp_path / "folder", removal={}) as world:
        world.write("a.md", "# A\n\nText.\n")
        world.sync()
        with patch.dict(os.environ):  # `indexport status` in a shell that does not know the local cloud
            del os.environ["LLAMA_CLOUD_API_KEY"]
            assert world.export.grace_period(world.export.ledger.state()) == 0
        world.change(removal={"grace_period_seconds": 5})
        assert world.export.grace_period(world.export.ledger.state()) == 5
    hosted = ServedFile("dfl-1", paged("Text of the file."), "a.pdf")
    with hostile_cloud(hosted) as cloud, world_over(tmp_path / "hosted", cloud, removal={}) as world:
        world.sync()
        assert world.export.grace_period(world.export.ledger.state()) == 3600


@pytest.mark.parametrize("fault", ["truncated", "not_json", "wrong_shape", "missing"])
def test_a_poison_file_costs_its_batch_nothing_and_its_old_version_stays(world: World, fault: str) -> None:
    world.sync()
    world.write("doc-0.md", "# Document 0\n\nEdited into poison.\n")
    world.write("doc-1.md", "# Document 1\n\nEdited well.\n")
    world.faults(payloads={"doc-0.md": fault})
    report = world.sync()
    assert not report.ok
    row = world.export.ledger.files()[world.file_id("doc-0.md")]
    assert (row.status, row.attempts) == ("failed", 1)
    assert row.last_error
    texts = {record.file_name: record.content for record in world.held()}
    assert "Edited well." in texts["doc-1.md"]
    assert "body of document 0" in texts["doc-0.md"]
    world.faults()
    world.export.ledger.release([row.file_id])
    assert world.sync().ok
    world.assert_settled()


def test_a_failed_file_that_is_due_again_before_the_sync_ends_stays_a_failed_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.export.file_backoff", lambda _attempts: 0.0)
    world.faults(payloads={"doc-0.md": "not_json"})
    report = world.sync()
    row = world.export.ledger.files()[world.file_id("doc-0.md")]
    assert (row.status, row.attempts) == ("failed", 1)
    assert report.needs.alone == [row.file_id]


def test_a_file_that_keeps_failing_is_retried_alone_as_a_failed_partition_and_then_parked(tmp_path: Path) -> None:
    with open_world(tmp_path, detection={"max_attempts": 2}) as world:
        world.write("bad.md", "# Bad\n\nText.\n")
        world.write("good.md", "# Good\n\nText.\n")
        world.faults(payloads={"bad.md": "not_json"})
        world.sync()
        file_id = world.file_id("bad.md")
        world.export.ledger.update_files([{"file_id": file_id, "next_retry_at": 0.0}])
        report = world.sync()
        assert report.failed_runs == 1
        assert world.export.ledger.files()[file_id].status == "parked"
        failed = world.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        assert [(run.tags["dagster/partition"], run.tags["dagster/max_retries"]) for run in failed] == [(file_id, "0")]
        world.faults()
        assert world.sync().runs == 0
        world.write("bad.md", "# Bad\n\nMended.\n")
        assert world.sync().ok
        world.assert_settled()


def files_check_passed(world: World) -> bool:
    return world.check_passed("parsed_payloads", FILES_CHECK)


def test_the_check_of_failing_files_is_right_after_every_sync(world: World) -> None:
    world.sync()
    assert files_check_passed(world)
    world.write("bad.md", "# Bad\n\nText.\n")
    world.faults(payloads={"bad.md": "not_json"})
    world.sync()
    assert not files_check_passed(world)
    world.write("doc-0.md", "# Document 0\n\nEdited.\n")
    world.sync()
    assert not files_check_passed(world)
    world.remove("bad.md")
    world.sync()
    assert files_check_passed(world)


def test_a_file_that_is_not_stored_yet_waits_without_harm(world: World) -> None:
    world.faults(null_file_ids=["doc-3.md"])
    report = world.sync()
    assert not report.ok
    assert "doc-3.md" not in world.names()
    world.faults()
    world.write("doc-3.md", "# Document 3\n\nNow it is stored.\n")
    assert world.sync().ok
    world.assert_settled()


def test_expired_urls_and_throttling_are_ridden_out(world: World) -> None:
    world.refresh()
    world.faults(expired_blob_requests=3, rate_limited_requests=2, retry_after_seconds=0.05)
    assert world.sync().ok
    world.assert_settled()


def test_a_file_held_by_another_live_run_is_left_to_the_next_wave(world: World) -> None:
    world.refresh()
    world.sync()
    file_id = world.file_id("doc-0.md")
    holder = dg.DagsterRun(job_name="other", run_id="11111111-2222-3333-4444-555555555555", status=dg.DagsterRunStatus.STARTED)
    world.instance.add_run(holder)
    former = world.export.ledger.holders([file_id])
    assert world.export.ledger.claim([file_id], holder.run_id, seconds=600, dead_runs=former) == [file_id]
    world.write("doc-0.md", "# Document 0\n\nEdited meanwhile.\n")
    report = world.sync()
    assert not report.ok
    assert report.needs.due == [file_id]
    assert "files held by another run: 1;" in told(world, report)
    assert "body of document 0" in next(r for r in world.held() if r.file_name == "doc-0.md").content
    world.instance.delete_run(holder.run_id)
    assert world.sync().ok
    world.assert_settled()


def test_a_lost_ledger_costs_work_but_no_data_and_no_embedding_of_the_sink(world: World) -> None:
    world.sync()
    before = world.held()
    ledger = world.export.ledger
    ledger.update_files([{"file_id": file_id, "status": "removed"} for file_id in ledger.files()])
    ledger.forget(list(ledger.files()), run_id=None)
    assert ledger.files() == {}
    assert world.sync().ok
    assert world.held() == before
    assert world.numbers("lancedb").get("records", 0) == 0


def shown_of_the_directory(world: World) -> tuple[int, bool]:
    """How many observations of the directory Dagster has, and whether it shows the index as healthy."""
    observations = world.instance.fetch_observations(dg.AssetKey(["default", DIRECTORY_FILES]), limit=9).records
    return len(observations), world.check_passed(DIRECTORY_FILES, INDEX_CHECK)


def test_a_sync_tells_dagster_what_it_saw_of_the_directory_and_nothing_when_nothing_is_new(world: World) -> None:
    assert world.sync().ok
    assert shown_of_the_directory(world) == (1, True)
    assert world.sync().ok
    assert shown_of_the_directory(world) == (1, True)
    world.faults(hidden_files=["*"])
    assert not world.sync().ok
    assert shown_of_the_directory(world) == (2, False)
    world.faults(sync_error="parse quota exceeded")
    with pytest.raises(SyncFailed):
        world.refresh()
    with pytest.raises(SyncFailed):
        sync(world.settings, world.instance)
    observations, healthy = shown_of_the_directory(world)
    assert not healthy
    world.faults()
    assert world.sync().ok
    assert shown_of_the_directory(world) == (observations + 1, True)
