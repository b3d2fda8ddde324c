"""A server that is busy, slow, out of reach, closed to us or not Qdrant; and the local directory."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.sinks.base import SinkContext
from pipeline.sinks.qdrant import QdrantExporter, QdrantSettings
from pipeline.sinks.qdrant_store import QdrantStore
from pipeline.sinks.records import build_file_records
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, matrix, synthetic_chunks, vector_column
from pipeline_tests.conformance.qdrant_harness import QdrantUnderTest
from pipeline_tests.emulators.qdrant import QdrantEmulator, Request

CONTEXT = SinkContext("prj-1", MODEL, FIELDS)


@pytest.mark.parametrize("operation", ["upsert", "delete_payload", "count", "scroll", "delete"])
@pytest.mark.parametrize(
    ("status", "retry_after"), [(429, "0"), (429, "Fri, 31 Dec 1999 23:59:59 GMT"), (429, None), (500, None), (503, "1")]
)
async def test_a_busy_server_is_asked_again(
    emulator: QdrantEmulator, bench: Bench, operation: str, status: int, retry_after: str | None
) -> None:
    emulator.fail(operation, status, times=3, retry_after=retry_after)
    file = bench.file("dfl-1")
    await bench.replace(file)
    await bench.assert_holds(file)


async def test_a_server_that_stays_busy_is_unavailable_after_ten_attempts(emulator: QdrantEmulator, bench: Bench) -> None:
    emulator.fail("upsert", 429, times=99, retry_after="0", message="write rate limit exceeded")
    with pytest.raises(SinkUnavailable, match="write rate limit exceeded"):
        await bench.replace(bench.file("dfl-1"))
    assert emulator.count("upsert") == 10


async def test_the_server_says_how_long_to_wait(emulator: QdrantEmulator, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("pipeline.sinks.http_store.asyncio.sleep", sleep)
    emulator.fail("count", 429, retry_after="7")
    emulator.fail("count", 429, retry_after="86400")
    emulator.fail("count", 503, retry_after="9")
    await bench.replace(bench.file("dfl-1"))
    assert [pytest.approx(wait, rel=0.26) for wait in (7.9, 34, 10.1)] == waits


async def test_lost_answers_are_asked_for_again_and_nothing_is_written_twice(emulator: QdrantEmulator, bench: Bench) -> None:
    for operation in ("upsert", "delete", "delete_payload"):
        emulator.lose_answer(operation, times=2)
    file = bench.file("dfl-1", 4)
    await bench.replace(file)
    await bench.assert_holds(file)


async def test_a_server_that_does_not_answer_in_time_is_unavailable(
    emulator: QdrantEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QdrantStore, "connection_attempts", 1)
    released = threading.Event()

    def wait(request: Request) -> None:
        released.wait(30)

    emulator.before = wait
    exporter = QdrantExporter(QdrantSettings(url=emulator.url, timeout_seconds=1), CONTEXT)
    try:
        with pytest.raises(SinkUnavailable, match="in time"):
            await exporter.provision()
    finally:
        released.set()
        await exporter.close()


async def test_a_wrong_key_is_unavailable_and_never_told(
    emulator: QdrantEmulator, sink: QdrantUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "wrong-secret")
    exporter = sink.make_exporter(CONTEXT)
    with pytest.raises(SinkUnavailable, match="QDRANT_API_KEY") as caught:
        await exporter.provision()
    assert "wrong-secret" not in f"{caught.value!r}{exporter.settings!r}"
    await exporter.close()


async def test_something_else_that_answers_is_told_apart(emulator: QdrantEmulator, bench: Bench) -> None:
    emulator.garble("scroll")
    with pytest.raises(SinkUnavailable, match="is not Qdrant"):
        await bench.snapshots()


async def test_what_the_server_refuses_is_a_conflict_with_its_own_words(emulator: QdrantEmulator, bench: Bench) -> None:
    emulator.fail("upsert", 400, message="Wrong input: no room")
    with pytest.raises(SinkConflict, match="no room"):
        await bench.replace(bench.file("dfl-1"))


@pytest.mark.parametrize("status", [402, 405])
async def test_a_status_that_says_nothing_of_the_request_is_no_conflict(
    emulator: QdrantEmulator, bench: Bench, status: int
) -> None:
    emulator.fail("upsert", status)
    with pytest.raises(SinkUnavailable, match=str(status)):
        await bench.replace(bench.file("dfl-1"))


async def test_a_record_over_the_limit_of_a_proxy_is_a_conflict(emulator: QdrantEmulator, bench: Bench) -> None:
    emulator.max_request_bytes = 10_000
    with pytest.raises(SinkConflict, match="413"):
        await bench.replace(bench.file("dfl-1", ["x" * 20_000]))


async def test_a_collection_that_is_gone_says_to_provision(emulator: QdrantEmulator, sink: QdrantUnderTest) -> None:
    exporter = sink.make_exporter(CONTEXT)
    with pytest.raises(SinkUnavailable, match="provision the sink first"):
        await exporter.list_snapshots(export_config_id="cfg")
    await exporter.close()


async def test_the_address_comes_from_the_environment_when_no_setting_names_one(
    emulator: QdrantEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = QdrantExporter(QdrantSettings(), CONTEXT)
    with pytest.raises(ConfigError, match="QDRANT_URL"):
        await exporter.provision()
    monkeypatch.setenv("QDRANT_URL", emulator.url)
    exporter = QdrantExporter(QdrantSettings(), CONTEXT)
    await exporter.provision()
    await exporter.close()


async def test_an_address_that_is_none_is_a_matter_of_configuration() -> None:
    exporter = QdrantExporter(QdrantSettings(url="gopher://user:secret@nowhere"), CONTEXT)
    with pytest.raises((ConfigError, SinkUnavailable)) as caught:
        await exporter.provision()
    assert "secret" not in str(caught.value)
    await exporter.close()


def test_an_address_and_a_directory_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="not both"):
        QdrantSettings(url="http://127.0.0.1:6333", path="here")


async def test_vectors_come_back_with_length_one(bench: Bench) -> None:
    file = bench.file("dfl-1", 2)
    longer = build_file_records(file.provenance, synthetic_chunks(["a", "b"]), vector_column(matrix(file.table) * 5), MODEL)
    await bench.replace(longer)
    held = (await bench.held())["dfl-1"]
    np.testing.assert_allclose(np.linalg.norm(matrix(held), axis=1), 1.0, atol=1e-6)
