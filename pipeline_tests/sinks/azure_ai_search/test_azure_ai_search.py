"""Azure AI Search's own: documents on the wire, limits, partial failures, pages, searches."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from azure.search.documents import SearchClient

from pipeline.errors import SinkUnavailable
from pipeline.sinks import azure_ai_search as sink
from pipeline.sinks import azure_documents as documents
from pipeline.sinks import azure_replace as writer
from pipeline.sinks import azure_store as store
from pipeline.sinks.azure_ai_search import AzureAISearchExporter, AzureAISearchSettings
from pipeline.sinks.base import SearchRequest, SinkContext
from pipeline_tests.conformance.azure_ai_search_harness import AzureAISearchUnderTest
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, chunk_id, matrix, provisioned_bench
from pipeline_tests.emulators.azure_ai_search import AzureAISearchEmulator


def changes(emulator: AzureAISearchEmulator) -> list[dict[str, Any]]:
    return [action for request in emulator.requests if request.operation == "change" for action in request.body["value"]]


async def test_a_document_is_a_llama_index_node_and_typed_fields(bench: Bench, client: SearchClient) -> None:
    file = bench.file("dfl-1", 3, metadata={"year": 2024, "tags": ["a", "b"], "undeclared": "x"})
    await bench.replace(file)
    key = chunk_id(bench.tenant, bench.config, "dfl-1", 2, file.record_set_hash)
    document = client.get_document(key)
    assert document["content"] == file.table["content"][2].as_py()
    assert (document["doc_id"], document["year"], document["tags"]) == (f"{bench.config}:dfl-1", 2024, ["a", "b"])
    node = json.loads(document["metadata"])
    assert (node["undeclared"], node["_node_type"], node["doc_id"]) == ("x", "TextNode", document["doc_id"])
    assert json.loads(node["_node_content"])["id_"] == key
    assert json.loads(document["metadata_json"]) == {"tags": ["a", "b"], "undeclared": "x", "year": 2024}
    np.testing.assert_array_equal(np.asarray(document["embedding"], np.float32), matrix(file.table)[2])


async def test_every_document_has_its_own_place_in_the_order_of_pages(bench: Bench, client: SearchClient) -> None:
    await bench.replace(*(bench.file(f"dfl-{n}", 4) for n in range(5)))
    rows = list(client.search("*", select=["parsed_directory_file_id", "chunk_index", "sort_key"], order_by=["sort_key"]))
    assert len({row["sort_key"] for row in rows}) == 20
    assert [row["chunk_index"] for row in rows] == [0, 1, 2, 3] * 5
    files = [row["parsed_directory_file_id"] for row in rows]
    assert files == sorted(files, key=files.index)


async def test_a_batch_holds_a_thousand_documents_and_a_request_its_bytes(
    bench: Bench, emulator: AzureAISearchEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer.AzureWriter, "max_bytes", 20_000)
    emulator.max_request_bytes = 21_000
    files = [bench.file(f"dfl-{n}", 40) for n in range(3)]
    await bench.replace(*files)
    sizes = [request.size for request in emulator.requests if request.operation == "change"]
    assert len(sizes) > 8
    await bench.assert_holds(*files)
    monkeypatch.undo()
    emulator.max_request_bytes = 2**24
    large = bench.file("dfl-large", 2300)
    await bench.replace(large)
    assert max(len(request.body["value"]) for request in emulator.requests if request.operation == "change") == 1000
    await bench.assert_holds(*files, large)


async def test_a_request_the_service_finds_too_large_is_halved(bench: Bench, emulator: AzureAISearchEmulator) -> None:
    file = bench.file("dfl-1", 30)
    emulator.max_request_bytes = 9_000
    await bench.replace(file)
    await bench.assert_holds(file)


async def test_a_chunk_larger_than_a_request_is_refused_by_name_and_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_REQUEST_BYTES", 30_000)
    old, good = bench.file("dfl-1"), bench.file("dfl-2")
    await bench.replace(old)
    report = await bench.replace(bench.file("dfl-1", ["short", "long " * 8_000], version="v2"), good)
    assert [(error.file_id, "30,000" in error.reason, "chunk 1" in error.reason) for error in report.refused] == [
        ("dfl-1", True, True)
    ]
    await bench.assert_holds(old, good)


@pytest.mark.parametrize("field", ["language", "tags", "file_name"])
async def test_a_string_too_long_to_filter_on_is_refused_by_name_and_limit(bench: Bench, field: str) -> None:
    long = "é" * 20_000
    value = [long] if field == "tags" else long
    bad = bench.file("dfl-1", name=long) if field == "file_name" else bench.file("dfl-1", metadata={field: value})
    good = bench.file("dfl-2", metadata={"note": long})
    report = await bench.replace(bad, good)
    (refused,) = report.refused
    assert refused.file_id == "dfl-1"
    assert f"'{field}' has 40,000 bytes" in refused.reason
    assert "32,766" in refused.reason
    await bench.assert_holds(good)


async def test_a_file_the_service_will_not_hold_keeps_its_old_version_and_holds_up_no_other(
    bench: Bench, emulator: AzureAISearchEmulator
) -> None:
    old = [bench.file(f"dfl-{n}", 6) for n in range(3)]
    await bench.replace(*old)
    new = [bench.file(f"dfl-{n}", 6, version="v2") for n in range(3)]
    unwanted = chunk_id(bench.tenant, bench.config, "dfl-1", 4, new[1].record_set_hash)
    emulator.engine.refuse = lambda action, document: (
        (400, "this document is not to my liking") if action == "upload" and document["id"] == unwanted else None
    )
    report = await bench.replace(*new)
    (refused,) = report.refused
    assert (refused.file_id, "chunk 4" in refused.reason, "liking" in refused.reason) == ("dfl-1", True, True)
    assert report.records_written == 12
    await bench.assert_holds(new[0], old[1], new[2])


async def test_only_documents_that_failed_are_sent_again(bench: Bench, emulator: AzureAISearchEmulator, hasty: None) -> None:
    failed: set[str] = set()

    def refuse(action: str, document: dict[str, Any]) -> tuple[int, str] | None:
        if len(failed) < 4 and document["id"] not in failed and document.get("chunk_index", 0) > 2:
            failed.add(document["id"])
            return [409, 422, 429, 503][len(failed) - 1], "busy"
        return None

    emulator.engine.refuse = refuse
    file = bench.file("dfl-1", 12)
    await bench.replace(file)
    uploads = [action["id"] for action in changes(emulator) if action["@search.action"] == "upload" and action["chunk_index"]]
    assert len(failed) == 4
    assert sorted(uploads) == sorted([*set(uploads), *failed])
    await bench.assert_holds(file)


async def test_documents_that_keep_failing_are_given_up(bench: Bench, emulator: AzureAISearchEmulator, hasty: None) -> None:
    emulator.engine.refuse = lambda *_: (503, "too busy")
    with pytest.raises(SinkUnavailable, match=r"10 times, with 503, too busy"):
        await bench.replace(bench.file("dfl-1"))
    emulator.engine.refuse = lambda *_: None
    await bench.replace(bench.file("dfl-1"))
    await bench.assert_holds(bench.file("dfl-1"))


@pytest.mark.parametrize("action", ["upload", "merge", "delete"])
async def test_a_service_that_is_full_or_forbids_is_unavailable_and_no_fault_of_a_file(
    bench: Bench, emulator: AzureAISearchEmulator, action: str
) -> None:
    await bench.replace(bench.file("dfl-1"))
    emulator.engine.refuse = lambda kind, _: (403, "quota exceeded") if kind == action else None
    with pytest.raises(SinkUnavailable, match="403, quota exceeded"):
        await bench.replace(bench.file("dfl-1", version="v2"))


@pytest.mark.parametrize("status", [429, 503])
async def test_throttling_is_waited_out(bench: Bench, emulator: AzureAISearchEmulator, hasty: None, status: int) -> None:
    for operation in ("change", "search"):
        emulator.fail(operation, status, times=3, retry_after="0.01")
    await bench.replace(bench.file("dfl-1"))
    await bench.assert_holds(bench.file("dfl-1"))
    emulator.fail("search", status, times=99)
    with pytest.raises(SinkUnavailable, match=str(status)):
        await bench.snapshots()


async def test_a_change_whose_answer_was_lost_is_made_again(bench: Bench, emulator: AzureAISearchEmulator, hasty: None) -> None:
    await bench.replace(bench.file("dfl-1", 4))
    emulator.lose_answer("change", times=2)
    new = bench.file("dfl-1", 6, version="v2")
    await bench.replace(new)
    await bench.assert_holds(new)
    emulator.lose_answer("change", times=1)
    await bench.delete("dfl-1")
    await bench.assert_holds()


async def test_listing_asks_once_for_every_thousand_files(
    bench: Bench, emulator: AzureAISearchEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.replace(*(bench.file(f"dfl-{n:03}", 2) for n in range(95)))
    monkeypatch.setattr(store, "MAX_PAGE", 20)
    emulator.requests.clear()
    assert len(await bench.snapshots()) == 95
    assert emulator.count("search") == 95 // 19


async def test_an_answer_with_fewer_documents_than_asked_for_is_followed_to_its_end(
    bench: Bench, emulator: AzureAISearchEmulator
) -> None:
    emulator.engine.answered = 7
    files = [bench.file(f"dfl-{n:02}", 3) for n in range(20)]
    await bench.replace(*files)
    await bench.assert_holds(*files)
    hits = await bench.search(SearchRequest(bench.config, vector=matrix(files[0].table)[0], k=50))
    assert len({hit.record.id for hit in hits}) == 50
    await bench.replace(*(bench.file(f"dfl-{n:02}", 1, version="v2") for n in range(20)))
    assert len(await bench.snapshots()) == 20
    await bench.delete(*(f"dfl-{n:02}" for n in range(20)))
    await bench.assert_holds()


async def test_pages_lose_nothing_where_documents_share_a_place(
    bench: Bench, client: SearchClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.replace(bench.file("dfl-1", 1))
    (one,) = client.search("*")
    plain = {name: value for name, value in one.items() if not name.startswith("@")}
    copies = [{**plain, "id": f"c{n}", "parsed_directory_file_id": f"dfl-{n}", "sort_key": n // 3} for n in range(40)]
    client.upload_documents(copies)
    monkeypatch.setattr(store, "MAX_PAGE", 5)
    assert len(await bench.snapshots()) == 41 - 1  # the first copy is of dfl-1, which then has two heads


async def test_a_file_larger_than_a_page_comes_in_one_table(
    bench: Bench, emulator: AzureAISearchEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "_BYTES_PER_PAGE", 80_000)
    files = [bench.file("dfl-large", 40), *(bench.file(f"dfl-{n}", 3) for n in range(9))]
    await bench.replace(*files)
    await bench.assert_holds(*files)
    sizes = [table.num_rows async for table in bench.exporter.fetch_records(export_config_id=bench.config)]
    assert len(sizes) > 3
    assert sum(sizes) == 67


async def test_a_search_is_one_request_with_the_filter_before_the_vectors(bench: Bench, emulator: AzureAISearchEmulator) -> None:
    file = bench.file("dfl-1", 3)
    await bench.replace(file)
    emulator.requests.clear()
    request = SearchRequest(bench.config, mode="hybrid", vector=matrix(file.table)[0], text="river -gauge*", k=2)
    await bench.search(request)
    (asked,) = emulator.requests
    assert asked.body["vectorFilterMode"] == "preFilter"
    assert asked.body["search"] == r"river \-gauge\*"
    assert asked.body["filter"].startswith(f"tenant_id eq '{bench.tenant}' and ")
    assert "embedding" not in asked.body["select"].split(",")


async def test_the_semantic_ranker_ranks_where_it_is_wanted(emulator: AzureAISearchEmulator) -> None:
    for semantic in (False, True):  # the second one adds the configuration to the index
        settings = AzureAISearchSettings(endpoint=emulator.url, semantic_ranking=semantic)
        exporter = AzureAISearchExporter(settings, SinkContext("prj", MODEL, FIELDS))
        await exporter.provision()
        await exporter.search(SearchRequest("cfg", mode="text", text="a 'quoted' word"))
        asked = emulator.requests[-1].body
        assert asked["queryType"] == ("semantic" if semantic else "simple")
        assert asked.get("semanticQuery") == ("a 'quoted' word" if semantic else None)
        await exporter.close()


async def test_scores_of_the_semantic_ranker_are_on_one_scale(emulator: AzureAISearchEmulator) -> None:
    sink = AzureAISearchUnderTest(AzureAISearchSettings(endpoint=emulator.url, semantic_ranking=True), (), emulator=emulator)
    async with provisioned_bench(sink) as bench:
        await bench.replace(bench.file("dfl-1", ["sluice " * (1 + n % 7) for n in range(60)]))
        hits = await bench.search(SearchRequest(bench.config, mode="text", text="sluice", k=60))
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert scores[50:] == [0.0] * 10, "those it has not ranked"


async def test_a_request_beyond_what_the_service_takes_is_refused(bench: Bench) -> None:
    vector = np.ones(MODEL.dimension, np.float32)
    with pytest.raises(ValueError, match="k must be at most 1,000"):
        await bench.search(SearchRequest(bench.config, vector=vector, k=1001))
    for text in ("x" * 100_001, "word " * 1025):
        with pytest.raises(ValueError, match="1,024 words"):
            await bench.search(SearchRequest(bench.config, mode="text", text=text))


async def test_scopes_beyond_what_a_filter_takes_are_not_listed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "_MAX_SCOPES", 2)
    await bench.replace(*(bench.file("dfl-1", config=f"cfg-{n}") for n in range(2)))
    assert await bench.exporter.list_scopes() == frozenset({(bench.tenant, "cfg-0"), (bench.tenant, "cfg-1")})
    await bench.replace(bench.file("dfl-1", config="cfg-2"))
    assert await bench.exporter.list_scopes() is None
