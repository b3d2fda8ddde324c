"""A vector sink with LlamaIndex's docstore and index store beside it, as LlamaIndex itself sees and changes the two."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pipeline_tests.llama_index.bench import REASON, NamedVectors

pytest.importorskip("llama_index.core", reason=REASON)

from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index.storage.docstore.mongodb import MongoDocumentStore
from llama_index.storage.index_store.mongodb import MongoIndexStore

from pipeline.errors import ConfigError, RecordRefused, SinkConflict, SinkUnavailable
from pipeline.sinks.base import SinkContext
from pipeline.sinks.llama_docstore import LlamaDocstoreExporter, LlamaDocstoreSettings
from pipeline.sinks.llama_docstore_store import DocstoreNamespace
from pipeline.sinks.llama_index_bridge import EmbedderEmbedding, EventLoopThread
from pipeline.sinks.llama_index_natives import native_store
from pipeline.sinks.open_index import open_index
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, SinkUnderTest, load_harness
from pipeline_tests.conformance.llama_docstore_harness import LlamaDocstoreUnderTest
from pipeline_tests.llama_index.docstore_stacks import NATIVE, STACKS, URI, Stack


@pytest.fixture(scope="module", params=sorted(STACKS))
def sinks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, SinkUnderTest, LlamaDocstoreUnderTest]]:
    name, store = STACKS[request.param]
    directory = tmp_path_factory.mktemp("stack")
    with ExitStack() as resources, pytest.MonkeyPatch.context() as patch:
        vectors = resources.enter_context(load_harness(name)(directory))
        kvstore = store(resources, patch, directory)
        yield request.param, vectors, LlamaDocstoreUnderTest(kvstore, vector_sink=name, list_nodes=name in NATIVE)


@pytest.fixture
async def stack(sinks: tuple[str, SinkUnderTest, LlamaDocstoreUnderTest]) -> AsyncIterator[Stack]:
    name, vector_sink, docstore_sink = sinks
    vectors = Bench(vector_sink)
    docstore = Bench(docstore_sink, tenant=vectors.tenant, config=vectors.config)
    for bench in (vectors, docstore):
        await bench.open().provision()
    yield Stack(name, vectors, docstore)
    for exporter in (*vectors.opened, *docstore.opened):
        await exporter.close()


@pytest.fixture
def vector_store(stack: Stack) -> Iterator[BasePydanticVectorStore]:
    """LlamaIndex's own store of the vector sink, or the sink as one."""
    if stack.name.split()[0] in NATIVE:
        native = native_store(stack.vectors.exporter, stack.vectors.config)
        assert native is not None
        if stack.name.startswith("pgvector"):
            _within_config(native, stack)
        yield native.store
        native.close()
    else:
        sink = open_index(stack.vectors.exporter, export_config_id=stack.vectors.config, embedder=NamedVectors()).vector_store
        yield sink
        sink.close()


def _within_config(native: Any, stack: Stack) -> None:
    """The table is shared with the other tests of the module."""
    original = native.store.query

    def query(query: Any, **options: Any) -> Any:
        prepared, scoped = native.prepare(query, [])
        return original(prepared, **{**options, **scoped})

    object.__setattr__(native.store, "query", query)


@pytest.fixture
def embedding() -> Iterator[EmbedderEmbedding]:
    thread = EventLoopThread()
    yield EmbedderEmbedding(NamedVectors(), thread)
    thread.close()


@pytest.fixture
def context(stack: Stack, vector_store: BasePydanticVectorStore) -> StorageContext:
    return stack.exporter.storage_context(stack.vectors.config, vector_store)


def load(context: StorageContext, embedding: EmbedderEmbedding, *, override: bool = False) -> VectorStoreIndex:
    index = load_index_from_storage(context, embed_model=embedding, store_nodes_override=override)
    assert isinstance(index, VectorStoreIndex)
    return index


def delete(stack: Stack, context: StorageContext, embedding: EmbedderEmbedding, document: str) -> None:
    """With ``store_nodes_override`` LlamaIndex deletes from the docstore of a vector store that keeps texts, too, when the index
    lists its nodes; without, the docstore is told apart."""
    if stack.name.split()[0] in NATIVE:
        load(context, embedding, override=True).delete_ref_doc(document, delete_from_docstore=True)
    else:
        load(context, embedding).delete_ref_doc(document)
        context.docstore.delete_ref_doc(document)


