"""Repair mends every kind of damage, touches no other file and embeds nothing the lake has."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from pipeline.components.index_export import export_definitions
from pipeline.errors import SinkUnavailable
from pipeline.orchestration.liveness import command_run
from pipeline.orchestration.resources import _open
from pipeline.sinks.base import ReplaceReport
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline.sinks.records import FileRecords
from pipeline.stages.erase import erase, retire
from pipeline.stages.export import Export
from pipeline.stages.repair import RepairReport, repair
from pipeline.stages.verify import SinkVerification, verify
from pipeline_tests.trust.conftest import write_documents
from pipeline_tests.trust.damage import alter, drop_rows, duplicate_rows
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Without an empty file, which a repair does not note for a sink that it is the first to fill: the next run does."""
    with open_world(tmp_path) as opened:
        write_documents(opened)
        opened.ingest()
        yield opened


def mend(world: World, **options: Any) -> RepairReport:
    return asyncio.run(repair(world.export, "lancedb", run_id="repair-test", **options))


def test_a_sink_that_holds_its_source_is_read_once_and_not_touched(
    world: World, replaced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = LanceDBExporter.fetch_records

    def fetch_records(self: LanceDBExporter, **asked: Any) -> AsyncIterator[pa.Table]:
        read.append(asked["export_config_id"])
        return real(self, **asked)

    monkeypatch.setattr(LanceDBExporter, "fetch_records", fetch_records)
    report = mend(world)
    assert (report.ok, report.replaced, replaced, len(read)) == (True, set(), [], 1)


def test_only_the_differing_files_are_replaced_and_nothing_is_embedded(
    world: World, replaced: list[str], embedded: list[str]
) -> None:
    long, lost, renamed = (world.file_id(name) for name in ("long.md", "doc-0.md", "doc-1.md"))
    drop_rows(world, f"parsed_directory_file_id = '{lost}'")
    drop_rows(world, f"parsed_directory_file_id = '{long}' AND chunk_index = 1")
    alter(world, f"parsed_directory_file_id = '{renamed}'", {"file_name": "'other'"})
    duplicate_rows(world, long, {"chunk_index": pa.scalar(99, pa.int32())})
    report = mend(world)
    assert report.ok
    assert {finding.kind for finding in report.before.findings} >= {
        "missing_file",
        "missing_chunk",
        "stale_tail",
        "altered_metadata",
    }
    assert sorted(report.replaced) == sorted(replaced) == sorted([long, lost, renamed])
    assert embedded == []
    world.assert_settled()
    loaded, *_, repaired = [event for event in world.export.ledger.history(lost) if " lancedb" in event.event]
    assert (repaired.event, loaded.details) == ("repaired in lancedb", repaired.details)
    assert world.ingest().due == []


def test_a_duplicate_under_a_strange_id_is_mended(world: World) -> None:
    duplicate_rows(world, world.file_id("doc-0.md"), {})
    assert mend(world).ok
    world.assert_settled()


def test_what_a_command_has_mended_is_not_counted_as_held_by_it_when_it_verifies_the_sink(world: World) -> None:
    duplicate_rows(world, world.file_id("doc-0.md"), {})
    with command_run("repair") as run_id:
        report = asyncio.run(repair(world.export, "lancedb", run_id=run_id))
    assert (report.ok, report.after.unsettled) == (True, 0)
    world.assert_settled()


def test_a_file_that_has_failed_fails_no_more_once_a_repair_has_brought_it_there(world: World) -> None:
    file_id = world.file_id("doc-0.md")
    drop_rows(world, f"parsed_directory_file_id = '{file_id}'")
    world.export.record_failures({file_id: "over 40 KB"}, "a run")
    assert mend(world).ok
    row = world.export.ledger.files()[file_id]
    assert (row.status, row.last_error) == ("done", None)


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_repair_that_dies_between_delete_and_write_is_made_good_by_a_sync(
    world: World, monkeypatch: pytest.MonkeyPatch, is_answered: bool
) -> None:
    file_id = world.file_id("doc-0.md")
    duplicate_rows(world, file_id, {})

    async def goes_down(self: LanceDBExporter, files: Sequence[FileRecords]) -> Any:
        if file_id in {snapshot.parsed_directory_file_id for snapshot in await self.list_snapshots(export_config_id=config)}:
            return ReplaceReport(0, 0)
        raise SinkUnavailable("it went down after the delete")

    async def unanswered(self: LanceDBExporter, **files: Any) -> None:
        await delete_files(self, **files)
        raise SinkUnavailable("it went down after the delete")

    delete_files = LanceDBExporter.delete_files
    config = asyncio.run(world.export.scope())[1]
    with monkeypatch.context() as patched:
        patched.setattr(LanceDBExporter, "replace_files", goes_down)
        if not is_answered:
            patched.setattr(LanceDBExporter, "delete_files", unanswered)
        report = mend(world)
    assert not report.ok
    assert ("unreachable", "it went down after the delete") in {(f.kind, f.detail) for f in report.after.findings}
    assert "doc-0.md" not in world.names()
    assert world.sync().ok
    world.assert_settled()


def test_an_orphan_goes_when_a_complete_listing_does_not_show_it(world: World) -> None:
    duplicate_rows(world, world.file_id("doc-0.md"), {"parsed_directory_file_id": pa.scalar("dfl-gone")})
    report = mend(world)
    assert (report.ok, report.deleted) == (True, ["dfl-gone"])
    world.assert_settled()


def test_an_orphan_stays_without_evidence(world: World) -> None:
    duplicate_rows(world, world.file_id("doc-0.md"), {"parsed_directory_file_id": pa.scalar("dfl-gone")})
    world.faults(hidden_files=["*"])
    report = mend(world)
    assert not report.ok
    assert "no listing proves it gone" in report.kept["dfl-gone"]
    assert report.deleted == []


@pytest.mark.parametrize(("key", "told"), [("", "no LlamaCloud API key"), ("another", "refused the API key")])
def test_without_llamacloud_what_needs_only_the_lake_is_replaced_and_each_other_file_has_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch, key: str, told: str
) -> None:
    lost, lost_in_the_lake_too = (world.file_id(name) for name in ("doc-0.md", "doc-1.md"))
    for file_id in (lost, lost_in_the_lake_too):
        drop_rows(world, f"parsed_directory_file_id = '{file_id}'")
    world.export.lake.delete(lost_in_the_lake_too)
    duplicate_rows(world, world.file_id("long.md"), {"parsed_directory_file_id": pa.scalar("dfl-gone")})
    monkeypatch.setenv("LLAMA_CLOUD_API_KEY", key)
    report = mend(world)
    assert report.replaced == {lost}
    assert report.kept.keys() == {"dfl-gone"}
    assert report.failures.keys() == {lost_in_the_lake_too}
    assert all(told in reason for reason in (report.kept["dfl-gone"], report.failures[lost_in_the_lake_too]))
    assert {finding.kind for finding in report.after.findings} == {"orphan_file", "missing_file"}


