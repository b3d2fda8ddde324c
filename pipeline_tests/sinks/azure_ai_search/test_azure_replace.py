"""Replacing files in Azure AI Search: searches that lag, runs that end half way, runs that meet."""

from __future__ import annotations

import asyncio
from typing import Any
from zlib import crc32

import pytest
from azure.search.documents import SearchClient

from pipeline.errors import SinkUnavailable
from pipeline.sinks.azure_ai_search import AzureAISearchSettings
from pipeline.sinks.base import ReplaceReport
from pipeline_tests.conformance.azure_ai_search_harness import (
    INDEX,
    AzureAISearchUnderTest,
)
from pipeline_tests.conformance.harness import Bench, chunk_id
from pipeline_tests.emulators.azure_ai_search import AzureAISearchEmulator, Request
from pipeline_tests.emulators.http import ApiError


def changes(emulator: AzureAISearchEmulator) -> list[dict[str, Any]]:
    return [action for request in emulator.requests if request.operation == "change" for action in request.body["value"]]


@pytest.mark.parametrize("lag", [1, 4, 9])
async def test_snapshots_never_answer_from_before_a_write(
    bench: Bench, emulator: AzureAISearchEmulator, hasty: None, lag: int
) -> None:
    emulator.engine.lag = lag
    files = [bench.file(f"dfl-{n}", 5) for n in range(4)]
    await bench.replace(*files)
    await bench.assert_holds(*files)
    changed = bench.file("dfl-1", 3, version="v2")
    await bench.replace(changed, bench.file("dfl-2", 0))
    await bench.assert_holds(files[0], changed, files[3])
    await bench.delete("dfl-0", "dfl-1")
    await bench.assert_holds(files[3])


async def test_readers_find_the_old_version_or_the_new_one_at_every_moment(
    bench: Bench, emulator: AzureAISearchEmulator, hasty: None
) -> None:
    old, new = bench.file("dfl-1", 30), bench.file("dfl-1", 30, version="v2")
    await bench.replace(old)
    emulator.engine.lag = 5
    seen: set[tuple[int, int]] = set()

    def watch(request: Request) -> None:
        visible = emulator.engine.indexes[INDEX].visible.values()
        held = [document["record_set_hash"] for document in visible]
        counts = held.count(old.record_set_hash), held.count(new.record_set_hash)
        assert 30 in counts
        seen.add(counts)

    emulator.before = watch
    await bench.replace(new)
    assert {(30, 0), (30, 30), (0, 30)} <= seen


async def test_a_search_that_never_catches_up_is_given_up_and_made_good_later(
    running: AzureAISearchUnderTest, emulator: AzureAISearchEmulator, hasty: None
) -> None:
    impatient = AzureAISearchSettings(endpoint=emulator.url, visibility_timeout_seconds=0.05)
    bench = Bench(AzureAISearchUnderTest(impatient, ()))
    await bench.open().provision()
    emulator.engine.lag = 10**9
    with pytest.raises(SinkUnavailable, match=r"does not show \d+ changes"):
        await bench.replace(bench.file("dfl-1", 5))
    emulator.engine.lag = 0
    emulator.engine.settle()
    assert (await bench.snapshots())["dfl-1"].record_set_hash.startswith("pending:")
    await bench.replace(bench.file("dfl-1", 5))
    await bench.assert_holds(bench.file("dfl-1", 5))
    await bench.exporter.close()


@pytest.mark.parametrize("lag", [0, 3])
async def test_a_crash_at_any_change_is_made_good_by_the_next_run_whatever_it_writes(
    bench: Bench, emulator: AzureAISearchEmulator, hasty: None, lag: int
) -> None:
    old, new, third = bench.file("dfl-1", 4), bench.file("dfl-1", 6, version="v2"), bench.file("dfl-1", 2, version="v3")
    neighbour = bench.file("dfl-2", 3)
    for following in (old, new, third, bench.file("dfl-1", 0)):
        for step in range(4):
            emulator.before = None
            emulator.engine.lag = 0
            await bench.replace(old, neighbour)
            emulator.engine.lag = lag
            emulator.before = _refuse_after(step)
            with pytest.raises(SinkUnavailable, match="crash"):
                await bench.open().replace_files([new])
            emulator.before = None
            await bench.open().replace_files([following])
            await bench.assert_holds(neighbour, following)


