"""The Pinecone sink beyond what every sink promises: requests, crashes, strays, reading much, LlamaIndex's ways."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pinecone import Pinecone

from pipeline.errors import IndexportError
from pipeline.sinks.base import SearchRequest, SinkContext
from pipeline.sinks.pinecone import PineconeExporter, PineconeSettings
from pipeline.sinks.pinecone_layout import RecordKey, namespace_name
from pipeline.sinks.records import FileRecords
from pipeline_tests.conformance.harness import MODEL, Bench, matrix, unit_vectors
from pipeline_tests.emulators.http import ApiError
from pipeline_tests.emulators.pinecone import WRITES, PineconeEmulator, Request
from pipeline_tests.emulators.pinecone_engine import MAX_REQUEST_BYTES, Engine, Namespace


def engine_of(bench: Bench, emulator: PineconeEmulator) -> Engine:
    assert isinstance(bench.exporter, PineconeExporter)
    return emulator.indexes[bench.exporter.index_name].engine


def namespace_of(bench: Bench) -> str:
    return namespace_name(bench.tenant, bench.config)


async def test_requests_keep_to_a_thousand_records_and_two_megabytes(bench: Bench, emulator: PineconeEmulator) -> None:
    many = bench.file("dfl-many", ["short"] * 1_200)
    large = bench.file("dfl-large", ["x" * 30_000] * 80)
    await bench.replace(many, large)
    upserts = [request for request in emulator.requests if request.operation == "upsert"]
    assert max(len(request.body["vectors"]) for request in upserts) <= 1_000
    assert max(request.size for request in upserts) <= 2_000_000 < MAX_REQUEST_BYTES
    assert len(upserts) <= 6
    await bench.assert_holds(many, large)


async def test_a_replace_is_a_bounded_number_of_requests(bench: Bench, emulator: PineconeEmulator) -> None:
    await bench.replace(*(bench.file(f"dfl-{n}", 3) for n in range(100)))
    emulator.requests.clear()
    await bench.replace(*(bench.file(f"dfl-{n}", 3, version="v2") for n in range(100)))
    assert len(emulator.requests) <= 12


async def test_heads_that_a_filter_does_not_find_in_time_are_cleared_one_by_one(bench: Bench, emulator: PineconeEmulator) -> None:
    def find_none(request: Request) -> None:
        if "filter" in request.body and request.operation == "update":
            request.body["filter"] = {"chunk_index": {"$lt": 0}}

    emulator.before = find_none
    files = [bench.file(f"dfl-{n}", 3) for n in range(3)]
    await bench.replace(*files)
    updated = {request.body.get("id") for request in emulator.requests if request.operation == "update"}
    assert len(updated - {None, "indexport-fence"}) == len(files)
    emulator.before = None
    await bench.assert_holds(*files)


async def test_every_config_has_a_namespace_of_its_own(bench: Bench, emulator: PineconeEmulator) -> None:
    other = f"{bench.config}-b"
    await bench.replace(bench.file("dfl-1"), bench.file("dfl-1", config=other))
    names = {namespace_name(bench.tenant, config) for config in (bench.config, other)}
    assert set(engine_of(bench, emulator).namespaces) == names
    assert all(re.fullmatch(r"prj-[0-9a-f-]+-cfg-[0-9a-f-]+", name) for name in names)


async def test_a_replace_that_dies_at_any_request_never_looks_finished_and_is_made_good(
    bench: Bench, emulator: PineconeEmulator
) -> None:
    for died_at in itertools.count():
        before = [bench.file("dfl-1", 5, version=f"v{died_at}"), bench.file("dfl-2", 1, version=f"v{died_at}")]
        after = [bench.file("dfl-1", 3, version=f"w{died_at}"), bench.file("dfl-2", 0)]
        emulator.before = None
        await bench.replace(*before)
        emulator.before = _dying(died_at)
        try:
            await bench.replace(*after)
        except IndexportError:
            emulator.before = None
            await _assert_truthful(bench, [*before, *after])
            await bench.replace(*after)
            await bench.assert_holds(*after)
        else:
            break
    assert died_at >= 8
    emulator.before = None
    await bench.assert_holds(*after)


async def test_a_removal_that_dies_at_any_request_is_found_and_made_good(bench: Bench, emulator: PineconeEmulator) -> None:
    for died_at in itertools.count():
        files = [bench.file("dfl-1", 5, version=f"v{died_at}"), bench.file("dfl-2", 2, version=f"v{died_at}")]
        emulator.before = None
        await bench.replace(*files)
        emulator.before = _dying(died_at)
        try:
            await bench.delete("dfl-1", "dfl-2")
        except IndexportError:
            emulator.before = None
            await _assert_truthful(bench, files)
            held = await bench.held()
            assert set(held) <= set(await bench.snapshots()), "records are left that no head stands for"
            await bench.delete("dfl-1", "dfl-2")
            await bench.assert_holds()
        else:
            break
    assert died_at >= 4
    emulator.before = None
    await bench.assert_holds()


def _dying(after: int) -> Callable[[Request], None]:
    """Every write is refused once this many have been let pass."""
    passed = itertools.count()

    def refuse(request: Request) -> None:
        if request.operation in WRITES and next(passed) >= after:
            raise ApiError(403, "the process died")

    return refuse


async def _assert_truthful(bench: Bench, files: list[FileRecords]) -> None:
    """A snapshot that looks finished is that of a whole version, and nothing else of its file is there."""
    held = await bench.held()
    for file_id, snapshot in (await bench.snapshots()).items():
        if not snapshot.record_set_hash.startswith("pending:"):
            (whole,) = (file for file in files if file.record_set_hash == snapshot.record_set_hash)
            assert held[file_id]["content"].to_pylist() == whole.table["content"].to_pylist()


async def test_records_without_a_first_chunk_are_shown_and_deleted(bench: Bench, emulator: PineconeEmulator) -> None:
    orphaned, neighbour = bench.file("dfl-1", 4), bench.file("dfl-2")
    await bench.replace(orphaned, neighbour)
    records = engine_of(bench, emulator).settled(namespace_of(bench))
    (head,) = (name for name, record in records.items() if record["metadata"]["chunk_index"] == 0 and "dfl-1" in name)
    del records[head]
    assert set(await bench.snapshots()) == {"dfl-2"}
    assert (await bench.held())["dfl-1"].num_rows == 3
    await bench.delete("dfl-1")
    await bench.assert_holds(neighbour)


async def test_a_record_in_our_namespace_that_is_not_ours_is_neither_shown_nor_deleted(
    bench: Bench, emulator: PineconeEmulator
) -> None:
    await bench.replace(file := bench.file("dfl-1"))
    stray = {"id": "stray", "values": [1.0] * 16, "metadata": {"doc_id": "x", "parsed_directory_file_id": "dfl-1"}}
    engine = engine_of(bench, emulator)
    engine.upsert(namespace_of(bench), {"vectors": [stray]})
    await bench.assert_holds(file)
    hits = await bench.search(SearchRequest(bench.config, vector=np.ones(16, np.float32), k=50))
    assert {hit.record.parsed_directory_file_id for hit in hits} == {"dfl-1"}
    await bench.delete("dfl-1")
    assert set(engine.settled(namespace_of(bench))) == {"stray"}


async def test_ten_thousand_files_are_listed_in_few_requests(bench: Bench, emulator: PineconeEmulator) -> None:
    await bench.replace(bench.file("dfl-00000", 1))
    namespace: Namespace = engine_of(bench, emulator).namespaces[namespace_of(bench)]
    (first,) = namespace.settle().values()
    for number in range(1, 10_000):
        file_id = f"dfl-{number:05}"
        metadata = {**first["metadata"], "parsed_directory_file_id": file_id}
        namespace.visible[f"{file_id}#0"] = {**first, "id": f"{file_id}#0", "metadata": metadata}
    emulator.requests.clear()
    assert len(await bench.snapshots()) == 10_000
    assert len(emulator.requests) <= 20
    named = [f"dfl-{number:05}" for number in range(0, 10_000, 5)]
    found = await bench.exporter.list_snapshots(export_config_id=bench.config, parsed_directory_file_ids=named)
    assert sorted(snapshot.parsed_directory_file_id for snapshot in found) == named


async def test_a_page_too_large_to_be_answered_is_asked_for_in_smaller_ones(bench: Bench, emulator: PineconeEmulator) -> None:
    files = [bench.file(f"dfl-{n}", 20) for n in range(5)]
    await bench.replace(*files)
    engine_of(bench, emulator).max_result_bytes = 30_000
    await bench.assert_holds(*files)


async def test_many_results_are_ranked_first_and_read_afterwards(bench: Bench, emulator: PineconeEmulator) -> None:
    file = bench.file("dfl-1", 300)
    await bench.replace(file)
    engine_of(bench, emulator).max_result_bytes = 200_000
    emulator.requests.clear()
    query = unit_vectors("queries", 1)[0]
    hits = await bench.search(SearchRequest(bench.config, vector=query, k=250))
    best = np.argsort(-(matrix(file.table) @ query))[:250]
    assert [hit.record.chunk_index for hit in hits] == best.tolist()
    assert emulator.count("fetch") == 7
    with pytest.raises(ValueError, match="10,000"):
        await bench.search(SearchRequest(bench.config, vector=query, k=10_001))


async def test_text_and_hybrid_search_are_not_offered(bench: Bench) -> None:
    assert bench.exporter.search_modes == {"vector"}
    with pytest.raises(ValueError, match="mode 'text'"):
        await bench.search(SearchRequest(bench.config, mode="text", text="sluice"))


async def test_nothing_is_like_a_vector_of_zeros(bench: Bench) -> None:
    await bench.replace(bench.file("dfl-1"))
    assert await bench.search(SearchRequest(bench.config, vector=np.zeros(16, np.float32))) == []


async def test_what_llama_index_deletes_a_document_by_finds_all_of_its_records(bench: Bench, emulator: PineconeEmulator) -> None:
    """It lists by the prefix ``ref_doc_id`` and ``#``, or filters by ``doc_id``; both as the vendor's own client does."""
    files = [bench.file("dfl-1", 130), bench.file("dfl-10", 2), bench.file("dfl-2", 2)]
    await bench.replace(*files)
    assert isinstance(bench.exporter, PineconeExporter)
    client = Pinecone(api_key=emulator.api_key, host=emulator.url)
    index = client.Index(host=emulator.indexes[bench.exporter.index_name].host)
    namespace = bench.exporter.namespace(bench.config)
    listed: list[Any] = [item for page in index.list(prefix=f"{bench.config}:dfl-1#", namespace=namespace) for item in page]
    ids = [getattr(item, "id", item) for item in listed]
    assert len(ids) == 130
    assert all(name.startswith(RecordKey(bench.tenant, bench.config, "dfl-1").prefix) for name in ids)
    index.delete(filter={"doc_id": {"$eq": f"{bench.config}:dfl-10"}}, namespace=namespace)
    await bench.assert_holds(files[0], files[2])


async def test_a_sink_that_was_never_used_closes() -> None:
    await PineconeExporter(PineconeSettings(), SinkContext("prj-1", MODEL)).close()
