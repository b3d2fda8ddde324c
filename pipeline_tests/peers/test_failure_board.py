"""The failure board: what public systems of this kind were seen to do to their users' data, replayed against Indexport.

Every reproduction was run against the peer's release named in its docstring, or is documented by its issue. Each test here
asserts what that peer's behaviour would break.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.embedding.base import Vectors
from pipeline.embedding.constant import ConstantEmbedder
from pipeline.errors import EmbedderUnavailable
from pipeline.ledger import Ledger
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline.sinks.records import ChunkRecord
from pipeline.stages.repair import repair
from pipeline.stages.verify import verify
from pipeline_tests.world import World, open_world

LONG = "# Gauges\n\n" + "\n\n".join(
    f"## Station {n}\n\n" + f"Station number {n} reads the river gauge at noon and at dawn. " * 12 for n in range(12)
)


WITHOUT_A_FUSE = {"grace_period_seconds": 0, "max_delete_fraction": 1.0}
"""What holds a delete back is what is known of the directory, not how many files there are."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path, removal=WITHOUT_A_FUSE) as opened:
        for n in range(5):
            opened.write(f"doc-{n}.md", f"# Document {n}\n\nThis is the body of document {n}.\n")
        opened.write("long.md", LONG)
        opened.ingest()
        yield opened


def _of(world: World, name: str) -> list[ChunkRecord]:
    return [record for record in world.held() if record.file_name == name]


