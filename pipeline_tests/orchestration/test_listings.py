"""A sync whose listing of the directory is not whole: what it does, and what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli_output import sync_summary
from pipeline.errors import SyncFailed
from pipeline.orchestration.launcher import sync
from pipeline.stages.detect import refresh
from pipeline.stages.needs import Needs
from pipeline_tests.command_line import invoke
from pipeline_tests.orchestration.test_sync import told, write_seven_files
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        write_seven_files(opened)
        yield opened


def test_an_empty_listing_deletes_nothing_and_is_no_success(world: World) -> None:
    world.change(removal={"grace_period_seconds": 0, "max_delete_fraction": 1.0})  # no fuse holds them back
    world.sync()
    world.faults(hidden_files=["*"])
    report = world.sync()
    assert report.removed == []
    assert len(world.names()) == 7
    assert not report.ok
    assert "the listing is empty while 7 files are known" in sync_summary(report)["unread"]
    assert "indexport erase" in told(world, report)
    world.faults()
    assert world.sync().ok


@pytest.mark.usefixtures("impatient_sdk")
def test_a_listing_that_breaks_half_way_deletes_nothing_and_the_next_one_heals(world: World) -> None:
    world.sync()
    world.write("new.md", "# New\n\nA new file.\n")
    world.faults(page_size_cap=2, fail_listing_at_page=2)
    report = world.sync()
    assert not report.ok
    assert "stopped half way" in sync_summary(report)["unread"]
    assert "the directory was not read whole: the listing of directory files stopped half way" in told(world, report)
    assert len(world.names()) >= 7
    world.faults()
    assert world.sync().ok
    world.assert_settled()


@pytest.mark.usefixtures("impatient_sdk")
def test_what_a_broken_listing_shows_is_worked_on_and_the_command_says_that_it_is_not_all(world: World) -> None:
    world.refresh()
    world.faults(page_size_cap=2, fail_listing_at_page=2)
    planned = json.loads(invoke("plan", "--json", code=1))
    assert (planned["new"], "HTTP 500" in planned["unread"]) == (2, True)
    assert "the directory was not read whole" in invoke("plan", code=1)
    summary = json.loads(invoke("sync", "--json", code=1))
    assert len(summary["ingested"]) == 2
    assert "HTTP 500" in summary["unread"]


def test_a_sync_of_an_index_that_is_still_being_built_is_not_done(world: World) -> None:
    world.sync()
    world.write("new.md", "# New\n\nA new file.\n")
    world.faults(hold_syncs=True)
    asyncio.run(refresh(world.export, wait=False))
    report = sync(world.settings, world.instance)
    assert not report.ok
    assert "'documents' is being built or synced" in told(world, report)
    assert report.needs == Needs(lagging={"lancedb": []})
    world.faults()


def test_a_failed_index_is_named_with_the_vendors_message(world: World) -> None:
    world.sync()
    world.write("doc-0.md", "# Document 0\n\nEdited.\n")
    world.faults(sync_error="quota of pages used up")
    with pytest.raises(SyncFailed, match="quota of pages used up"):
        world.sync()
    assert len(world.names()) == 7
