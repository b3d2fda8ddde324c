"""Making a collection, and refusing one that is not ours or does not fit."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import SinkConflict
from pipeline.sinks.base import MetadataType, SearchRequest
from pipeline.sinks.qdrant import QdrantExporter
from pipeline_tests.conformance.harness import MODEL, Bench, unit_vectors
from pipeline_tests.conformance.qdrant_harness import QdrantUnderTest
from pipeline_tests.emulators.qdrant import QdrantEmulator

NAME = f"indexport_{MODEL.slug}"
QUERY = unit_vectors("q", 1)[0]


def _create(emulator: QdrantEmulator, **settings: Any) -> None:
    vectors = {"text-dense": {"size": MODEL.dimension, "distance": "Cosine"}}
    emulator.engine.call("create", NAME, {"vectors": vectors, **settings})


async def test_the_collection_carries_the_model_and_every_index_a_filter_needs(emulator: QdrantEmulator, bench: Bench) -> None:
    assert isinstance(bench.exporter, QdrantExporter)
    assert bench.exporter.collection == NAME
    info = emulator.engine.call("info", NAME, {})
    assert info["config"]["params"]["vectors"] == {"text-dense": {"size": 16, "distance": "Cosine"}}
    assert info["config"]["metadata"] == {"indexport_format": "1", "indexport_model": MODEL.fingerprint}
    kinds = {key: index["data_type"] for key, index in info["payload_schema"].items()}
    assert kinds == {
        "tenant_id": "keyword",
        "export_config_id": "keyword",
        "parsed_directory_file_id": "keyword",
        "file_name": "keyword",
        "chunk_index": "integer",
        "record_set_hash": "keyword",
        "doc_id": "keyword",
        "_filter_fields": "keyword",
        "year": "integer",
        "rating": "float",
        "language": "keyword",
        "draft": "bool",
        "tags": "keyword",
    }
    assert info["payload_schema"]["tenant_id"]["params"]["is_tenant"] is True


async def test_provisioning_again_writes_nothing(emulator: QdrantEmulator, bench: Bench) -> None:
    await bench.replace(bench.file("dfl-1"))
    emulator.requests.clear()
    await bench.open().provision()
    assert {request.operation for request in emulator.requests} == {"exists", "info", "scroll"}


async def test_two_that_create_the_collection_at_once_both_succeed(emulator: QdrantEmulator, sink: QdrantUnderTest) -> None:
    bench = Bench(sink)
    await asyncio.gather(*(bench.open().provision() for _ in range(6)))
    await bench.replace(bench.file("dfl-1"))
    await bench.assert_holds(bench.file("dfl-1"))
    for exporter in bench.opened:
        await exporter.close()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"vectors": {"size": 16, "distance": "Cosine"}}, "text-dense"),
        ({"vectors": {"text-dense": {"size": 16, "distance": "Dot"}}}, "Dot"),
        ({"vectors": {"text-dense": {"size": 32, "distance": "Cosine"}}}, "32 dimensions"),
        ({"metadata": {"indexport_format": "1", "indexport_model": "another"}}, "another model"),
        ({"metadata": {"indexport_format": "999"}}, "this version"),
    ],
)
async def test_a_collection_that_does_not_fit_is_refused_with_a_remedy(
    emulator: QdrantEmulator, sink: QdrantUnderTest, settings: dict[str, Any], told: str
) -> None:
    _create(emulator, **settings)
    bench = Bench(sink)
    with pytest.raises(SinkConflict, match=told) as caught:
        await bench.open().provision()
    assert "collection_prefix" in str(caught.value)
    await bench.exporter.close()


async def test_a_field_indexed_as_another_type_is_refused(emulator: QdrantEmulator, sink: QdrantUnderTest) -> None:
    _create(emulator)
    emulator.engine.call("create_index", NAME, {"field_name": "year", "field_schema": "keyword"})
    bench = Bench(sink)
    with pytest.raises(SinkConflict, match="'year' as keyword"):
        await bench.open().provision()
    await bench.exporter.close()


async def test_a_server_that_keeps_no_metadata_is_known_by_its_points(emulator: QdrantEmulator, sink: QdrantUnderTest) -> None:
    emulator.engine.keeps_metadata = False
    bench = Bench(sink)
    await bench.open().provision()
    file = bench.file("dfl-1")
    await bench.replace(file)
    await bench.open().provision()
    await bench.assert_holds(file)
    for point in emulator.engine.collections[NAME].points.values():
        point.payload["embedding_model"] = "another"
    with pytest.raises(SinkConflict, match="not vectors of"):
        await bench.open().provision()
    for exporter in bench.opened:
        await exporter.close()


async def test_fields_declared_later_are_filled_in_from_the_metadata_of_the_points(sink: QdrantUnderTest) -> None:
    metadata: list[dict[str, Any]] = [
        {"year": 2020, "place": "Köln"},
        {"year": 2021},
        {"year": 2020, "place": 7},
        {"place": "Bonn"},
    ]
    old = Bench(sink, fields={})
    await old.open().provision()
    files = [old.file(f"dfl-{n}", 3, metadata=held) for n, held in enumerate(metadata)]
    await old.replace(*files)
    new = Bench(sink, fields={"year": "integer", "place": "string"}, tenant=old.tenant, config=old.config)
    await new.open().provision()
    await new.assert_holds(*files)
    for filters, wanted in (
        ({"year": 2020}, {"dfl-0", "dfl-2"}),
        ({"place": {"in": ["Köln", "Bonn"]}}, {"dfl-0", "dfl-3"}),
        ({"place": {"ne": "Köln"}}, {"dfl-1", "dfl-2", "dfl-3"}),
    ):
        hits = await new.search(SearchRequest(new.config, vector=QUERY, k=50, filters=filters))
        assert {hit.record.parsed_directory_file_id for hit in hits} == wanted
        assert len(hits) == 3 * len(wanted)
    for exporter in (*old.opened, *new.opened):
        await exporter.close()


async def test_filling_in_is_made_good_after_a_crash_and_then_done(emulator: QdrantEmulator, sink: QdrantUnderTest) -> None:
    old = Bench(sink, fields={})
    await old.open().provision()
    await old.replace(old.file("dfl-1", metadata={"year": 2020}), old.file("dfl-2", metadata={}))
    new = Bench(sink, fields={"year": "integer"}, tenant=old.tenant, config=old.config)
    emulator.fail("batch", 400)
    with pytest.raises(SinkConflict):
        await new.open().provision()
    await new.exporter.provision()
    assert len(await new.search(SearchRequest(new.config, vector=QUERY, filters={"year": 2020}))) == 3
    emulator.requests.clear()
    await new.exporter.provision()
    assert emulator.count("batch") == 0
    for exporter in (*old.opened, *new.opened):
        await exporter.close()


async def test_any_declarable_field_can_be_filtered_on_and_read_back(sink: QdrantUnderTest) -> None:
    fields: dict[str, MetadataType] = {"straße nr": "string", "a-b": "integer", "Größe": "float", "0": "boolean"}
    bench = Bench(sink, fields=fields)
    await bench.open().provision()
    file = bench.file("dfl-1", 1, metadata={"straße nr": "x", "a-b": -4, "Größe": 1.5, "0": False})
    other = bench.file("dfl-2", 1, metadata={})
    await bench.replace(file, other)
    await bench.assert_holds(file, other)
    filters: dict[str, Any] = {"straße nr": "x", "a-b": {"lt": 0}, "Größe": {"in": [1.5, 2.5]}, "0": False}
    for key, condition in filters.items():
        (hit,) = await bench.search(SearchRequest(bench.config, vector=QUERY, filters={key: condition}))
        assert hit.record.parsed_directory_file_id == "dfl-1"
    await bench.open().provision()
    for exporter in bench.opened:
        await exporter.close()


async def test_another_model_has_a_collection_of_its_own(emulator: QdrantEmulator, bench: Bench) -> None:
    model = ModelIdentity("Other/Model v2", "other/2", 8)
    await bench.open(model=model).provision()
    assert set(emulator.engine.collections) == {NAME, f"indexport_{model.slug}"}
    with pytest.raises(SinkConflict):
        await bench.open(model=dataclasses.replace(model, dimension=9)).provision()


async def test_points_are_as_llamaindex_reads_them(emulator: QdrantEmulator, bench: Bench) -> None:
    file = bench.file("dfl-1", 2, metadata={"year": 2024, "note": "n"})
    await bench.replace(file)
    for found, point in emulator.engine.collections[NAME].points.items():
        payload, node = point.payload, json.loads(point.payload["_node_content"])
        assert list(point.vectors) == ["text-dense"]
        assert node["id_"] == found
        assert node["text"] == payload["content"]
        assert node["metadata"]["note"] == "n"
        assert payload["year"] == 2024
        assert payload["_node_type"] == "TextNode"
        assert payload["doc_id"] == payload["ref_doc_id"] == payload["document_id"] == f"{bench.config}:dfl-1"
        assert node["relationships"]["1"]["node_id"] == payload["doc_id"]
