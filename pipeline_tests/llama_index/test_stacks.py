"""The llama_index sink over several vector stores and docstores: one story on each, and LlamaIndex reading what it wrote."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline_tests.llama_index.bench import REASON, NamedVectors

pytest.importorskip("llama_index.core", reason=REASON)

from llama_index.core import StorageContext, VectorStoreIndex

from pipeline.errors import RecordRefused, SinkUnavailable
from pipeline.sinks.base import SearchRequest, SinkContext
from pipeline.sinks.llama_index import LlamaIndexExporter, LlamaIndexSettings
from pipeline.sinks.llama_index_bridge import EmbedderEmbedding, EventLoopThread
from pipeline.sinks.llama_index_stores import Stores
from pipeline.sinks.open_index import open_index
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, matrix, provisioned_bench
from pipeline_tests.conformance.llama_index_harness import LlamaIndexUnderTest
from pipeline_tests.conformance.mongodb_harness import NO_ENGINE
from pipeline_tests.llama_index import stacks

_MONGODB = "STACK_MONGODB_URI"


def _redis(directory: Path, resources: ExitStack) -> dict[str, Any]:
    return stacks.redis(resources.enter_context(stacks.redis_server(directory)))


def _mongodb(directory: Path, resources: ExitStack) -> dict[str, Any]:
    pytest.importorskip("secantus", reason=NO_ENGINE)
    from pipeline_tests.emulators.mongodb import mongo_server

    server = resources.enter_context(mongo_server(search=None))
    resources.enter_context(pytest.MonkeyPatch.context()).setenv(_MONGODB, server.uri)
    return stacks.mongodb(_MONGODB)


def _in_process(directory: Path, _: ExitStack) -> dict[str, Any]:
    return stacks.in_process(directory)


DocstoreOf = Callable[[Path, ExitStack], dict[str, Any]]
STACKS: dict[str, tuple[Callable[[Path], dict[str, Any]], DocstoreOf, bool]] = {
    "chroma and mongodb": (stacks.chroma, _mongodb, False),
    "chroma and redis": (stacks.chroma, _redis, False),
    "faiss and mongodb": (stacks.faiss, _mongodb, True),
    "faiss and redis": (stacks.faiss, _redis, True),
    "milvus and its docstore in memory": (stacks.milvus, _in_process, False),
    "milvus and redis": (stacks.milvus, _redis, False),
}


@pytest.fixture(scope="module", params=sorted(STACKS))
def sink(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaIndexUnderTest]:
    vectors, docstore, in_memory = STACKS[request.param]
    directory = tmp_path_factory.mktemp("stack")
    with ExitStack() as resources:
        yield LlamaIndexUnderTest(vectors(directory), docstore(directory, resources), in_memory=in_memory)


@pytest.fixture
async def bench(sink: LlamaIndexUnderTest) -> AsyncIterator[Bench]:
    async with provisioned_bench(sink) as made:
        yield made


async def best(bench: Bench, vector: Any, k: int = 3, **filters: Any) -> list[tuple[str, int]]:
    hits = await bench.search(SearchRequest(bench.config, vector=vector, k=k, filters=filters))
    return [(hit.record.parsed_directory_file_id, hit.record.chunk_index) for hit in hits]


async def test_files_are_written_replaced_searched_and_deleted(bench: Bench) -> None:
    files = [bench.file(f"dfl-{number}", 5, metadata={"year": 2020 + number, "tags": ["river"]}) for number in range(4)]
    await bench.replace(*files, bench.file("dfl-1", 2, config=f"{bench.config}-b"))
    await bench.assert_holds(*files, exporter=bench.open())
    wanted = matrix(files[1].table)[3]
    assert (await best(bench, wanted, 1)) == [("dfl-1", 3)]
    assert {name for name, _ in await best(bench, wanted, 20, year={"gte": 2022})} == {"dfl-2", "dfl-3"}
    changed = [bench.file("dfl-1", 2, version="v2"), bench.file("dfl-2", 9, version="v2"), bench.file("dfl-3", 0)]
    await bench.replace(*changed)
    await bench.delete("dfl-0", "dfl-never-there")
    await bench.assert_holds(*changed)
    assert len(await best(bench, wanted, 50)) == 11
    assert (await best(bench, matrix(changed[1].table)[8], 1)) == [("dfl-2", 8)]


async def test_metadata_keys_a_vector_store_refuses_cost_no_file_anything(bench: Bench) -> None:
    odd = bench.file("dfl-0", 2, metadata={"$where": "x", "$": 1, "": 2, "year": 2021})
    files = [odd, bench.file("dfl-1", 2, metadata={"year": 2022})]
    await bench.replace(*files)
    await bench.assert_holds(*files)
    assert await best(bench, matrix(odd.table)[1], 1, year=2021) == [("dfl-0", 1)]


async def test_search_is_as_good_after_many_replaces_as_exact_search(bench: Bench) -> None:
    for version in range(4):
        files = [bench.file(f"dfl-{number}", 3 + (number + version) % 3, version=f"v{version}") for number in range(8)]
        await bench.replace(*files)
    vectors = np.vstack([matrix(file.table) for file in files])
    addresses = [(file.file_id, index) for file in files for index in range(file.table.num_rows)]
    for query in vectors[::5]:
        expected = [addresses[row] for row in np.argsort(-(vectors @ query))[:5]]
        assert await best(bench, query, 5) == expected


async def test_a_new_process_finds_what_the_last_one_wrote(bench: Bench) -> None:
    file = bench.file("dfl-1", 4)
    await bench.replace(file)
    for exporter in bench.opened:
        await exporter.close()
    bench.opened = []
    bench.open()
    await bench.assert_holds(file)
    assert (await best(bench, matrix(file.table)[2], 1)) == [("dfl-1", 2)]


async def test_a_reader_that_lives_on_sees_what_another_process_writes(bench: Bench, sink: LlamaIndexUnderTest) -> None:
    """Two exporters whose settings differ share nothing in a process, as those of two processes do."""
    if not sink.in_memory:
        pytest.skip("only a vector store in memory is each process's own")
    given = {"vector_store": sink.vector_store, "docstore": sink.docstore, "in_memory": True, "max_depth": 9999}
    reader = LlamaIndexExporter(LlamaIndexSettings.model_validate(given), SinkContext(bench.tenant, MODEL, FIELDS))
    bench.opened.append(reader)
    await bench.replace(bench.file("dfl-1", 3))
    request = SearchRequest(bench.config, vector=matrix(bench.file("dfl-1", 3).table)[0], k=10)
    assert len(await reader.search(request)) == 3
    await bench.replace(bench.file("dfl-1", 3, version="v2"), bench.file("dfl-2", 4))
    assert len(await reader.search(request)) == 7


@pytest.mark.parametrize("after", range(7))
async def test_a_crash_between_any_two_steps_is_made_good_by_running_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Whichever content comes next: the new one again, or the old one after all."""
    for again in ("v1", "v2"):
        old, new = bench.file("dfl-1", 5), bench.file("dfl-1", 3, version="v2")
        await bench.replace(old)
        with monkeypatch.context() as patch:
            _crash(patch, bench, after)
            with pytest.raises(SinkUnavailable, match="crash"):
                await bench.exporter.replace_files([new])
        told = (await bench.snapshots())["dfl-1"].record_set_hash
        assert told == old.record_set_hash if after == 0 else told.startswith("pending:")
        following = old if again == "v1" else new
        await bench.replace(following)
        await bench.assert_holds(following)
        assert len(await best(bench, matrix(following.table)[0], 50)) == following.table.num_rows