async def test_the_docstore_holds_the_nodes_of_the_vector_store_under_their_ids(stack: Stack, context: StorageContext) -> None:
    metadata = {"year": 2024, "tags": ["river"], "a.b": 1.5, "$odd key": True, "große": "漢字", "void": None}
    files = [stack.vectors.file("dfl-1", 5, metadata=metadata), stack.vectors.file("dfl-2")]
    await stack.replace(*files)
    ids = await stack.ids("dfl-1")
    info = context.docstore.get_ref_doc_info(stack.document("dfl-1"))
    assert info.node_ids == ids
    assert len(ids) == 5
    assert set(context.docstore.get_all_ref_doc_info()) == {stack.document("dfl-1"), stack.document("dfl-2")}
    document = context.docstore.get_document(stack.document("dfl-1"))
    for number, node in enumerate(context.docstore.get_nodes(ids)):
        assert node.text == f"v1 of section {number} in dfl-1: the river gauge is read"
        assert node.ref_doc_id == stack.document("dfl-1")
        assert {name: node.metadata[name] for name in metadata} == metadata
        assert document.text[node.start_char_idx : node.end_char_idx] == node.text
        assert context.docstore.get_document_hash(node.node_id) == node.hash
    await stack.docstore.assert_holds(*files)


async def test_an_index_is_loaded_from_storage_and_retrieves(
    stack: Stack, context: StorageContext, embedding: EmbedderEmbedding
) -> None:
    await stack.replace(stack.vectors.file("dfl-1", 3), stack.vectors.file("dfl-2", 2))
    index = load_index_from_storage(context, embed_model=embedding)
    found = index.as_retriever(similarity_top_k=1).retrieve("dfl-1/v1/2")[0].node
    assert found.text == "v1 of section 2 in dfl-1: the river gauge is read"
    assert index.docstore.get_node(found.node_id).text == found.text
    assert index.docstore.get_node(found.node_id).hash == found.hash
    assert index.index_id == stack.vectors.config


async def test_of_a_table_that_others_share_the_index_answers_with_its_own_records_alone(
    stack: Stack, context: StorageContext, embedding: EmbedderEmbedding
) -> None:
    await stack.replace(stack.vectors.file("dfl-1", 3))
    tenant, config = f"{stack.vectors.tenant}-b", f"{stack.vectors.config}-b"
    other = stack.vectors.open(tenant=tenant)
    await other.replace_files([stack.vectors.file("dfl-9", 3, tenant=tenant, config=config)])
    await stack.vectors.replace(stack.vectors.file("dfl-9", 3, config=config))
    await stack.vectors.sink.settle(other)
    found = load(context, embedding).as_retriever(similarity_top_k=9).retrieve("dfl-9/v1/1")
    assert {item.node.ref_doc_id for item in found} == {stack.document("dfl-1")}
    assert len(found) == 3


async def test_a_document_deleted_through_llama_index_is_gone_from_both_until_it_is_exported_again(
    stack: Stack, context: StorageContext, embedding: EmbedderEmbedding
) -> None:
    files = [stack.vectors.file("dfl-1", 3), stack.vectors.file("dfl-2", 2)]
    await stack.replace(*files)
    ids = await stack.ids("dfl-1")
    delete(stack, context, embedding, stack.document("dfl-1"))
    await stack.vectors.sink.settle(stack.vectors.exporter)
    assert context.docstore.get_ref_doc_info(stack.document("dfl-1")) is None
    assert context.docstore.get_document_hash(stack.document("dfl-1")) is None
    assert context.docstore.get_nodes(ids, raise_error=False) == []
    assert await stack.ids("dfl-1") == []
    assert set(await stack.docstore.snapshots()) == {"dfl-2"}
    found = load(context, embedding).as_retriever(similarity_top_k=9).retrieve("dfl-1/v1/2")
    assert {item.node.ref_doc_id for item in found} == {stack.document("dfl-2")}
    await stack.replace(files[0])
    await stack.docstore.assert_holds(*files)
    assert context.docstore.get_ref_doc_info(stack.document("dfl-1")).node_ids == await stack.ids("dfl-1")


async def test_after_any_run_a_freshly_loaded_index_deletes_whatever_an_older_one_has_written_back(
    stack: Stack, context: StorageContext, embedding: EmbedderEmbedding
) -> None:
    """An application's index keeps the list it was loaded with, and writes all of it whenever it deletes."""
    if stack.name.split()[0] not in NATIVE:
        pytest.skip("LlamaIndex cannot delete from LanceDB itself, so that its index lists nothing")
    await stack.replace(stack.vectors.file("dfl-1", 3))
    older = load(context, embedding, override=True)
    await stack.replace(stack.vectors.file("dfl-2", 2))
    older.delete_ref_doc(stack.document("dfl-1"), delete_from_docstore=True)
    await stack.docstore.exporter.optimize()
    load(context, embedding, override=True).delete_ref_doc(stack.document("dfl-2"), delete_from_docstore=True)
    assert context.docstore.docs == {}
    assert load(context, embedding).index_struct.nodes_dict == {}


