"""Looks at the index: what is evidence, what is not, and what survives running out of time."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import SourceUnavailable
from pipeline.llama_cloud.models import ListingPage
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline.stages.detect import detect
from pipeline.stages.erase import erase
from pipeline.stages.plan import make_plan
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        for n in range(5):
            opened.write(f"doc-{n}.md", f"# Document {n}\n")
        opened.refresh()
        yield opened


def test_a_listing_that_runs_out_of_time_goes_on_from_its_cursor(world: World) -> None:
    world.faults(page_size_cap=2)
    first = asyncio.run(detect(world.export, budget_seconds=0))
    assert (first.look, first.new) == ("incomplete", 2)
    assert "doc-" not in (first.cursor or "")
    second = asyncio.run(detect(world.export, cursor=first.cursor, budget_seconds=0))
    third = asyncio.run(detect(world.export, cursor=second.cursor, budget_seconds=0))
    assert (second.new, third.new, third.look) == (2, 1, "complete")
    assert world.export.ledger.state().complete_at is not None


def test_a_listing_without_a_limit_is_read_to_its_end_however_long_it_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.faults(page_size_cap=1)
    clock = itertools.count(step=1_000.0)
    slow = SimpleNamespace(time=time.time, monotonic=lambda: next(clock))
    monkeypatch.setattr("pipeline.stages.detect.time", slow)
    plan = asyncio.run(make_plan(world.export, run_id="command-plan"))
    assert (plan.detection.look, plan.detection.new) == ("complete", 5)


def test_an_unfinished_listing_makes_nothing_missing(world: World) -> None:
    asyncio.run(detect(world.export))
    world.remove("doc-4.md")
    world.refresh()
    world.faults(page_size_cap=2)
    asyncio.run(detect(world.export, budget_seconds=0))
    assert all(row.missing_since is None for row in world.export.ledger.files().values())


def test_an_empty_listing_is_told_at_every_look_until_files_are_back(world: World) -> None:
    asyncio.run(detect(world.export))
    world.faults(hidden_files=["*"])
    world.refresh()
    for _ in range(2):
        found = asyncio.run(detect(world.export))
        assert found.look == "empty"
        assert "while 5 files are known" in (found.unread or "")
    assert all(row.missing_since is None for row in world.export.ledger.files().values())
    world.faults()
    found = asyncio.run(detect(world.export))
    assert (found.look, found.unread) == ("complete", None)


def test_an_empty_listing_after_all_files_were_erased_is_right(world: World) -> None:
    asyncio.run(detect(world.export))
    assert asyncio.run(erase(world.export, list(world.export.ledger.files()), run_id="r")).proved
    world.faults(hidden_files=["*"])
    assert asyncio.run(detect(world.export, complete=True)).unread is None


def test_a_directory_that_has_never_held_a_file_is_read_whole(world: World) -> None:
    world.faults(hidden_files=["*"])
    assert asyncio.run(detect(world.export)).unread is None


def test_a_cursor_of_an_older_state_of_the_index_is_dropped(world: World) -> None:
    world.faults(page_size_cap=2)
    first = asyncio.run(detect(world.export, budget_seconds=0))
    world.faults()
    world.write("doc-9.md", "# Nine\n")
    world.refresh()
    answer = asyncio.run(detect(world.export, cursor=first.cursor))
    assert answer.look == "complete"
    assert len(world.export.ledger.files()) == 6


def test_items_repeated_across_pages_count_once(world: World) -> None:
    world.faults(page_size_cap=2, repeat_items_across_pages=True)
    answer = asyncio.run(detect(world.export))
    assert answer.new == 5


def test_a_listing_taken_during_a_sync_is_no_evidence_of_absence(world: World) -> None:
    asyncio.run(detect(world.export))
    world.faults(hold_syncs=True, hidden_files=["doc-0.md"])

    async def start() -> bool:
        async with world.export.source() as source:
            return await source.start_sync()

    assert asyncio.run(start())
    answer = asyncio.run(detect(world.export, complete=True))
    assert answer.look in ("building", "incremental")
    assert all(row.missing_since is None for row in world.export.ledger.files().values())
    world.faults()


def test_a_reconcile_marks_a_rotating_slice_for_another_fetch(world: World) -> None:
    asyncio.run(detect(world.export))
    world.change(detection={"reconcile_interval_seconds": 0})
    marked: list[str] = []
    for _ in range(3):
        asyncio.run(detect(world.export))
        chosen = [file_id for file_id, row in world.export.ledger.files().items() if row.refetch and file_id not in marked]
        marked += chosen
        assert len(chosen) == 1
    assert marked == sorted(world.export.ledger.files())[:3]


def test_a_reconcile_that_does_not_come_to_its_end_marks_nothing(world: World) -> None:
    asyncio.run(detect(world.export))
    world.change(detection={"reconcile_interval_seconds": 0})
    world.faults(page_size_cap=2)
    for _ in range(3):
        assert asyncio.run(detect(world.export, budget_seconds=0)).look == "incomplete"
    assert not any(row.refetch for row in world.export.ledger.files().values())


def test_the_watermark_stays_where_it_was_when_the_index_changes_during_a_listing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(detect(world.export))
    before = world.export.ledger.state().listed_at
    real = LlamaCloudSource.list_files

    def edit(name: str) -> None:
        world.write(name, f"# {name}\n\nEdited.\n")
        world.refresh()

    async def list_files(self: LlamaCloudSource, **given: Any) -> AsyncIterator[ListingPage]:
        async for page in real(self, **given):
            yield page
        await asyncio.to_thread(edit, "doc-1.md")

    edit("doc-0.md")
    with monkeypatch.context() as patch:
        patch.setattr(LlamaCloudSource, "list_files", list_files)
        asyncio.run(detect(world.export))
    assert world.export.ledger.state().listed_at == before
    asyncio.run(detect(world.export))
    assert (world.export.ledger.state().listed_at or 0.0) > (before or 0.0)


def test_the_cursor_holds_a_token_and_digests_never_the_manifest(world: World) -> None:
    world.faults(page_size_cap=1)
    answer = asyncio.run(detect(world.export, budget_seconds=0))
    assert len(json.loads(answer.cursor or "[]")) == 5
    assert len(answer.cursor or "") < 300


@pytest.mark.usefixtures("impatient_sdk")
def test_an_unreachable_index_raises_and_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(detect(world.export))
    before = world.export.ledger.files()
    monkeypatch.setenv("LLAMA_CLOUD_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(SourceUnavailable):
        asyncio.run(detect(world.export, complete=True))
    assert world.export.ledger.files() == before
