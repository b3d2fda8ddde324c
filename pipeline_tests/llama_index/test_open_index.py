"""Every sink as a LlamaIndex index: retrieve, filter by metadata, delete a document, and nothing of anybody else's."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pipeline_tests.llama_index.bench import REASON, NamedVectors

pytest.importorskip("llama_index.core", reason=REASON)

import numpy as np
from llama_index.core import QueryBundle, VectorStoreIndex
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQueryMode

from pipeline.embedding.base import ModelIdentity
from pipeline.embedding.constant import ConstantEmbedder
from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.sinks.base import SearchRequest, SinkContext
from pipeline.sinks.open_index import open_index
from pipeline.sinks.plug_in import PlugInExporter, PlugInSettings
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, SinkUnderTest, load_harness, provisioned_bench, unit_vectors
from pipeline_tests.conformance.lancedb_harness import LanceDBUnderTest
from pipeline_tests.conformance.qdrant_harness import qdrant_local
from pipeline_tests.sinks.reference_exporter import JsonExporter
from pipeline_tests.sinks.test_recall import with_vectors

NATIVE = {
    "azure_ai_search": "AzureAISearchVectorStore",
    "lancedb": "LanceDBVectorStore",
    "mongodb": "MongoDBAtlasVectorSearch",
    "pgvector": "PGVectorStore",
    "pinecone": "PineconeVectorStore",
    "qdrant": "QdrantVectorStore",
    "turbopuffer": None,
}
"""Sink -> LlamaIndex's own store of it, where there is one."""
ADDRESSES = {
    "azure_ai_search": "AZURE_SEARCH_API_KEY",
    "mongodb": "INDEXPORT_MONGODB_URI",
    "pgvector": "INDEXPORT_PGVECTOR_DSN",
    "pinecone": "PINECONE_API_KEY",
}
"""Sink -> the environment variable without which it reaches no server."""
LOOP = "indexport-llama-index"
UNSYNCED = replace(MODEL, name="unsynced", fingerprint="unsynced/1")


class Unsynced(NamedVectors):
    """Of a model nothing was exported with yet."""

    @property
    def identity(self) -> ModelIdentity:
        return UNSYNCED


@pytest.fixture(scope="module", params=sorted(NATIVE))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def sink(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkUnderTest]:
    with load_harness(name)(tmp_path_factory.mktemp(name)) as under_test:
        yield under_test


@pytest.fixture
async def bench(sink: SinkUnderTest) -> AsyncIterator[Bench]:
    async with provisioned_bench(sink) as made:
        yield made


@pytest.fixture
async def index(bench: Bench) -> AsyncIterator[VectorStoreIndex]:
    """Three files of ours; one of another config and one of another tenant, both nearer to what is asked for."""
    other = bench.open(tenant=f"{bench.tenant}-b")
    await bench.replace(
        bench.file("dfl-1", 3, metadata={"year": 2021, "tags": ["river"], "language": "it's"}),
        bench.file("dfl-2", 2, metadata={"year": 2022, "tags": ["gauge"], "draft": True}),
        bench.file("dfl-3", 1, metadata={"note": "none of the declared fields"}),
        bench.file("dfl-1", 3, config=f"{bench.config}-b"),
    )
    await other.replace_files([bench.file("dfl-1", 3, tenant=f"{bench.tenant}-b")])
    await bench.sink.settle(other)
    opened = open_index(bench.exporter, export_config_id=bench.config, embedder=NamedVectors())
    yield opened
    opened.vector_store.close()


def filters(*conditions: tuple[str, FilterOperator, Any], combined: FilterCondition = FilterCondition.AND) -> MetadataFilters:
    parts = [MetadataFilter(key=key, operator=operator, value=value) for key, operator, value in conditions]
    return MetadataFilters(filters=parts, condition=combined)


def files_of(nodes: list[Any]) -> list[str]:
    return sorted(item.node.metadata["parsed_directory_file_id"] for item in nodes)


async def test_a_sink_is_read_through_the_store_llama_index_has_for_it(name: str, index: VectorStoreIndex) -> None:
    expected = NATIVE[name]
    kinds = [kind.__name__ for kind in type(index.vector_store.client).__mro__]
    assert (expected in kinds) if expected else not isinstance(index.vector_store.client, BasePydanticVectorStore)


