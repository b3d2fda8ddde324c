"""Azure AI Search indexes: made, extended, filled, and refused where they are not ours."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from azure.core.credentials import AzureKeyCredential
from azure.search.documents.indexes import SearchIndexClient

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.sinks import azure_store as store
from pipeline.sinks.azure_ai_search import AzureAISearchExporter, AzureAISearchSettings
from pipeline.sinks.azure_layout import FILTER_FIELDS, IndexDesign, field_name, profile_name
from pipeline.sinks.base import Exporter, MetadataType, SearchRequest, SinkContext
from pipeline_tests.conformance.azure_ai_search_harness import INDEX, AzureAISearchUnderTest
from pipeline_tests.conformance.harness import MODEL, Bench, chunk_id, unit_vectors
from pipeline_tests.emulators.azure_ai_search import AzureAISearchEmulator, Request
from pipeline_tests.emulators.azure_ai_search_schema import completed


@asynccontextmanager
async def declaring(
    emulator: AzureAISearchEmulator, fields: dict[str, MetadataType], *, model: ModelIdentity = MODEL, **settings: Any
) -> AsyncIterator[AzureAISearchExporter]:
    chosen = AzureAISearchSettings(endpoint=emulator.url, **settings)
    exporter = AzureAISearchExporter(chosen, SinkContext("prj-1", model, fields))
    try:
        yield exporter
    finally:
        await exporter.close()


async def files_found(exporter: Exporter, config: str, filters: dict[str, Any]) -> list[str]:
    request = SearchRequest(config, vector=unit_vectors("q", 1)[0], k=100, filters=filters)
    return sorted({hit.record.parsed_directory_file_id for hit in await exporter.search(request)})


async def test_the_index_is_what_the_vendors_client_reads(emulator: AzureAISearchEmulator) -> None:
    async with declaring(
        emulator, {"year": "integer", "tags": "string_list"}, analyzer="de.microsoft", semantic_ranking=True
    ) as sink:
        await sink.provision()
    with SearchIndexClient(emulator.url, AzureKeyCredential(emulator.api_key)) as client:
        index = client.get_index(INDEX)
    fields = {field.name: field for field in index.fields}
    assert (fields["id"].key, fields["content"].analyzer_name) == (True, "de.microsoft")
    assert (fields["embedding"].vector_search_dimensions, fields["embedding"].vector_search_profile_name) == (
        16,
        profile_name(MODEL),
    )
    assert not fields["content"].filterable, "a term of a filterable field has at most 32 KB"
    assert {name: (fields[name].type, fields[name].filterable) for name in ("year", "tags", "doc_id")} == {
        "year": ("Edm.Int64", True),
        "tags": ("Collection(Edm.String)", True),
        "doc_id": ("Edm.String", True),
    }
    assert index.semantic_search is not None
    assert [configuration.name for configuration in index.semantic_search.configurations or ()] == ["indexport-semantic"]


async def test_processes_that_provision_at_once_agree(emulator: AzureAISearchEmulator) -> None:
    kinds: list[dict[str, MetadataType]] = [{f"field{n}": "integer", "shared": "string"} for n in range(4)]
    for _ in range(2):
        sinks = [
            AzureAISearchExporter(AzureAISearchSettings(endpoint=emulator.url), SinkContext("prj-1", MODEL, kind))
            for kind in kinds
        ]
        await asyncio.gather(*(sink.provision() for sink in sinks))
        for sink in sinks:
            await sink.close()
    names = set(emulator.engine.indexes[INDEX].fields)
    assert names >= {"field0", "field1", "field2", "field3", "shared"}


async def test_an_index_that_never_holds_still_is_given_up(emulator: AzureAISearchEmulator) -> None:
    async with declaring(emulator, {}) as sink:
        await sink.provision()

    def meddle(request: Request) -> None:
        if request.operation == "put_index":
            emulator.engine.indexes[INDEX].etag += "x"

    emulator.before = meddle
    async with declaring(emulator, {"year": "integer"}) as sink:
        with pytest.raises(SinkUnavailable, match="keeps being changed"):
            await sink.provision()


def _changed(name: str, **attributes: Any) -> Callable[[dict[str, Any]], None]:
    def change(definition: dict[str, Any]) -> None:
        next(field for field in definition["fields"] if field["name"] == name).update(attributes)

    return change


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(definition: dict[str, Any]) -> None:
        definition["fields"] = [field for field in definition["fields"] if field["name"] != name]

    return change


def _metric(definition: dict[str, Any]) -> None:
    definition["vectorSearch"]["algorithms"][0]["hnswParameters"]["metric"] = "euclidean"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without("embedding"), "no field 'embedding'.*not this sink's"),
        (_changed("embedding", dimensions=8), "8 dimensions, conformance makes 16"),
        (_changed("embedding", vectorSearchProfile="indexport-model-0"), "another model than 'conformance'"),
        (_metric, "ranks vectors by euclidean"),
        (_without("record_set_hash"), "no field 'record_set_hash'"),
        (_changed("record_set_hash", filterable=False), "'record_set_hash' has filterable False, not True"),
        (_changed("content", analyzer="en.lucene"), "analyzer 'en.lucene', not 'standard.lucene'"),
        (_changed("year", type="Edm.String"), "'year' has type 'Edm.String', not 'Edm.Int64'.*declare it as before"),
        (_changed("year", filterable=False), "'year' has filterable False"),
    ],
)
def test_an_index_that_does_not_fit_is_a_conflict_that_says_why(change: Callable[[dict[str, Any]], None], told: str) -> None:
    design = IndexDesign(INDEX, MODEL, {"year": "integer"}, "standard.lucene", semantic=False)
    found = completed(design.definition())
    assert design.extended(found) is None
    change(found)
    with pytest.raises(SinkConflict, match=told) as caught:
        design.extended(found)
    assert "index_prefix" in str(caught.value)


async def test_an_index_of_someone_else_is_a_conflict_and_stays_untouched(emulator: AzureAISearchEmulator) -> None:
    foreign = {"name": INDEX, "fields": [{"name": "hotelId", "type": "Edm.String", "key": True}]}
    emulator.engine.put_index(INDEX, foreign, None, None)
    before = copy.deepcopy(emulator.engine.get_index(INDEX))
    async with declaring(emulator, {}) as sink:
        with pytest.raises(SinkConflict, match="not this sink's"):
            await sink.provision()
    assert emulator.engine.get_index(INDEX) == before


async def test_fields_others_added_stay(emulator: AzureAISearchEmulator) -> None:
    async with declaring(emulator, {}) as sink:
        await sink.provision()
    index = emulator.engine.get_index(INDEX)
    index = {**index, "fields": [*index["fields"], {"name": "theirs", "type": "Edm.String"}]}
    emulator.engine.put_index(INDEX, index, None, None)
    async with declaring(emulator, {"year": "integer"}) as sink:
        await sink.provision()
    assert {"theirs", "year"} <= set(emulator.engine.indexes[INDEX].fields)


async def test_a_model_no_index_could_hold_is_refused_before_any_request(emulator: AzureAISearchEmulator) -> None:
    async with declaring(emulator, {}, model=ModelIdentity("wide", "wide/1", 4097)) as sink:
        with pytest.raises(ConfigError, match="4,096"):
            await sink.provision()
    assert emulator.requests == []


async def test_a_newly_declared_field_is_filled_from_what_documents_hold(
    running: AzureAISearchUnderTest, emulator: AzureAISearchEmulator
) -> None:
    bench = Bench(running, fields={}, tenant="prj-1")
    await bench.open().provision()
    files = [bench.file(f"dfl-{n}", 3, metadata={"the year": 2020 + n, "tags": ["a"], "draft": n > 2}) for n in range(4)]
    misfit = bench.file("dfl-misfit", 3, metadata={"the year": "unknown", "tags": []})
    await bench.replace(*files, misfit)
    emulator.engine.lag = 2
    fields: dict[str, MetadataType] = {"the year": "integer", "tags": "string_list", "draft": "boolean"}
    async with declaring(emulator, fields) as newer:
        await newer.provision()
        assert await files_found(newer, bench.config, {"the year": {"gte": 2022}, "tags": "a"}) == ["dfl-2", "dfl-3"]
        assert await files_found(newer, bench.config, {"draft": False}) == ["dfl-0", "dfl-1", "dfl-2"]
        await bench.assert_holds(*files, misfit)
        emulator.requests.clear()
        await newer.provision()
    assert emulator.count("change") == 0, "nothing is left to fill, so nothing is written"
    await bench.exporter.close()


async def test_filling_a_field_leaves_alone_what_was_replaced_meanwhile(
    running: AzureAISearchUnderTest, emulator: AzureAISearchEmulator
) -> None:
    bench = Bench(running, fields={}, tenant="prj-1")
    await bench.open().provision()
    await bench.replace(bench.file("dfl-1", 5, metadata={"year": 2020}))
    newer = bench.file("dfl-1", 2, version="v2", metadata={"year": 2021})

    def replace(request: Request) -> None:
        if request.operation == "change":
            emulator.before = None
            other = AzureAISearchExporter(
                AzureAISearchSettings(endpoint=emulator.url), SinkContext("prj-1", MODEL, {"year": "integer"})
            )

            async def work() -> None:
                await other.replace_files([newer])
                await other.close()

            asyncio.run(work())

    emulator.before = replace
    async with declaring(emulator, {"year": "integer"}) as sink:
        await sink.provision()
        assert await files_found(sink, bench.config, {"year": 2021}) == ["dfl-1"]
    await bench.assert_holds(newer)
    await bench.exporter.close()


async def test_files_without_a_declared_field_are_not_read_again_by_every_process(
    bench: Bench, emulator: AzureAISearchEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.replace(*(bench.file(f"dfl-{n}", 2, metadata={}) for n in range(30)))
    monkeypatch.setattr(store, "MAX_PAGE", 10)
    emulator.requests.clear()
    await bench.open().provision()
    assert [request.operation for request in emulator.requests] == ["get_index", "search"]


async def test_an_index_of_an_earlier_version_is_told_once_what_its_files_were_written_for(
    running: AzureAISearchUnderTest, emulator: AzureAISearchEmulator
) -> None:
    bench = Bench(running, fields={"year": "integer"}, tenant="prj-1")
    await bench.open().provision()
    files = [bench.file(f"dfl-{n}", 3, metadata={"year": 2020 + n} if n % 2 else {}) for n in range(6)]
    await bench.replace(*files)
    _forget_what_files_were_written_for(emulator)
    async with declaring(emulator, {"year": "integer", "more": "string"}) as newer:
        emulator.requests.clear()
        await newer.provision()
        changed = [action for request in emulator.requests for action in request.body.get("value", ())]
        assert len(changed) == len(files), "of each file its chunk 0, for its values are there"
        await bench.assert_holds(*files)
        assert await files_found(newer, bench.config, {"year": {"gte": 2021}}) == ["dfl-1", "dfl-3", "dfl-5"]
        emulator.requests.clear()
        await newer.provision()
        assert [request.operation for request in emulator.requests] == ["get_index", "search"]
    await bench.exporter.close()


def _forget_what_files_were_written_for(emulator: AzureAISearchEmulator) -> None:
    """Make the index what an earlier version has made, and filled."""
    index = emulator.engine.indexes[INDEX]
    index.definition["fields"] = [field for field in index.definition["fields"] if field["name"] != FILTER_FIELDS]
    del index.fields[FILTER_FIELDS]
    for document in index.stored.values():
        del document[FILTER_FIELDS]


async def test_sinks_that_fill_different_fields_at_once_fill_them_all(
    running: AzureAISearchUnderTest, emulator: AzureAISearchEmulator, hasty: None
) -> None:
    bench = Bench(running, fields={}, tenant="prj-1")
    await bench.open().provision()
    await bench.replace(*(bench.file(f"dfl-{n}", 3, metadata={"year": 2020 + n, "team": "gauges"}) for n in range(4)))
    emulator.engine.lag = 4
    async with declaring(emulator, {"year": "integer"}) as one, declaring(emulator, {"team": "string"}) as other:
        await asyncio.gather(one.provision(), other.provision())
        assert await files_found(one, bench.config, {"year": {"gte": 2022}}) == ["dfl-2", "dfl-3"]
        assert await files_found(other, bench.config, {"team": "gauges"}) == ["dfl-0", "dfl-1", "dfl-2", "dfl-3"]
    await bench.exporter.close()


async def test_a_file_filled_in_part_is_filled_wholly_by_the_next_call(
    running: AzureAISearchUnderTest, emulator: AzureAISearchEmulator, hasty: None
) -> None:
    bench = Bench(running, fields={}, tenant="prj-1")
    await bench.open().provision()
    file = bench.file("dfl-1", 4, metadata={"year": 2020})
    await bench.replace(file)
    last = chunk_id("prj-1", bench.config, "dfl-1", 3, file.record_set_hash)
    emulator.engine.refuse = lambda _, document: (503, "busy") if document["id"] == last else None
    async with declaring(emulator, {"year": "integer"}) as sink:
        with pytest.raises(SinkUnavailable, match="503, busy"):
            await sink.provision()
        emulator.engine.refuse = lambda *_: None
        await sink.provision()
        request = SearchRequest(bench.config, vector=unit_vectors("q", 1)[0], k=100, filters={"year": 2020})
        assert sorted(hit.record.chunk_index for hit in await sink.search(request)) == [0, 1, 2, 3]
    await bench.exporter.close()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("year", "year"),
        ("Document Type", "key_Document_Type_"),
        ("7th", "key_7th_"),
        ("größe", "key_gr_e_"),
        ("pending", "key_pending_"),
        ("Sort_Key", "key_Sort_Key_"),
        ("azureSearchX", "key_azureSearchX_"),
        ("key_year", "key_key_year_"),
        ("key_filter_fields", "key_key_filter_fields_"),
        ("x" * 64, "x" * 64),
        ("ü" * 64, "key___"),
    ],
)
def test_any_metadata_key_has_a_field_name_the_service_takes(key: str, name: str) -> None:
    found = field_name(key)
    assert found == name if found == key else found.startswith(name)
    definition = IndexDesign(INDEX, MODEL, {key: "string"}, "standard.lucene", semantic=False).definition()
    assert completed(definition)["fields"][-1]["name"] == found


def test_different_keys_have_different_fields() -> None:
    keys = ["a b", "a-b", "a_b", "a  b", "key_a_b", "Tenant_id", "tenant-id"]
    assert len({field_name(key).lower() for key in keys}) == len(keys)


@pytest.mark.parametrize("prefix", ["Upper", "a_b", "-a", "a-", "a--b", "", "a", "x" * 66])
def test_a_prefix_that_makes_no_index_name_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="index_prefix"):
        AzureAISearchSettings(index_prefix=prefix)


def test_a_model_with_a_name_of_another_script_has_an_index_name() -> None:
    exporter = AzureAISearchExporter(AzureAISearchSettings(), SinkContext("prj", ModelIdentity("모델", "m/1", 8)))
    assert "--" not in exporter.index_name
