"""The storage_context sink: writers that are stopped or killed, what they leave, files that are damaged."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from pipeline.errors import SinkUnavailable
from pipeline.sinks.base import SearchRequest
from pipeline.sinks.records import FileRecords
from pipeline_tests.conformance.harness import Bench, provisioned_bench, unit_vectors
from pipeline_tests.conformance.storage_context_harness import StorageContextUnderTest
from pipeline_tests.sinks.storage_context_folder import (
    before_first,
    config_folder,
    current_generation,
    fail_once_when,
    fail_when,
)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with provisioned_bench(StorageContextUnderTest(str(tmp_path))) as made:
        yield made


def is_current(relative: str) -> bool:
    return relative.endswith("CURRENT")


def expire_lease(tmp_path: Path) -> int:
    """As after a pause longer than the lease; answers the holder's number."""
    lease = max((config_folder(tmp_path) / "leases").iterdir())
    lease.write_text(json.dumps({"owner": "a machine that sleeps", "expires_at": 0}))
    return int(lease.name)


def take_over(bench: Bench, tmp_path: Path, file: FileRecords) -> None:
    expire_lease(tmp_path)
    asyncio.run(bench.open().replace_files([file]))


async def test_a_writer_stopped_before_it_tidies_up_leaves_what_its_successor_is_writing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.replace(bench.file("dfl-0"))
    before = current_generation(tmp_path)
    written: list[Path] = []

    def successor_begins() -> None:
        folder = config_folder(tmp_path) / "generations" / f"{expire_lease(tmp_path) + 1:012}"
        folder.mkdir()
        written.append(folder)

    before_first(
        monkeypatch,
        "sizes",
        lambda relative: "generations" in relative and current_generation(tmp_path) != before,
        successor_begins,
    )
    await bench.replace(bench.file("dfl-1"))
    assert written[0].exists()


async def test_a_writer_stopped_before_it_moves_the_pointer_moves_it_back_and_fails(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, mine, successors = (bench.file(f"dfl-{number}") for number in range(3))
    await bench.replace(old)
    before_first(monkeypatch, "put", is_current, lambda: take_over(bench, tmp_path, successors))
    with pytest.raises(SinkUnavailable, match="another took over"):
        await bench.replace(mine)
    await bench.assert_holds(old, successors)
    await bench.replace(mine)
    await bench.assert_holds(old, mine, successors)


async def test_a_store_that_fails_once_the_pointer_is_moved_moves_it_back_to_no_older_generation(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither who holds the lease can be asked, nor then whether the newest generation is complete."""
    old, new = bench.file("dfl-1"), bench.file("dfl-1", version="v2")
    await bench.replace(old)
    before = current_generation(tmp_path)
    with monkeypatch.context() as patch:
        fail_once_when(patch, "sizes", lambda relative: "leases" in relative and current_generation(tmp_path) != before)
        fail_once_when(patch, "read", lambda relative: "manifest" in relative and current_generation(tmp_path) != before)
        with pytest.raises(SinkUnavailable):
            await bench.replace(new)
    await bench.assert_holds(new)


async def test_the_move_of_the_pointer_is_on_disk_when_a_replace_returns(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str | int] = []
    fsync, replace = os.fsync, Path.replace

    def recording_fsync(descriptor: int) -> None:
        fsync(descriptor)
        events.append(os.fstat(descriptor).st_ino)

    def recording_replace(self: Path, target: str) -> Path:
        events.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "replace", recording_replace)
    await bench.replace(bench.file("dfl-1"))
    assert config_folder(tmp_path).stat().st_ino in events[events.index("CURRENT") :]


async def crash(bench: Bench, monkeypatch: pytest.MonkeyPatch, file: FileRecords) -> None:
    """A writer that dies before the pointer moves."""
    with monkeypatch.context() as patch:
        fail_when(patch, "put", is_current)
        with pytest.raises(SinkUnavailable):
            await bench.replace(file)


def holders_of(tmp_path: Path, text: str) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


async def test_an_erasure_finds_what_was_left_before_anything_counted(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await crash(bench, monkeypatch, bench.file("dfl-1", ["a very private text"]))
    assert holders_of(tmp_path, "a very private text")
    await bench.delete("dfl-1")
    await bench.exporter.purge_history()
    assert holders_of(tmp_path, "a very private text") == []


async def test_what_crashed_writers_leave_takes_no_place_of_a_generation_readers_may_use(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.replace(bench.file("dfl-0"))
    in_use = current_generation(tmp_path)
    for number in range(1, 4):
        await crash(bench, monkeypatch, bench.file(f"dfl-{number}", ["a very private text"]))
    await bench.replace(bench.file("dfl-9"))
    assert in_use.exists()
    assert holders_of(tmp_path, "a very private text") == []
    await bench.assert_holds(bench.file("dfl-0"), bench.file("dfl-9"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "records cut": lambda generation: cut(generation / "records.parquet"),
    "records missing": lambda generation: (generation / "records.parquet").unlink(),
}
ANY_DAMAGE: dict[str, Callable[[Path], None]] = {**DAMAGES, "manifest cut": lambda generation: cut(generation / "manifest.json")}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_records_are_mended_by_a_replace_of_every_file(bench: Bench, tmp_path: Path, damage: str) -> None:
    files = [bench.file("dfl-1"), bench.file("dfl-2")]
    await bench.replace(*files)
    DAMAGES[damage](current_generation(tmp_path))
    assert all(snapshot.record_set_hash.startswith("pending:") for snapshot in (await bench.snapshots()).values())
    await bench.replace(*files)
    await bench.assert_holds(*files)
    DAMAGES[damage](current_generation(tmp_path))
    await bench.delete("dfl-1", "dfl-2")
    await bench.assert_holds()


@pytest.mark.parametrize("damage", ANY_DAMAGE)
async def test_damage_that_gets_in_the_way_is_named_with_a_remedy_that_works(bench: Bench, tmp_path: Path, damage: str) -> None:
    files = [bench.file("dfl-1"), bench.file("dfl-2")]
    await bench.replace(*files)
    ANY_DAMAGE[damage](current_generation(tmp_path))
    folder = config_folder(tmp_path)
    named = folder.relative_to(tmp_path)
    with pytest.raises(SinkUnavailable, match=f"{named}/generations/000000000001 is damaged.*remove the folder {named}"):
        await bench.replace(files[0])
    shutil.rmtree(folder)
    await bench.replace(*files)
    await bench.assert_holds(*files)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_read_of_damaged_records_says_so(bench: Bench, tmp_path: Path, damage: str) -> None:
    await bench.replace(bench.file("dfl-1"))
    DAMAGES[damage](current_generation(tmp_path))
    with pytest.raises(SinkUnavailable, match="generations/000000000001 is damaged"):
        await bench.held()
    with pytest.raises(SinkUnavailable, match="generations/000000000001 is damaged"):
        await bench.search(SearchRequest(bench.config, vector=unit_vectors("x", 1)[0]))


async def test_a_stray_file_beside_the_indexes_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    await bench.replace(bench.file("dfl-1"))
    for name in (".0123456789abcdef.tmp", ".DS_Store"):
        (config_folder(tmp_path).parent / name).write_bytes(b"{}")
    assert await bench.exporter.list_scopes() == frozenset({(bench.tenant, bench.config)})
    await bench.exporter.purge_history()
    await bench.assert_holds(bench.file("dfl-1"))
