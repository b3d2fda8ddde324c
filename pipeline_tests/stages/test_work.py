"""What every stage works within: leases that last as long as it does, and memory that stays bounded."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import LedgerUnavailable
from pipeline.ledger import Ledger
from pipeline.stages.work import groups_of, kept
from pipeline_tests.ledger.test_ledger import listed
from pipeline_tests.local_cloud.harness import until
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        opened.write("doc.md", "# Document\n")
        yield opened


def test_groups_bound_what_is_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger("sqlite://", "default")
    ledger.record_listing([listed("a")], 1)
    [row] = ledger.files().values()
    ledger.close()
    monkeypatch.setattr("pipeline.stages.work.GROUP_CHUNKS", 10)
    rows = [replace(row, chunk_count=count) for count in (4, 6, 1, None, 10, 25, 3)]
    assert [[row.chunk_count for row in group] for group in groups_of(rows)] == [[4, 6], [1, None], [10], [25], [3]]


def test_a_run_keeps_its_leases_for_as_long_as_it_works(world: World) -> None:
    world.ingest()
    export = world.export
    [file_id, *_] = export.ledger.files()

    def lease_end() -> float:
        return export.ledger.files([file_id])[file_id].lease_until or 0.0

    def renewed(since: float) -> bool:
        return lease_end() > since

    async def work_for_three_renewals() -> None:
        async with kept(export, "slow", lease_seconds=0.03):
            for _ in range(3):
                await asyncio.to_thread(until, partial(renewed, lease_end()))

    assert export.claim([file_id], "slow") == [file_id]
    export.ledger.renew("slow", seconds=0)
    asyncio.run(work_for_three_renewals())


def test_a_renewal_that_fails_is_made_up_for_by_the_next_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = Ledger.renew, Counter[str]()

    def renew(self: Ledger, run_id: str, *, seconds: float) -> None:
        tries[run_id] += 1
        if tries[run_id] == 1:
            raise LedgerUnavailable("the database was restarted")
        real(self, run_id, seconds=seconds)

    async def work_until_renewed() -> None:
        async with kept(world.export, "slow", lease_seconds=0.03):
            await asyncio.to_thread(until, lambda: tries["slow"] > 1)

    monkeypatch.setattr(Ledger, "renew", renew)
    asyncio.run(work_until_renewed())
