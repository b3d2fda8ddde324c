"""Search indexes: made, awaited, extended, refused; and what a search says when there are none."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.sinks import mongodb_search
from pipeline.sinks.base import MetadataType, SearchRequest, SinkContext
from pipeline.sinks.mongodb_index import TEXT_INDEX, VECTOR_INDEX, vector_definition
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, matrix, provisioned_bench, unit_vectors
from pipeline_tests.conformance.mongodb_harness import MongoDBUnderTest, collection_name
from pipeline_tests.emulators.atlas_search import AtlasSearch, SearchIndex

QUERY = unit_vectors("q", 1)[0]


@pytest.fixture
def search(mongo: MongoDBUnderTest) -> Iterator[AtlasSearch]:
    """The engine's, with its knobs turned back afterwards."""
    assert mongo.search
    yield mongo.search
    mongo.search.build_seconds = mongo.search.lag_seconds = 0.0


@pytest.fixture
async def unprovisioned(mongo: MongoDBUnderTest) -> AsyncIterator[Bench]:
    made = Bench(mongo)
    made.open()
    yield made
    for exporter in made.opened:
        await exporter.close()


def with_settings(bench: Bench, **settings: Any) -> Bench:
    """The same collection for a sink with other settings."""
    assert isinstance(bench.sink, MongoDBUnderTest)
    sink = dataclasses.replace(bench.sink, settings=bench.sink.settings.model_copy(update=settings))
    return dataclasses.replace(bench, sink=sink)


def with_fields(bench: Bench, fields: dict[str, MetadataType]) -> Bench:
    return dataclasses.replace(bench, fields=fields)


def indexes(bench: Bench, search: AtlasSearch) -> dict[str, SearchIndex]:
    return search.indexes[("indexport", collection_name(bench))]


async def test_provisioning_returns_when_both_indexes_can_be_queried(unprovisioned: Bench, search: AtlasSearch) -> None:
    search.build_seconds = 0.3
    await unprovisioned.exporter.provision()
    found = search.listed(("indexport", collection_name(unprovisioned)), None)
    assert {index["name"]: (index["type"], index["queryable"]) for index in found} == {
        VECTOR_INDEX: ("vectorSearch", True),
        TEXT_INDEX: ("search", True),
    }


async def test_waiting_for_indexes_ends(unprovisioned: Bench, search: AtlasSearch) -> None:
    search.build_seconds = math.inf
    bench = with_settings(unprovisioned, index_wait_seconds=0.2)
    with pytest.raises(SinkUnavailable, match="index_wait_seconds"):
        await bench.open().provision()
    assert set(indexes(bench, search)) == {VECTOR_INDEX, TEXT_INDEX}


async def test_a_search_before_the_index_is_built_is_not_answered_with_nothing(unprovisioned: Bench, search: AtlasSearch) -> None:
    search.build_seconds = math.inf
    bench = with_settings(unprovisioned, index_wait_seconds=0)
    await bench.open().provision()
    file = bench.file("dfl-1")
    await bench.replace(file)
    await bench.assert_holds(file)
    for mode in ("vector", "text", "hybrid"):
        with pytest.raises(SinkUnavailable, match="is PENDING"):
            await bench.search(SearchRequest(bench.config, mode=mode, vector=QUERY, text="gauge"))
    del indexes(bench, search)[VECTOR_INDEX]
    with pytest.raises(SinkUnavailable, match="provision"):
        await bench.search(SearchRequest(bench.config, vector=QUERY))


async def test_a_field_declared_later_is_added_and_finds_older_records(bench: Bench, search: AtlasSearch) -> None:
    await bench.replace(bench.file("dfl-1", metadata={"river": "Elbe"}), bench.file("dfl-2", metadata={"river": "Rhine"}))
    with pytest.raises(ValueError, match="river"):
        await bench.search(SearchRequest(bench.config, vector=QUERY, filters={"river": "Elbe"}))
    later = with_fields(bench, {"river": "string"})
    search.build_seconds = 0.2
    exporter = later.open()
    await exporter.provision()
    for mode in ("vector", "text"):
        request = SearchRequest(bench.config, mode=mode, vector=QUERY, text="gauge", filters={"river": {"ne": "Rhine"}})
        assert {hit.record.parsed_directory_file_id for hit in await exporter.search(request)} == {"dfl-1"}
    assert await bench.search(SearchRequest(bench.config, vector=QUERY, filters={"year": 1})) == []
    versions = [index.version for index in indexes(bench, search).values()]
    await bench.exporter.provision()
    await exporter.provision()
    assert [index.version for index in indexes(bench, search).values()] == versions == [1, 1]