async def test_a_node_deleted_through_llama_index_makes_the_file_look_unfinished(stack: Stack, context: StorageContext) -> None:
    file = stack.vectors.file("dfl-1", 3)
    await stack.replace(file)
    context.docstore.delete_document((await stack.ids("dfl-1"))[1])
    assert (await stack.docstore.snapshots())["dfl-1"].record_set_hash.startswith("pending:")
    await stack.replace(file)
    await stack.docstore.assert_holds(file)


async def test_an_ingestion_pipeline_knows_our_documents(
    stack: Stack, context: StorageContext, vector_store: BasePydanticVectorStore, embedding: EmbedderEmbedding
) -> None:
    """The unchanged document is skipped; a changed one replaces what we wrote; one of their own is added."""
    if stack.name.startswith("lancedb"):
        pytest.skip("LlamaIndex cannot delete from LanceDB itself, and the sink as a store takes no nodes of others")
    await stack.replace(stack.vectors.file("dfl-1", 3), stack.vectors.file("dfl-2", 2))
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), embedding],
        docstore=context.docstore,
        vector_store=vector_store,
        docstore_strategy=DocstoreStrategy.UPSERTS,
        disable_cache=True,
    )
    ours = context.docstore.get_document(stack.document("dfl-1"))
    assert isinstance(ours, Document)
    assert pipeline.run(documents=[ours]) == []
    assert len(await stack.ids("dfl-1")) == 3
    changed = ours.model_copy(deep=True)
    changed.set_content("Somebody else's text.")
    (node,) = pipeline.run(documents=[changed])
    await stack.vectors.sink.settle(stack.vectors.exporter)
    assert node.ref_doc_id == stack.document("dfl-1")
    assert context.docstore.get_document(stack.document("dfl-1")).text == "Somebody else's text."
    found = load(context, embedding).as_retriever(similarity_top_k=9).retrieve("dfl-1/v1/2")
    texts = {item.node.text for item in found}
    assert not any("in dfl-1" in text for text in texts)
    if stack.name.startswith("pinecone"):  # of the other's table these tests read our config's rows alone
        assert "Somebody else's text." in texts
    assert set(await stack.docstore.snapshots()) == {"dfl-2"}


async def test_an_edit_replaces_nodes_hashes_and_the_document(stack: Stack, context: StorageContext) -> None:
    await stack.replace(stack.vectors.file("dfl-1", 6), stack.vectors.file("dfl-2", 2))
    before, hash_before = await stack.ids("dfl-1"), context.docstore.get_document_hash(stack.document("dfl-1"))
    edited = stack.vectors.file("dfl-1", 4, version="v2")
    await stack.replace(edited)
    ids = await stack.ids("dfl-1")
    assert context.docstore.get_ref_doc_info(stack.document("dfl-1")).node_ids == ids
    assert [node.text[:2] for node in context.docstore.get_nodes(ids)] == ["v2"] * 4
    assert set(context.docstore.docs) == {
        *ids,
        *await stack.ids("dfl-2"),
        stack.document("dfl-1"),
        stack.document("dfl-2"),
    }
    assert set(context.docstore.get_all_document_hashes().values()) == set(context.docstore.docs)
    assert context.docstore.get_document_hash(stack.document("dfl-1")) not in (None, hash_before)
    assert context.docstore.get_document_hash(before[5]) is None
    await stack.docstore.assert_holds(edited, stack.vectors.file("dfl-2", 2))


async def test_a_removed_file_leaves_nothing_and_two_configs_do_not_touch_each_other(
    stack: Stack, context: StorageContext, embedding: EmbedderEmbedding
) -> None:
    other = f"{stack.vectors.config}-b"
    await stack.replace(stack.vectors.file("dfl-1", 3), stack.vectors.file("dfl-1", 2, config=other))
    theirs = stack.exporter.storage_context(other, context.vector_store).docstore
    delete(stack, context, embedding, stack.document("dfl-1"))
    assert len(theirs.get_ref_doc_info(stack.document("dfl-1", other)).node_ids) == 2
    await stack.replace(stack.vectors.file("dfl-1", 3))
    await stack.docstore.delete("dfl-1")
    assert context.docstore.docs == {}
    assert context.docstore.get_all_document_hashes() == {}
    assert context.docstore.get_all_ref_doc_info() == {}
    assert len(theirs.docs) == 3
    assert set(await stack.docstore.snapshots(config=other)) == {"dfl-1"}
    await stack.docstore.delete("dfl-1", config=other)
    assert theirs.docs == {}


