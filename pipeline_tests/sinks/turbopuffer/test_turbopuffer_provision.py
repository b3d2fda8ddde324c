"""Turbopuffer's own: namespaces made, refused, and added to while others write."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
import turbopuffer as sdk

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError, SinkConflict
from pipeline.sinks import turbopuffer as sink
from pipeline.sinks import turbopuffer_layout as layout
from pipeline.sinks import turbopuffer_store as store
from pipeline.sinks.base import MetadataType, SearchRequest, SinkContext
from pipeline.sinks.turbopuffer import TurbopufferExporter
from pipeline_tests.conformance.harness import MODEL, Bench, unit_vectors
from pipeline_tests.conformance.turbopuffer_harness import (
    TurbopufferUnderTest,
    replace_and_close,
)
from pipeline_tests.emulators.turbopuffer import Request, TurbopufferEmulator

NAMESPACE = f"indexport-{MODEL.slug}"


def exporter_with(running: TurbopufferUnderTest, fields: Mapping[str, MetadataType], **context: Any) -> TurbopufferExporter:
    bound = {"tenant_id": "prj-1", "model": MODEL, **context}
    return TurbopufferExporter(running.settings, SinkContext(**bound, metadata_fields=fields))


async def files_found(exporter: TurbopufferExporter, config: str, filters: dict[str, Any]) -> list[str]:
    request = SearchRequest(config, vector=unit_vectors("q", 1)[0], k=100, filters=filters)
    return sorted({hit.record.parsed_directory_file_id for hit in await exporter.search(request)})


async def test_a_namespace_of_someone_else_is_a_conflict_and_stays_untouched(
    running: TurbopufferUnderTest, emulator: TurbopufferEmulator, client: sdk.Turbopuffer
) -> None:
    client.namespace(NAMESPACE).write(upsert_rows=[{"id": 1, "vector": [0.0] * 16}], distance_metric="cosine_distance")
    with pytest.raises(SinkConflict, match=r"'id' is uint, not uuid.*namespace_prefix"):
        await exporter_with(running, {}).provision()
    assert emulator.count("write") == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vector": {"type": "[8]f32", "ann": {"distance_metric": layout.METRIC}}}, "is .8.f32, not .16.f32"),
        ({"vector": {"type": "[16]f32", "ann": {"distance_metric": "euclidean_squared"}}}, "euclidean_squared"),
        ({"vector": {"type": "[16]f32"}}, "by nothing"),
        ({"context": {}}, "'context' is missing"),
        ({"record_set_hash": {"type": "string", "filterable": False}}, "cannot filter on record_set_hash"),
        ({"text": {"type": "string"}}, "full-text"),
        ({"year": {"type": "string", "filterable": True}}, r"'year' as string.*declares it as integer"),
        ({"year": {"type": "int", "filterable": False}}, "cannot be filtered on"),
    ],
)
def test_a_namespace_that_does_not_fit_is_a_conflict_that_says_why(change: dict[str, Any], told: str) -> None:
    ours = layout.namespace_schema(MODEL, {"year": "integer"})
    found = {name: {"type": entry} if isinstance(entry, str) else entry for name, entry in ours.items()}
    more = {"more": {"type": "float", "filterable": True}}
    assert layout.check_schema(found, "ns", MODEL, {"year": "integer", "more": "float"}) == more
    with pytest.raises(SinkConflict, match=told):
        layout.check_schema({**found, **change}, "ns", MODEL, {"year": "integer"})


async def test_vectors_of_another_model_under_our_name_are_a_conflict(
    bench: Bench, running: TurbopufferUnderTest, client: sdk.Turbopuffer
) -> None:
    file = bench.file("dfl-1")
    await bench.replace(file)
    rows: list[Any] = [{"id": name, "embedding_model": "another/1"} for name in file.table["id"].to_pylist()[-1:]]
    client.namespace(NAMESPACE).write(patch_rows=rows)
    with pytest.raises(SinkConflict, match="another model than 'conformance'"):
        await exporter_with(running, {}).provision()


async def test_names_and_models_no_namespace_could_hold_are_refused_before_any_request(
    running: TurbopufferUnderTest, emulator: TurbopufferEmulator
) -> None:
    with pytest.raises(ConfigError, match="128 bytes"):
        await exporter_with(running, {"長" * 43: "string"}).provision()
    with pytest.raises(ConfigError, match="10752"):
        await exporter_with(running, {}, model=ModelIdentity("wide", "wide/1", 10_753)).provision()
    assert emulator.requests == []


async def test_a_newly_declared_field_is_filled_from_what_documents_hold(
    running: TurbopufferUnderTest, emulator: TurbopufferEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "_FILLED_PER_REQUEST", 5)
    bench = Bench(running, fields={}, tenant="prj-1")
    await bench.open().provision()
    files = [bench.file(f"dfl-{n}", 3, metadata={"the year": 2020 + n, "tags": ["a"]}) for n in range(4)]
    misfit = bench.file("dfl-misfit", 3, metadata={"the year": "unknown"})
    await bench.replace(*files, misfit)
    newer = exporter_with(running, {"the year": "integer", "tags": "string_list"})
    await newer.provision()
    assert await files_found(newer, bench.config, {"the year": {"gte": 2022}, "tags": "a"}) == ["dfl-2", "dfl-3"]
    await bench.assert_holds(*files, misfit)
    emulator.requests.clear()
    await newer.provision()
    assert emulator.count("write") == 0, "nothing is left to fill, so nothing is written"
    await newer.close()
    await bench.exporter.close()


async def test_files_without_a_declared_field_are_not_read_again_by_every_process(
    bench: Bench, emulator: TurbopufferEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.replace(*(bench.file(f"dfl-{n}", 2, metadata={}) for n in range(30)))
    monkeypatch.setattr(store, "MAX_LIMIT", 10)
    emulator.requests.clear()
    await bench.open().provision()
    assert emulator.count("query") == 2, "of which model the vectors are, and of which files a field is missing"


async def test_a_namespace_of_an_earlier_version_is_told_once_what_its_files_were_written_for(
    running: TurbopufferUnderTest, emulator: TurbopufferEmulator
) -> None:
    bench = Bench(running, fields={"year": "integer"}, tenant="prj-1")
    await bench.open().provision()
    files = [bench.file(f"dfl-{n}", 3, metadata={"year": 2020 + n} if n % 2 else {}) for n in range(6)]
    await bench.replace(*files)
    namespace = emulator.engine.namespaces[NAMESPACE]
    del namespace.schema[layout.FILTER_FIELDS]
    for document in namespace.documents.values():
        del document[layout.FILTER_FIELDS]
    newer = exporter_with(running, {"year": "integer", "more": "string"})
    emulator.requests.clear()
    await newer.provision()
    (filled,) = (request.body["patch_columns"]["id"] for request in emulator.requests if "patch_columns" in request.body)
    assert len(filled) == len(files), "of each file its chunk 0, for its values are there"
    await bench.assert_holds(*files)
    assert await files_found(newer, bench.config, {"year": {"gte": 2021}}) == ["dfl-1", "dfl-3", "dfl-5"]
    emulator.requests.clear()
    await newer.provision()
    assert emulator.count("write") == 0
    await newer.close()
    await bench.exporter.close()


async def test_filling_a_field_leaves_alone_what_was_replaced_meanwhile(
    running: TurbopufferUnderTest, emulator: TurbopufferEmulator
) -> None:
    bench = Bench(running, fields={}, tenant="prj-1")
    await bench.open().provision()
    await bench.replace(bench.file("dfl-1", 5, metadata={"year": 2020}))
    newer, other = exporter_with(running, {"year": "integer"}), exporter_with(running, {"year": "integer"})
    changed = bench.file("dfl-1", 3, version="v2", metadata={"year": 2030})

    def overtake(request: Request) -> None:
        if "patch_columns" in request.body:
            emulator.before = None
            asyncio.run(replace_and_close(other, changed))

    emulator.before = overtake
    await newer.provision()
    assert await files_found(newer, bench.config, {"year": 2030}) == ["dfl-1"]
    assert await files_found(newer, bench.config, {"year": 2020}) == []
    await bench.assert_holds(changed)
    await newer.close()
    await bench.exporter.close()


async def test_many_processes_may_provision_at_once(running: TurbopufferUnderTest, emulator: TurbopufferEmulator) -> None:
    exporters = [exporter_with(running, {"year": "integer"}) for _ in range(6)]
    await asyncio.gather(*(exporter.provision() for exporter in exporters))
    await asyncio.gather(*(exporter.close() for exporter in exporters))
    assert list(emulator.engine.namespaces) == [NAMESPACE]