async def test_a_rebuild_that_another_export_asked_for_is_not_waited_for(bench: Bench, search: AtlasSearch) -> None:
    await bench.replace(bench.file("dfl-1"))
    search.build_seconds = math.inf
    patient = with_settings(bench, index_wait_seconds=0.1)
    declaring = with_fields(patient, {**FIELDS, "river": "string"})
    with pytest.raises(SinkUnavailable, match="index_wait_seconds"):
        await declaring.open().provision()
    for asked_again in (patient, declaring):
        exporter = asked_again.open()
        await exporter.provision()
        assert len(await exporter.search(SearchRequest(bench.config, vector=QUERY))) == 3, "the index answers as before"


async def test_a_new_index_that_another_process_asked_for_holds_up_no_load(unprovisioned: Bench, search: AtlasSearch) -> None:
    search.build_seconds = math.inf
    await with_settings(unprovisioned, index_wait_seconds=0).open().provision()
    other = with_settings(unprovisioned, index_wait_seconds=0.1)
    await other.open().provision()
    await unprovisioned.replace(unprovisioned.file("dfl-1"))
    with pytest.raises(SinkUnavailable, match="is PENDING; search again when it is built"):
        await unprovisioned.search(SearchRequest(unprovisioned.config, vector=QUERY))


async def test_a_field_someone_has_indexed_in_another_way_too_is_searched(bench: Bench, search: AtlasSearch) -> None:
    index = indexes(bench, search)[TEXT_INDEX]
    held: Any = copy.deepcopy(index.latest)
    node = held["mappings"]["fields"]["metadata"]["fields"]
    node["file_name"] = [{"type": "string"}, node["file_name"]]
    index.latest = held
    await bench.open().provision()
    await bench.replace(bench.file("dfl-1"), bench.file("dfl-2"))
    request = SearchRequest(bench.config, mode="text", text="gauge", filters={"file_name": "dfl-1.pdf"})
    assert {hit.record.parsed_directory_file_id for hit in await bench.search(request)} == {"dfl-1"}


async def test_two_exports_that_declare_at_once_both_get_their_fields(bench: Bench, search: AtlasSearch) -> None:
    """One of two overlapping extensions may undo the other; who waits for its own notices."""
    later = with_fields(bench, {"river": "string"}).open()
    search.build_seconds = 0.2
    original = search.update

    def undone_by_another(namespace: Any, name: str, definition: Any) -> None:
        search.update = original  # type: ignore[method-assign]  # the second extension goes through
        original(namespace, name, vector_definition(SinkContext("prj", MODEL, FIELDS)))

    search.update = undone_by_another  # type: ignore[method-assign]  # stands for another process
    await later.provision()
    assert {"path": "metadata.river", "type": "filter"} in indexes(bench, search)[VECTOR_INDEX].latest["fields"]


async def test_indexes_that_do_not_fit_are_conflicts(bench: Bench, search: AtlasSearch) -> None:
    index = indexes(bench, search)[VECTOR_INDEX]
    fitting = index.latest
    index.latest = {"fields": [{**fitting["fields"][0], "similarity": "dotProduct"}, *fitting["fields"][1:]]}
    with pytest.raises(SinkConflict, match="similarity"):
        await bench.open().provision()
    index.latest = fitting
    index.type = "search"
    with pytest.raises(SinkConflict, match="is of type 'search'"):
        await bench.open().provision()
    index.type = "vectorSearch"
    index.status = "FAILED"
    with pytest.raises(SinkConflict, match="could not be built"):
        await bench.open().provision()
    index.status = None
    with pytest.raises(SinkConflict, match="'year'"):
        await with_fields(bench, {"year": "string"}).open().provision()
    await bench.open().provision()


