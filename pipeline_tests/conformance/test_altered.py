"""Stores that let any program alter a record: the file is named and mended, and costs no other file anything."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.sinks import backoff
from pipeline.sinks.base import Exporter, SearchRequest, SinkContext
from pipeline.sinks.records import FileRecords
from pipeline.stages.erase import erase
from pipeline.stages.findings import compare_file
from pipeline.stages.rebuild import rebuild_lake
from pipeline.stages.repair import repair
from pipeline.stages.verify import verify
from pipeline_tests.conformance.harness import (
    ALTERABLE,
    FIELDS,
    MODEL,
    AlterableSink,
    Bench,
    load_harness,
    matrix,
    provisioned_bench,
)
from pipeline_tests.world import World, open_world

ADDRESS = ("tenant_id", "export_config_id", "parsed_directory_file_id")
REMOVED = (
    *ADDRESS,
    "chunk_count",
    "chunk_index",
    "content",
    "attachments",
    "content_fingerprint_hash",
    "embedding",
    "embedding_model",
    "metadata",
    "record_set_hash",
    "source_modified_at",
)
OF_ANOTHER_TYPE: dict[str, Any] = {
    "attachments": "x",
    "chunk_count": "three",
    "chunk_token_count": 1.5,
    "content": 5,
    "content_fingerprint_hash": 5,
    "metadata": "{",
    "page_range_start": "one",
    "record_set_hash": 5,
    "source_modified_at": "yesterday",
}
OTHER_VALUES: dict[str, Any] = {"chunk_count": 2, "pending": "garbage,more:garbage", "record_set_hash": "0" * 64}
CHANGES: list[tuple[str, Any]] = [
    *((name, None) for name in REMOVED),
    *OF_ANOTHER_TYPE.items(),
    *OTHER_VALUES.items(),
    ("chunk_count", 10**12),
]


@pytest.fixture(scope="module", params=ALTERABLE)
def sink(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AlterableSink]:
    with load_harness(request.param)(tmp_path_factory.mktemp(request.param)) as under_test:
        yield cast(AlterableSink, under_test)


@pytest.fixture
async def bench(sink: AlterableSink) -> AsyncIterator[Bench]:
    async with provisioned_bench(sink) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.001)


def _changes(sink: AlterableSink) -> list[tuple[str, Any]]:
    """What another program can do to a record of this store."""
    possible = [(name, value) for name, value in CHANGES if name not in sink.always_there]
    return [item for item in possible if not sink.holds_types or item not in OF_ANOTHER_TYPE.items()]


async def _unnamed(bench: Bench, files: Iterable[FileRecords]) -> set[str]:
    """Files of which neither their snapshots nor a comparison field by field tells that they were altered."""
    snapshots, held = await bench.snapshots(), await bench.held()
    same = {
        file.file_id
        for file in files
        if file.file_id in snapshots and snapshots[file.file_id].record_set_hash == file.record_set_hash
    }
    return {
        file.file_id
        for file in files
        if file.file_id in same and not compare_file("sink", file.file_id, file.table, held[file.file_id])
    }


@pytest.mark.parametrize("chunk_index", [0, 1])
async def test_files_of_which_a_record_was_altered_are_named_replaced_and_deleted(
    sink: AlterableSink, bench: Bench, chunk_index: int
) -> None:
    changes = {f"{name}={value} of {bench.config}": (name, value) for name, value in _changes(sink)}
    files = [bench.file(file_id, 5) for file_id in changes]
    neighbour = bench.file("dfl-neighbour")

    async def alter(*names: str) -> None:
        for file_id in names:
            sink.alter(file_id, chunk_index, *changes[file_id])
        await sink.settle(bench.exporter)

    await bench.replace(*files, neighbour)
    await alter(*changes)
    harmless = {file_id for file_id, (name, _) in changes.items() if name == "pending" and chunk_index}
    assert await _unnamed(bench, files) == harmless
    request = SearchRequest(bench.config, vector=matrix(neighbour.table)[0], k=500)
    assert (await bench.search(request))[0].record.parsed_directory_file_id == "dfl-neighbour"
    neighbour = bench.file("dfl-neighbour", 2, version="v2")
    await bench.replace(*files, neighbour)
    await bench.assert_holds(*files, neighbour)

    known = [file_id for file_id, (name, _) in changes.items() if name not in ADDRESS]  # of the rest nothing tells any more
    others = [file for file in files if file.file_id not in known]
    shorter = [bench.file(file_id, 3, version="v2") for file_id in known]
    await alter(*known)
    await bench.replace(*shorter)
    await bench.assert_holds(*shorter, *others, neighbour)

    await alter(*changes)
    await bench.delete(*changes)
    await bench.assert_holds(neighbour)


@pytest.mark.parametrize("name", ["chunk_count", "export_config_id", "metadata", "record_set_hash", "tenant_id"])
async def test_a_sink_with_an_altered_record_can_be_provisioned_for_another_field(
    sink: AlterableSink, bench: Bench, name: str
) -> None:
    """As every command does that begins after a metadata field was declared."""
    file_id = f"dfl-{bench.config}"
    await bench.replace(bench.file(file_id, metadata={"added": "x"}), bench.file("dfl-2", metadata={"added": "x"}))
    sink.alter(file_id, 0, name, None)
    context = SinkContext(bench.tenant, MODEL, {**FIELDS, f"field {bench.config}"[:60]: "string"})
    exporter = sink.make_exporter(context)
    bench.opened.append(exporter)
    await exporter.provision()
    await exporter.list_scopes()
    assert "dfl-2" in await bench.snapshots(exporter)


async def test_a_version_without_its_first_record_is_swept_up_by_a_replace(sink: AlterableSink, bench: Bench) -> None:
    file_id = f"dfl-{bench.config}"
    await bench.replace(bench.file(file_id, 4))
    sink.alter(file_id, 0, "chunk_index", 7)
    assert await bench.snapshots() == {}
    new = bench.file(file_id, 2, version="v2")
    await bench.replace(new)
    await bench.assert_holds(new)


@pytest.mark.parametrize("chunk_index", [0, 1])
async def test_records_that_name_no_file_are_shown_and_leave_with_the_next_delete_of_their_config(
    sink: AlterableSink, bench: Bench, chunk_index: int
) -> None:
    mine, gone, neighbour = (bench.file(f"{name} of {bench.config}") for name in ("mine", "gone", "neighbour"))
    config, tenant = f"{bench.config}-b", f"{bench.tenant}-b"
    foreign = [bench.file(f"{name} of {bench.config}", config=config, tenant=tenant) for name in ("foreign", "whole")]
    stranger = bench.open(tenant=tenant)
    beside = bench.file(f"beside of {bench.config}", config=config)
    await stranger.replace_files(foreign)
    await bench.replace(mine, gone, neighbour, beside)
    for file in (gone, foreign[0], beside):
        sink.alter(file.file_id, chunk_index, "parsed_directory_file_id", None)
    await sink.settle(bench.exporter)
    assert await _nameless(bench) == 1

    await bench.delete(gone.file_id)
    await bench.assert_holds(mine, neighbour)
    found = await bench.search(SearchRequest(bench.config, vector=matrix(gone.table)[chunk_index], k=100))
    assert {hit.record.parsed_directory_file_id for hit in found} == {mine.file_id, neighbour.file_id}

    sink.alter(mine.file_id, chunk_index, "parsed_directory_file_id", None)
    await sink.settle(bench.exporter)
    mine = bench.file(mine.file_id, 2, version="v2")
    await bench.replace(mine)
    await bench.delete()
    await bench.assert_holds(mine, neighbour)
    assert [await _nameless(bench, config=config), await _nameless(bench, stranger, config)] == [1, 1]


async def _nameless(bench: Bench, exporter: Exporter | None = None, config: str | None = None) -> int:
    """Records without the name of a file."""
    tables = (exporter or bench.exporter).fetch_records(export_config_id=config or bench.config)
    return sum([table["parsed_directory_file_id"].null_count async for table in tables])


OWN_METADATA: dict[str, Any] = {"year": 2024, "rating": 4, "language": "en", "draft": True, "tags": ["a", "b"]}


@pytest.mark.parametrize("chunk_index", [0, 2])
async def test_what_filters_and_llama_index_read_beside_a_record_is_compared_with_it(
    sink: AlterableSink, bench: Bench, chunk_index: int
) -> None:
    others = {"year": 1999, "rating": 4.5, "language": "de", "draft": False, "tags": ["a"], "_node_content": "{}"}
    taken = [(name, value) for name, other in others.items() for value in (None, other)]
    changes = {f"{name}={value} of {bench.config}": (name, value) for name, value in taken}
    files = [bench.file(file_id, metadata=OWN_METADATA) for file_id in changes]
    lacking, neighbour = bench.file(f"added to {bench.config}", metadata={}), bench.file("dfl-neighbour", metadata=OWN_METADATA)
    await bench.replace(*files, lacking, neighbour)
    await bench.assert_holds(*files, lacking, neighbour)

    for file_id, change in {**changes, lacking.file_id: ("language", "en")}.items():
        sink.alter_copy(file_id, chunk_index, *change)
    await sink.settle(bench.exporter)
    held = await bench.held()
    for file in (*files, lacking):
        found = compare_file("sink", file.file_id, file.table, held[file.file_id])
        assert {finding.chunk_index for finding in found} == {chunk_index}, file.file_id
    assert not compare_file("sink", "dfl-neighbour", neighbour.table, held["dfl-neighbour"])

    await bench.replace(*files, lacking)
    await bench.assert_holds(*files, lacking, neighbour)


async def test_fields_declared_since_and_of_another_type_are_no_alteration(sink: AlterableSink) -> None:
    old = Bench(sink, fields={})
    new = Bench(sink, tenant=old.tenant, config=old.config)
    files = [old.file("dfl-fitting", metadata=OWN_METADATA), old.file("dfl-not", metadata={"language": 5, "year": "2024"})]
    try:
        await old.open().provision()
        await old.replace(*files)
        await new.open().provision()
        await new.assert_holds(*files)
    finally:
        for exporter in (*old.opened, *new.opened):
            await exporter.close()


@pytest.fixture
def world(sink: AlterableSink, tmp_path: Path) -> Iterator[tuple[World, str]]:
    """With a sink of this store, and that sink's name."""
    exporter = sink.make_exporter(SinkContext("any", MODEL))
    settings = exporter.settings.model_dump(mode="json", exclude_defaults=True)
    asyncio.run(exporter.close())
    name = next(name for name in ALTERABLE if name.replace("_", "") in type(exporter).__module__.replace("_", ""))
    with open_world(tmp_path, sinks={name: settings}) as opened:
        for number in range(3):
            opened.write(f"doc-{number}.md", f"# Document {number}\n\nThis is the body of document {number}.\n")
        opened.ingest()
        yield opened, name
        assert asyncio.run(erase(opened.export, list(opened.export.ledger.files()), run_id="command-erase")).proved