def test_an_orphan_the_directory_has_meanwhile_stays(world: World) -> None:
    file_id = world.file_id("doc-0.md")
    world.export.ledger.update_files([{"file_id": file_id, "status": "removed"}])
    world.export.ledger.forget([file_id], run_id=None)
    report = mend(world)
    assert (report.deleted, report.kept) == ([], {file_id: "the directory has it now"})
    assert "doc-0.md" in world.names()


def test_a_file_that_a_live_run_has_taken_meanwhile_is_left_to_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = world.file_id("doc-0.md")
    drop_rows(world, f"parsed_directory_file_id = '{file_id}'")
    with command_run("erase") as holder:

        async def verify_and_lose(export: Export, sink: str, *, deep: bool) -> SinkVerification:
            found = await verify(export, sink, deep=deep)
            assert export.claim([file_id], holder) == [file_id]
            return found

        with monkeypatch.context() as patched:
            patched.setattr("pipeline.stages.repair.verify", verify_and_lose)
            assert mend(world).replaced == set()
    assert "doc-0.md" not in world.names()


def test_too_many_orphans_wait_for_approval(tmp_path: Path) -> None:
    with open_world(tmp_path, removal={"grace_period_seconds": 0, "max_delete_fraction": 0.0}) as world:
        world.write("a.md", "# A\n\nText.\n")
        world.ingest()
        for n in range(3):
            duplicate_rows(
                world, world.file_id("a.md"), {"id": pa.scalar(f"x{n}"), "parsed_directory_file_id": pa.scalar(f"dfl-{n}")}
            )
        report = mend(world)
        assert not report.ok
        assert "--allow-deletes 3" in report.kept["dfl-0"]
        assert mend(world, allow_deletes=3).ok
        assert world.export.ledger.state().allowed_deletes == 0


