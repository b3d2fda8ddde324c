"""LanceDB's own: the layout on disk, conflicts, added metadata fields, versions, indexes, and stores that fail."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import FTS
from lancedb.table import AsyncTable

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.sinks import lancedb as sink
from pipeline.sinks import lancedb_store, lancedb_table
from pipeline.sinks.base import SearchRequest, SinkContext
from pipeline.sinks.lancedb import LanceDBExporter, LanceDBSettings
from pipeline.sinks.records import FileRecords
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, matrix, provisioned_bench
from pipeline_tests.conformance.lancedb_harness import LanceDBUnderTest
from pipeline_tests.sinks.lancedb_bench import TABLE, exporter_with, raw_table


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with provisioned_bench(LanceDBUnderTest(str(tmp_path))) as made:
        yield made


async def test_rows_have_the_columns_a_llama_index_store_reads(bench: Bench, tmp_path: Path) -> None:
    file = bench.file("dfl-1", 2, metadata={"year": 2024, "undeclared": "x"})
    await bench.replace(file)
    rows = await (await raw_table(tmp_path)).to_arrow()
    assert rows.schema.field("vector").type == pa.list_(pa.float32(), MODEL.dimension)
    row = rows.sort_by("chunk_index").to_pylist()[1]
    document = f"{bench.config}:dfl-1"
    assert (row["id"], row["doc_id"], row["text"]) == (file.table["id"][1].as_py(), document, file.table["content"][1].as_py())
    metadata = row["metadata"]
    assert metadata["_node_type"] == "TextNode"
    assert metadata["document_id"] == metadata["doc_id"] == metadata["ref_doc_id"] == document
    assert metadata["year"] == 2024
    node = json.loads(metadata["_node_content"])
    assert (node["id_"], node["text"]) == (row["id"], row["text"])
    assert node["metadata"]["undeclared"] == "x"
    assert "content" not in rows.column_names, "the text is stored twice, as the layout asks, not more often"


async def test_the_marks_of_a_table_survive(bench: Bench, tmp_path: Path) -> None:
    table = await raw_table(tmp_path)
    marks = (await table.schema()).metadata
    assert marks[lancedb_table.MODEL_KEY] == MODEL.fingerprint.encode()
    assert marks[lancedb_table.FORMAT_KEY] == lancedb_table.FORMAT.encode()
    assert {column for index in await table.list_indices() for column in index.columns} == {"text", "parsed_directory_file_id"}


async def test_a_table_of_someone_else_is_a_conflict_and_stays_untouched(tmp_path: Path) -> None:
    database = await lancedb.connect_async(str(tmp_path))
    await database.create_table(TABLE, pa.table({"id": ["theirs"]}))
    with pytest.raises(SinkConflict, match="table_prefix"):
        await exporter_with(tmp_path, {}).provision()
    assert await (await database.open_table(TABLE)).count_rows() == 1


async def test_another_model_s_vectors_and_missing_columns_are_conflicts() -> None:
    schema = lancedb_table.table_schema(MODEL, {})
    with pytest.raises(SinkConflict, match="another model"):
        lancedb_table.check_schema(schema, "t", ModelIdentity("other", "other/1", MODEL.dimension), {})
    with pytest.raises(SinkConflict, match="'context' is missing"):
        lancedb_table.check_schema(schema.remove(schema.get_field_index("context")), "t", MODEL, {})


async def test_indexes_that_another_process_made_since_this_one_looked_are_no_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = AsyncTable.list_indices, 0

    async def late(table: AsyncTable) -> Any:
        nonlocal looks
        looks += 1
        return [] if looks == 1 else await look(table)

    monkeypatch.setattr(AsyncTable, "list_indices", late)
    await bench.open().provision()
    assert looks == 2


async def test_a_field_declared_with_another_type_is_a_conflict_that_names_both(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(SinkConflict, match=r"'year' as integer.*declares it as string"):
        await exporter_with(tmp_path, {"year": "string"}).provision()


async def test_a_replace_is_one_commit_and_large_ones_are_cut(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = await raw_table(tmp_path)

    async def commits_of(files: list[FileRecords]) -> int:
        before = await table.version()
        await bench.replace(*files)
        await table.checkout_latest()
        commits: int = await table.version() - before
        return commits

    files = [bench.file(f"dfl-{n}", 4) for n in range(6)]
    assert await commits_of(files) == 1
    assert await commits_of([bench.file("dfl-0", 1), bench.file("dfl-1", 0), bench.file("dfl-9", 9)]) == 1
    monkeypatch.setattr(sink, "_FILES_PER_COMMIT", 4)
    assert await commits_of(files) == 2
    monkeypatch.setattr(sink, "_BYTES_PER_COMMIT", 1)
    assert await commits_of(files) == 6
    await bench.assert_holds(*files, bench.file("dfl-9", 9))


async def test_a_reader_never_sees_a_mix_of_two_versions(bench: Bench) -> None:
    reader = bench.open()
    versions = [bench.file("dfl-1", 3 + n, version=f"v{n}") for n in range(8)]
    await bench.replace(versions[0])
    done = asyncio.Event()

    async def write() -> None:
        for file in versions[1:]:
            await bench.replace(file)
        done.set()

    writing = asyncio.create_task(write())
    sizes = {file.record_set_hash: file.table.num_rows for file in versions}
    seen = set()
    while not done.is_set():
        (rows,) = (await bench.held(reader)).values()
        (digest,) = rows["record_set_hash"].unique().to_pylist()
        assert rows.num_rows == sizes[digest]
        seen.add(digest)
    await writing
    assert len(seen) > 1


async def test_a_reader_half_way_through_survives_a_replace_and_optimize(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [bench.file(f"dfl-{n}", 3) for n in range(4)]
    await bench.replace(*files)
    monkeypatch.setattr(sink, "_BYTES_PER_FETCH", 1)
    tables = bench.open().fetch_records(export_config_id=bench.config)
    read = [await anext(tables)]
    await bench.replace(*(bench.file(f"dfl-{n}", 2, version="v2") for n in range(4)))
    await bench.exporter.optimize()
    read += [table async for table in tables]
    assert {table["record_set_hash"][0].as_py() for table in read} == {file.record_set_hash for file in files}
    assert len(read) == 4


@pytest.mark.parametrize("dimension", [16, 12])
async def test_a_vector_index_is_built_at_its_threshold_and_new_rows_are_found_without_it(tmp_path: Path, dimension: int) -> None:
    model = ModelIdentity("conformance", "conformance/1", dimension)
    exporter = LanceDBExporter(LanceDBSettings(uri=str(tmp_path), index_threshold_rows=300), SinkContext("prj-1", model, FIELDS))
    bench = Bench(LanceDBUnderTest(str(tmp_path)), tenant="prj-1", model=model, opened=[exporter])
    await exporter.provision()
    await bench.replace(bench.file("dfl-1", 299))
    await exporter.optimize()
    table = await raw_table(tmp_path)

    async def indexed() -> set[str]:
        await table.checkout_latest()
        return {column for index in await table.list_indices() for column in index.columns}

    assert "vector" not in await indexed()
    await bench.replace(bench.file("dfl-2", 5))
    await exporter.optimize()
    assert "vector" in await indexed()
    late = bench.file("dfl-3", 3)
    await bench.replace(late)
    for number in range(3):
        (hit,) = await bench.search(SearchRequest(bench.config, vector=matrix(late.table)[number], k=1))
        assert (hit.record.parsed_directory_file_id, hit.record.chunk_index) == ("dfl-3", number)
        assert hit.score == pytest.approx(1, abs=1e-3)
    await exporter.optimize()
    (hit,) = await bench.search(
        SearchRequest(bench.config, vector=matrix(late.table)[0], k=1, filters={"file_name": "dfl-3.pdf"})
    )
    assert hit.score == pytest.approx(1, abs=1e-3)
    await exporter.close()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("数据库系统启动以前，必须关闭泵的阀门。", "阀门"),
        ("水位計は故障しています", "故障"),
        ("ต้องปิดวาล์วปั๊มก่อนการบำรุงรักษา", "วาล์ว"),
        ("ຕ້ອງປິດວາວກ່ອນການບຳລຸງຮັກສາ", "ວາວ"),
        ("ត្រូវបិទវ៉ាល់មុនការថែទាំ", "វ៉ាល់"),
        ("အဆို့ရှင်ကိုပိတ်ရမည်", "အဆို့ရှင်"),
    ],
)
async def test_text_search_cuts_words_of_languages_without_spaces(bench: Bench, text: str, word: str) -> None:
    await bench.replace(bench.file("dfl-1", [text, "別の段落"]))
    hits = await bench.search(SearchRequest(bench.config, mode="text", text=word))
    assert [hit.record.chunk_index for hit in hits] == [0]


class TestATextIndexOfAnEarlierVersion:
    """It drops English stop words and cuts English endings."""

    @pytest.fixture
    async def table(self, bench: Bench, tmp_path: Path) -> Any:
        await bench.replace(bench.file("dfl-1", ["the IT department", "gauges"]))
        table = await raw_table(tmp_path)
        await table.create_index("text", config=FTS(base_tokenizer="icu"), replace=True)
        assert await self._found(bench, "IT") == []
        return table

    async def _found(self, bench: Bench, text: str) -> list[int]:
        hits = await bench.search(SearchRequest(bench.config, mode="text", text=text))
        return [hit.record.chunk_index for hit in hits]

    async def _index(self, table: Any) -> Any:
        await table.checkout_latest()
        [index] = [index for index in await table.list_indices() if "text" in index.columns]
        return index

    async def test_is_rebuilt_by_optimize_once(self, bench: Bench, table: Any) -> None:
        await bench.open().provision()
        assert await self._found(bench, "IT") == []
        await bench.exporter.optimize()
        assert await self._found(bench, "IT") == [0]
        built = (await self._index(table)).index_uuid
        await bench.exporter.optimize()
        assert (await self._index(table)).index_uuid == built

    async def test_answers_until_it_is_replaced_whoever_writes_and_rebuilds_meanwhile(self, bench: Bench, table: Any) -> None:
        writers = [bench.open() for _ in range(3)]
        rebuilding = asyncio.gather(*(writer.optimize() for writer in writers))
        for number in range(10):
            await bench.replace(bench.file("dfl-2", [f"the WHO {number}"], version=f"v{number}"))
            assert await self._found(bench, "department") == [0]
            assert await self._found(bench, "gauges") == [1]
        await rebuilding
        assert await self._found(bench, "WHO") == [0]
        assert (await self._index(table)).index_details["stem"] is False


async def test_a_vector_that_is_not_finite_is_refused_and_the_rest_is_written(bench: Bench) -> None:
    good, bad = bench.file("dfl-1"), bench.file("dfl-2")
    values = matrix(bad.table)
    values[1, 3] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), MODEL.dimension)
    index = bad.table.schema.get_field_index("embedding")
    broken = FileRecords(bad.provenance, bad.record_set_hash, bad.table.set_column(index, bad.table.schema.field(index), column))
    report = await bench.replace(good, broken)
    assert [refused.file_id for refused in report.refused] == ["dfl-2"]
    await bench.assert_holds(good)


async def test_a_missing_table_says_to_provision_and_works_once_that_is_done(tmp_path: Path) -> None:
    exporter = exporter_with(tmp_path, {})
    with pytest.raises(SinkUnavailable, match="provision"):
        await exporter.list_snapshots(export_config_id="cfg")
    await exporter.provision()
    assert await exporter.list_snapshots(export_config_id="cfg") == []
    await exporter.close()


async def test_a_table_dropped_and_made_anew_is_found_again(bench: Bench, tmp_path: Path) -> None:
    await bench.replace(bench.file("dfl-1"))
    await (await lancedb.connect_async(str(tmp_path))).drop_table(TABLE)
    with pytest.raises(SinkUnavailable):
        await bench.snapshots()
    await bench.exporter.provision()
    assert await bench.snapshots() == {}


async def test_an_address_lancedb_does_not_know_is_a_configuration_error() -> None:
    settings = LanceDBSettings(uri="gopher://user:a-secret@nowhere/records")
    with pytest.raises(ConfigError, match="gopher://nowhere/records") as caught:
        await LanceDBExporter(settings, SinkContext("prj-1", MODEL)).provision()
    assert "a-secret" not in str(caught.value)


def test_a_prefix_that_is_no_table_name_is_refused() -> None:
    with pytest.raises(ValueError, match="table_prefix"):
        LanceDBSettings(uri="x", table_prefix="a/b")


FULL_DISK = """
import asyncio, resource, sys
from pipeline.errors import SinkUnavailable
from pipeline_tests.conformance.harness import Bench
from pipeline_tests.conformance.lancedb_harness import LanceDBUnderTest
from pipeline_tests.sinks.lancedb_bench import TABLE, exporter_with, raw_table

