"""The storage_context sink's files, read by LlamaIndex itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline_tests.llama_index.bench import REASON, NamedVectors

pytest.importorskip("llama_index.core", reason=REASON)

from llama_index.core import Document, MockEmbedding, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.simple import SimpleVectorStore

from pipeline.errors import SinkUnavailable
from pipeline.sinks.base import SearchRequest
from pipeline.sinks.open_index import open_index
from pipeline_tests.conformance.harness import Bench, provisioned_bench
from pipeline_tests.conformance.storage_context_harness import StorageContextUnderTest

Open = Callable[[], VectorStoreIndex]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with provisioned_bench(StorageContextUnderTest(str(tmp_path))) as made:
        yield made


@pytest.fixture
def opened(bench: Bench) -> Open:
    return lambda: open_index(bench.exporter, export_config_id=bench.config, embedder=NamedVectors())


def generation(tmp_path: Path) -> Path:
    (current,) = tmp_path.rglob("CURRENT")
    return current.parent / current.read_text().strip()


def ids(nodes: list[Any]) -> set[str]:
    return {item.node.node_id for item in nodes}


async def test_the_folder_current_names_loads_and_retrieves_whole_nodes(bench: Bench, opened: Open) -> None:
    text = 'a "quoted" \\ text\nof 漢字 \U0001f600 and \u2028'
    file = bench.file("dfl-1", [text, "weir"], metadata={"year": 2021, "quote'\"": "\\n", "tags": ["a"], "none": None})
    await bench.replace(file, bench.file("dfl-2", 3))
    best = opened().as_retriever(similarity_top_k=10).retrieve("dfl-1/v1/0")[0]
    assert best.score == pytest.approx(1.0)
    assert isinstance(best.node, TextNode)
    assert best.node.text == text
    assert best.node.ref_doc_id == f"{bench.config}:dfl-1"
    assert {key: best.node.metadata[key] for key in file.provenance.metadata} == file.provenance.metadata


async def test_metadata_filters_work_on_what_was_loaded(bench: Bench, opened: Open) -> None:
    await bench.replace(*(bench.file(f"dfl-{year}", 2, metadata={"year": year}) for year in (2020, 2021, 2022)))
    wanted = MetadataFilters(filters=[MetadataFilter(key="year", value=2021)])
    found = opened().as_retriever(similarity_top_k=10, filters=wanted).retrieve("dfl-2020/v1/0")
    assert [item.node.metadata["year"] for item in found] == [2021, 2021]


@pytest.mark.parametrize(
    ("key", "operator", "value", "meant"),
    [
        ("tags", FilterOperator.NIN, ["river"], {"nin": ["river"]}),
        ("tags", FilterOperator.IN, ["gauge", "weir"], {"in": ["gauge", "weir"]}),
        ("tags", FilterOperator.ANY, ["gauge", "weir"], {"in": ["gauge", "weir"]}),
        ("tags", FilterOperator.CONTAINS, "river", {"eq": "river"}),
        ("tags", FilterOperator.NE, "river", {"ne": "river"}),
        ("draft", FilterOperator.EQ, 1, {"eq": True}),
        ("year", FilterOperator.NE, 2020, {"ne": 2020}),
        ("year", FilterOperator.LT, 2021, {"lt": 2021}),
        ("file_name", FilterOperator.IN, ["dfl-3.pdf"], {"in": ["dfl-3.pdf"]}),
    ],
)
async def test_filters_mean_what_they_mean_to_every_sink(
    bench: Bench, opened: Open, key: str, operator: FilterOperator, value: Any, meant: dict[str, Any]
) -> None:
    await bench.replace(
        bench.file("dfl-1", 2, metadata={"year": 2020, "tags": ["river", "gauge"], "draft": True}),
        bench.file("dfl-2", 2, metadata={"year": 2021, "tags": ["gauge"], "draft": False}),
        bench.file("dfl-3", 2, metadata={"other": 1}),
    )
    wanted = MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])
    found = opened().as_retriever(similarity_top_k=10, filters=wanted).retrieve("dfl-1/v1/0")
    hits = await bench.search(
        SearchRequest(bench.config, vector=await NamedVectors().embed_query("dfl-1/v1/0"), filters={key: meant})
    )
    assert [item.node.node_id for item in found] == [hit.record.id for hit in hits]
    assert 0 < len(found) < 6


async def test_a_search_can_be_limited_to_documents(bench: Bench, opened: Open) -> None:
    files = [bench.file("dfl-1", 2), bench.file("dfl-2", 2)]
    await bench.replace(*files)
    of_file = set(files[1].table["id"].to_pylist())
    limited = opened().as_retriever(similarity_top_k=10, doc_ids=[f"{bench.config}:dfl-2"])
    assert ids(limited.retrieve("dfl-1/v1/0")) == of_file


async def test_what_a_sink_cannot_express_is_refused(bench: Bench, opened: Open) -> None:
    await bench.replace(bench.file("dfl-1"))
    unknown = MetadataFilters(filters=[MetadataFilter(key="pages", value=3)])
    with pytest.raises(ValueError, match="pages"):
        opened().as_retriever(filters=unknown).retrieve("dfl-1/v1/0")
    with pytest.raises(ValueError, match="alpha"):
        opened().as_retriever(alpha=0.5).retrieve("dfl-1/v1/0")


async def test_nodes_cannot_be_added_past_the_export(bench: Bench, opened: Open) -> None:
    await bench.replace(bench.file("dfl-1"))
    index = opened()
    with pytest.raises(ValueError, match="only writer"):
        index.insert(Document(text="not from LlamaCloud"))
    assert len(index.as_retriever(similarity_top_k=10).retrieve("dfl-1/v1/0")) == 3


async def test_a_document_deleted_in_llama_index_is_gone_from_its_copy_and_not_from_ours(bench: Bench, opened: Open) -> None:
    files = [bench.file("dfl-1", 3), bench.file("dfl-2", 2)]
    await bench.replace(*files)
    index = opened()
    assert set(index.ref_doc_info) == {f"{bench.config}:dfl-1", f"{bench.config}:dfl-2"}
    index.delete_ref_doc(f"{bench.config}:dfl-1", delete_from_docstore=True)
    assert ids(index.as_retriever(similarity_top_k=10).retrieve("dfl-1/v1/0")) == set(files[1].table["id"].to_pylist())
    await bench.assert_holds(*files)


async def test_what_llama_index_persists_again_is_what_we_wrote(bench: Bench, tmp_path: Path, opened: Open) -> None:
    await bench.replace(bench.file("dfl-1", 3, metadata={"year": 2021}), bench.file("dfl-2", 1))
    again = tmp_path / "again"
    context = opened().storage_context
    context.persist(str(again))
    for name in ("docstore.json", "index_store.json", "default__vector_store.json", "graph_store.json"):
        ours, theirs = (json.loads((folder / name).read_bytes()) for folder in (generation(tmp_path), again))
        if name == "index_store.json":
            ours, theirs = (_struct(content) for content in (ours, theirs))
        assert _without_defaults(theirs) == _without_defaults(ours), name


def _struct(content: dict[str, Any]) -> Any:
    (entry,) = content["index_store/data"].values()
    return json.loads(entry["__data__"])


def _without_defaults(value: Any) -> Any:
    """Fields that newer releases write with an empty value are not part of the layout."""
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items() if item not in (None, {}, [])}
    return value


async def test_llama_index_persisting_over_our_files_is_noticed_and_healed(bench: Bench, tmp_path: Path, opened: Open) -> None:
    files = [bench.file("dfl-1"), bench.file("dfl-2")]
    await bench.replace(*files)
    index = opened()
    index.delete_ref_doc(f"{bench.config}:dfl-1", delete_from_docstore=True)
    index.storage_context.persist(str(generation(tmp_path)))
    assert all(snapshot.record_set_hash.startswith("pending:") for snapshot in (await bench.snapshots()).values())
    await bench.replace(files[1])
    await bench.assert_holds(*files)
    assert len(opened().as_retriever(similarity_top_k=10).retrieve("dfl-1/v1/0")) == 6


async def test_refreshing_sees_which_documents_are_there(bench: Bench, opened: Open) -> None:
    file = bench.file("dfl-1")
    await bench.replace(file)
    docstore = opened().docstore
    assert docstore.get_document_hash(f"{bench.config}:dfl-1") == file.provenance.content_fingerprint_hash
    assert docstore.get_document_hash(f"{bench.config}:dfl-2") is None


async def test_an_empty_index_loads_and_one_never_written_says_so(bench: Bench, opened: Open) -> None:
    with pytest.raises(SinkUnavailable, match=bench.config):
        opened()
    await bench.replace(bench.file("dfl-1"))
    await bench.delete("dfl-1")
    assert opened().as_retriever().retrieve("dfl-1/v1/0") == []


async def test_an_index_opened_while_generations_come_and_go_is_the_latest(
    bench: Bench, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.replace(bench.file("dfl-0"))
    read = SimpleVectorStore.from_persist_path.__func__
    coming = [lambda: asyncio.run(write_generations())]

    async def write_generations() -> None:
        for number in range(1, 4):
            await bench.open().replace_files([bench.file(f"dfl-{number}")])

    def reading(cls: type[SimpleVectorStore], *given: Any, **named: Any) -> SimpleVectorStore:
        if coming:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(coming.pop()).result()
        return read(cls, *given, **named)

    monkeypatch.setattr(SimpleVectorStore, "from_persist_path", classmethod(reading))
    assert len(opened().ref_doc_info) == 4


async def test_closing_an_index_ends_the_thread_behind_it(bench: Bench, opened: Open) -> None:
    await bench.replace(bench.file("dfl-0"))
    before = set(threading.enumerate())
    opened().vector_store.close()
    assert set(threading.enumerate()) <= before


async def test_llama_index_alone_can_load_it(bench: Bench, tmp_path: Path) -> None:
    await bench.replace(bench.file("dfl-1", 2))
    context = StorageContext.from_defaults(persist_dir=str(generation(tmp_path)))
    index = load_index_from_storage(context, embed_model=MockEmbedding(embed_dim=16))
    assert index.index_id == bench.config
    assert len(index.docstore.docs) == 2
