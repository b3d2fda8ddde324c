"""An export whose settings change: what is made anew, what is kept, and what is never embedded again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from pipeline.documents.tokens import EstimatedTokens
from pipeline.embedding import constant
from pipeline.embedding.base import Vectors
from pipeline.errors import RecordRefused
from pipeline.llama_cloud import source
from pipeline.llama_cloud.addresses import AddressPolicy
from pipeline.orchestration.liveness import command_run
from pipeline.sinks.base import ReplaceReport, Snapshot
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline.sinks.records import FileRecords
from pipeline.stages.load import load
from pipeline.stages.plan import make_plan
from pipeline.stages.remove import pending_removals
from pipeline_tests.orchestration.test_removals import take_down
from pipeline_tests.orchestration.test_sync import files_check_passed, write_seven_files
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        write_seven_files(opened)
        yield opened


def test_a_new_sink_is_filled_from_the_lake_without_embedding(world: World) -> None:
    world.sync()
    world.change(sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(world.root / "second")}})
    report = world.sync()
    assert report.ok
    assert report.runs == 1
    world.assert_settled("second")
    assert sorted(len(run.asset_selection or ()) for run in world.runs()) == [0, 1]


@pytest.mark.parametrize("elsewhere", [{"uri": "elsewhere"}, {"table_prefix": "v2"}])
def test_a_sink_that_is_moved_is_filled_from_the_lake_without_embedding(world: World, elsewhere: dict[str, str]) -> None:
    world.sync()
    embedded = world.instance.get_latest_materialization_event(dg.AssetKey(["default", "embeddings"]))
    if "uri" in elsewhere:
        elsewhere = {"uri": str(world.root / "elsewhere")}
    world.change(sinks={"lancedb": elsewhere})
    with command_run("plan") as run_id:
        plan = asyncio.run(make_plan(world.export, run_id=run_id))
    assert (len(plan.needs.lagging["lancedb"]), plan.chunks) == (7, 0)
    report = world.sync()
    assert (report.ok, report.runs) == (True, 1)
    assert world.instance.get_latest_materialization_event(dg.AssetKey(["default", "embeddings"])) == embedded
    world.assert_settled()
    assert world.sync().runs == 0
    world.change(sinks={"lancedb": {}})
    world.write("doc-0.md", "# Document 0\n\nEdited meanwhile.\n")
    assert world.sync().ok
    world.assert_settled()


def test_a_sink_that_is_moved_while_a_run_loads_it_is_filled_at_its_new_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ingest()
    former = world.export
    world.change(sinks={"lancedb": {"table_prefix": "new"}})
    list_snapshots, moves = LanceDBExporter.list_snapshots, [world.export]

    async def moved_meanwhile(self: LanceDBExporter, **given: Any) -> list[Snapshot]:
        if moves:
            await load(moves.pop(), "lancedb", [], run_id="with the new settings")
        return await list_snapshots(self, **given)

    with monkeypatch.context() as patched:
        patched.setattr(LanceDBExporter, "list_snapshots", moved_meanwhile)
        asyncio.run(load(former, "lancedb", list(former.ledger.files()), run_id="with the former settings"))
    world.ingest()
    world.assert_settled()


def test_a_chunker_change_cuts_everything_anew_and_embeds_only_new_texts(world: World) -> None:
    world.sync()
    world.change(chunking={"max_tokens": 64})
    report = world.sync()
    assert len(report.ingested) == 7
    assert world.numbers("embeddings")["reused"] >= 6
    world.assert_settled()


def test_a_model_change_builds_beside_the_old_model(world: World) -> None:
    world.sync()
    old = world.held()
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    assert world.sync().ok
    world.assert_settled()
    world.change(embedding={"provider": "constant", "constant_dimension": 384})
    assert world.held() == old


def test_a_model_with_another_tokenizer_has_chunks_of_its_own_sizes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sync()
    with monkeypatch.context() as patch:
        patch.setattr(constant, "find_wheel_model", lambda: None)
        world.change(embedding={"provider": "constant", "constant_dimension": 64})
        assert world.sync().ok
        assert {record.chunk_token_count for record in world.held()} == {
            count for record in world.held() for count in EstimatedTokens().count([record.context + record.content])
        }
        world.assert_settled()


@pytest.mark.parametrize(
    "remedy", [{"metadata_fields": {"year": "string"}, "sinks": {"lancedb": {"table_prefix": "v2"}}}, {"metadata_fields": {}}]
)
def test_a_file_parked_for_the_type_of_a_metadata_field_is_tried_again_when_that_is_corrected(
    world: World, remedy: dict[str, Any]
) -> None:
    world.write("doc-0.md.meta.json", json.dumps({"year": "around 1900"}))
    world.change(metadata_fields={"year": "integer"}, detection={"max_attempts": 1})
    assert len(world.sync().needs.parked) == 1
    assert len(world.sync().needs.parked) == 1
    world.change(**remedy)
    report = world.sync()
    assert (report.ok, report.runs) == (True, 1)
    world.assert_settled()


def test_a_file_parked_for_its_size_is_tried_again_when_the_limit_is_raised(world: World) -> None:
    world.write("big.md", "Many words of text. " * 2000)
    world.change(index={"max_payload_bytes": 20_000}, detection={"max_attempts": 1})
    assert len(world.sync().needs.parked) == 1
    world.change(index={"max_payload_bytes": 20_000, "requests_per_second": 5.0})
    assert len(world.sync().needs.parked) == 1
    world.change(index={"max_payload_bytes": 1_000_000})
    assert world.sync().ok
    world.assert_settled()


def test_files_that_wait_for_private_addresses_to_be_allowed_are_tried_again_once_they_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another_host(allow: bool, **_: str) -> AddressPolicy:
        return AddressPolicy(allow, trusted_host="cloud.example")

    monkeypatch.setattr(source, "AddressPolicy", of_another_host)
    assert len(world.sync().needs.backing_off) == 7
    world.change(index={"allow_private_addresses": True})
    assert world.sync().ok
    world.assert_settled()


def test_a_file_parked_for_a_sink_that_has_left_is_done_and_reaches_a_new_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {name: {"type": "lancedb", "uri": str(world.root / name)} for name in ("strict", "second", "third")}
    replace_files = LanceDBExporter.replace_files

    async def refuse_one(self: LanceDBExporter, files: Sequence[FileRecords]) -> ReplaceReport:
        refused = [file for file in files if "strict" in str(self.settings) and file.provenance.file_name == "doc-0.md"]
        done = await replace_files(self, [file for file in files if file not in refused])
        return replace(done, refused=tuple(RecordRefused(file.file_id, "too large") for file in refused))

    monkeypatch.setattr(LanceDBExporter, "replace_files", refuse_one)
    world.change(sinks={name: places[name] for name in ("strict", "second")}, detection={"max_attempts": 1})
    assert len(world.sync().needs.parked) == 1
    world.change(sinks={"second": places["second"]})
    report = world.sync()
    assert (report.ok, report.runs) == (True, 0)
    assert world.export.ledger.files(failing=True) == {}
    world.assert_no_partition_is_behind()
    world.change(sinks={name: places[name] for name in ("second", "third")})
    assert world.sync().ok
    world.assert_settled("third")


def test_files_that_a_sink_which_has_left_never_held_are_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.sync().ok
    with monkeypatch.context() as patched:
        take_down(world, patched, "second")
        world.change(sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(world.root / "second")}})
        assert not world.sync().ok
    world.change(sinks={"lancedb": {}})
    report = world.sync()
    assert (report.ok, report.runs) == (True, 0)
    assert {row.status for row in world.export.ledger.files().values()} == {"done"}
    world.assert_no_partition_is_behind()


def test_a_file_that_was_tried_again_while_a_sink_was_down_fails_no_more_once_that_has_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.faults(payloads={"doc-0.md": "not_json"})
    world.sync()
    assert not files_check_passed(world)
    world.faults()
    world.change(sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(world.root / "second")}})
    with monkeypatch.context() as patched:
        take_down(world, patched, "second")
        world.sync()
    [failing] = world.export.ledger.files(failing=True).values()
    assert failing.status == "requested"
    world.change(sinks={"lancedb": {}})
    assert world.sync().ok
    assert world.export.ledger.files(failing=True) == {}
    assert files_check_passed(world)
    world.assert_settled()


ELSEWHERE: dict[str, dict[str, Any]] = {
    "another model": {"embedding": {"provider": "constant", "constant_dimension": 64}},
    "another sink": {"sinks": {"other": {"type": "lancedb", "table_prefix": "other"}}},
    "another address": {"sinks": {"lancedb": {"table_prefix": "other"}}},
}


@pytest.mark.parametrize("away", ELSEWHERE)
def test_a_file_removed_while_a_collection_was_not_in_use_leaves_it_when_it_is_again(world: World, away: str) -> None:
    former = {"embedding": {"provider": "constant"}, "sinks": {"lancedb": {}}}
    world.sync()
    world.change(**ELSEWHERE[away])
    assert world.sync().ok
    gone = world.file_id("doc-0.md")
    world.remove("doc-0.md")
    assert world.sync().removed == [gone]
    world.change(**former)
    assert world.sync().ok
    assert [removal.file_id for removal in pending_removals(world.export)] == [gone]
    assert world.sync().removed == [gone]
    world.assert_settled()
    assert world.sync().runs == 0


def test_a_collection_in_use_is_listed_whole_once_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = []
    list_snapshots = LanceDBExporter.list_snapshots

    async def listed(self: LanceDBExporter, **given: Any) -> list[Snapshot]:
        whole.append(given.get("parsed_directory_file_ids") is None)
        return await list_snapshots(self, **given)

    monkeypatch.setattr(LanceDBExporter, "list_snapshots", listed)
    world.change(detection={"files_per_run": 2})
    assert world.sync().runs == 4
    world.write("doc-1.md", "# Document 1\n\nEdited.\n")
    assert world.sync().ok
    assert whole.count(True) == 1


def test_a_file_that_was_removed_just_before_its_former_collection_is_in_use_again_is_adopted_too(world: World) -> None:
    world.sync()
    ledger, row = world.export.ledger, world.export.ledger.files()[world.file_id("doc-0.md")]
    ledger.update_files([{"file_id": row.file_id, "status": "removed"}])
    ledger.register.adopt_orphans({row.file_id: (row.display_name, 1), world.file_id("doc-1.md"): ("doc-1.md", 1)})
    assert [removal.file for removal in pending_removals(world.export)] == ["doc-0.md"]


def test_a_model_used_before_takes_its_vectors_back_from_a_sink_that_was_renamed_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ingest()
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    world.ingest()
    world.change(embedding={"provider": "constant"}, sinks={"renamed": {"type": "lancedb"}})
    embedded: list[str] = []
    embed = constant.ConstantEmbedder._vectors

    def noted(self: constant.ConstantEmbedder, texts: Sequence[str]) -> Vectors:
        embedded.extend(texts)
        return embed(self, texts)

    monkeypatch.setattr(constant.ConstantEmbedder, "_vectors", noted)
    world.ingest()
    assert embedded == []
    world.assert_settled("renamed")


def test_a_model_used_before_takes_its_vectors_back_from_a_sink(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    fetch_records = LanceDBExporter.fetch_records

    def fetched(self: LanceDBExporter, **given: Any) -> AsyncIterator[pa.Table]:
        asked.append(sorted(given["parsed_directory_file_ids"]))
        return fetch_records(self, **given)

    with monkeypatch.context() as patched:
        patched.setattr(LanceDBExporter, "fetch_records", fetched)
        world.sync()
        world.change(embedding={"provider": "constant", "constant_dimension": 64})
        world.sync()
        world.write("doc-0.md", "# Document 0\n\nEdited.\n")
        world.write("new.md", "# New\n\nText.\n")
        world.sync()
        assert asked == []
        world.change(embedding={"provider": "constant"})
        assert world.sync().ok
        assert asked == [sorted(world.export.ledger.files())]
    assert world.numbers("embeddings")["computed"] == 2
    world.assert_settled()
