"""What of erased files is left in the directory of a LanceDB table."""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.embedding.base import ModelIdentity
from pipeline.sinks.base import SearchRequest, SinkContext
from pipeline.sinks.lancedb import LanceDBExporter, LanceDBSettings
from pipeline.sinks.lancedb_sweep import ABANDONED_AFTER, sweep
from pipeline.urls import local_directory
from pipeline_tests.conformance.harness import FIELDS, Bench, matrix
from pipeline_tests.conformance.lancedb_harness import LanceDBUnderTest

MARKER = "zqxjkvwpfmarker"
MODEL = ModelIdentity("conformance", "conformance/1", 12)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Its table gets a vector index, of whole floats, at 300 rows."""
    exporter = LanceDBExporter(LanceDBSettings(uri=str(tmp_path), index_threshold_rows=300), SinkContext("prj-1", MODEL, FIELDS))
    made = Bench(LanceDBUnderTest(str(tmp_path)), tenant="prj-1", model=MODEL, opened=[exporter])
    await exporter.provision()
    yield made
    for opened in made.opened:
        await opened.close()


def files_in(directory: Path, *patterns: str) -> set[Path]:
    return {path for pattern in patterns for path in directory.glob(pattern)}


def files_with(directory: Path, marker: bytes) -> list[Path]:
    return [path for path in files_in(directory, "**/*") if path.is_file() and marker in path.read_bytes()]


def grow_old(*paths: Path) -> None:
    moment = time.time() - ABANDONED_AFTER.total_seconds() - 1
    for path in paths:
        os.utime(path, (moment, moment))


async def test_purging_leaves_no_byte_of_an_erased_text(bench: Bench, tmp_path: Path) -> None:
    kept = bench.file("dfl-kept", 30)
    await bench.replace(kept, bench.file("dfl-erased", [f"{MARKER} stands here"], name=f"{MARKER}.pdf"))
    await bench.exporter.optimize()
    await bench.delete("dfl-erased")
    assert files_with(tmp_path, MARKER.encode()), "a delete alone leaves the text in old files"
    await bench.exporter.purge_history()
    assert files_with(tmp_path, MARKER.encode()) == []
    await bench.assert_holds(kept)
    assert await bench.search(SearchRequest(bench.config, mode="text", text="gauge", k=1))


@pytest.mark.parametrize("more", [0, 100])
async def test_purging_leaves_no_vector_of_an_erased_file_in_the_index(bench: Bench, tmp_path: Path, more: int) -> None:
    """Whether the index is one part, or another was added with more rows."""
    kept, erased = bench.file("dfl-kept", 400), bench.file("dfl-erased", 1)
    vector = np.array([0.5] * 4 + [0.0] * 8, "<f4")  # of length 1, so it lies in the index as it is
    column = pa.FixedSizeListArray.from_arrays(pa.array(vector), MODEL.dimension)
    table = erased.table.set_column(
        erased.table.schema.get_field_index("embedding"), erased.table.schema.field("embedding"), column
    )
    await bench.replace(kept, dataclasses.replace(erased, table=table))
    await bench.exporter.optimize()
    await bench.replace(bench.file("dfl-more", more))
    await bench.exporter.optimize()
    await bench.delete("dfl-erased")
    assert [path for path in files_with(tmp_path, vector.tobytes()) if "_indices" in path.parts]
    await bench.exporter.purge_history()
    assert files_with(tmp_path, vector.tobytes()) == []
    (hit,) = await bench.search(SearchRequest(bench.config, vector=matrix(kept.table)[7], k=1))
    assert hit.record.chunk_index == 7


@pytest.fixture
async def left_behind(bench: Bench, tmp_path: Path) -> list[Path]:
    """What a killed writer leaves: a data file that was not committed, an index likewise, files half written."""
    await bench.replace(bench.file("dfl-kept", 3))
    return leave(*files_in(tmp_path, "*.lance/data"))


def leave(data: Path) -> list[Path]:
    index = data.with_name("_indices") / str(uuid.uuid4())
    index.mkdir(parents=True)
    left = [data / "0110.lance", data / ".tmpAbC123", index / "part.lance", index / ".tmpXyZ"]
    for path in left:
        path.write_text(MARKER)
    return left


async def test_what_a_writer_may_still_be_at_work_on_is_left_to_it(bench: Bench, left_behind: list[Path]) -> None:
    grow_old(left_behind[2])  # one file of an index that is being built
    await bench.exporter.purge_history()
    assert all(path.exists() for path in left_behind)


@pytest.mark.parametrize("ending", ["purge_history", "optimize"])
async def test_what_killed_writers_have_left_goes_an_hour_later(
    bench: Bench, left_behind: list[Path], tmp_path: Path, ending: str
) -> None:
    grow_old(*left_behind)
    await getattr(bench.exporter, ending)()
    assert files_with(tmp_path, MARKER.encode()) == []
    await bench.assert_holds(bench.file("dfl-kept", 3))


async def test_nothing_that_a_version_names_goes_however_old_it_is(bench: Bench, tmp_path: Path) -> None:
    large, *small = [bench.file("dfl-large", 400), *(bench.file(f"dfl-{n}", 3) for n in range(5))]
    await bench.replace(large, *small)
    await bench.exporter.optimize()
    newer = [bench.file(f"dfl-{n}", 2, version="v2") for n in range(5)]
    await bench.replace(*newer)
    before = files_in(tmp_path, "*.lance/data/*.lance", "*.lance/_indices/*/*")
    grow_old(*before)
    await bench.exporter.optimize()
    assert before <= files_in(tmp_path, "*.lance/data/*.lance", "*.lance/_indices/*/*"), "older versions have them still"
    await bench.exporter.purge_history()
    grow_old(*files_in(tmp_path, "*.lance/data/*.lance", "*.lance/_indices/*/*"))
    await bench.exporter.optimize()
    await bench.assert_holds(large, *newer)
    assert len(await bench.search(SearchRequest(bench.config, vector=matrix(large.table)[7]))) == 10
    assert len(await bench.search(SearchRequest(bench.config, "text", text="gauge"))) == 10


def test_a_table_whose_versions_cannot_be_read_keeps_all_that_could_be_theirs(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    left = leave(tmp_path / "data")
    (tmp_path / "_versions").mkdir()
    (tmp_path / "_versions" / "1.manifest").write_bytes(b"of another format")
    grow_old(*left)
    sweep(tmp_path)
    assert [path.name for path in left if path.exists()] == ["0110.lance", "part.lance"]


def test_only_tables_in_directories_are_swept() -> None:
    assert local_directory("/a b/t?.lance") == Path("/a b/t?.lance")
    assert local_directory("file:///a/t.lance") == Path("/a/t.lance")
    assert local_directory("s3://bucket/t.lance") is None
