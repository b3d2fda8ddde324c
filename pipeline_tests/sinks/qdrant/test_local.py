"""The client's own local mode: the same sink on the vendor's own implementation of what points, payloads and filters mean."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from pipeline.errors import SinkConflict, SinkUnavailable
from pipeline.sinks.base import SinkContext
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench
from pipeline_tests.conformance.qdrant_harness import QdrantUnderTest, qdrant_local
from pipeline_tests.conformance.services import assert_vector_searches_mean_what_they_mean_elsewhere, searched_files

CONTEXT = SinkContext("prj-1", MODEL, FIELDS)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[QdrantUnderTest]:
    with qdrant_local(tmp_path) as sink:
        yield sink


async def test_exporters_of_one_process_share_a_local_directory(local: QdrantUnderTest) -> None:
    bench = Bench(local)
    first, second = bench.open(), bench.open()
    await asyncio.gather(first.provision(), second.provision())
    file = bench.file("dfl-1")
    await bench.replace(file)
    await first.close()
    await bench.assert_holds(file, exporter=second)
    await second.close()
    again = bench.open()
    await bench.assert_holds(file, exporter=again)
    await again.close()


async def test_a_local_directory_in_use_by_another_client_is_unavailable(local: QdrantUnderTest, tmp_path: Path) -> None:
    client = QdrantClient(path=str(tmp_path / "qdrant"))
    exporter = local.make_exporter(CONTEXT)
    with pytest.raises(SinkUnavailable, match="already accessed"):
        await exporter.provision()
    client.close()
    await exporter.provision()
    await exporter.close()


async def test_files_are_written_replaced_and_deleted(local: QdrantUnderTest) -> None:
    bench = Bench(local)
    await bench.open().provision()
    files = [bench.file("dfl-1", 9), bench.file("dfl-2", 3, metadata={"year": 2024, "tags": ["a"]}), bench.file("dfl-3", 2)]
    await bench.replace(*files)
    await bench.exporter.provision()
    await bench.assert_holds(*files)
    changed = [bench.file("dfl-1", 2, version="v2"), bench.file("dfl-2", 0)]
    await bench.replace(*changed)
    await bench.assert_holds(*changed, files[2])
    await bench.delete("dfl-1", "dfl-never-there")
    await bench.assert_holds(files[2])
    await bench.exporter.close()


async def test_searches_and_filters_mean_what_they_mean_elsewhere(local: QdrantUnderTest) -> None:
    bench = Bench(local)
    await bench.open().provision()
    files = searched_files(bench)
    await bench.replace(*files)
    await assert_vector_searches_mean_what_they_mean_elsewhere(bench, files)
    await bench.exporter.close()


async def test_a_directory_without_the_collection_says_to_provision(local: QdrantUnderTest) -> None:
    exporter = local.make_exporter(CONTEXT)
    with pytest.raises(SinkUnavailable, match="provision the sink first"):
        await exporter.list_snapshots(export_config_id="cfg")
    await exporter.close()


async def test_a_collection_that_does_not_fit_is_a_conflict(local: QdrantUnderTest) -> None:
    bench = Bench(local)
    await bench.open().provision()
    wider = bench.open(model=type(MODEL)(MODEL.name, MODEL.fingerprint, 99))
    with pytest.raises(SinkConflict, match="16 dimensions"):
        await wider.provision()
    for exporter in bench.opened:
        await exporter.close()


async def test_a_directory_that_cannot_be_is_unavailable(local: QdrantUnderTest) -> None:
    exporter = local.make_unreachable_exporter(CONTEXT)
    with pytest.raises(SinkUnavailable, match="cannot open the directory"):
        await exporter.provision()
    await exporter.close()