def fill_by_repair(world: World, sink: str) -> RepairReport:
    """Put a sink into the settings and let a repair be the first to write to it."""
    world.change(sinks={"lancedb": {}, sink: {"type": "lancedb", "uri": str(world.root / sink)}})
    return asyncio.run(repair(world.export, sink, run_id="repair-test"))


def test_a_sink_that_a_repair_was_the_first_to_fill_is_erased_from_and_retired_once_it_has_left(world: World) -> None:
    assert fill_by_repair(world, "second").ok
    assert world.ingest().due == []
    world.change(sinks={"lancedb": {}})
    report = asyncio.run(erase(world.export, [world.file_id("doc-0.md")], run_id="erase-test"))
    assert report.proved
    assert {proof.place.split(" ")[0] for proof in report.proofs} == {"lancedb", "second", "lake", "vector"}
    assert [(one.sink, one.files) for one in asyncio.run(retire(world.export, sink="second"))] == [("second", 3)]


@pytest.mark.parametrize("proven", [True, False])
def test_what_was_removed_while_a_sink_was_not_in_use_goes_when_a_repair_uses_it_again(world: World, proven: bool) -> None:
    assert fill_by_repair(world, "second").ok
    world.change(sinks={"lancedb": {}})
    gone = world.file_id("doc-0.md")
    world.remove("doc-0.md")
    world.write("doc-1.md", "# Document 1\n\nEdited meanwhile.\n")
    assert set(world.ingest().due) == {gone, world.file_id("doc-1.md")}
    if not proven:
        world.faults(hidden_files=["*"])
    report = fill_by_repair(world, "second")
    assert report.deleted == ([gone] if proven else [])
    assert ("no listing proves it gone" in report.kept.get(gone, "")) is not proven
    world.faults()
    for _ in range(2):
        world.ingest()
    world.assert_settled("second")


def test_a_file_the_lake_lost_too_is_made_again_with_the_vectors_the_sink_has(world: World, embedded: list[str]) -> None:
    file_id = world.file_id("long.md")
    world.export.lake.delete(file_id)
    report = mend(world)
    assert (report.ok, report.replaced, embedded) == (True, {file_id}, [])
    assert file_id in world.export.lake.partitions("embeddings")
    assert world.ingest().due == []


@pytest.mark.parametrize("copied", ["home", "outside"])
def test_a_home_or_a_sink_put_back_from_a_copy_is_in_place_after_a_sync_and_a_repair(tmp_path: Path, copied: str) -> None:
    sinks = {"lancedb": {}, "outside": {"type": "lancedb", "uri": str(tmp_path / "outside")}}
    with open_world(tmp_path, sinks=sinks) as world:
        write_documents(world)
        world.ingest()
        _open.cache_clear()
        shutil.copytree(tmp_path / copied, tmp_path / "copy")
        erased = world.file_id("doc-0.md")
        assert asyncio.run(erase(world.export, [erased], run_id="erase-test")).proved
        world.write("doc-1.md", "# Document 1\n\nEdited.\n")
        world.write("new.md", "# New\n\nWritten since.\n")
        world.remove("doc-2.md")
        world.ingest()
        _open.cache_clear()
        shutil.rmtree(tmp_path / copied)
        (tmp_path / "copy").rename(tmp_path / copied)
        world.ingest()
        assert not asyncio.run(verify(world.export, "outside", deep=True)).ok
        assert all(asyncio.run(repair(world.export, sink, run_id="repair-test")).ok for sink in sinks)
        assert world.ingest().due == []
        assert {sink: "doc-0.md" in world.names(sink) for sink in sinks} == dict.fromkeys(sinks, copied == "home")
        assert all(world.names(sink) - {"doc-0.md"} == {"doc-1.md", "long.md", "new.md"} for sink in sinks)


def test_the_repair_job_observes_what_it_did(world: World) -> None:
    file_id = world.file_id("doc-1.md")
    drop_rows(world, f"parsed_directory_file_id = '{file_id}'")
    job = export_definitions(world.settings).resolve_job_def("default_repair")
    assert job.execute_in_process(instance=world.instance).success
    world.assert_settled()
    records = world.instance.fetch_observations(dg.AssetKey(["default", "lancedb"]), limit=1).records
    observation = records[0].asset_observation
    assert observation is not None
    assert (observation.metadata["replaced"].value, observation.metadata["findings"].value) == (1, 0)
