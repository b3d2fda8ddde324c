"""Replacing files in Qdrant: bounded requests, and nothing lost or left over whatever request fails."""

from __future__ import annotations

import uuid
from typing import Literal

import pytest

from pipeline.errors import SinkUnavailable
from pipeline.sinks.qdrant import QdrantExporter
from pipeline.sinks.qdrant_layout import PENDING
from pipeline.sinks.qdrant_store import QdrantStore
from pipeline.sinks.records import FileRecords, chunk_ids
from pipeline_tests.conformance.harness import Bench
from pipeline_tests.emulators.qdrant import WRITES, QdrantEmulator, Request
from pipeline_tests.emulators.qdrant_engine import Collection

Fault = Literal["refused", "lost answer"]


def _collection(emulator: QdrantEmulator, bench: Bench) -> Collection:
    """The one the bench writes to."""
    assert isinstance(bench.exporter, QdrantExporter)
    return emulator.engine.collections[bench.exporter.collection]


def _points(emulator: QdrantEmulator, bench: Bench) -> set[str]:
    return set(_collection(emulator, bench).points)


def _ids(file: FileRecords) -> set[str]:
    where = file.provenance
    address = (where.tenant_id, where.export_config_id, file.file_id)
    return set(chunk_ids(*address, range(file.table.num_rows), file.record_set_hash))


async def test_requests_are_bounded_in_points_and_bytes(emulator: QdrantEmulator, bench: Bench) -> None:
    long = bench.file("dfl-long", ["gauge " * 20_000] * 60)
    many = bench.file("dfl-many", 700)
    await bench.replace(long, many)
    await bench.assert_holds(long, many)
    upserts = [request for request in emulator.requests if request.operation == "upsert"]
    assert max(len(request.body["points"]) for request in upserts) <= 256
    assert max(request.size for request in upserts) < 5_000_000
    assert len(upserts) < 12


async def test_what_a_request_takes_is_estimated_from_above(emulator: QdrantEmulator, bench: Bench) -> None:
    report = await bench.replace(
        bench.file("dfl-1", ['gäuge 水位 \\ "quoted"\n' * 400] * 5, metadata={"year": 1, "note": "é" * 500})
    )
    (_, body) = [request.size for request in emulator.requests if request.operation == "upsert"]
    assert body <= report.bytes_written
    assert report.bytes_written < 2.5 * body


async def test_the_number_of_requests_does_not_grow_with_the_files(emulator: QdrantEmulator, bench: Bench) -> None:
    for version in ("v1", "v2"):
        files = [bench.file(f"dfl-{n}", 2, version=version) for n in range(100)]
        emulator.requests.clear()
        await bench.replace(*files)
        assert len(emulator.requests) <= 10
    await bench.assert_holds(*files)


async def test_every_write_waits_until_it_is_applied(emulator: QdrantEmulator, bench: Bench) -> None:
    await bench.replace(bench.file("dfl-1"))
    await bench.replace(bench.file("dfl-1", 2, version="v2"))
    await bench.delete("dfl-1")
    writes = [request for request in emulator.requests if request.operation in WRITES]
    assert {request.operation for request in writes} >= {"upsert", "delete", "set_payload", "delete_payload"}
    assert all(request.parameters["wait"] == ["true"] for request in writes)


async def test_readers_have_the_old_version_until_all_of_the_new_one_is_there(emulator: QdrantEmulator, bench: Bench) -> None:
    old, new = bench.file("dfl-1", 300), bench.file("dfl-1", 270, version="v2")
    await bench.replace(old)
    seen: list[set[str]] = []
    emulator.before = lambda _: seen.append(_points(emulator, bench))
    await bench.replace(new)
    assert len(seen) > 5
    assert all(points >= _ids(old) or points >= _ids(new) for points in seen)


@pytest.mark.parametrize("fault", ["refused", "lost answer"])
@pytest.mark.parametrize(("before", "after"), [(0, 3), (4, 0), (4, 1)])
async def test_a_crash_at_any_write_is_made_good_by_any_next_run(
    emulator: QdrantEmulator, bench: Bench, monkeypatch: pytest.MonkeyPatch, before: int, after: int, fault: Fault
) -> None:
    monkeypatch.setattr(QdrantStore, "connection_attempts", 1)
    old, new = bench.file("dfl-1", before), bench.file("dfl-1", after, version="v2")
    neighbour = bench.file("dfl-2", 2)
    await bench.replace(neighbour, old)
    emulator.requests.clear()
    await bench.replace(new)
    writes = sum(request.operation in WRITES for request in emulator.requests)
    for wanted in (old, new, bench.file("dfl-1", 3, version="v3")):
        for step in range(writes):
            await bench.replace(old)
            _fail_write(emulator, step, fault)
            with pytest.raises(SinkUnavailable):
                await bench.replace(new)
            emulator.before = None
            snapshot = (await bench.snapshots()).get("dfl-1")
            if snapshot is not None and not snapshot.record_set_hash.startswith("pending:"):
                assert snapshot.record_set_hash in (old.record_set_hash, new.record_set_hash)
            await bench.replace(wanted)
            await bench.assert_holds(neighbour, wanted)


def _fail_write(emulator: QdrantEmulator, step: int, fault: Fault) -> None:
    """Let the write of this number fail."""
    coming = iter(range(1000))

    def before(request: Request) -> None:
        if request.operation in WRITES and next(coming) == step:
            if fault == "refused":
                emulator.fail(request.operation, 401)
            else:
                emulator.lose_answer(request.operation)

    emulator.before = before


