"""Turbopuffer's own: documents on the wire, atomic replaces, limits, paging, searches."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
import turbopuffer as sdk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import SinkUnavailable
from pipeline.sinks import backoff
from pipeline.sinks import turbopuffer as sink
from pipeline.sinks import turbopuffer_layout as layout
from pipeline.sinks import turbopuffer_store as store
from pipeline.sinks.base import SearchRequest, SinkContext
from pipeline.sinks.records import FileRecords, chunk_ids
from pipeline.sinks.turbopuffer import TurbopufferExporter, TurbopufferSettings
from pipeline_tests.conformance.harness import MODEL, Bench, matrix, unit_vectors
from pipeline_tests.conformance.turbopuffer_harness import (
    TurbopufferUnderTest,
    replace_and_close,
)
from pipeline_tests.emulators.turbopuffer import Request, TurbopufferEmulator

NAMESPACE = f"indexport-{MODEL.slug}"


def writes(emulator: TurbopufferEmulator) -> list[dict[str, Any]]:
    return [request.body for request in emulator.requests if request.operation == "write"]


async def test_a_document_is_a_llama_index_node_and_typed_attributes(bench: Bench, client: sdk.Turbopuffer) -> None:
    file = bench.file("dfl-1", 3, metadata={"year": 2024, "tags": ["a", "b"], "undeclared": "x"})
    await bench.replace(file)
    namespace = client.namespace(NAMESPACE)
    found = namespace.query(rank_by=("id", "asc"), limit=9, filters=("chunk_index", "Eq", 2), include_attributes=True)
    assert found.rows is not None
    (row,) = found.rows
    document = row.model_extra
    assert document is not None
    assert (document["text"], document["doc_id"]) == (file.table["content"][2].as_py(), f"{bench.config}:dfl-1")
    assert (document["year"], document["tags"], document["_node_type"]) == (2024, ["a", "b"], "TextNode")
    node = json.loads(document["_node_content"])
    assert (node["id_"], node["text"], node["metadata"]["undeclared"]) == (row.id, document["text"], "x")
    np.testing.assert_array_equal(np.asarray(row.vector, np.float32), matrix(file.table)[2])
    schema = namespace.schema()
    assert {name: schema[name].type for name in ("id", "vector", "chunk_index", "source_modified_at", "year", "tags")} == {
        "id": "uuid",
        "vector": "[16]f32",
        "chunk_index": "int",
        "source_modified_at": "datetime",
        "year": "int",
        "tags": "[]string",
    }
    assert not any(schema[name].filterable for name in ("text", "_node_content", "metadata_json", "context", "attachments"))


async def test_files_are_replaced_in_one_write_with_explicit_deletes(bench: Bench, emulator: TurbopufferEmulator) -> None:
    await bench.replace(bench.file("dfl-1", 9), bench.file("dfl-2", 4), bench.file("dfl-3", 2))
    emulator.requests.clear()
    new = [bench.file("dfl-1", 3, version="v2"), bench.file("dfl-2", 0), bench.file("dfl-3", 5, version="v2")]
    report = await bench.replace(*new)
    assert [request.operation for request in emulator.requests] == ["query", "write"]
    (body,) = writes(emulator)
    address = (bench.tenant, bench.config)
    assert body["deletes"] == chunk_ids(*address, "dfl-1", range(3, 9)) + chunk_ids(*address, "dfl-2", range(4))
    assert body["upsert_columns"]["id"] == [*new[0].table["id"].to_pylist(), *new[2].table["id"].to_pylist()]
    sent = np.frombuffer(base64.b64decode(body["upsert_columns"]["vector"][0]), "<f4")
    np.testing.assert_array_equal(sent, matrix(new[0].table)[0])
    assert body["schema"]["vector"] == {"type": "[16]f32", "ann": True}
    assert (report.records_written, report.bytes_written) == (8, emulator.requests[1].size)
    await bench.assert_holds(*new)


async def test_a_writer_overtaken_between_its_read_and_its_write_leaves_its_own_version(
    bench: Bench, emulator: TurbopufferEmulator
) -> None:
    await bench.replace(bench.file("dfl-1", 4))
    ours, theirs = bench.file("dfl-1", 2, version="ours"), bench.file("dfl-1", 12, version="theirs")
    other = bench.open()

    def overtake(request: Request) -> None:
        if request.operation == "write":
            emulator.before = None
            asyncio.run(replace_and_close(other, theirs))

    emulator.before = overtake
    await bench.replace(ours)
    assert len(writes(emulator)) == 3
    await bench.assert_holds(ours)


async def test_a_tail_no_snapshot_tells_of_goes_with_the_next_replace(bench: Bench, client: sdk.Turbopuffer) -> None:
    old = bench.file("dfl-1", 6)
    await bench.replace(old)
    client.namespace(NAMESPACE).write(deletes=[old.table["id"][0].as_py()])
    assert await bench.snapshots() == {}
    assert (await bench.held())["dfl-1"].num_rows == 5, "what has lost its chunk 0 is still seen"
    new = bench.file("dfl-1", 2, version="v2")
    await bench.replace(new)
    await bench.assert_holds(new)


async def test_a_large_replace_is_cut_into_requests_at_files(
    bench: Bench, emulator: TurbopufferEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "_RECORD_BYTES_PER_REQUEST", 6000)
    files = [bench.file(f"dfl-{n}", 1 + 5 * (n % 3)) for n in range(12)]
    await bench.replace(*files)
    bodies = writes(emulator)
    assert 3 < len(bodies) <= 12
    assert sorted(len(set(body["upsert_columns"]["parsed_directory_file_id"])) for body in bodies)[-1] > 1
    await bench.assert_holds(*files)


async def test_a_file_too_large_for_a_request_is_refused_by_name_and_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    old = bench.file("dfl-large", 2)
    await bench.replace(old)
    monkeypatch.setattr(sink, "MAX_REQUEST_BYTES", 60_000)
    small = [bench.file(f"dfl-{n}") for n in range(3)]
    report = await bench.replace(small[0], bench.file("dfl-large", 40, version="v2"), *small[1:])
    (refused,) = report.refused
    assert refused.file_id == "dfl-large"
    assert "60,000" in refused.reason
    assert report.records_written == 9
    await bench.assert_holds(old, *small)


async def test_one_file_the_store_refuses_does_not_hold_up_its_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_FILTERABLE_BYTES", 2**20)  # a limit this code does not know of
    good = [bench.file(f"dfl-{n}") for n in range(5)]
    report = await bench.replace(*good[:2], bench.file("dfl-bad", name="n" * 5000), *good[2:])
    (refused,) = report.refused
    assert refused.file_id == "dfl-bad"
    assert "file_name" in refused.reason
    await bench.assert_holds(*good)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ({"name": "n" * 4097}, "4,096"),
        ({"metadata": {"language": "é" * 2049}}, "4,096"),
        ({"metadata": {"tags": ["short", "t" * 4097]}}, "4,096"),
        ({"texts": ["x" * (8 * 2**20 + 1)]}, "8,388,608"),
    ],
)
async def test_values_beyond_a_documented_limit_are_refused(bench: Bench, file: dict[str, Any], named: str) -> None:
    report = await bench.replace(bench.file("dfl-1"), bench.file("dfl-2", **file))
    assert [refused.file_id for refused in report.refused] == ["dfl-2"]
    assert named in report.refused[0].reason
    await bench.assert_holds(bench.file("dfl-1"))


async def test_a_list_of_many_short_values_fits(bench: Bench) -> None:
    file = bench.file("dfl-1", metadata={"tags": [f"tag {n}" for n in range(2000)]})
    await bench.replace(file)
    await bench.assert_holds(file)


async def test_snapshots_and_records_are_read_page_by_page(
    bench: Bench, emulator: TurbopufferEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [bench.file(f"dfl-{n:02}", 1 + n % 7) for n in range(25)]
    await bench.replace(*files)
    monkeypatch.setattr(store, "MAX_LIMIT", 10)
    monkeypatch.setattr(sink, "MAX_LIMIT", 10)
    emulator.requests.clear()
    assert sorted(await bench.snapshots()) == [file.file_id for file in files]
    assert [request.body["limit"] for request in emulator.requests] == [10, 10, 10]
    tables = [table async for table in bench.exporter.fetch_records(export_config_id=bench.config)]
    assert max(table.num_rows for table in tables) <= 10
    await bench.assert_holds(*files)


async def test_a_file_larger_than_a_page_comes_in_one_table(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [bench.file("dfl-1", 3), bench.file("dfl-2", 33), bench.file("dfl-3", 3)]
    await bench.replace(*files)
    monkeypatch.setattr(sink, "MAX_LIMIT", 10)
    await bench.assert_holds(*files)


async def test_deletes_go_on_while_documents_remain(bench: Bench, emulator: TurbopufferEmulator) -> None:
    await bench.replace(*(bench.file(f"dfl-{n}", 5) for n in range(3)))
    emulator.engine.max_filter_deletes = 4
    emulator.requests.clear()
    await bench.delete("dfl-0", "dfl-1")
    assert emulator.count("write") == 3 + 1  # the last is for what names no file
    await bench.assert_holds(bench.file("dfl-2", 5))


async def test_a_namespace_that_does_not_exist_is_empty_and_no_write_makes_it_anew(
    bench: Bench, emulator: TurbopufferEmulator
) -> None:
    emulator.engine.delete(NAMESPACE)
    assert await bench.snapshots() == {}
    assert await bench.held() == {}
    assert await bench.search(SearchRequest(bench.config, mode="text", text="gauge")) == []
    await bench.delete("dfl-1")
    with pytest.raises(SinkUnavailable, match="provision the sink first"):
        await bench.replace(bench.file("dfl-1"))
    assert NAMESPACE not in emulator.engine.namespaces


async def test_hybrid_search_reads_one_moment_in_one_request(bench: Bench, emulator: TurbopufferEmulator) -> None:
    file = bench.file("dfl-1", ["sluice", "weir"])
    await bench.replace(file)
    emulator.requests.clear()
    await bench.search(SearchRequest(bench.config, mode="hybrid", vector=matrix(file.table)[0], text="sluice", k=2))
    (request,) = emulator.requests
    assert [query["rank_by"][1] for query in request.body["queries"]] == ["ANN", "BM25"]
    assert request.body["consistency"] == {"level": "strong"}


async def test_a_search_beyond_what_turbopuffer_takes_is_refused_by_the_limit(bench: Bench) -> None:
    with pytest.raises(ValueError, match="10,000"):
        await bench.search(SearchRequest(bench.config, vector=unit_vectors("q", 1)[0], k=10_001))
    with pytest.raises(ValueError, match="1,024"):
        await bench.search(SearchRequest(bench.config, mode="text", text="é" * 513))


operations = st.lists(
    st.tuples(
        st.sampled_from(["dfl-1", "dfl-2", "dfl-3"]),
        st.one_of(st.none(), st.integers(0, 9)),
        st.integers(0, 1),
        st.sampled_from(["", "", "lost", "busy"]),
    ),
    max_size=12,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations)
def test_any_sequence_of_writers_leaves_exactly_what_was_written_last(
    running: TurbopufferUnderTest,
    emulator: TurbopufferEmulator,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[str, int | None, int, str]],
) -> None:
    """Two handles replace and delete (``None`` chunks) while answers get lost and requests are throttled."""
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.001)
    emulator.reset()

    async def run() -> None:
        bench = Bench(running)
        handles = [bench.open(), bench.open()]
        await bench.exporter.provision()
        held: dict[str, FileRecords] = {}
        for number, (file_id, count, handle, fault) in enumerate(steps):
            if fault == "lost":
                emulator.lose_answer("write")
            elif fault == "busy":
                emulator.fail("query", 503, retry_after="0.001")
                emulator.fail("write", 429, times=2, retry_after="0.001")
            if count is None:
                await handles[handle].delete_files(parsed_directory_file_ids=[file_id], export_config_id=bench.config)
                held.pop(file_id, None)
            else:
                held[file_id] = bench.file(file_id, count, version=f"v{number}")
                await handles[handle].replace_files([held[file_id]])
        emulator.heal()
        await bench.assert_holds(*held.values())
        for exporter in bench.opened:
            await exporter.close()

    asyncio.run(run())


def test_the_namespace_name_is_valid_at_any_prefix() -> None:
    wordy = ModelIdentity("A Model / with a very long Name, v2.5 (multilingual)", "f", 8)
    longest = TurbopufferExporter(TurbopufferSettings(namespace_prefix="p" * 64), SinkContext("t", wordy)).namespace
    assert len(longest) <= 128
    assert longest == f"{'p' * 64}-{wordy.slug}"
    with pytest.raises(ValueError, match="namespace_prefix"):
        TurbopufferSettings(namespace_prefix="a/b")
