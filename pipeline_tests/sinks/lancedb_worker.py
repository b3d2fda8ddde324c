"""A writer process of its own: ``python -m pipeline_tests.sinks.lancedb_worker URI TENANT CONFIG MODE NAME``.

``share`` writes NAME's own twelve files and, in between, its version of three files all writers write. ``forever`` rewrites
the same five files with versions 0, 1, 2, ... until it is killed, and prints each version when it is written.
"""

from __future__ import annotations

import asyncio
import sys

from pipeline.sinks.records import FileRecords
from pipeline_tests.conformance.harness import Bench
from pipeline_tests.conformance.lancedb_harness import LanceDBUnderTest


def versions(bench: Bench, version: int) -> list[FileRecords]:
    """Five files; how many chunks they have depends on the version."""
    return [bench.file(f"dfl-{number}", 2 + (version * 3 + number) % 7, version=f"v{version}") for number in range(5)]


async def share(bench: Bench, name: str) -> None:
    for number in range(12):
        await bench.replace(bench.file(f"dfl-{name}-{number}", 4, version=name))
        await bench.replace(bench.file(f"dfl-shared-{number % 3}", 3 + int(name), version=name))


async def forever(bench: Bench, start: int) -> None:
    version = start
    while True:
        await bench.replace(*versions(bench, version))
        print(version, flush=True)
        version += 1


async def main(uri: str, tenant: str, config: str, mode: str, name: str) -> None:
    bench = Bench(LanceDBUnderTest(uri), tenant=tenant, config=config)
    await bench.open().provision()
    await (share(bench, name) if mode == "share" else forever(bench, int(name)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