async def test_what_a_failed_call_has_written_is_found_by_the_next_one_however_late_it_shows(
    bench: Bench, emulator: AzureAISearchEmulator, hasty: None
) -> None:
    """The emulator shows half of the documents later than the others: here, the failed call's."""
    versions = [bench.file("dfl-1", size, version=f"v{n}") for n in range(20) for size in (1, 3)]
    late = [crc32(chunk_id(bench.tenant, bench.config, "dfl-1", 0, version.record_set_hash).encode()) % 2 for version in versions]
    old = next(version for n, version in enumerate(versions) if not late[n] and version.table.num_rows == 1)
    new = next(version for n, version in enumerate(versions) if late[n] and version.table.num_rows == 3)
    await bench.replace(old)
    emulator.engine.lag = 40
    emulator.before = _refuse_after(1)
    with pytest.raises(SinkUnavailable, match="crash"):
        await bench.replace(new)
    emulator.before = None
    await bench.replace(old)
    emulator.engine.settle()
    await bench.assert_holds(old)


async def test_a_file_refused_while_its_version_is_written_again_keeps_what_it_has(
    bench: Bench, emulator: AzureAISearchEmulator
) -> None:
    file = bench.file("dfl-1", 5)
    await bench.replace(file)
    emulator.engine.refuse = lambda action, document: (400, "no") if action == "upload" and document["chunk_index"] == 3 else None
    for _ in range(2):
        assert (await bench.replace(file)).refused
        assert len((await bench.held())["dfl-1"]) == 5
    emulator.engine.refuse = lambda *_: None
    await bench.replace(file)
    await bench.assert_holds(file)


def _refuse_after(step: int) -> Any:
    """Let so many changes through, and no further one."""
    left = step

    def before(request: Request) -> None:
        nonlocal left
        if request.operation == "change":
            left -= 1
            if left < 0:
                raise ApiError(403, "crash")

    return before


async def test_a_run_whose_records_another_run_deletes_starts_again(
    bench: Bench, emulator: AzureAISearchEmulator, hasty: None
) -> None:
    """A search that lags shows nothing either; where changes are made tells the two apart."""
    file = bench.file("dfl-1", 6)
    taken: list[str] = []

    def take(request: Request) -> None:
        if request.operation == "search" and emulator.count("change") == 2 and not taken:
            index = emulator.engine.indexes[INDEX]
            taken.extend(index.stored)
            index.stored.clear()

    emulator.engine.lag = 3
    emulator.before = take
    await bench.replace(file)
    assert len(taken) == 6
    await bench.assert_holds(file)


@pytest.mark.parametrize("lag", [0, 6])
async def test_runs_that_meet_end_in_one_version(bench: Bench, emulator: AzureAISearchEmulator, hasty: None, lag: int) -> None:
    emulator.engine.lag = lag
    handles = [bench.open() for _ in range(3)]
    versions = [bench.file("dfl-1", 3 + 4 * n, version=f"v{n}") for n in range(3)]
    runs = (handle.replace_files([version]) for handle, version in zip(handles, versions, strict=True))
    ends = await asyncio.gather(*runs, return_exceptions=True)
    assert all(isinstance(end, ReplaceReport | SinkUnavailable) for end in ends)
    emulator.engine.settle()
    await bench.replace(versions[1])
    await bench.assert_holds(versions[1])


async def test_deleting_takes_what_nobody_computes(bench: Bench, client: SearchClient) -> None:
    """Records of other programs and of runs that left no head."""
    await bench.replace(bench.file("dfl-1", 3), bench.file("dfl-2", 3))
    (one, *_) = client.search("*", filter="parsed_directory_file_id eq 'dfl-1' and chunk_index eq 1")
    stray = {name: value for name, value in one.items() if not name.startswith("@")}
    client.upload_documents([{**stray, "id": f"stray-{n}", "record_set_hash": "unknown"} for n in range(1200)][:900])
    await bench.delete("dfl-1")
    await bench.assert_holds(bench.file("dfl-2", 3))
    assert client.get_document_count() == 3


async def test_replacing_takes_records_that_lost_their_head(bench: Bench, client: SearchClient) -> None:
    await bench.replace(bench.file("dfl-1", 3))
    (one, *_) = client.search("*", filter="chunk_index eq 1")
    stray = {name: value for name, value in one.items() if not name.startswith("@")}
    client.upload_documents([{**stray, "id": "stray", "record_set_hash": "unknown"}])
    new = bench.file("dfl-1", 4, version="v2")
    await bench.replace(new)
    await bench.assert_holds(new)
