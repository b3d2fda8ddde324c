"""LanceDB: metadata fields that are declared after rows were written, for our filters and for LlamaIndex's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lancedb.table import AsyncTable

from pipeline.errors import SinkUnavailable
from pipeline.sinks import lancedb_store, lancedb_table
from pipeline.sinks.base import SearchRequest
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline_tests.conformance.harness import Bench, unit_vectors
from pipeline_tests.conformance.lancedb_harness import LanceDBUnderTest
from pipeline_tests.sinks.lancedb_bench import exporter_with, raw_table

QUERY = unit_vectors("q", 1)[0]


async def years_found(exporter: LanceDBExporter, config: str, filters: dict[str, Any]) -> list[str]:
    request = SearchRequest(config, vector=QUERY, k=100, filters=filters)
    return sorted({hit.record.parsed_directory_file_id for hit in await exporter.search(request)})


async def older_bench(tmp_path: Path, *years: int) -> Bench:
    """A table that knows of no field, with a file for each year."""
    bench = Bench(LanceDBUnderTest(str(tmp_path)), fields={}, tenant="prj-1")
    await bench.open().provision()
    await bench.replace(*(bench.file(f"dfl-{year}", 3, metadata={"year": year}) for year in years))
    return bench


async def as_llama_index_filters(tmp_path: Path, where: str) -> int:
    """Rows found by the form in which LlamaIndex's LanceDBVectorStore filters: the field alone."""
    query = (await raw_table(tmp_path)).query().where(where).nearest_to(QUERY).column("vector").limit(100)
    found: int = (await query.to_arrow()).num_rows
    return found


async def test_a_newly_declared_field_is_added_and_filled_from_what_rows_hold(tmp_path: Path) -> None:
    bench = Bench(LanceDBUnderTest(str(tmp_path)), fields={}, tenant="prj-1")
    await bench.open().provision()
    files = [bench.file(f"dfl-{n}", 3, metadata={"the year": 2020 + n, "tags": ["a"]}) for n in range(4)]
    misfit = bench.file("dfl-misfit", 3, metadata={"the year": "unknown"})
    await bench.replace(*files, misfit)
    newer = exporter_with(tmp_path, {"the year": "integer"})
    await newer.provision()
    assert await years_found(newer, bench.config, {"the year": {"gte": 2022}}) == ["dfl-2", "dfl-3"]
    assert await (await raw_table(tmp_path)).count_rows("metadata.`the year` IS NULL") == 3, "others can filter on it too"
    await bench.assert_holds(*files, misfit)
    changed = bench.file("dfl-0", 2, version="v2", metadata={"the year": 2030})
    await bench.replace(changed)  # by the older exporter, which does not know of the field
    assert await years_found(newer, bench.config, {"the year": 2030}) == ["dfl-0"]
    before = await (await raw_table(tmp_path)).version()
    await newer.provision()
    assert await (await raw_table(tmp_path)).version() == before, "nothing is left to fill, so nothing is written"


async def test_filling_goes_on_where_a_crash_left_it(tmp_path: Path) -> None:
    bench = Bench(LanceDBUnderTest(str(tmp_path)), fields={}, tenant="prj-1")
    await bench.open().provision()
    file = bench.file("dfl-1", 3, metadata={"year": 2024})
    await bench.replace(file)
    await (await raw_table(tmp_path)).add_columns(lancedb_table.metadata_addition({"year": "integer"}))
    newer = exporter_with(tmp_path, {"year": "integer"})
    assert await years_found(newer, bench.config, {"year": 2024}) == []
    await newer.provision()
    assert await years_found(newer, bench.config, {"year": 2024}) == ["dfl-1"]
    await bench.assert_holds(file)


async def test_a_field_added_while_a_replace_is_under_way_is_filled(tmp_path: Path) -> None:
    bench = Bench(LanceDBUnderTest(str(tmp_path)))
    exporter = bench.open()
    await exporter.provision()
    assert isinstance(exporter, LanceDBExporter)
    encode = exporter._encode

    def add_field_after(records: pa.Table, schema: pa.Schema) -> pa.Table:
        rows = encode(records, schema)
        exporter._encode = encode  # type: ignore[method-assign] # only the first encoding is late
        asyncio.run(_add_field(tmp_path))
        return rows

    exporter._encode = add_field_after  # type: ignore[method-assign] # the moment between encoding and commit
    file = bench.file("dfl-1", 3, metadata={"new one": "x"})
    await bench.replace(file)
    await bench.assert_holds(file)
    assert await (await raw_table(tmp_path)).count_rows("metadata.`new one` = 'x'") == 3


async def _add_field(tmp_path: Path) -> None:
    await (await raw_table(tmp_path)).add_columns(lancedb_table.metadata_addition({"new one": "string"}))


@pytest.mark.parametrize("step", ["add_columns", "update", "merge_insert", "update_field_metadata"])
async def test_a_crash_at_any_step_of_adding_a_field_is_made_good_by_the_next_call(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await older_bench(tmp_path, 2023, 2024)
    newer = exporter_with(tmp_path, {"year": "integer"})

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("killed")

    monkeypatch.setattr(AsyncTable, step, broken)
    with pytest.raises(SinkUnavailable, match="killed"):
        await newer.provision()
    monkeypatch.undo()
    await newer.provision()
    assert await years_found(newer, bench.config, {"year": 2024}) == ["dfl-2024"]
    assert await as_llama_index_filters(tmp_path, "metadata.year = 2024") == 3
    await bench.assert_holds(*(bench.file(f"dfl-{year}", 3, metadata={"year": year}) for year in (2023, 2024)))


@pytest.mark.parametrize("step", ["add_columns", "update", "update_field_metadata"])
async def test_another_writers_commit_at_any_step_of_adding_a_field_is_no_failure(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lancedb_store, "_FIRST_WAIT", 0.0)
    await older_bench(tmp_path, 2023, 2024)
    original, calls = getattr(AsyncTable, step), 0

    async def conflicting(table: AsyncTable, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("Retryable commit conflict for version 3")
        return await original(table, *arguments, **options)

    monkeypatch.setattr(AsyncTable, step, conflicting)
    await exporter_with(tmp_path, {"year": "integer"}).provision()
    assert calls == 2
    assert await as_llama_index_filters(tmp_path, "metadata.year = 2024") == 3


async def test_a_field_is_filled_for_every_tenant_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await older_bench(tmp_path, 2023, 2024)
    await exporter_with(tmp_path, {"year": "integer"}, tenant="prj-2").provision()
    newer = exporter_with(tmp_path, {"year": "integer"})
    monkeypatch.setattr(lancedb_store.LanceStore, "read", None)  # a row read would be a failure
    await newer.provision()
    monkeypatch.undo()
    assert await years_found(newer, bench.config, {"year": 2024}) == ["dfl-2024"]


async def test_a_new_table_has_nothing_to_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsyncTable, "update", None)
    exporter = exporter_with(tmp_path, {"the year": "integer", "a-b": "string"})
    await exporter.provision()
    await exporter.provision()
    later = exporter_with(tmp_path, {"the year": "integer", "c-d": "string"})
    monkeypatch.undo()
    await later.provision()
    monkeypatch.setattr(AsyncTable, "update", None)
    await later.provision()
    await exporter_with(tmp_path, {"c-d": "string", "a-b": "string"}).provision()