async def test_an_index_too_large_to_list_its_nodes_is_loaded_and_retrieves(
    stack: Stack, context: StorageContext, embedding: EmbedderEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = stack.exporter.settings.model_copy(update={"max_entry_bytes": 5000})
    monkeypatch.setattr(stack.exporter, "settings", small)
    await stack.replace(*(stack.vectors.file(f"dfl-{n}", 10) for n in range(10)))
    index = load(context, embedding)
    assert index.index_struct.nodes_dict == {}
    assert index.as_retriever(similarity_top_k=1).retrieve("dfl-3/v1/7")[0].node.metadata["chunk_index"] == 7


async def test_llama_indexs_own_classes_open_the_namespaces(stack: Stack) -> None:
    if "redis" in stack.name:
        pytest.skip("shown on MongoDB")
    await stack.replace(stack.vectors.file("dfl-1", 3))
    uri, name = os.environ[URI], stack.exporter.namespace(stack.vectors.config)
    docstore = MongoDocumentStore.from_uri(uri, "documents", namespace=f"{name}/docstore")
    index_store = MongoIndexStore.from_uri(uri, "documents", namespace=f"{name}/index_store")
    assert docstore.get_ref_doc_info(stack.document("dfl-1")).node_ids == await stack.ids("dfl-1")
    assert [struct.index_id for struct in index_store.index_structs()] == [stack.vectors.config]


@pytest.mark.parametrize("after", range(6))
async def test_a_crash_between_any_two_requests_is_made_good_by_running_again(
    stack: Stack, context: StorageContext, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Readers find the old version as a whole until the new one stands; whichever content comes next, the old one included."""
    old, new = stack.docstore.file("dfl-1", 5), stack.docstore.file("dfl-1", 3, version="v2")
    for following in (old, new):
        await stack.docstore.replace(old)
        with monkeypatch.context() as patch:
            _crash(patch, after)
            with pytest.raises(SinkUnavailable, match="crash"):
                await stack.docstore.exporter.replace_files([new])
        told = (await stack.docstore.snapshots())["dfl-1"].record_set_hash
        assert told == old.record_set_hash if after == 0 else told.startswith("pending:")
        named = context.docstore.get_ref_doc_info(stack.document("dfl-1")).node_ids
        assert len(context.docstore.get_nodes(named)) == len(named)
        await stack.docstore.replace(following)
        await stack.docstore.assert_holds(following)
        assert len(context.docstore.docs) == following.table.num_rows + 1


def _crash(patch: pytest.MonkeyPatch, after: int) -> None:
    """Let so many steps of a replace happen, and fail the next one and all that follow."""
    steps = iter(range(100))

    def counted(original: Any) -> Any:
        def step(*arguments: Any) -> Any:
            if next(steps) >= after:
                raise ConnectionError("crash")
            return original(*arguments)

        return step

    for name in ("_put", "_delete_nodes"):
        patch.setattr(DocstoreNamespace, name, counted(getattr(DocstoreNamespace, name)))


async def test_what_does_not_fit_is_refused_by_name(stack: Stack) -> None:
    assert isinstance(stack.docstore.sink, LlamaDocstoreUnderTest)
    given = {"vector_sink": "pinecone", "kvstore": stack.docstore.sink.kvstore, "max_entry_bytes": 4000}
    exporter = LlamaDocstoreExporter(
        LlamaDocstoreSettings.model_validate(given), SinkContext(stack.docstore.tenant, MODEL, FIELDS)
    )
    small, large = stack.docstore.file("dfl-small", 1), stack.docstore.file("dfl-large", 200)
    vast = stack.docstore.file("dfl-vast", 1, metadata={"n": 2**63})
    if stack.exporter.ids_by_version:
        report = await exporter.replace_files([large, small, vast])
        assert {(type(refused), refused.file_id) for refused in report.refused} == {
            (RecordRefused, "dfl-large"),
            (RecordRefused, "dfl-vast"),
        }
        await stack.docstore.assert_holds(small)
    else:
        with pytest.raises(SinkConflict, match="choose another prefix"):
            await exporter.provision()


def test_a_vector_sink_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="pineapple"):
        LlamaDocstoreSettings(vector_sink="pineapple")