async def test_retrieving_finds_the_nearest_chunk_as_a_whole_node(bench: Bench, index: VectorStoreIndex) -> None:
    retriever = index.as_retriever(similarity_top_k=10)
    found = retriever.retrieve("dfl-1/v1/1")
    assert files_of(found) == ["dfl-1", "dfl-1", "dfl-1", "dfl-2", "dfl-2", "dfl-3"]
    best = found[0].node
    assert best.text == "v1 of section 1 in dfl-1: the river gauge is read"
    assert best.ref_doc_id == f"{bench.config}:dfl-1"
    assert best.metadata["file_name"] == "dfl-1.pdf"
    assert best.metadata["year"] == 2021
    assert best.metadata["tags"] == ["river"]
    assert best.metadata["chunk_index"] == 1
    assert (best.start_char_idx, best.end_char_idx) == (51, 100)
    asynchronously = await retriever.aretrieve("dfl-1/v1/1")
    assert [item.node.node_id for item in asynchronously] == [item.node.node_id for item in found]


async def test_it_ranks_and_scores_as_the_sink_searches_whatever_the_lengths_of_vectors(
    bench: Bench, index: VectorStoreIndex
) -> None:
    lengths = np.linspace(0.1, 20, 12, dtype=np.float32)[:, None]
    await bench.replace(with_vectors(bench.file("dfl-9", 12), unit_vectors("long and short", 12) * lengths))
    asked = 5 * unit_vectors("any question", 1)[0]
    hits = await bench.exporter.search(SearchRequest(bench.config, vector=asked, k=18))
    found = await index.as_retriever(similarity_top_k=18).aretrieve(QueryBundle("any question", embedding=asked.tolist()))
    assert [item.node.node_id for item in found] == [hit.record.id for hit in hits]
    assert [item.score for item in found] == pytest.approx([hit.score for hit in hits], abs=1e-5)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ([("year", FilterOperator.EQ, 2022)], ["dfl-2", "dfl-2"]),
        ([("year", FilterOperator.GTE, 2021), ("draft", FilterOperator.NE, 1)], ["dfl-1"] * 3),
        ([("language", FilterOperator.EQ, "it's")], ["dfl-1"] * 3),
        ([("language", FilterOperator.EQ, "') OR ('1'='1")], []),
        ([("tags", FilterOperator.CONTAINS, "gauge")], ["dfl-2", "dfl-2"]),
        ([("file_name", FilterOperator.IN, ["dfl-3.pdf", "x"])], ["dfl-3"]),
        ([("year", FilterOperator.EQ, 1999)], []),
        ([("draft", FilterOperator.IN, [1, 0])], ["dfl-2", "dfl-2"]),
    ],
)
async def test_filters_mean_what_they_mean_to_the_sink(
    index: VectorStoreIndex, condition: list[tuple[str, FilterOperator, Any]], expected: list[str]
) -> None:
    found = index.as_retriever(similarity_top_k=10, filters=filters(*condition)).retrieve("dfl-1/v1/0")
    assert files_of(found) == expected


async def test_a_search_can_be_limited_to_documents(bench: Bench, index: VectorStoreIndex) -> None:
    found = index.as_retriever(similarity_top_k=10, doc_ids=[f"{bench.config}:dfl-2"]).retrieve("dfl-1/v1/0")
    assert files_of(found) == ["dfl-2", "dfl-2"]
    for operator in (FilterOperator.IN, FilterOperator.ANY):
        named = filters(("parsed_directory_file_id", operator, ["dfl-1"]))
        with pytest.raises(ValueError, match="given twice"):
            index.as_retriever(doc_ids=[f"{bench.config}:dfl-2"], filters=named).retrieve("dfl-1/v1/0")
    other = filters(("parsed_directory_file_id", FilterOperator.NE, "dfl-2"))
    assert not index.as_retriever(doc_ids=[f"{bench.config}:dfl-2"], filters=other).retrieve("dfl-1/v1/0")