async def main():
    bench = Bench(LanceDBUnderTest(sys.argv[1]), tenant="prj-1", config="cfg-1")
    await bench.open().provision()
    await bench.replace(bench.file("dfl-1"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        await bench.replace(bench.file("dfl-2", 500))
    except SinkUnavailable as error:
        print(error)

asyncio.run(main())
"""


async def test_a_disk_that_takes_no_more_is_unavailable_with_the_reason_and_loses_nothing(tmp_path: Path) -> None:
    run = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "cannot replace files" in run.stdout
    assert "File too large" in run.stdout
    bench = Bench(LanceDBUnderTest(str(tmp_path)), tenant="prj-1", config="cfg-1")
    await bench.open().provision()
    await bench.assert_holds(bench.file("dfl-1"))
    await bench.replace(bench.file("dfl-2", 500))
    await bench.assert_holds(bench.file("dfl-1"), bench.file("dfl-2", 500))


class TestCommits:
    """Trying again after another writer's commit."""

    @pytest.fixture
    def store(self, monkeypatch: pytest.MonkeyPatch) -> lancedb_store.LanceStore:
        monkeypatch.setattr(lancedb_store, "_FIRST_WAIT", 0.0)
        return lancedb_store.LanceStore("/nowhere", "table")

    async def _failing(self, store: lancedb_store.LanceStore, message: str, times: int) -> int:
        attempts = 0

        async def attempt() -> int:
            nonlocal attempts
            attempts += 1
            if attempts <= times:
                raise RuntimeError(message)
            return attempts

        try:
            return await store.commit("replace files", attempt)
        except SinkUnavailable as error:
            raise SinkUnavailable(f"{error} after {attempts}") from error

    @pytest.mark.parametrize("message", ["Retryable commit conflict for version 3", "Too many concurrent writers"])
    async def test_conflicts_are_tried_again(self, store: lancedb_store.LanceStore, message: str) -> None:
        assert await self._failing(store, message, 4) == 5

    async def test_but_not_for_ever(self, store: lancedb_store.LanceStore) -> None:
        with pytest.raises(SinkUnavailable, match=r"cannot replace files: commit conflict after 10"):
            await self._failing(store, "commit conflict", 99)

    async def test_and_nothing_else_is(self, store: lancedb_store.LanceStore) -> None:
        with pytest.raises(SinkUnavailable, match=r"No space left on device after 1"):
            await self._failing(store, "lance error: No space left on device, /x/registry/src/y/lance-1/src/io.rs:3:4", 1)