def test_verify_names_it_repair_mends_it_alone_and_erase_proves_it_gone(sink: AlterableSink, world: tuple[World, str]) -> None:
    opened, name = world
    victim = opened.file_id("doc-0.md")
    for deep in (False, True):
        sink.alter(victim, 0, "record_set_hash", None)
        found = asyncio.run(verify(opened.export, name, deep=deep)).findings
        assert {finding.file_id for finding in found} == {victim}
        assert any(finding.kind == "altered_metadata" for finding in found)
        assert not deep or any("record_set_hash" in finding.detail for finding in found)
        mended = asyncio.run(repair(opened.export, name, run_id="r1"))
        assert (mended.ok, mended.replaced) == (True, {victim})

    sink.alter(victim, 0, "content_fingerprint_hash", None)
    for number in range(3):
        opened.write(f"doc-{number}.md", f"# Document {number}\n\nNew words of document {number}.\n")
    opened.ingest()
    assert asyncio.run(verify(opened.export, name, deep=True)).ok

    sink.alter(victim, 0, "chunk_count", None)
    assert asyncio.run(erase(opened.export, [victim], run_id="e1")).proved
    assert opened.names(name) == {"doc-1.md", "doc-2.md"}


def test_records_that_name_no_file_are_found_and_repaired_and_erased(sink: AlterableSink, world: tuple[World, str]) -> None:
    opened, name = world
    ids = [opened.file_id(f"doc-{number}.md") for number in range(3)]
    sink.alter(ids[0], 0, "parsed_directory_file_id", None)
    found = asyncio.run(verify(opened.export, name, deep=True)).findings
    assert {(finding.kind, finding.file_id) for finding in found} == {("missing_file", ids[0]), ("orphan_file", None)}
    assert asyncio.run(repair(opened.export, name, run_id="r1")).ok

    sink.alter(ids[1], 0, "parsed_directory_file_id", None)
    opened.write("doc-1.md", "# Document 1\n\nNew words of document 1.\n")
    assert opened.sync().ok
    assert asyncio.run(repair(opened.export, name, run_id="r2")).ok

    sink.alter(ids[2], 0, "parsed_directory_file_id", None)
    assert asyncio.run(erase(opened.export, [ids[2]], run_id="e1")).proved
    assert asyncio.run(verify(opened.export, name, deep=True)).ok
    assert opened.names(name) == {"doc-0.md", "doc-1.md"}


def test_a_lost_lake_takes_no_vector_of_an_altered_record(sink: AlterableSink, world: tuple[World, str]) -> None:
    opened, name = world
    altered = [field for field in ("content", "embedding") if field not in sink.always_there]
    for number, field in enumerate(altered):
        sink.alter(opened.file_id(f"doc-{number}.md"), 0, field, None)
    shutil.rmtree(opened.root / "home" / "lake")
    rebuilt = asyncio.run(rebuild_lake(opened.export, run_id="r1"))
    assert rebuilt.embedded.numbers["computed"] == len(altered)
    assert len(asyncio.run(repair(opened.export, name, run_id="r2")).replaced) == len(altered)
    assert asyncio.run(verify(opened.export, name, deep=True)).ok
