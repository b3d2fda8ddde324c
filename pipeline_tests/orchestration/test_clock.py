"""A clock that was years ahead once and has been set right: what it wrote holds nothing up, and proves nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from pipeline.ledger.models import MODEL
from pipeline.orchestration import sensors
from pipeline.orchestration.partitions import RANGE_END, RANGE_START, key_order
from pipeline.stages.detect import detect
from pipeline.stages.needs import Needs, needs_of
from pipeline_tests.orchestration.test_sensor import left_behind, tick
from pipeline_tests.orchestration.test_waves import decide
from pipeline_tests.world import World, open_world

YEARS = 10 * 365 * 86_400.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        for n in range(20):
            opened.write(f"doc-{n:02d}.md", f"# Document {n}\n\nText {n}.\n")
        assert opened.sync().ok
        yield opened


def needs(world: World) -> Needs:
    return needs_of(world.export, asyncio.run(world.export.scope()))


def test_a_sync_of_the_index_is_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.change(detection={"sync_every_seconds": 60})
    world.export.ledger.update_state(sync_requested_at=time.time() + YEARS)
    asked = []

    async def refresh(*_: Any, **__: Any) -> bool:
        asked.append(True)
        return True

    monkeypatch.setattr(sensors, "refresh", refresh)
    tick(world)
    assert asked


def test_a_complete_listing_is_taken(world: World) -> None:
    world.export.ledger.update_state(complete_at=time.time() + YEARS)
    assert asyncio.run(detect(world.export)).look == "complete"
    assert asyncio.run(detect(world.export)).look == "unchanged"


def test_sinks_and_the_model_are_tried(world: World) -> None:
    for name in ("lancedb", MODEL):
        world.export.ledger.record_sink_state(name, error="down", backoff=lambda _: YEARS)
    world.write("doc-00.md", "# Edited\n\nText.\n")
    world.refresh()
    asyncio.run(detect(world.export, complete=True))
    assert needs(world).unreachable == {}


def test_a_file_that_failed_is_tried(world: World) -> None:
    file_id = world.file_id("doc-00.md")
    world.export.record_failures({file_id: "broken"}, "a run")
    assert needs(world).backing_off == [file_id]
    world.export.ledger.update_files([{"file_id": file_id, "next_retry_at": time.time() + YEARS}])
    assert needs(world).alone == [file_id]


def test_a_file_that_is_gone_is_removed_after_its_grace_period_and_not_before(world: World) -> None:
    world.change(removal={"grace_period_seconds": 600})
    file_id = world.file_id("doc-00.md")
    world.remove("doc-00.md")
    assert world.sync().removed == []
    ledger = world.export.ledger
    ledger.update_files([{"file_id": file_id, "missing_since": time.time() + YEARS}])
    ledger.update_state(complete_at=time.time() + YEARS)
    assert world.sync().removed == []
    missing_since = ledger.files()[file_id].missing_since
    assert missing_since is not None
    assert missing_since <= time.time()
    ledger.update_files([{"file_id": file_id, "missing_since": missing_since - 600}])
    ledger.update_state(complete_at=time.time() + YEARS)
    assert needs(world).awaiting_grace == [file_id]
    assert world.sync().removed == [file_id]


def test_what_was_removed_does_not_count_for_the_fuse_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = world.export.ledger
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "_clock", lambda: time.time() + YEARS)
        ledger.log([(f"dfl-{n}", "removed", {}) for n in range(20)], run_id=None)
    world.remove("doc-00.md")
    assert len(world.sync().removed) == 1


def test_the_check_of_failing_files_is_told_after_later_loads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = world.export.ledger
    held = ledger.sink_hashes()["lancedb"]
    for loaded in (held, dict([*held.items()][:1])):
        with monkeypatch.context() as patched:
            patched.setattr(ledger, "_clock", lambda: time.time() + YEARS)
            ledger.record_sink(world.export.held_in("lancedb"), loaded)
        _, cursor = tick(world)
        world.write("doc-01.md", f"# Edited\n\nText {len(loaded)}.\n")
        assert world.sync().ok
        answer, cursor = tick(world, cursor)
        assert left_behind(answer) == [set()]
        answer, _ = tick(world, cursor)
        assert left_behind(answer) == []


def test_scattered_changes_wait_no_longer_than_others(world: World) -> None:
    tags = {RANGE_START: "x", RANGE_END: "y"}
    create_run_for_test(world.instance, job_name="default_ingest", status=dg.DagsterRunStatus.STARTED, tags=tags)
    rows = world.export.ledger.files()
    for file_id in key_order(world.instance, "default")[::2]:
        world.write(rows[file_id].display_name, "# Edited\n\nText.\n")
    waiting_since = decide(world, waiting_since=time.time() + YEARS).waiting_since
    assert waiting_since is not None
    assert waiting_since <= time.time()