def _crash(patch: pytest.MonkeyPatch, bench: Bench, after: int) -> None:
    """Let ``after`` steps of a replace happen, and fail the next one and all that follow."""
    steps = iter(range(100))

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if next(steps) >= after:
                raise ConnectionError("crash")
            return original(*arguments, **options)

        return step

    for name in ("_write_vectors", "_remove_nodes", "_forget_records"):
        patch.setattr(Stores, name, counted(getattr(Stores, name)))
    held = _stores(bench)
    for docstore, step in ((held._states, "add_documents"), (held._records, "add_documents"), (held._nodes, "add_nodes")):
        patch.setattr(docstore, step, counted(getattr(docstore, step)))


def _stores(bench: Bench) -> Stores:
    assert isinstance(bench.exporter, LlamaIndexExporter)
    return bench.exporter._stores()


async def test_llama_index_reads_the_stores_without_the_sink(bench: Bench) -> None:
    """Through the vector store where it keeps texts, else through the docstore's nodes."""
    files = [bench.file("dfl-1", 3), bench.file("dfl-2", 2)]
    await bench.replace(*files)
    stores = _stores(bench)
    thread = EventLoopThread()
    embedding = EmbedderEmbedding(NamedVectors(), thread)
    vectors = stores._opened()
    if vectors.stores_text:
        index = VectorStoreIndex.from_vector_store(vectors, embed_model=embedding)
    else:
        context = StorageContext.from_defaults(vector_store=vectors, docstore=stores._nodes.docstore)
        index = VectorStoreIndex(nodes=[], storage_context=context, embed_model=embedding)
        for node in stores._nodes.docstore.docs.values():
            index.index_struct.add_node(node, text_id=node.node_id)
    try:
        found = index.as_retriever(similarity_top_k=50).retrieve("dfl-1/v1/2")
        (best_of_ours, *_) = (item.node for item in found if item.node.ref_doc_id.startswith(f"{bench.config}:"))
        assert best_of_ours.text == "v1 of section 2 in dfl-1: the river gauge is read"
        assert best_of_ours.ref_doc_id == f"{bench.config}:dfl-1"
        assert stores._nodes.docstore.get_ref_doc_info(f"{bench.config}:dfl-1").node_ids
    finally:
        thread.close()


async def test_the_sink_can_be_opened_as_an_index(bench: Bench) -> None:
    await bench.replace(bench.file("dfl-1", 3), bench.file("dfl-2", 2))
    index = open_index(bench.exporter, export_config_id=bench.config, embedder=NamedVectors())
    assert index.as_retriever(similarity_top_k=1).retrieve("dfl-2/v1/1")[0].node.text.startswith("v1 of section 1 in dfl-2")
    index.delete_ref_doc(f"{bench.config}:dfl-2")
    assert set(await bench.snapshots()) == {"dfl-1"}
    index.vector_store.close()


async def test_a_file_too_large_for_the_docstore_is_refused_by_name(sink: LlamaIndexUnderTest, bench: Bench) -> None:
    given = {"vector_store": sink.vector_store, "docstore": sink.docstore, "in_memory": sink.in_memory, "max_file_bytes": 8000}
    context = SinkContext(bench.tenant, MODEL, FIELDS)
    exporter = LlamaIndexExporter(LlamaIndexSettings.model_validate(given), context)
    bench.opened.append(exporter)
    await exporter.provision()
    report = await exporter.replace_files([bench.file("dfl-large", 60), bench.file("dfl-small", 1)])
    assert [type(refused) for refused in report.refused] == [RecordRefused]
    assert "max_file_bytes" in report.refused[0].reason
    await bench.assert_holds(bench.file("dfl-small", 1))
