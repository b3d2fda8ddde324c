"""Stages on their own: a file that goes wrong half way, a lake that lost something."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.documents.arrow import PAGE_FIELDS, embedding_texts, pages_from_table
from pipeline.documents.models import Page
from pipeline.embedding.base import Vectors
from pipeline.embedding.constant import ConstantEmbedder
from pipeline.errors import LedgerUnavailable, RecordRefused
from pipeline.lake import Lake
from pipeline.lake.lake import Dataset
from pipeline.lake.recent import RecentTables
from pipeline.ledger.vectors import Claim, VectorIndex
from pipeline.sinks.base import ReplaceReport
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline.sinks.records import FileRecords, matrix
from pipeline.stages.chunk import chunk
from pipeline.stages.detect import detect
from pipeline.stages.embed import embed
from pipeline.stages.fetch import fetch
from pipeline.stages.load import load
from pipeline.stages.rebuild import forget_lost
from pipeline.stages.repair import repair
from pipeline.stages.report import StageReport
from pipeline_tests.trust.damage import drop_rows, held_tables
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        for n in range(4):
            opened.write(f"doc-{n}.md", f"# Document {n}\n\nThe body of document {n}.\n")
        yield opened


class PoisonousEmbedder(ConstantEmbedder):
    """Answers NaN for texts that say poison."""

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        vectors = super()._vectors(texts)
        for position, text in enumerate(texts):
            if "poison" in text:
                vectors[position] = np.nan
        return vectors


@pytest.mark.parametrize("restarted", [False, True])
def test_structured_items_are_not_read_to_chunk(world: World, monkeypatch: pytest.MonkeyPatch, restarted: bool) -> None:
    read: list[str] = []

    def noted(pages: pa.Table) -> list[Page]:
        read.extend(pages.column_names)
        return pages_from_table(pages)

    monkeypatch.setattr("pipeline.stages.chunk.pages_from_table", noted)
    world.refresh()
    asyncio.run(detect(world.export, complete=True))
    file_ids = list(world.export.ledger.files())
    asyncio.run(fetch(world.export, file_ids, run_id="r"))
    if restarted:
        world.export.lake._recent = RecentTables()
    assert asyncio.run(chunk(world.export, file_ids, run_id="r")).worked == len(file_ids)
    assert set(read) == {field.name for field in PAGE_FIELDS} - {"items"}


def test_a_vector_that_is_not_finite_parks_its_file_and_no_other(world: World) -> None:
    world.write("doc-1.md", "# Document 1\n\nSome poison for the model.\n")
    world.export.embedder = PoisonousEmbedder()
    report = world.sync()
    assert not report.ok
    assert world.names() == {"doc-0.md", "doc-2.md", "doc-3.md"}
    row = world.export.ledger.files()[world.file_id("doc-1.md")]
    assert row.status == "failed"
    assert "not finite" in (row.last_error or "")


def test_the_history_says_which_payload_model_and_run_each_version_was_loaded_from(world: World) -> None:
    wanted = []
    for text in ("The body of document 0.", "The body was edited."):
        world.write("doc-0.md", f"# Document 0\n\n{text}\n")
        world.sync()
        row = world.export.ledger.files()[world.file_id("doc-0.md")]
        made_from = {
            "records": 1,
            "model": "constant",
            "fingerprint": "constant@384",
            "payload_digest": row.payload_digest,
            "content_fingerprint_hash": json.loads(row.provenance or "")["content_fingerprint_hash"],
            "record_set_hash": row.record_set_hash,
        }
        wanted.append(made_from)
    loaded = [event for event in world.export.ledger.history(row.file_id) if event.event == "loaded into lancedb"]
    assert [json.loads(event.details) for event in loaded] == wanted
    assert {event.run_id for event in loaded} == {run.run_id for run in world.runs()}
    assert None not in wanted[0].values()
    assert wanted[0]["payload_digest"] != wanted[1]["payload_digest"]


def test_a_refused_record_keeps_the_old_version_and_the_batch_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.ingest()
    world.write("doc-0.md", "# Document 0\n\nToo much for the store.\n")
    world.write("doc-1.md", "# Document 1\n\nJust right.\n")
    real = LanceDBExporter.replace_files

    async def replace_files(self: LanceDBExporter, files: Sequence[FileRecords]) -> ReplaceReport:
        refused = [RecordRefused(f.file_id, "over 40 KB") for f in files if f.provenance.file_name == "doc-0.md"]
        done = await real(self, [f for f in files if f.provenance.file_name != "doc-0.md"])
        return ReplaceReport(done.records_written, done.bytes_written, tuple(refused))

    with monkeypatch.context() as patched:
        patched.setattr(LanceDBExporter, "replace_files", replace_files)
        assert not world.sync().ok
    texts = {record.file_name: record.content for record in world.held()}
    assert "body of document 0" in texts["doc-0.md"]
    assert "Just right." in texts["doc-1.md"]
    row = world.export.ledger.files()[world.file_id("doc-0.md")]
    assert (row.status, row.last_error) == ("failed", "over 40 KB")


@pytest.mark.parametrize(
    ("dataset", "change"),
    [
        ("parsed_payloads", {"chunking": {"max_tokens": 64}}),
        ("chunks", {"embedding": {"provider": "constant", "constant_dimension": 64}}),
        ("embeddings", {}),
    ],
)
def test_an_object_lost_from_the_lake_is_made_again_when_it_is_needed(
    world: World, dataset: Dataset, change: dict[str, Any]
) -> None:
    world.ingest()
    world.export.lake.delete(world.file_id("doc-2.md"), [dataset])
    world.change(**change, sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(world.root / "s")}})
    assert not world.sync().ok
    ingest_again_at_once(world)
    world.assert_settled("lancedb")
    world.assert_settled("second")


def ingest_again_at_once(world: World) -> None:
    """What failed does not wait for its next attempt."""
    world.release_failed()
    world.ingest()


def sync_that_dies_after(world: World, dataset: Dataset) -> None:
    """The lake has been written to, and the ledger learns nothing of it."""
    real = Lake.write_many

    def write_many(self: Lake, written: Dataset, *given: Any) -> list[int]:
        sizes = real(self, written, *given)
        if written == dataset:
            raise LedgerUnavailable("the database was restarted")
        return sizes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lake, "write_many", write_many)
        assert not world.sync().ok


@pytest.mark.parametrize("same_time", [True, False])
@pytest.mark.parametrize("dataset", ["parsed_payloads", "chunks", "embeddings"])
def test_what_a_dead_run_wrote_of_an_edit_that_was_undone_reaches_no_sink(
    world: World, dataset: Dataset, same_time: bool
) -> None:
    world.ingest()
    path = world.documents / "doc-0.md"
    text, times = path.read_text(), path.stat()
    world.write("doc-0.md", "# Document 0\n\nThe body that was not meant.\n")
    sync_that_dies_after(world, dataset)
    world.write("doc-0.md", text)
    if same_time:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    world.sync()
    ingest_again_at_once(world)
    world.assert_settled()
    world.change(chunking={"max_tokens": 64}, sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(world.root / "s")}})
    world.sync()
    ingest_again_at_once(world)
    world.assert_settled("lancedb")
    world.assert_settled("second")


def test_a_payload_that_is_fetched_again_stands_in_the_lake_whatever_a_dead_run_wrote_over_it(world: World) -> None:
    world.ingest()
    path = world.documents / "doc-0.md"
    text, times = path.read_text(), path.stat()
    world.write("doc-0.md", "# Document 0\n\nThe body that was not meant.\n")
    sync_that_dies_after(world, "parsed_payloads")
    world.write("doc-0.md", text)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    world.refresh()
    asyncio.run(detect(world.export, complete=True))
    asyncio.run(fetch(world.export, list(world.export.ledger.files()), run_id="again"))
    assert forget_lost(world.export, list(world.export.ledger.files().values())) == []


@pytest.mark.parametrize("other", [{"constant_dimension": 64}, {"passage_prefix": "passage: "}])
def test_no_vector_of_another_model_stands_under_the_name_of_the_present_one(world: World, other: dict[str, Any]) -> None:
    """Of another dimension, or of the same one: the vector index still points to what a dead run has replaced."""
    world.ingest()
    world.change(embedding={"provider": "constant", **other})
    sync_that_dies_after(world, "embeddings")
    world.change(embedding={"provider": "constant"})
    world.write("doc-0.md.meta.json", json.dumps({"team": "gauges"}))
    world.write("copy.md", (world.documents / "doc-1.md").read_text())
    world.sync()
    ingest_again_at_once(world)
    world.assert_settled()
    assert_vectors_are_of_the_model(world)


def assert_vectors_are_of_the_model(world: World) -> None:
    for table in held_tables(world):
        wanted = asyncio.run(world.export.embedder.embed(embedding_texts(table), [1] * table.num_rows))
        np.testing.assert_allclose(matrix(table["embedding"]), wanted, atol=1e-6)


def test_a_repair_makes_again_what_a_dead_run_left_in_the_lake(world: World) -> None:
    world.ingest()
    world.write("doc-0.md", "# Document 0\n\nThe body that was not meant.\n")
    sync_that_dies_after(world, "embeddings")
    assert forget_lost(world.export, list(world.export.ledger.files().values())) == [world.file_id("doc-0.md")]


def test_a_sink_is_given_as_many_chunks_at_once_as_it_asks_for_and_then_tended_by_a_load_as_by_a_repair(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int | str] = []
    replace_files, optimize = LanceDBExporter.replace_files, LanceDBExporter.optimize

    async def counted(self: LanceDBExporter, files: Sequence[FileRecords]) -> ReplaceReport:
        done.append(sum(file.table.num_rows for file in files))
        return await replace_files(self, files)

    async def tended(self: LanceDBExporter) -> None:
        done.append("tended")
        await optimize(self)

    monkeypatch.setattr(LanceDBExporter, "replace_files", counted)
    monkeypatch.setattr(LanceDBExporter, "optimize", tended)
    monkeypatch.setattr(LanceDBExporter, "chunks_at_once", 3)
    world.ingest()
    assert done == [3, 1, "tended"]
    done.clear()
    drop_rows(world, "chunk_index = 0")
    assert asyncio.run(repair(world.export, "lancedb", run_id="r")).ok
    assert done == [3, 1, "tended"]


def test_a_load_of_what_stands_reads_and_writes_nothing_and_of_one_that_is_lost_that_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ingest()
    read: list[str] = []
    real = Lake.read_many

    def counted(self: Lake, dataset: Dataset, partitions: Iterable[str], *columns: Any) -> dict[str, pa.Table]:
        names = list(partitions)
        read.extend(names if dataset == "embeddings" else [])
        return real(self, dataset, names, *columns)

    monkeypatch.setattr(Lake, "read_many", counted)
    files = list(world.export.ledger.files())
    again = asyncio.run(load(world.export, "lancedb", files, run_id="again"))
    assert (again.worked, again.skipped, again.rows, read) == (0, 4, [], [])
    lost = world.file_id("doc-2.md")
    drop_rows(world, f"parsed_directory_file_id = '{lost}'")
    once = asyncio.run(load(world.export, "lancedb", files, run_id="once"))
    told = {"file": "doc-2.md", "file_id": lost, "records": 1}
    assert (once.worked, once.skipped, once.rows, read) == (1, 3, [told], [lost])


def test_a_text_embedded_anywhere_in_the_export_is_not_embedded_again(world: World) -> None:
    world.ingest()
    world.write("copy.md", (world.documents / "doc-3.md").read_text())
    world.sync()
    assert world.numbers("embeddings")["reused"] == 1
    assert world.numbers("embeddings")["computed"] == 0
    world.remove("doc-3.md")
    world.ingest()
    world.write("third.md", (world.documents / "copy.md").read_text())
    world.sync()
    assert world.numbers("embeddings")["computed"] == 0
    world.assert_settled()


def test_the_partition_of_a_file_is_read_for_texts_of_which_the_ledger_knows_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ingest()
    read: list[str] = []
    real = Lake.read_many

    def noted(
        lake: Lake, dataset: Dataset, partitions: Iterable[str], columns: Sequence[str] | None = None
    ) -> dict[str, pa.Table]:
        names = list(partitions)
        read.extend(names if columns == ["embedding_digest", "embedding"] else [])
        return real(lake, dataset, names, columns)

    monkeypatch.setattr(Lake, "read_many", noted)
    world.write("copy.md", (world.documents / "doc-3.md").read_text())
    world.ingest()
    assert read == [world.file_id("doc-3.md")]
    read.clear()
    world.write("copy.md", "# Another\n\nWith a body of its own.\n")
    world.ingest()
    assert read == [world.file_id("copy.md")]


class HesitantEmbedder(ConstantEmbedder):
    """Says that it has begun and goes on when it is told to; remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        self.texts += texts
        self.begun.set()
        assert await asyncio.to_thread(self.go_on.wait, 30)
        return await super().embed(texts, token_counts)


