"""Removals that cannot be finished at once: a sink is down, or another holds the files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.components.index_export import export_definitions
from pipeline.errors import ConfigError, LakeError, SinkUnavailable
from pipeline.lake.lake import DATASETS, Lake
from pipeline.orchestration.launcher import SyncReport
from pipeline.orchestration.liveness import command_run
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline.stages.remove import pending_removals, remove
from pipeline.stages.work import kept
from pipeline_tests.local_cloud.harness import until
from pipeline_tests.orchestration.test_sensor import tick
from pipeline_tests.orchestration.test_sync import told
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two sinks, the first of which can be made to be down."""
    places = {name: {"type": "lancedb", "uri": str(tmp_path / name)} for name in ("first", "second")}
    with open_world(tmp_path, sinks=places) as opened:
        for n in range(4):
            opened.write(f"doc-{n}.md", f"# Document {n}\n\nText {n}.\n")
        assert opened.sync().ok
        yield opened


def take_down(world: World, patched: pytest.MonkeyPatch, *sinks: str) -> None:
    real = LanceDBExporter.provision

    async def provision(self: LanceDBExporter) -> None:
        if any(str(world.root / sink) in str(self.settings) for sink in sinks):
            raise SinkUnavailable("it does not answer")
        await real(self)

    patched.setattr(LanceDBExporter, "provision", provision)


def test_a_sink_that_is_set_up_wrong_keeps_no_removed_file_in_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDRANT_URL", raising=False)
    world.change(sinks={"qdrant": {}, **world.settings.sinks})
    world.remove("doc-0.md")
    report = world.sync()
    assert (report.ok, report.removed) == (False, [])
    assert world.names("first") == world.names("second") == {"doc-1.md", "doc-2.md", "doc-3.md"}
    states = world.export.ledger.sink_states()
    assert "QDRANT_URL" in (states["qdrant"].last_error or "")
    assert (states["first"].down_until, states["second"].down_until) == (None, None)


def test_every_sink_tells_how_many_files_a_removal_took_from_it(world: World) -> None:
    world.remove("doc-0.md")
    world.remove("doc-1.md")
    assert len(world.sync().removed) == 2
    for sink in world.settings.sinks:
        [event] = world.instance.fetch_observations(dg.AssetKey(["default", sink]), limit=1).records
        told = event.asset_observation
        assert told
        assert (told.partition, told.metadata["removed"].value) == (None, 2)


def heal(world: World) -> None:
    for sink in world.settings.sinks:
        world.export.ledger.record_sink_state(sink, error=None, backoff=lambda _: 0.0)


def sync_without(world: World, monkeypatch: pytest.MonkeyPatch, *sinks: str) -> SyncReport:
    with monkeypatch.context() as patched:
        take_down(world, patched, *sinks)
        return world.sync()


def test_a_sink_that_is_down_keeps_a_removed_file_no_longer_than_it_is_and_the_others_let_it_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = world.file_id("doc-0.md")
    world.remove("doc-0.md")
    report = sync_without(world, monkeypatch, "first")
    assert not report.ok
    assert (report.runs, report.failed_runs, report.removed) == (1, 1, [])
    assert "first: it does not answer" in report.errors[0]
    assert "doc-0.md" not in world.names("second")
    assert "doc-0.md" in world.names("first")
    assert world.export.ledger.sink_states()["first"].down_until is not None
    assert world.export.ledger.sink_states()["second"].down_until is None

    tried_again = sync_without(world, monkeypatch, "first")
    assert (tried_again.ok, tried_again.runs, tried_again.failed_runs) == (False, 1, 1)
    assert "removed files that wait for a sink which is down: 1" in told(world, tried_again)
    assert [(one.file_id, one.waits_for) for one in pending_removals(world.export)] == [(file_id, "sink")]

    heal(world)
    report = world.sync()
    assert report.ok
    assert report.removed == [file_id]
    assert "doc-0.md" not in world.names("first")
    assert file_id not in world.export.ledger.files()