async def _no_model(self: ConstantEmbedder, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
    raise EmbedderUnavailable("the model does not answer")


def _delete_behind_our_back(world: World, file_ids: Sequence[str]) -> None:
    async def delete() -> None:
        tenant, config = await world.export.scope()
        exporter = world.export.sink("lancedb", tenant)
        await exporter.provision()
        await exporter.delete_files(parsed_directory_file_ids=file_ids, export_config_id=config)
        await exporter.close()

    asyncio.run(delete())


def test_llama_index_22639_a_failed_embedding_keeps_the_old_version(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex 0.14.25 deletes a changed document's nodes before it embeds the new ones, so a failing model loses both."""
    before = _of(world, "long.md")

    world.write("long.md", LONG.replace("at dawn", "at dusk"))
    with monkeypatch.context() as patched:
        patched.setattr(ConstantEmbedder, "embed", _no_model)
        assert not world.sync().ok
    assert len(before) > 3
    assert _of(world, "long.md") == before
    world.ingest()
    assert any("at dusk" in record.content for record in _of(world, "long.md"))
    world.assert_settled()


def test_llama_index_a_crash_between_sink_and_bookkeeping_leaves_no_duplicates(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LlamaIndex 0.14.25 gives chunks random ids, so a process that dies after the store's answer writes all of them twice."""

    def die(self: Ledger, *_arguments: object, **_named: object) -> None:
        raise MemoryError("the process dies here")

    world.write("long.md", LONG.replace("at dawn", "at dusk"))
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "record_sink", die)
        assert not world.sync().ok
    assert any("at dusk" in record.content for record in _of(world, "long.md")), "the sink has acknowledged"
    world.ingest()
    addresses = Counter((record.parsed_directory_file_id, record.chunk_index) for record in world.held())
    assert set(addresses.values()) == {1}
    world.assert_settled()


def test_llama_index_23002_two_files_of_the_same_content_are_removed_both(world: World) -> None:
    """LlamaIndex 0.14.25 keeps one of two removed documents searchable when their contents are equal."""
    world.write("twin-a.md", "# Twin\n\nOne text in two files.\n")
    world.write("twin-b.md", "# Twin\n\nOne text in two files.\n")
    assert world.sync().ok
    assert {"twin-a.md", "twin-b.md"} <= world.names()
    world.remove("twin-a.md")
    world.remove("twin-b.md")
    assert world.sync().ok
    assert not any("One text in two files" in record.content for record in world.held())
    world.assert_settled()


def test_llama_index_another_model_embeds_unchanged_files_too(world: World) -> None:
    """LlamaIndex 0.14.25 skips unchanged documents after a change of model, so the store keeps the old model's vectors."""
    chunks = len(world.held())
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    assert world.sync().ok
    assert world.numbers("embeddings")["computed"] == chunks
    assert {record.embedding_model for record in world.held()} == {"constant@64"}
    world.assert_settled()


def test_llama_index_an_empty_listing_deletes_nothing(world: World) -> None:
    """LlamaIndex 0.14.25 with UPSERTS_AND_DELETE takes an empty source for the wish to delete everything."""
    before = world.held()
    world.faults(hidden_files=["*"])
    assert world.sync().removed == []
    assert world.held() == before


def test_llama_index_one_changed_file_of_many_embeds_one(world: World) -> None:
    """LlamaIndex 0.14.25 keys its cache by the whole batch, so one changed document of a hundred embeds a hundred."""
    for n in range(30):
        world.write(f"many-{n}.md", f"# Many {n}\n\nText number {n}.\n")
    world.ingest()
    world.write("many-7.md", "# Many 7\n\nAnother text.\n")
    assert world.sync().ok
    assert world.numbers("embeddings")["computed"] == 1
    world.assert_settled()


def test_llama_index_22133_an_updated_file_keeps_all_of_its_chunks(world: World) -> None:
    """LlamaIndex before that change kept only the last chunk of a document it updated from nodes already split."""
    count = len(_of(world, "long.md"))
    world.write("long.md", LONG.replace("at dawn", "at dusk"))
    world.ingest()
    held = _of(world, "long.md")
    assert len(held) == count > 3
    assert [record.chunk_index for record in held] == list(range(count))


def test_langchain_32612_an_unchanged_large_file_is_not_written_again(world: World) -> None:
    """LangChain core 1.7.2 deletes and embeds an unchanged source again on every run once it spans several batches."""
    world.write(
        "huge.md", "\n\n".join(f"## Reading {n}\n\n" + f"Reading {n} of the gauge is {n} metres. " * 20 for n in range(300))
    )
    world.ingest()
    before = _of(world, "huge.md")
    assert len(before) >= 300
    assert world.ingest().due == []
    assert _of(world, "huge.md") == before


def test_langchain_39937_a_wiped_sink_is_noticed_and_filled_again_without_embedding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LangChain core 1.7.2 trusts its record manager alone, so runs over a wiped store succeed and write nothing."""
    before = world.held()
    _delete_behind_our_back(world, list(world.export.ledger.files()))
    assert world.held() == []
    found = asyncio.run(verify(world.export, "lancedb"))
    assert Counter(finding.kind for finding in found.findings) == {"missing_file": 6}
    monkeypatch.setattr(ConstantEmbedder, "embed", _no_model)
    assert asyncio.run(repair(world.export, "lancedb", run_id="repair")).ok
    assert world.held() == before


def test_langchain_40226_a_partial_failure_is_reported_and_made_good(world: World) -> None:
    """LangChain's index() ignores which writes of a batch failed and records all of them as done, for ever."""
    world.write("doc-0.md", "# Document 0\n\nEdited into poison.\n")
    world.write("doc-1.md", "# Document 1\n\nEdited well.\n")
    world.faults(payloads={"doc-0.md": "truncated"})
    assert not world.sync().ok
    assert world.export.ledger.files()[world.file_id("doc-0.md")].status == "failed"
    world.faults()
    world.export.ledger.release([world.file_id("doc-0.md")])
    world.ingest()
    world.assert_settled()


def test_langchain_an_emptied_folder_deletes_nothing(world: World) -> None:
    """LangChain core 1.7.2 with cleanup=full deletes everything when its loader yields nothing."""
    before = world.held()
    for name in world.names():
        world.remove(name)
    report = world.sync()
    assert report.removed == []
    assert world.held() == before


def test_cocoindex_code_210_what_was_deleted_in_the_store_is_found_and_mended(world: World) -> None:
    """CocoIndex 1.0.26 never looks at its target again, so rows deleted there stay missing after every update."""
    lost = [world.file_id("long.md"), world.file_id("doc-3.md")]
    _delete_behind_our_back(world, lost)
    found = asyncio.run(verify(world.export, "lancedb"))
    assert {(finding.kind, finding.file_id) for finding in found.findings} == {("missing_file", file_id) for file_id in lost}
    report = asyncio.run(repair(world.export, "lancedb", run_id="repair"))
    assert report.ok
    assert sorted(report.replaced) == sorted(lost)
    world.assert_settled()


def test_cocoindex_a_listing_that_shows_nothing_deletes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """CocoIndex 1.0.26 empties its target after one listing without files, as of a share that is not mounted."""
    before = world.held()

    async def nothing(self: LlamaCloudSource, **_named: object) -> object:
        return
        yield

    with monkeypatch.context() as patched:
        patched.setattr(LlamaCloudSource, "list_files", nothing)
        assert world.sync().removed == []
    assert world.held() == before


def test_every_chunk_of_a_split_table_carries_its_header(world: World) -> None:
    """LlamaIndex, LangChain and two chunkers leave most chunks of a 200-row table without the row that names its columns."""
    header = "| Station | Level in metres | Observed at |\n|---|---|---|\n"
    rows = [f"| station {n} | {n}.{n % 7} | day {n} at noon |" for n in range(200)]
    world.write("table.md", "# Levels\n\n" + header + "\n".join(rows) + "\n")
    world.ingest()
    chunks = _of(world, "table.md")
    assert len(chunks) > 5
    assert all("| Station | Level in metres | Observed at |" in record.context + record.content for record in chunks)
    for row in rows:
        assert any(row in record.content for record in chunks), "a row is cut"


def test_langchain_21475_every_offset_is_where_the_chunk_stands(world: World) -> None:
    """LangChain's recursive splitter searches for each chunk's text, so one in five offsets is -1 or another place's."""
    repeated = "\n\n".join("The same sentence stands here again and again. " * 9 for _ in range(60))
    world.write("repeated.md", repeated)
    world.change(chunking={"overlap": 16})
    world.ingest()
    chunks = _of(world, "repeated.md")
    assert len(chunks) > 10
    assert all(record.content == repeated[record.chunk_start_char : record.chunk_end_char] for record in chunks)
    starts = [record.chunk_start_char for record in chunks]
    assert starts == sorted(set(starts))
    covered = {position for r in chunks for position in range(r.chunk_start_char, r.chunk_end_char)}
    assert all(position in covered or repeated[position].isspace() for position in range(len(repeated)))