async def test_what_a_sink_cannot_express_is_refused(index: VectorStoreIndex) -> None:
    for wrong in (
        filters(("pages", FilterOperator.EQ, 3)),
        filters(("language", FilterOperator.TEXT_MATCH, "x")),
        filters(("year", FilterOperator.EQ, 1), ("year", FilterOperator.EQ, 2)),
        filters(("year", FilterOperator.EQ, 1), ("draft", FilterOperator.EQ, 1), combined=FilterCondition.OR),
    ):
        with pytest.raises(ValueError, match=r"pages|text_match|twice|or"):
            index.as_retriever(filters=wrong).retrieve("dfl-1/v1/0")
    with pytest.raises(ValueError, match="mmr"):
        index.as_retriever(vector_store_query_mode="mmr").retrieve("dfl-1/v1/0")


async def test_an_option_that_no_sink_has_is_refused_and_not_ignored(index: VectorStoreIndex) -> None:
    for option, mode in product(("alpha", "hybrid_top_k", "sparse_top_k"), ("default", "hybrid")):
        retriever = index.as_retriever(vector_store_query_mode=mode, **{option: 1})
        with pytest.raises(ValueError, match=option):
            retriever.retrieve("section 1")
        with pytest.raises(ValueError, match=option):
            await retriever.aretrieve("section 1")


async def test_what_a_sink_is_told_besides_in_a_search_of_its_own_is_refused(bench: Bench, index: VectorStoreIndex) -> None:
    mode = "hybrid" if "hybrid" in bench.exporter.search_modes else "default"
    if mode == "default" and isinstance(index.vector_store.client, BasePydanticVectorStore):
        pytest.skip("LlamaIndex's own store has keyword arguments of its own")
    retriever = index.as_retriever(vector_store_query_mode=mode, vector_store_kwargs={"nprobes": 5})
    with pytest.raises(ValueError, match="nprobes"):
        retriever.retrieve("section 1")


async def test_hybrid_and_text_search_go_through_the_sink(bench: Bench, index: VectorStoreIndex) -> None:
    if "hybrid" not in bench.exporter.search_modes:
        with pytest.raises(ValueError, match="hybrid"):
            index.as_retriever(vector_store_query_mode="hybrid").retrieve("section 1")
        return
    retriever = index.as_retriever(similarity_top_k=20, vector_store_query_mode=VectorStoreQueryMode.HYBRID)
    found = retriever.retrieve("dfl-2/v1/0")
    assert set(files_of(found)) <= {"dfl-1", "dfl-2", "dfl-3"}
    assert found[0].node.text.startswith("v1 of section 0 in dfl-2")


@pytest.mark.parametrize("mode", [VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.HYBRID])
async def test_a_word_is_found_whether_its_letters_are_composed_or_not(
    bench: Bench, index: VectorStoreIndex, mode: VectorStoreQueryMode
) -> None:
    if "text" not in bench.exporter.search_modes:
        pytest.skip("this sink has no text search")
    await bench.replace(bench.file("dfl-4", ["Pru\u0308fung"]), bench.file("dfl-5", ["Prüfung"]))
    retriever = index.as_retriever(similarity_top_k=3, vector_store_query_mode=mode)
    for asked in ("Prüfung", "Pru\u0308fung"):
        found = set(files_of(retriever.retrieve(asked)))
        assert found >= {"dfl-4", "dfl-5"}, "in a hybrid answer the nearest vector's file may stand between them"


async def test_a_deleted_document_is_gone_and_nobody_elses_is(bench: Bench, index: VectorStoreIndex) -> None:
    index.delete_ref_doc(f"{bench.config}:dfl-1")
    await index.adelete_ref_doc(f"{bench.config}:dfl-3")
    await bench.sink.settle(bench.exporter)
    assert files_of(index.as_retriever(similarity_top_k=10).retrieve("dfl-1/v1/0")) == ["dfl-2", "dfl-2"]
    assert set(await bench.snapshots()) == {"dfl-2"}
    assert set(await bench.snapshots(config=f"{bench.config}-b")) == {"dfl-1"}
    assert set(await bench.snapshots(bench.opened[1])) == {"dfl-1"}
    with pytest.raises(ValueError, match="not one of export"):
        index.delete_ref_doc(f"{bench.config}-b:dfl-1")


