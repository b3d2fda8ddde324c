"""Looks at the index: what is evidence, what is not, and what survives running out of time."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from pipeline.errors import SourceUnavailable
from pipeline.ledger.ledger import Ledger
from pipeline.llama_cloud.models import IndexState, ListingPage
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


def missing(world: World) -> set[str]:
    return {row.display_name for row in world.export.ledger.files().values() if row.missing_since is not None}


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


def test_a_plan_beside_other_work_says_that_it_has_not_counted_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    export = world.export
    asyncio.run(detect(export, complete=True))
    held = [world.file_id("doc-0.md")]
    monkeypatch.setattr(export, "run_is_live", lambda _run_id: True)
    export.claim(held, "another")
    plan = asyncio.run(make_plan(export, run_id="command-plan"))
    assert (plan.held, plan.chunks, plan.whole) == (held, 4, False)
    export.ledger.drop_leases("another")
    plan = asyncio.run(make_plan(export, run_id="command-plan"))
    assert (plan.held, plan.chunks, plan.whole) == ([], 5, True)


def test_an_unfinished_listing_makes_nothing_missing(world: World) -> None:
    asyncio.run(detect(world.export))
    world.remove("doc-4.md")
    world.refresh()
    world.faults(page_size_cap=2)
    asyncio.run(detect(world.export, budget_seconds=0))
    assert missing(world) == set()


@pytest.mark.parametrize("large", [False, True])
def test_an_empty_listing_is_told_at_every_look_until_files_are_back(
    world: World, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr("pipeline.stages.detect._CHEAP_FILES", 0)
    asyncio.run(detect(world.export))
    world.faults(hidden_files=["*"])
    world.refresh()
    for complete in (True, False):
        found = asyncio.run(detect(world.export, complete=complete))
        assert found.look == "empty"
        assert "while 5 files are known" in (found.unread or "")
    assert missing(world) == set()
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
    asyncio.run(detect(world.export))
    world.faults(page_size_cap=2)
    first = asyncio.run(detect(world.export, complete=True, budget_seconds=0))
    assert first.look == "incomplete"
    world.remove("doc-0.md")  # of the page that has been read
    world.refresh()
    assert asyncio.run(detect(world.export, cursor=first.cursor)).look == "complete"
    assert missing(world) == {"doc-0.md"}


def test_items_repeated_across_pages_count_once(world: World) -> None:
    world.faults(page_size_cap=2, repeat_items_across_pages=True)
    answer = asyncio.run(detect(world.export))
    assert answer.new == 5


def test_a_listing_taken_during_a_sync_is_no_evidence_of_absence(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(detect(world.export))
    world.faults(hidden_files=["doc-0.md"])
    real = LlamaCloudSource.get_index

    async def ready_and_syncing(self: LlamaCloudSource) -> IndexState:
        return replace(await real(self), sync_in_progress=True)

    monkeypatch.setattr(LlamaCloudSource, "get_index", ready_and_syncing)
    assert asyncio.run(detect(world.export, complete=True)).look == "incremental"
    assert missing(world) == set()


def test_a_listing_during_which_the_index_moved_is_taken_again_although_the_index_has_moved_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(detect(world.export))
    real, calls = LlamaCloudSource.get_index, itertools.count()

    async def moves_and_returns(self: LlamaCloudSource) -> IndexState:
        index = await real(self)
        return replace(index, change_key="of a sync that came to nothing") if next(calls) == 1 else index

    monkeypatch.setattr(LlamaCloudSource, "get_index", moves_and_returns)
    assert asyncio.run(detect(world.export, complete=True)).look == "incremental"
    assert [asyncio.run(detect(world.export)).look for _ in range(2)] == ["complete", "unchanged"]


def test_a_look_at_what_has_changed_alone_is_no_evidence_of_absence(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(detect(world.export))
    monkeypatch.setattr("pipeline.stages.detect._CHEAP_FILES", 0)
    complete_at = world.export.ledger.state().complete_at
    world.write("doc-1.md", "# Document 1\n\nEdited.\n")
    world.write("doc-9.md", "# Nine\n")
    world.remove("doc-0.md")
    world.refresh()
    found = asyncio.run(detect(world.export))
    assert (found.look, found.new, found.changed) == ("incremental", 1, 1)
    assert missing(world) == set()
    assert world.export.ledger.state().complete_at == complete_at
    assert asyncio.run(detect(world.export)).look == "unchanged"
    assert asyncio.run(detect(world.export, complete=True)).missing == 1
    assert missing(world) == {"doc-0.md"}


def test_when_a_grace_period_is_over_one_complete_listing_is_taken_of_an_index_that_has_not_moved(world: World) -> None:
    def looks() -> list[str]:
        return [asyncio.run(detect(world.export)).look for _ in range(2)]

    asyncio.run(detect(world.export))
    world.change(removal={"grace_period_seconds": 600})
    ledger, gone = world.export.ledger, world.file_id("doc-0.md")
    world.remove("doc-0.md")
    world.refresh()
    assert looks() == ["complete", "unchanged"]
    ledger.update_files([{"file_id": gone, "missing_since": time.time() - 900}])
    assert looks() == ["unchanged", "unchanged"], "the last listing was taken after the grace period"
    ledger.update_state(complete_at=time.time() - 400)
    assert looks() == ["complete", "unchanged"]


def test_a_reconcile_marks_a_rotating_slice_for_another_fetch_and_begins_again_after_the_last(world: World) -> None:
    asyncio.run(detect(world.export))
    world.change(detection={"reconcile_interval_seconds": 0})
    ledger = world.export.ledger
    marked: list[str] = []
    for _ in range(6):
        asyncio.run(detect(world.export))
        [chosen] = [file_id for file_id, row in ledger.files().items() if row.refetch]
        marked.append(chosen)
        ledger.update_files([{"file_id": chosen, "refetch": False}])
    files = sorted(ledger.files())
    assert marked == [*files, files[0]]


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
def test_a_look_at_an_index_that_has_not_moved_reads_no_rows_of_files(world: World) -> None:
    asyncio.run(detect(world.export))
    with patch.object(Ledger, "files", side_effect=AssertionError("however many there are")):
        assert asyncio.run(detect(world.export)).look == "unchanged"


def test_an_unreachable_index_raises_and_changes_nothing(world: World) -> None:
    asyncio.run(detect(world.export))
    before = world.export.ledger.files()
    unreachable = patch.dict(os.environ, {"LLAMA_CLOUD_BASE_URL": "http://127.0.0.1:9"})
    with unreachable, pytest.raises(SourceUnavailable):
        asyncio.run(detect(world.export, complete=True))
    assert world.export.ledger.files() == before
