"""A file that one sink refuses: it waits for that sink alone, and no other goes without it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from pipeline.errors import RecordRefused
from pipeline.orchestration.launcher import sync
from pipeline.orchestration.waves import dispatch
from pipeline.sinks.base import ReplaceReport
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline.sinks.records import FileRecords
from pipeline.stages.needs import needs_of
from pipeline.stages.verify import verify
from pipeline_tests.orchestration.test_removals import take_down
from pipeline_tests.world import World, open_world

ALL = {"doc-0.md", "doc-1.md", "doc-2.md"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Of three files the sink ``strict`` refuses the first one."""
    replace_files = LanceDBExporter.replace_files

    async def refuse_one(self: LanceDBExporter, files: Sequence[FileRecords]) -> ReplaceReport:
        refused = [file for file in files if "strict" in str(self.settings) and file.provenance.file_name == "doc-0.md"]
        done = await replace_files(self, [file for file in files if file not in refused])
        return replace(done, refused=tuple(RecordRefused(file.file_id, "too large") for file in refused))

    monkeypatch.setattr(LanceDBExporter, "replace_files", refuse_one)
    places = {name: {"type": "lancedb", "uri": str(tmp_path / name)} for name in ("strict", "second")}
    with open_world(tmp_path, sinks=places) as opened:
        for n in range(3):
            opened.write(f"doc-{n}.md", f"# Document {n}\n\nText {n}.\n")
        yield opened


def lose_second(world: World) -> None:
    shutil.rmtree(world.root / "second")
    world.export.ledger.register.reset_sink("second")


@pytest.mark.parametrize(("max_attempts", "status"), [(1, "parked"), (5, "failed")])
def test_a_sink_that_is_lost_gets_a_file_back_that_another_one_refuses(world: World, max_attempts: int, status: str) -> None:
    world.change(detection={"max_attempts": max_attempts})
    assert not world.sync().ok
    refused = world.file_id("doc-0.md")
    before = world.export.ledger.files()[refused]
    lose_second(world)
    report = sync(world.settings, world.instance)
    assert (report.ok, report.failed_runs, world.names("second")) == (False, 0, ALL)
    assert report.needs.parked + report.needs.backing_off == [refused]
    row = world.export.ledger.files()[refused]
    assert (row.status, row.attempts, row.next_retry_at) == (status, 1, before.next_retry_at)
    assert world.partition_statuses("second") == {dg.AssetPartitionStatus.MATERIALIZED: 3}
    assert asyncio.run(verify(world.export, "second", deep=True)).ok
    assert [finding.file_id for finding in asyncio.run(verify(world.export, "strict")).findings] == [refused]
    assert sync(world.settings, world.instance).runs == 0


def test_a_sink_that_was_down_catches_up_with_a_file_that_another_one_refuses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        take_down(world, patched, "second")
        report = world.sync()
        refused = world.file_id("doc-0.md")
        assert report.needs.backing_off == [refused]
        assert refused in report.needs.unreachable["second"]
    report = world.sync()
    assert (report.ok, report.runs, world.names("second")) == (False, 1, ALL)
    assert (report.needs.backing_off, report.needs.unreachable) == ([refused], {})
    world.export.ledger.release([refused])
    monkeypatch.undo()
    assert world.sync().ok
    world.assert_settled("strict")


def test_a_file_on_its_way_to_a_sink_is_not_asked_for_again_and_stays_parked(world: World) -> None:
    world.change(detection={"max_attempts": 1})
    world.sync()
    lose_second(world)
    export, scope = world.export, asyncio.run(world.export.scope())
    [spec] = dispatch(world.instance, export, scope).runs
    assert (set(spec.keys), spec.assets) == (set(export.ledger.files()), ("second",))
    under_way = needs_of(export, scope, live_waves={spec.wave})
    assert (under_way.lagging["second"], under_way.parked) == ([], [world.file_id("doc-0.md")])
    assert len(needs_of(export, scope).lagging["second"]) == 3, "a run that dies is made up for"


def test_a_sink_that_is_lost_gets_the_version_at_hand_of_a_file_that_cannot_be_read_any_more(world: World) -> None:
    world.change(sinks={"second": world.settings.sinks["second"]}, detection={"max_attempts": 1})
    assert world.sync().ok
    world.write("doc-0.md", "# Document 0\n\nEdited into poison.\n")
    world.faults(payloads={"doc-0.md": "not_json"})
    assert len(world.sync().needs.parked) == 1
    lose_second(world)
    report = sync(world.settings, world.instance)
    assert (len(report.needs.parked), world.names("second")) == (1, ALL)


def test_a_sink_that_is_begun_anew_is_asked_again_for_what_it_refused(world: World) -> None:
    world.change(detection={"max_attempts": 1})
    world.sync()
    world.export.ledger.register.reset_sink("strict")
    sync(world.settings, world.instance)
    row = world.export.ledger.files()[world.file_id("doc-0.md")]
    assert (row.status, row.attempts) == ("parked", 2)
    assert sync(world.settings, world.instance).runs == 0