async def test_llama_indexs_own_delete_takes_a_document_of_this_config_alone(
    name: str, bench: Bench, index: VectorStoreIndex
) -> None:
    native = index.vector_store.client
    if name == "lancedb":
        with pytest.raises(ValueError, match="No field named"):
            native.delete(f"{bench.config}:dfl-1")
        return
    if NATIVE[name] is None:
        pytest.skip("LlamaIndex has no store of its own for this sink")
    native.delete(f"{bench.config}:dfl-1")
    await bench.sink.settle(bench.exporter)
    assert files_of(index.as_retriever(similarity_top_k=10).retrieve("dfl-1/v1/0")) == ["dfl-2", "dfl-2", "dfl-3"]
    assert set(await bench.snapshots(config=f"{bench.config}-b")) == {"dfl-1"}


async def test_nodes_cannot_be_added_past_the_export(index: VectorStoreIndex) -> None:
    with pytest.raises(ValueError, match="only writer"):
        index.vector_store.add([])


async def test_a_local_qdrant_directory_is_read_through_the_sink_that_has_it_open(tmp_path: Path) -> None:
    with qdrant_local(tmp_path) as local:
        bench = Bench(local)
        await bench.open().provision()
        await bench.replace(bench.file("dfl-1", 3))
        opened = open_index(bench.exporter, export_config_id=bench.config, embedder=NamedVectors())
        assert opened.as_retriever(similarity_top_k=1).retrieve("dfl-1/v1/2")[0].node.metadata["chunk_index"] == 2
        opened.delete_ref_doc(f"{bench.config}:dfl-1")
        assert await bench.snapshots() == {}
        opened.vector_store.close()
        await bench.exporter.close()


async def test_before_the_first_sync_there_is_no_index_and_none_is_in_the_way_of_that_sync(sink: SinkUnderTest) -> None:
    bench = Bench(sink, model=UNSYNCED)
    threads = set(threading.enumerate())
    try:
        with pytest.raises(SinkUnavailable, match="sync"):
            open_index(bench.open(), export_config_id=bench.config, embedder=Unsynced())
        assert not [thread for thread in set(threading.enumerate()) - threads if thread.name == LOOP]
        await bench.open().provision()
        await bench.replace(bench.file("dfl-1"))
        index = open_index(bench.exporter, export_config_id=bench.config, embedder=Unsynced())
        assert files_of(index.as_retriever().retrieve("dfl-1/v1/0")) == ["dfl-1", "dfl-1"]
        index.vector_store.close()
    finally:
        for exporter in bench.opened:
            await exporter.close()


async def test_a_variable_that_is_not_set_is_named(name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in ADDRESSES:
        pytest.skip("this sink needs no variable")
    variable = getattr(bench.exporter.settings, {"mongodb": "uri_env", "pgvector": "dsn_env"}.get(name, ""), ADDRESSES[name])
    monkeypatch.delenv(variable)
    with pytest.raises(ConfigError, match=variable):
        open_index(bench.exporter, export_config_id=bench.config, embedder=NamedVectors())


async def test_lancedbs_text_index_is_not_replaced_by_one_of_llama_indexs(tmp_path: Path) -> None:
    async with provisioned_bench(LanceDBUnderTest(str(tmp_path))) as bench:
        await bench.replace(bench.file("dfl-1", ["to be or not to be"]))
        opened = open_index(bench.exporter, export_config_id=bench.config, embedder=NamedVectors())
        with pytest.raises(ValueError, match="query_type"):
            opened.as_retriever(vector_store_kwargs={"query_type": "hybrid"}).retrieve("not")
        opened.vector_store.close()
        assert await bench.search(SearchRequest(bench.config, "text", text="not"))


async def test_a_sink_that_is_not_searched_is_no_index(tmp_path: Path) -> None:
    settings = PlugInSettings.model_validate({"path": str(tmp_path / "rows.json")})
    plugged = PlugInExporter(JsonExporter, settings, SinkContext("prj-1", MODEL, FIELDS))
    with pytest.raises(ConfigError, match="search"):
        open_index(plugged, export_config_id="cfg", embedder=NamedVectors())


async def test_an_embedder_of_another_model_is_refused(bench: Bench) -> None:
    other = ConstantEmbedder(16)
    assert isinstance(other.identity, ModelIdentity)
    with pytest.raises(ConfigError, match="constant"):
        open_index(bench.exporter, export_config_id=bench.config, embedder=other)
