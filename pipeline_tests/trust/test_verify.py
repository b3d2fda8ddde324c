"""Verification finds every kind of damage, and nothing in a sink that holds its source."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from pipeline.components.index_export import export_definitions
from pipeline.errors import ConfigError
from pipeline.orchestration.liveness import command_run
from pipeline.sinks.base import Exporter, Snapshot
from pipeline.sinks.generations import PENDING_PREFIX
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline.sinks.records import split_files
from pipeline.stages.repair import repair
from pipeline.stages.settings import ExportSettings
from pipeline.stages.verify import SinkVerification, verify
from pipeline_tests.trust.conftest import LONG
from pipeline_tests.trust.damage import alter, alter_filtered, drop_rows, duplicate_rows, held_tables, with_exporter
from pipeline_tests.world import World, open_world


def found(world: World, *, deep: bool = False, sink: str = "lancedb") -> SinkVerification:
    return asyncio.run(verify(world.export, sink, deep=deep))


def kinds(verification: SinkVerification) -> set[tuple[str, str | None, int | None]]:
    """What was found, each once."""
    told = [(f.kind, f.file_id, f.chunk_index) for f in verification.findings]
    assert len(told) == len(set(told)), told
    return set(told)


@pytest.mark.parametrize("deep", [False, True])
def test_a_sink_that_holds_its_source_has_no_findings(world: World, deep: bool) -> None:
    verification = found(world, deep=deep)
    assert (verification.ok, verification.findings, verification.unchecked) == (True, [], [])
    assert (verification.files, verification.unsettled) == (5, 0)
    assert verification.records == len(world.held()) > 6


@pytest.mark.parametrize("deep", [False, True])
def test_a_file_the_sink_lost_is_missing(world: World, deep: bool) -> None:
    file_id = world.file_id("doc-1.md")
    drop_rows(world, f"parsed_directory_file_id = '{file_id}'")
    assert kinds(found(world, deep=deep)) == {("missing_file", file_id, None)}


def test_a_lost_chunk_is_found_by_reading_the_records_and_a_lost_first_chunk_by_snapshots_too(world: World) -> None:
    file_id = world.file_id("long.md")
    drop_rows(world, f"parsed_directory_file_id = '{file_id}' AND chunk_index = 2")
    assert found(world).ok
    assert kinds(found(world, deep=True)) == {("missing_chunk", file_id, 2)}
    drop_rows(world, f"parsed_directory_file_id = '{file_id}' AND chunk_index = 0")
    assert kinds(found(world)) == {("missing_file", file_id, None)}
    assert kinds(found(world, deep=True)) == {("missing_chunk", file_id, 0), ("missing_chunk", file_id, 2)}


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("text", "'another text'", {"altered_text", "altered_metadata"}),  # LlamaIndex's node still has the former
        ("file_name", "'another name'", {"altered_metadata"}),
        ("metadata_json", """'{"team":"other"}'""", {"altered_metadata"}),
        ("page_range_start", "7", {"altered_metadata"}),
        ("embedding_model", "'another@1'", {"wrong_model"}),
    ],
)
def test_an_altered_field_is_named(world: World, column: str, value: str, expected: set[str]) -> None:
    file_id = world.file_id("long.md")
    alter(world, f"parsed_directory_file_id = '{file_id}' AND chunk_index = 1", {column: value})
    assert kinds(found(world, deep=True)) == {(kind, file_id, 1) for kind in expected}


@pytest.mark.parametrize(("attempts", "status"), [(1, "failing"), (5, "parked")])
def test_what_differs_says_why_its_file_fails(world: World, attempts: int, status: str) -> None:
    stale, missing = world.file_id("long.md"), world.file_id("doc-1.md")
    drop_rows(world, f"parsed_directory_file_id = '{missing}'")
    row = world.export.ledger.files([stale])[stale]
    world.export.ledger.update_files([{"file_id": stale, "record_set_hash": "0" * len(row.record_set_hash or "")}])
    version = f"{row.chunk_count} records of another version stand"
    assert details(world) == {stale: version, missing: "the sink has no record of it"}
    for _ in range(attempts):
        world.export.record_failures(dict.fromkeys((stale, missing), "too large"), "a run")
    assert details(world) == {
        stale: f"{version}; the file is {status}: too large",
        missing: f"the sink has no record of it; the file is {status}: too large",
    }
    world.export.ledger.update_files([{"file_id": stale, "chunk_count": (row.chunk_count or 0) + 1}])
    assert (
        f"another version stands, of {row.chunk_count} records instead of {(row.chunk_count or 0) + 1}" in details(world)[stale]
    )


def details(world: World) -> dict[str | None, str]:
    return {finding.file_id: finding.detail for finding in found(world).findings}


@pytest.mark.parametrize(
    "values",
    [{"team": None}, {"team": "other"}, {"_node_content": "{}"}, {"file_name": "other.md"}, {"ref_doc_id": "other:document"}],
)
def test_an_altered_copy_that_filters_or_llama_index_read_is_found_and_mended(tmp_path: Path, values: dict[str, Any]) -> None:
    with open_world(tmp_path, metadata_fields={"team": "string"}) as world:
        world.write("doc.md", LONG)
        world.write("doc.md.meta.json", '{"team": "gauges"}')
        world.ingest()
        file_id = world.file_id("doc.md")
        alter_filtered(world, f"parsed_directory_file_id = '{file_id}' AND chunk_index = 1", values)
        assert found(world).ok
        assert kinds(found(world, deep=True)) == {("altered_metadata", file_id, 1)}
        assert asyncio.run(repair(world.export, "lancedb", run_id="repair-test")).ok
        assert found(world, deep=True).ok


@pytest.mark.parametrize("text", ["no json", "[]", '{"a": NaN}', '{"a":1e999}', '{"team": "gauges"}'])
def test_metadata_altered_to_anything_is_found(world: World, text: str) -> None:
    file_id = world.file_id("long.md")
    alter(world, f"parsed_directory_file_id = '{file_id}' AND chunk_index = 1", {"metadata_json": f"'{text}'"})
    assert kinds(found(world, deep=True)) == {("altered_metadata", file_id, 1)}


def test_another_vector_is_found(world: World) -> None:
    file_id = world.file_id("long.md")
    table = next(t for t in held_tables(world) if file_id in t["parsed_directory_file_id"].to_pylist())
    row = table.filter(pa.compute.field("parsed_directory_file_id") == file_id)
    swapped = row["embedding"].combine_chunks().take(pa.array([1, 0, *range(2, row.num_rows)]))
    records = row.set_column(row.schema.get_field_index("embedding"), row.schema.field("embedding"), swapped)

    async def write(exporter: Exporter) -> None:
        await exporter.replace_files(split_files(records))

    with_exporter(world, write)
    assert found(world).ok
    assert kinds(found(world, deep=True)) == {("altered_vector", file_id, 0), ("altered_vector", file_id, 1)}


def test_a_stale_tail_and_duplicates_are_told_apart(world: World) -> None:
    long, short = world.file_id("long.md"), world.file_id("doc-0.md")
    duplicate_rows(world, short, {})
    duplicate_rows(world, long, {"chunk_index": pa.scalar(99, pa.int32())})
    assert kinds(found(world, deep=True)) == {("duplicate", short, 0), ("stale_tail", long, 99)}
    assert kinds(found(world)) == {("duplicate", short, None)}


def test_records_of_an_empty_file_are_a_stale_tail(world: World) -> None:
    empty = world.file_id("empty.md")
    duplicate_rows(world, world.file_id("doc-0.md"), {"parsed_directory_file_id": pa.scalar(empty)})
    assert kinds(found(world)) == {("stale_file", empty, None)}
    assert kinds(found(world, deep=True)) == {("stale_tail", empty, 0)}


@pytest.mark.parametrize("deep", [False, True])
def test_a_file_the_directory_does_not_have_is_an_orphan(world: World, deep: bool) -> None:
    duplicate_rows(world, world.file_id("doc-0.md"), {"parsed_directory_file_id": pa.scalar("dfl-gone")})
    assert kinds(found(world, deep=deep)) == {("orphan_file", "dfl-gone", None)}


def test_records_no_known_export_owns_are_foreign_and_another_exports_are_not(world: World) -> None:
    duplicate_rows(world, world.file_id("doc-0.md"), {"export_config_id": pa.scalar("exp-unknown")})
    verification = found(world)
    assert [finding.kind for finding in verification.findings] == ["foreign_records"]
    assert "exp-unknown" in verification.findings[0].detail
    tenant = world.export.ledger.state().tenant_id
    other = world.export.ledger.__class__(world.export.home.ledger_url, "other")
    other.update_state(tenant_id=tenant, export_config_id="exp-unknown")
    other.close()
    assert found(world).ok


def test_an_old_version_left_behind_is_stale(world: World) -> None:
    file_id = world.file_id("doc-0.md")
    old = [t for table in held_tables(world) for t in split_files(table) if t.file_id == file_id]
    world.write("doc-0.md", "# Document 0\n\nEdited.\n")
    world.ingest()
    assert found(world, deep=True).ok

    async def write_back(exporter: Exporter) -> None:
        await exporter.replace_files(old)

    with_exporter(world, write_back)
    assert kinds(found(world)) == {("stale_file", file_id, None)}
    assert ("altered_text", file_id, 0) in kinds(found(world, deep=True))


def test_what_was_seen_of_a_file_that_a_run_has_replaced_meanwhile_is_no_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, replaced = world.file_id("doc-0.md"), world.file_id("doc-1.md")
    drop_rows(world, f"parsed_directory_file_id in ('{lost}', '{replaced}')")
    real = LanceDBExporter.list_scopes

    async def replaced_then(self: LanceDBExporter) -> Any:
        world.export.ledger.update_files([{"file_id": replaced, "record_set_hash": "another"}])
        return await real(self)

    monkeypatch.setattr(LanceDBExporter, "list_scopes", replaced_then)
    verification = found(world)
    assert (kinds(verification), verification.unsettled) == ({("missing_file", lost, None)}, 1)


def test_a_file_on_its_way_claims_nothing(world: World) -> None:
    world.write("new.md", "# New\n\nNot loaded yet.\n")
    world.faults(payloads={"new.md": "not_json"})
    assert not world.sync().ok
    verification = found(world, deep=True)
    assert (verification.ok, verification.unsettled) == (True, 1)


@pytest.mark.parametrize(("seconds", "unsettled"), [(60, 1), (-1, 0)])
def test_nothing_is_claimed_of_what_a_live_run_holds_until_its_lease_has_run_out(
    world: World, seconds: float, unsettled: int
) -> None:
    files = [world.file_id("doc-0.md")]
    ledger = world.export.ledger
    with command_run("plan") as holder:
        assert ledger.claim(files, holder, seconds=seconds, dead_runs=ledger.holders(files)) == files
        assert found(world).unsettled == unsettled


@pytest.mark.parametrize("deep", [False, True])
def test_a_replace_left_half_way_is_pending_and_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch, deep: bool) -> None:
    file_id = world.file_id("long.md")
    real = LanceDBExporter.list_snapshots

    async def half_way(self: LanceDBExporter, **options: Any) -> list[Snapshot]:
        listed = await real(self, **options)
        return [
            replace(s, record_set_hash=f"{PENDING_PREFIX}new:3") if s.parsed_directory_file_id == file_id else s for s in listed
        ]

    monkeypatch.setattr(LanceDBExporter, "list_snapshots", half_way)
    drop_rows(world, f"parsed_directory_file_id = '{file_id}' AND chunk_index = 2")
    assert kinds(found(world, deep=deep)) == {("pending", file_id, None)}


def test_a_collection_of_another_making_is_a_conflict(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.change(sinks={"lancedb": {"uri": str(world.root / "other")}})

    async def strangers(exporter: Exporter) -> None:
        assert isinstance(exporter, LanceDBExporter)
        import lancedb

        database = await lancedb.connect_async(str(world.root / "other"))
        await database.create_table(exporter.table_name, data=pa.table({"a": [1]}))

    with_exporter(world, strangers, provision=False)
    verification = found(world)
    assert [finding.kind for finding in verification.findings] == ["conflict"]
    assert "was not made by" in verification.findings[0].detail


def test_a_lake_that_lost_a_partition_proves_nothing(world: World) -> None:
    file_id = world.file_id("doc-2.md")
    world.export.lake.delete(file_id)
    assert found(world).ok
    assert kinds(found(world, deep=True)) == {("unproved", file_id, None)}


def test_the_number_of_requests_does_not_grow_with_files(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str] | None] = []
    real = LanceDBExporter.list_snapshots

    async def counted(self: LanceDBExporter, **options: Any) -> Any:
        asked.append(options.get("parsed_directory_file_ids"))
        return await real(self, **options)

    monkeypatch.setattr(LanceDBExporter, "list_snapshots", counted)
    found(world)
    assert asked == [None]


def check(world: World, settings: ExportSettings | None = None, *, sink: str = "lancedb") -> dg.AssetCheckEvaluation:
    definitions = export_definitions(settings or world.settings)
    result = definitions.resolve_job_def("default_verification").execute_in_process(instance=world.instance, raise_on_error=False)
    assert result.success
    return next(e for e in result.get_asset_check_evaluations() if e.asset_key.path[-1] == sink)


def test_the_check_shows_what_differs_as_a_table(world: World) -> None:
    assert check(world).passed
    file_id = world.file_id("doc-1.md")
    drop_rows(world, f"parsed_directory_file_id = '{file_id}'")
    evaluation = check(world)
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.ERROR)
    table = evaluation.metadata["differences"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [(record.data["kind"], record.data["file"]) for record in table.records] == [("missing_file", "doc-1.md")]


def test_a_sink_that_does_not_answer_fails_its_check_and_not_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.root / "blocked").write_text("a file where the database should lie")
    world.change(sinks={"lancedb": {"uri": str(world.root / "blocked" / "db")}})
    evaluation = check(world)
    assert not evaluation.passed
    assert evaluation.metadata["findings_unreachable"].value == 1


@pytest.mark.parametrize("deep", [False, True])
def test_a_sink_that_is_set_up_wrong_is_named_with_the_remedy(world: World, monkeypatch: pytest.MonkeyPatch, deep: bool) -> None:
    monkeypatch.delenv("QDRANT_URL", raising=False)
    world.change(sinks={"qdrant": {}, "lancedb": {}})
    [finding] = found(world, sink="qdrant", deep=deep).findings
    assert (finding.kind, finding.file_id) == ("unreachable", None)
    assert "QDRANT_URL" in finding.detail
    assert found(world, deep=deep).ok
    assert check(world).passed
    assert "QDRANT_URL" in str(check(world, sink="qdrant").metadata["differences"])


def test_a_sink_the_export_does_not_have_is_no_finding(world: World) -> None:
    with pytest.raises(ConfigError, match="no sink 'elsewhere'; it has: lancedb"):
        found(world, sink="elsewhere")