async def test_a_half_finished_file_says_so(emulator: QdrantEmulator, bench: Bench) -> None:
    old, new = bench.file("dfl-1", 3), bench.file("dfl-1", 4, version="v2")
    await bench.replace(old)
    emulator.fail("delete", 401)
    with pytest.raises(SinkUnavailable):
        await bench.replace(new)
    snapshot = (await bench.snapshots())["dfl-1"]
    assert snapshot.record_set_hash == f"pending:{new.record_set_hash}:4,{old.record_set_hash}:3"
    held = (await bench.held())["dfl-1"]
    assert set(held["record_set_hash"].to_pylist()) == {old.record_set_hash, new.record_set_hash}


async def test_a_file_that_is_being_deleted_says_so(emulator: QdrantEmulator, bench: Bench) -> None:
    await bench.replace(bench.file("dfl-1", 4))
    emulator.fail("delete", 401)
    with pytest.raises(SinkUnavailable):
        await bench.delete("dfl-1")
    assert (await bench.snapshots())["dfl-1"].record_set_hash == "pending:empty:0"
    await bench.delete("dfl-1")
    await bench.assert_holds()


async def test_records_that_lost_their_chunk_0_are_found_and_swept(emulator: QdrantEmulator, bench: Bench) -> None:
    old = bench.file("dfl-1", 5)
    await bench.replace(old)
    points = _collection(emulator, bench).points
    del points[chunk_ids(bench.tenant, bench.config, "dfl-1", [0], old.record_set_hash)[0]]
    assert await bench.snapshots() == {}
    assert (await bench.held())["dfl-1"].num_rows == 4
    new = bench.file("dfl-1", 2, version="v2")
    await bench.replace(new)
    await bench.assert_holds(new)


async def test_deleting_takes_what_something_else_wrote_under_the_file_id(emulator: QdrantEmulator, bench: Bench) -> None:
    await bench.replace(bench.file("dfl-1", 2))
    points = _collection(emulator, bench).points
    stray = next(iter(points.values()))
    points[str(uuid.uuid4())] = type(stray)(stray.vectors, {**stray.payload, "chunk_index": 77}, 0)
    await bench.delete("dfl-1")
    assert not points


async def test_a_finished_file_has_no_marker(emulator: QdrantEmulator, bench: Bench) -> None:
    await bench.replace(bench.file("dfl-1", 4))
    points = _collection(emulator, bench).points
    assert len(points) == 4
    assert not any(PENDING in point.payload for point in points.values())


async def test_a_record_too_large_for_a_request_is_refused_by_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sinks.qdrant_layout.MAX_RECORD_BYTES", 50_000)
    old = bench.file("dfl-1")
    await bench.replace(old)
    report = await bench.replace(bench.file("dfl-1", ["x" * 30_000], version="v2"), bench.file("dfl-2"))
    (refused,) = report.refused
    assert refused.file_id == "dfl-1"
    assert "50,000" in refused.reason
    await bench.assert_holds(old, bench.file("dfl-2"))


async def test_a_proxy_that_takes_smaller_requests_gets_smaller_ones(emulator: QdrantEmulator, bench: Bench) -> None:
    old = bench.file("dfl-1", 3)
    await bench.replace(old)
    emulator.max_request_bytes = 2**20
    files = [bench.file(f"dfl-{n}", ["gauge " * 5_000] * 60, version="v2") for n in (1, 2, 3)]
    await bench.replace(*files)
    await bench.assert_holds(*files)
    upserts = [request.size for request in emulator.requests if request.operation == "upsert"]
    assert max(upserts) > emulator.max_request_bytes / 3
    assert len(upserts) < 20


async def test_the_limits_of_strict_mode_are_kept(emulator: QdrantEmulator, bench: Bench) -> None:
    collection = _collection(emulator, bench)
    collection.strict |= {"max_query_limit": 7, "upsert_max_batchsize": 5, "condition_max_size": 3}
    files = [bench.file(f"dfl-{n}", 4) for n in range(20)]
    careful = bench.open()
    await careful.replace_files(files)
    await careful.replace_files([bench.file("dfl-0", 11, version="v2")])
    await careful.delete_files(parsed_directory_file_ids=[file.file_id for file in files[10:]], export_config_id=bench.config)
    await bench.assert_holds(bench.file("dfl-0", 11, version="v2"), *files[1:10], exporter=careful)
    named = await careful.list_snapshots(export_config_id=bench.config, parsed_directory_file_ids=[f"dfl-{n}" for n in range(8)])
    assert len(named) == 8


async def test_ten_thousand_files_are_listed_in_bounded_pages(emulator: QdrantEmulator, bench: Bench) -> None:
    await bench.replace(bench.file("dfl-0", 1))
    points = _collection(emulator, bench).points
    (first,) = points.values()
    for number in range(1, 10_000):
        points[str(uuid.UUID(int=number))] = type(first)({}, {**first.payload, "parsed_directory_file_id": f"dfl-{number}"}, 0)
    emulator.requests.clear()
    assert len(await bench.snapshots()) == 10_000
    assert emulator.count("scroll") == 10
    assert max(len(request.body["with_payload"]) for request in emulator.requests) < 10