async def test_vectors_wider_than_an_index_can_be_are_a_mistake_of_the_configuration(unprovisioned: Bench) -> None:
    wide = ModelIdentity("wide", "wide/1", 8_193)
    with pytest.raises(ConfigError, match="8,192"):
        await unprovisioned.open(model=wide).provision()


async def test_search_follows_later_and_never_shows_what_is_gone(bench: Bench, search: AtlasSearch) -> None:
    old = bench.file("dfl-1", 2)
    await bench.replace(old, bench.file("dfl-2", 2))
    search.lag_seconds = math.inf
    assert len(await bench.search(SearchRequest(bench.config, vector=QUERY))) == 4
    new = bench.file("dfl-1", 3, version="v2")
    await bench.exporter.replace_files([new])
    await bench.assert_holds(new, bench.file("dfl-2", 2))
    found = await bench.search(SearchRequest(bench.config, vector=QUERY))
    assert {hit.record.parsed_directory_file_id for hit in found} == {"dfl-2"}
    search.catch_up()
    assert len(await bench.search(SearchRequest(bench.config, vector=QUERY))) == 5


async def test_candidates_are_twenty_times_the_results_within_the_servers_limits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(bench.sink, MongoDBUnderTest)
    assert bench.sink.search
    stages = []
    original = AtlasSearch.vector_search

    def recorded(self: AtlasSearch, namespace: Any, stage: Any, read: Any) -> Any:
        stages.append((stage["limit"], stage["numCandidates"]))
        return original(self, namespace, stage, read)

    monkeypatch.setattr(AtlasSearch, "vector_search", recorded)
    for k in (1, 10, 1_000, 10_000):
        await bench.search(SearchRequest(bench.config, vector=QUERY, k=k))
    assert stages == [(1, 100), (10, 200), (1_000, 10_000), (10_000, 10_000)]
    with pytest.raises(ValueError, match="10,000"):
        await bench.search(SearchRequest(bench.config, vector=QUERY, k=10_001))


async def test_hybrid_search_joins_both_rankings(bench: Bench) -> None:
    file = bench.file("dfl-1", ["the sluice gate", "sluice", "a weir"])
    await bench.replace(file)
    request = SearchRequest(bench.config, mode="hybrid", vector=matrix(file.table)[1], text="sluice", k=2)
    hits = await bench.search(request)
    assert [hit.record.content for hit in hits] == ["sluice", "the sluice gate"]


async def test_a_server_without_search_keeps_records_and_says_what_it_lacks(
    standalone: MongoDBUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger=mongodb_search.__name__):
        async with provisioned_bench(standalone) as bench:
            file = bench.file("dfl-1")
            await bench.replace(file)
            await bench.assert_holds(file)
            for mode in ("vector", "text", "hybrid"):
                with pytest.raises(SinkConflict, match=r"without search.*Atlas"):
                    await bench.search(SearchRequest(bench.config, mode=mode, vector=QUERY, text="gauge"))
    assert [record.message for record in caplog.records if "without search" in record.message]


@pytest.mark.parametrize("code", [59, 115, 31082, 40324, 6047401])
async def test_every_way_a_server_says_that_it_has_no_search_is_understood(
    unprovisioned: Bench, mongo: MongoDBUnderTest, code: int
) -> None:
    assert mongo.server
    await unprovisioned.exporter.provision()
    mongo.server.fail("aggregate", code=code, times=2)
    with pytest.raises(SinkConflict, match="without search"):
        await unprovisioned.search(SearchRequest(unprovisioned.config, vector=QUERY))


async def test_an_index_another_process_made_meanwhile_is_taken(
    unprovisioned: Bench, mongo: MongoDBUnderTest, search: AtlasSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = search.listed
    blind = iter([True, False])
    monkeypatch.setattr(search, "listed", lambda *arguments: [] if next(blind, False) else original(*arguments))
    other = unprovisioned.open()
    await other.provision()
    blind = iter([True, False])
    await unprovisioned.exporter.provision()
    assert set(indexes(unprovisioned, search)) == {VECTOR_INDEX, TEXT_INDEX}