def test_a_text_that_another_run_is_embedding_is_waited_for_and_not_embedded_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write("copy.md", (world.documents / "doc-3.md").read_text())
    world.refresh()
    export = world.export
    export.embedder = embedder = HesitantEmbedder()
    asyncio.run(detect(export, complete=True))
    copy = [world.file_id("copy.md")]
    others = sorted(set(export.ledger.files()) - set(copy))
    for files, run_id in ((others, "first"), (copy, "second")):
        asyncio.run(fetch(export, files, run_id=run_id))
        asyncio.run(chunk(export, files, run_id=run_id))
    real = VectorIndex.claim

    def claim(self: VectorIndex, *given: Any, **named: Any) -> Claim:
        answer = real(self, *given, **named)
        if answer.waiting:
            embedder.go_on.set()
        return answer

    async def second() -> StageReport:
        assert await asyncio.to_thread(embedder.begun.wait, 30)
        return await embed(export, copy, run_id="second")

    async def both() -> list[StageReport]:
        return list(await asyncio.gather(embed(export, others, run_id="first"), second()))

    monkeypatch.setattr(export, "run_is_live", lambda _run_id: True)
    monkeypatch.setattr(VectorIndex, "claim", claim)
    assert [(report.worked, dict(report.numbers)["computed"]) for report in asyncio.run(both())] == [(4, 4), (1, 0)]
    assert len(embedder.texts) == len(set(embedder.texts)) == 4
    world.ingest()
    world.assert_settled()


def test_a_dry_run_counts_what_would_be_embedded_and_writes_nothing(world: World) -> None:
    world.ingest()
    world.change(chunking={"max_tokens": 64})
    export = world.export
    ids = list(export.ledger.files())
    asyncio.run(chunk(export, ids, run_id="dry"))
    before = {dataset: export.lake.partitions(dataset) for dataset in ("chunks", "embeddings")}
    report = asyncio.run(embed(export, ids, run_id="dry", dry_run=True))
    chunks = sum(row.chunk_count or 0 for row in export.ledger.files().values())
    assert report.numbers["computed"] + report.numbers["reused"] == chunks > 0
    assert {dataset: export.lake.partitions(dataset) for dataset in ("chunks", "embeddings")} == before
    assert all(row.vectors_key != export.vectors_key(row) for row in export.ledger.files().values())
