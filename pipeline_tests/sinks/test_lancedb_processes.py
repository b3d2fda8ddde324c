"""LanceDB written by several processes, and by one that dies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from pipeline_tests.conformance.harness import Bench
from pipeline_tests.conformance.lancedb_harness import LanceDBUnderTest
from pipeline_tests.sinks.lancedb_worker import versions


async def start_worker(bench: Bench, mode: str, name: str) -> Process:
    assert isinstance(bench.sink, LanceDBUnderTest)
    arguments = (bench.sink.uri, bench.tenant, bench.config, mode, name)
    module = "pipeline_tests.sinks.lancedb_worker"
    return await asyncio.create_subprocess_exec(sys.executable, "-m", module, *arguments, stdout=PIPE, stderr=PIPE)


async def test_four_processes_create_and_write_one_table_together(tmp_path: Path) -> None:
    bench = Bench(LanceDBUnderTest(str(tmp_path)))
    names = ["0", "1", "2", "3"]
    workers = [await start_worker(bench, "share", name) for name in names]
    for worker, (_, errors) in zip(workers, await asyncio.gather(*(worker.communicate() for worker in workers)), strict=True):
        assert worker.returncode == 0, errors.decode()
    await bench.open().provision()
    held = await bench.held()
    own = [bench.file(f"dfl-{name}-{number}", 4, version=name) for name in names for number in range(12)]
    winners = []
    for number in range(3):
        candidates = [bench.file(f"dfl-shared-{number}", 3 + int(name), version=name) for name in names]
        hashes = held[f"dfl-shared-{number}"]["record_set_hash"].unique().to_pylist()
        winners += [file for file in candidates if [file.record_set_hash] == hashes]
    assert len(winners) == 3
    await bench.assert_holds(*own, *winners)
    await bench.exporter.close()


async def test_a_writer_killed_at_any_moment_leaves_whole_files_and_the_next_one_goes_on(tmp_path: Path) -> None:
    bench = Bench(LanceDBUnderTest(str(tmp_path)))
    await bench.open().provision()
    next_version = 0
    for _ in range(2):
        worker = await start_worker(bench, "forever", str(next_version))
        assert worker.stdout is not None
        written = -1
        while written < next_version + 2:
            written = int(await worker.stdout.readline())
        await asyncio.sleep(random.uniform(0, 0.05))  # any moment of the replace that is now under way
        os.kill(worker.pid, signal.SIGKILL)
        rest, _ = await worker.communicate()
        written = max([written, *map(int, rest.split())])
        held = await bench.held()
        found = {rows["record_set_hash"][0].as_py() for rows in held.values()}
        possible = [versions(bench, version) for version in (written, written + 1)]
        (state,) = (files for files in possible if {file.record_set_hash for file in files} == found)
        await bench.assert_holds(*state)
        next_version = written + 1
    await bench.replace(*versions(bench, next_version))
    await bench.assert_holds(*versions(bench, next_version))
    await bench.exporter.close()
