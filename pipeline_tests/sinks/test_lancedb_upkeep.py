"""When a LanceDB table is compacted, indexed and pruned, and that searches find everything meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from lancedb.index import IvfRq, IvfSq

from pipeline.sinks import lancedb_upkeep
from pipeline.sinks.base import SearchRequest, SinkContext
from pipeline.sinks.lancedb import LanceDBExporter, LanceDBSettings
from pipeline.sinks.records import FileRecords
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, matrix
from pipeline_tests.conformance.lancedb_harness import LanceDBUnderTest
from pipeline_tests.sinks.lancedb_bench import raw_table

ROWS = 400


@pytest.fixture
async def exporter(tmp_path: Path) -> AsyncIterator[LanceDBExporter]:
    made = LanceDBExporter(LanceDBSettings(uri=str(tmp_path), index_threshold_rows=300), SinkContext("prj-1", MODEL, FIELDS))
    await made.provision()
    yield made
    await made.close()


@pytest.fixture
async def bench(exporter: LanceDBExporter, tmp_path: Path) -> Bench:
    """It holds one large file, of which every row is indexed."""
    made = Bench(LanceDBUnderTest(str(tmp_path)), tenant="prj-1", opened=[exporter])
    await made.replace(made.file("dfl-large", ROWS))
    await exporter.optimize()
    return made


@pytest.fixture
async def table(bench: Bench, tmp_path: Path) -> Any:
    return await raw_table(tmp_path)


def version(bench: Bench, number: int) -> FileRecords:
    return bench.file("dfl-small", [f"the sluice s{number}", f"a weir w{number}"], version=f"v{number}")


async def sync(bench: Bench, number: int) -> None:
    await bench.replace(version(bench, number))
    await bench.exporter.optimize()


async def assert_finds(bench: Bench, file: FileRecords, word: str) -> None:
    """This version, and none before it."""
    for chunk, vector in enumerate(matrix(file.table)):
        (hit,) = await bench.search(SearchRequest(bench.config, vector=vector, k=1))
        assert (hit.record.parsed_directory_file_id, hit.record.content) == (file.file_id, file.table["content"][chunk].as_py())
    (hit,) = await bench.search(SearchRequest(bench.config, "text", text=word))
    assert hit.record.content == f"the sluice {word}"
    assert len(await bench.search(SearchRequest(bench.config, "text", text="sluice"))) == 1


async def index_of(table: Any, column: str) -> Any:
    await table.checkout_latest()
    (index,) = [index for index in await table.list_indices() if column in index.columns]
    return index


def data_files(directory: Path) -> set[Path]:
    return set(directory.glob("*.lance/data/*.lance"))


async def fragments(table: Any) -> int:
    await table.checkout_latest()
    count: int = (await table.stats())["fragment_stats"]["num_fragments"]
    return count


async def test_a_small_sync_writes_its_own_rows_alone_and_they_are_found_at_once(
    bench: Bench, table: Any, tmp_path: Path
) -> None:
    for number in range(5):
        before = data_files(tmp_path)
        await sync(bench, number)
        assert len(data_files(tmp_path) - before) == 1
        await assert_finds(bench, version(bench, number), f"s{number}")
    assert (await index_of(table, "text")).num_unindexed_rows > 0
    await bench.assert_holds(bench.file("dfl-large", ROWS), version(bench, 4))


async def test_many_small_syncs_are_compacted_and_indexed_once(bench: Bench, table: Any) -> None:
    counts = []
    for number in range(25):
        await bench.replace(bench.file(f"dfl-{number}", [f"flap f{number}"]))
        await bench.exporter.optimize()
        counts.append(await fragments(table))
    assert counts == [*range(2, 21), *range(2, 8)]
    assert len(await bench.search(SearchRequest(bench.config, "text", text="flap", k=50))) == 25


async def test_many_new_rows_are_indexed_at_once(bench: Bench, table: Any) -> None:
    await bench.replace(bench.file("dfl-new", ROWS // 4))
    await bench.exporter.optimize()
    for column in ("text", "vector"):
        assert (await index_of(table, column)).num_unindexed_rows == 0


async def test_old_versions_go_however_little_was_written(bench: Bench, exporter: LanceDBExporter, table: Any) -> None:
    await sync(bench, 0)
    assert len(await table.list_versions()) > 5
    exporter._upkeep = dataclasses.replace(exporter._upkeep, keep=timedelta(0))
    await exporter.optimize()
    assert len(await table.list_versions()) <= 2


async def test_a_vector_index_of_many_parts_becomes_one(bench: Bench, table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lancedb_upkeep, "_SEGMENTS", 2)
    segments = []
    for number in range(3):
        await bench.replace(bench.file(f"dfl-{number}", ROWS // 4))
        await bench.exporter.optimize()
        segments.append((await index_of(table, "vector")).num_segments)
    assert segments == [2, 3, 1]
    await sync(bench, 0)
    await assert_finds(bench, version(bench, 0), "s0")
    await bench.assert_holds(
        bench.file("dfl-large", ROWS), *(bench.file(f"dfl-{n}", ROWS // 4) for n in range(3)), version(bench, 0)
    )


async def test_a_coarse_vector_index_of_an_earlier_version_is_made_anew_once(bench: Bench, table: Any) -> None:
    await table.create_index("vector", config=IvfRq(distance_type="cosine"), replace=True)
    await bench.exporter.optimize()
    index = await index_of(table, "vector")
    assert index.index_details["compression"]["num_bits"] == lancedb_upkeep._BITS
    await bench.exporter.optimize()
    assert (await index_of(table, "vector")).index_uuid == index.index_uuid


async def test_a_vector_index_that_somebody_else_has_made_stays(bench: Bench, table: Any) -> None:
    await table.create_index("vector", config=IvfSq(distance_type="cosine"), replace=True)
    await bench.exporter.optimize()
    assert (await index_of(table, "vector")).index_type == "IvfSq"