def test_sinks_that_let_no_file_go_are_told_of_once_each(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def provision(self: LanceDBExporter) -> None:
        raise ConfigError("no key") if str(world.root / "second") in str(self.settings) else SinkUnavailable("no answer")

    monkeypatch.setattr(LanceDBExporter, "provision", provision)
    world.remove("doc-0.md")
    report = world.sync()
    assert report.errors == ["first: no answer; second: no key"]
    shown = told(world, report)
    assert "first is down, files it lacks: 0: no answer\nsecond is set up wrong, files it lacks: 0: no key\n" in shown
    assert "failed: " not in shown


def test_a_file_that_goes_while_a_sink_backs_off_leaves_the_others_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.remove("doc-0.md")
    sync_without(world, monkeypatch, "first")
    world.remove("doc-1.md")
    report = sync_without(world, monkeypatch, "first")
    assert (report.ok, report.runs) == (False, 1)
    assert world.names("second") == {"doc-2.md", "doc-3.md"}
    heal(world)
    assert world.sync().ok
    assert world.names("first") == {"doc-2.md", "doc-3.md"}


def test_a_file_that_returns_when_some_sinks_have_let_it_go_stands_in_all_of_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.faults(hidden_files=["doc-0.md"])
    sync_without(world, monkeypatch, "first")
    assert "doc-0.md" not in world.names("second")
    world.faults()
    assert world.sync().ok
    heal(world)
    assert world.sync().ok
    world.assert_settled("first")
    world.assert_settled("second")


def test_what_the_lake_keeps_of_a_removed_file_goes_with_the_next_sync(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, file_id = world.export.lake, world.file_id("doc-0.md")
    world.remove("doc-0.md")

    def refuse(self: Lake, partitions: Iterable[str]) -> None:
        raise LakeError("it is read-only")

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "delete_many", refuse)
        with pytest.raises(LakeError):
            world.ingest()
    assert file_id in lake.partitions("embeddings")
    world.ingest()
    assert [dataset for dataset in DATASETS if file_id in lake.partitions(dataset)] == []


def test_nothing_is_tried_while_every_sink_backs_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.remove("doc-0.md")
    assert sync_without(world, monkeypatch, "first", "second").failed_runs == 1
    world.remove("doc-1.md")
    world.refresh()
    assert asks_for_removals(world) == []
    assert world.names("first") == {f"doc-{n}.md" for n in range(4)}
    heal(world)
    assert world.sync().ok
    assert world.names("first") == world.names("second") == {"doc-2.md", "doc-3.md"}


def asks_for_removals(world: World) -> list[str | None]:
    """The jobs that a look of the sensor asks for, but for proofs of what stands."""
    answer, _ = tick(world)
    assert isinstance(answer, dg.SensorResult)
    jobs = [request.job_name for request in answer.run_requests or ()]
    return [job for job in jobs if job != "default_verification"]


def test_the_sensor_asks_for_no_removal_while_the_sink_backs_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.remove("doc-0.md")
    sync_without(world, monkeypatch, "first")
    assert asks_for_removals(world) == []


def test_files_that_an_erasure_holds_are_left_to_it(world: World) -> None:
    file_id = world.file_id("doc-0.md")
    with command_run("erase") as erasure:
        world.export.ledger.register.entomb([file_id])
        assert world.export.claim([file_id], erasure, leaving=True) == [file_id]
        world.export.ledger.update_files([{"file_id": file_id, "status": "removing"}])
        report = world.sync()
        assert (report.ok, report.runs, report.needs.due) == (False, 0, [file_id])
        world.export.ledger.drop_leases(erasure)
    assert world.sync().removed == [file_id]


def test_a_file_that_was_listed_again_before_its_removal_began_stays(world: World) -> None:
    back, gone = world.file_id("doc-0.md"), world.file_id("doc-1.md")
    world.export.ledger.update_files([{"file_id": gone, "status": "removing"}])
    report = asyncio.run(remove(world.export, [back, gone], run_id="removal"))
    assert (report.worked, report.not_ready) == (1, {back: "it is not marked for removal"})
    assert world.names("first") == world.names("second") == {"doc-0.md", "doc-2.md", "doc-3.md"}
    assert world.export.ledger.files()[back].status == "done"
    assert back in world.export.lake.partitions("embeddings")


def test_a_removal_keeps_its_files_for_as_long_as_it_works(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = world.file_id("doc-0.md")
    ledger = world.export.ledger
    ends: list[float] = []
    real = LanceDBExporter.delete_files

    def renewed(since: float) -> bool:
        ends.append(ledger.files([file_id])[file_id].lease_until or 0.0)
        return ends[-1] > since

    async def delete_slowly(self: LanceDBExporter, **which: Any) -> None:
        ledger.renew(ledger.holders([file_id]).pop(), seconds=0.01)
        await asyncio.to_thread(until, partial(renewed, ledger.files([file_id])[file_id].lease_until or 0.0))
        await real(self, **which)

    monkeypatch.setattr("pipeline.stages.work.kept", partial(kept, lease_seconds=0.3))
    monkeypatch.setattr(LanceDBExporter, "delete_files", delete_slowly)
    world.remove("doc-0.md")
    assert world.sync().removed == [file_id]


def test_what_would_go_is_named_with_what_it_waits_for_and_goes_once_approved_in_the_ui(world: World) -> None:
    for n in range(8):
        world.write(f"more-{n}.md", f"# More {n}\n\nText {n}.\n")
    world.sync()
    for n in range(8):
        world.remove(f"more-{n}.md")
    report = world.sync()
    assert len(report.needs.awaiting_approval) == 8
    waiting = pending_removals(world.export)
    assert [(removal.file, removal.waits_for) for removal in waiting] == [(f"more-{n}.md", "approval") for n in range(8)]
    job = export_definitions(world.settings).resolve_job_def("default_approve_removals")
    config = {"ops": {"default_approve": {"config": {"count": 8}}}}
    assert job.execute_in_process(instance=world.instance, run_config=config).success
    assert {removal.waits_for for removal in pending_removals(world.export)} == {"now"}
    assert len(world.sync().removed) == 8
    assert pending_removals(world.export) == []
    assert world.names("first") == world.names("second") == {f"doc-{n}.md" for n in range(4)}
