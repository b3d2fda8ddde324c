"""Erasure leaves nothing anywhere and never comes back."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from pipeline.errors import LakeError, SinkUnavailable
from pipeline.lake.lake import Lake
from pipeline.ledger import Ledger
from pipeline.orchestration.liveness import command_run
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline.stages.chunk import chunk
from pipeline.stages.detect import detect
from pipeline.stages.embed import embed
from pipeline.stages.erase import ErasureReport, Retired, erase, retire
from pipeline.stages.fetch import fetch
from pipeline.stages.load import load
from pipeline.stages.report import StageReport
from pipeline.stages.verify import verify
from pipeline_tests.lake.test_lake import killed_writer
from pipeline_tests.orchestration.test_removals import take_down
from pipeline_tests.trust.conftest import LONG
from pipeline_tests.trust.damage import drop_rows
from pipeline_tests.world import World, open_world

SECRET = "The patient is called Quirinus Zwiebelfisch."


@contextmanager
def opened_with_a_patient(root: Path) -> Iterator[World]:
    with open_world(root) as opened:
        opened.write("patient.md", f"# Patient\n\n{SECRET}\n")
        opened.write("other.md", "# Other\n\nNothing personal.\n")
        opened.ingest()
        yield opened


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with opened_with_a_patient(tmp_path) as opened:
        yield opened


def wipe(world: World, file_id: str) -> ErasureReport:
    return asyncio.run(erase(world.export, [file_id], run_id="erase-test"))


def files_with(root: Path, text: bytes) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_an_erased_file_leaves_no_byte_and_the_next_syncs_do_not_bring_it_back(world: World) -> None:
    sink = world.root / "home" / "lancedb"
    assert files_with(sink, b"Quirinus")
    assert world.sync().ok
    file_id = world.file_id("patient.md")
    assert file_id in world.instance.get_dynamic_partitions("default_files")
    report = wipe(world, file_id)
    assert report.proved
    assert {proof.place.split(" ")[0] for proof in report.proofs} == {"lancedb", "lake", "vector"}
    assert files_with(sink, b"Quirinus") == []
    assert all(file_id not in world.export.lake.partitions(d) for d in ("parsed_payloads", "chunks", "embeddings"))
    for _ in range(2):
        assert world.sync().ok
        assert world.names() == {"other.md"}
    world.write("patient.md", f"# Patient\n\n{SECRET} Again.\n")
    assert world.sync().ok
    assert world.names() == {"other.md"}
    assert file_id not in world.export.ledger.files()
    assert file_id not in world.instance.get_dynamic_partitions("default_files")
    assert asyncio.run(verify(world.export, "lancedb", deep=True)).ok
    assert world.export.ledger.register.tombstones()[file_id].proved_at is not None
    assert "Quirinus" not in json.dumps([asdict(e) for e in world.export.ledger.history(file_id)])


def test_why_an_erased_file_failed_is_not_kept_and_that_it_did_is(world: World) -> None:
    file_id = world.file_id("patient.md")
    world.write("patient.md.meta.json", json.dumps({"year": "when Quirinus was born"}))
    world.change(metadata_fields={"year": "integer"})
    assert not world.sync().ok
    world.export.record_failures({file_id: "as an earlier version told it: 'when Quirinus was born'"}, "earlier")
    assert wipe(world, file_id).proved
    history = world.export.ledger.history(file_id)
    assert "Quirinus" not in json.dumps([asdict(world.export.ledger.files()[file_id]), *map(asdict, history)])
    assert [event.event for event in history][-4:] == ["failed", "failed", "removed", "erased"]


def test_what_is_left_of_a_file_in_the_lake_counts_though_nobody_can_read_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = world.file_id("patient.md")
    for partition in (world.root / "home" / "lake").rglob(f"{file_id}.parquet"):
        partition.write_bytes(partition.read_bytes()[:-1])
    with monkeypatch.context() as patch:
        patch.setattr(Lake, "delete_many", lambda _self, _partitions: None)
        kept = wipe(world, file_id)
    assert [proof.records for proof in kept.proofs if proof.place == "lake"] == [3]
    assert not kept.proved
    assert wipe(world, file_id).proved


def test_what_a_killed_writer_left_of_a_file_is_erased_and_proved_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = world.file_id("patient.md")
    lake = world.root / "home" / "lake"
    killed_writer(world.export.lake, file_id, pa.table({"content": [SECRET]}))
    assert list(lake.rglob("*.tmp"))

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        refused = wipe(world, file_id)
    assert [proof.records for proof in refused.proofs if proof.place == "lake"] == [1]
    assert not refused.proved
    assert wipe(world, file_id).proved
    assert list(lake.rglob("*.tmp")) == []


def test_a_complete_look_sweeps_what_killed_writers_left_long_ago(world: World) -> None:
    killed_writer(world.export.lake, "dfl-gone")
    [left] = (world.root / "home" / "lake").rglob("*.tmp")
    world.ingest()
    assert left.exists()
    os.utime(left, (0, 0))
    asyncio.run(detect(world.export, complete=True))
    assert not left.exists()


def test_a_run_that_was_asked_for_a_file_before_its_erasure_brings_nothing_back(world: World) -> None:
    file_id = world.file_id("patient.md")
    assert wipe(world, file_id).proved
    assert world.export.ledger.files()[file_id].status == "removed"

    async def run() -> list[StageReport]:
        stages = (fetch, chunk, embed, partial(load, sink="lancedb"))
        return [await stage(world.export, file_ids=[file_id], run_id="asked-before") for stage in stages]

    assert [report.worked for report in asyncio.run(run())] == [0, 0, 0, 0]
    assert file_id not in world.export.lake.partitions("parsed_payloads")
    assert world.names() == {"other.md"}


def test_a_run_leaves_alone_what_an_erasure_holds(world: World) -> None:
    file_id = world.file_id("patient.md")
    with command_run("erase") as erasure:
        assert world.export.claim([file_id], erasure, leaving=True) == [file_id]
        world.write("patient.md", "# Patient\n\nAnother text.\n")
        report = world.sync()
        assert not report.ok
        assert report.needs.due == [file_id]
        assert SECRET in {record.content for record in world.held() if record.file_name == "patient.md"}.pop()


def test_the_digests_a_run_had_claimed_before_it_died_go_too(world: World) -> None:
    vectors, model = world.export.ledger.vectors, world.export.embedder.identity.slug
    wanted = {world.file_id("patient.md"): [b"of its new text."]}
    vectors.claim(model, wanted, "died", seconds=3600, is_live=lambda _run_id: True)
    assert vectors.claim(model, wanted, "next", seconds=3600, is_live=lambda _run_id: True).waiting
    assert wipe(world, world.file_id("patient.md")).proved
    assert not vectors.claim(model, wanted, "next", seconds=3600, is_live=lambda _run_id: True).waiting


def test_an_old_models_collection_is_erased_from_too(world: World) -> None:
    file_id = world.file_id("patient.md")
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    world.ingest()
    report = wipe(world, file_id)
    assert report.proved
    assert len([proof for proof in report.proofs if proof.place.startswith("lancedb")]) == 2
    assert files_with(world.root / "home" / "lancedb", b"Quirinus") == []


def retired(world: World, **which: str) -> list[Retired]:
    return asyncio.run(retire(world.export, **which))


def move_with_another_model(world: World, uri: Path) -> str:
    """The sink is set up elsewhere, and another model is used, in one edit; answers the former model."""
    old = world.export.embedder.identity.slug
    world.change(sinks={"lancedb": {"uri": str(uri)}}, embedding={"provider": "constant", "constant_dimension": 64})
    world.ingest()
    return old


@pytest.mark.parametrize("along", [False, True])
def test_a_former_models_collection_is_erased_and_retired_where_it_was_written_and_where_its_sink_is_now(
    world: World, along: bool
) -> None:
    before, now = world.root / "home" / "lancedb", world.root / "elsewhere"
    if along:
        before.rename(now)
    old = move_with_another_model(world, now)
    report = wipe(world, world.file_id("patient.md"))
    assert report.proved
    assert [proof.place for proof in report.proofs if old in proof.place] == [
        f"lancedb ({old}, as it was set up before)",
        f"lancedb ({old})",
    ]
    assert files_with(world.root / "home" / "lancedb", b"Quirinus") == files_with(now, b"Quirinus") == []
    assert sorted(one.files for one in retired(world, model=old)) == [0, 1]
    assert not [path for place in (before, now) for path in place.glob(f"*{old}*")]
    assert old not in {held.slug for held in world.export.ledger.register.collections()}


def test_a_former_model_is_neither_proved_gone_nor_forgotten_while_the_place_it_was_written_to_does_not_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.export.held_in("lancedb")
    old = move_with_another_model(world, world.root / "elsewhere")
    with monkeypatch.context() as patched:
        take_down(world, patched, "home")
        report = wipe(world, world.file_id("patient.md"))
        assert [problem.partition(":")[0] for problem in report.problems] == [f"lancedb ({old}, as it was set up before)"]
        assert not report.proved
        with pytest.raises(SinkUnavailable):
            retired(world, model=old)
    assert before in world.export.ledger.register.collections()
    assert wipe(world, world.file_id("patient.md")).proved


def test_a_former_model_of_a_sink_that_is_of_another_kind_now_is_erased_where_it_was_written(world: World) -> None:
    old = world.export.embedder.identity.slug
    world.change(sinks={"lancedb": {"type": "storage_context"}}, embedding={"provider": "constant", "constant_dimension": 64})
    world.ingest()
    report = wipe(world, world.file_id("patient.md"))
    assert report.proved
    assert [proof.place for proof in report.proofs if old in proof.place] == [f"lancedb ({old}, as it was set up before)"]
    assert files_with(world.root / "home" / "lancedb", b"Quirinus") == []


def test_a_file_that_was_removed_before_is_erased_from_an_old_models_collection_too(world: World) -> None:
    file_id = world.file_id("patient.md")
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    world.ingest()
    world.remove("patient.md")
    assert world.ingest().due == [file_id]
    assert files_with(world.root / "home" / "lancedb", b"Quirinus")
    assert wipe(world, file_id).proved
    assert files_with(world.root / "home" / "lancedb", b"Quirinus") == []


def add_second_sink(world: World) -> None:
    world.change(sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(world.root / "second")}})
    world.ingest()


def test_a_sink_that_does_not_answer_leaves_the_erasure_unproved_until_it_is_run_again(world: World) -> None:
    add_second_sink(world)
    file_id = world.file_id("patient.md")
    blocked = world.root / "blocked"
    blocked.write_text("a file where the database should lie")
    world.change(sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(blocked / "db")}})
    report = wipe(world, file_id)
    assert not report.proved
    assert "second" in report.problems[0]
    assert world.export.ledger.register.tombstones()[file_id].proved_at is None
    world.change(sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(world.root / "second")}})
    assert wipe(world, file_id).proved
    assert files_with(world.root / "second", b"Quirinus") == []


def test_records_that_no_snapshot_speaks_of_keep_an_erasure_unproved(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def keep(self: LanceDBExporter, **given: Any) -> None: ...

    world.write("patient.md", LONG)
    world.ingest()
    drop_rows(world, "chunk_index = 0")
    with monkeypatch.context() as patched:
        patched.setattr(LanceDBExporter, "delete_files", keep)
        report = wipe(world, world.file_id("patient.md"))
    assert not report.problems
    assert not report.proved
    assert next(proof.records for proof in report.proofs if proof.place.startswith("lancedb")) == len(world.held())


def wiped_while_a_sink_is_down(world: World, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of the file, which the second sink holds still."""
    add_second_sink(world)
    file_id = world.file_id("patient.md")
    with monkeypatch.context() as patched:
        take_down(world, patched, "second")
        assert not wipe(world, file_id).proved
    return file_id


def test_an_erasure_that_a_sink_kept_from_its_end_is_finished_by_the_next_sync(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = wiped_while_a_sink_is_down(world, monkeypatch)
    assert world.ingest().removing == [file_id]
    assert world.names("second") == {"other.md"}


def test_a_file_that_returns_from_an_erasure_that_was_not_finished_stands_in_every_sink(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = wiped_while_a_sink_is_down(world, monkeypatch)
    world.export.lake.delete(file_id, ["tombstones"])
    world.export.ledger.register.lift([file_id])
    world.ingest()
    world.assert_settled("lancedb")
    world.assert_settled("second")


@pytest.mark.parametrize(
    ("of", "step"), [(Ledger, "forget_content"), (Lake, "delete"), (Lake, "sweep"), (Ledger, "record_removed")]
)
def test_a_file_whose_erasure_breaks_off_does_not_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch, of: type, step: str
) -> None:
    def breaks_off(*_: object, **__: object) -> None:
        raise LakeError("it is read-only")

    file_id = world.file_id("patient.md")
    with monkeypatch.context() as patched:
        patched.setattr(of, step, breaks_off)
        with pytest.raises(LakeError):
            wipe(world, file_id)
    world.ingest()
    assert world.names() == {"other.md"}
    assert wipe(world, file_id).proved
    assert files_with(world.root / "home", SECRET.encode()) == []


def test_a_file_held_by_a_live_run_is_not_erased_under_its_feet(world: World) -> None:
    file_id = world.file_id("patient.md")
    holder = dg.DagsterRun(job_name="other", run_id="11111111-2222-3333-4444-555555555555", status=dg.DagsterRunStatus.STARTED)
    world.instance.add_run(holder)
    export = world.export
    assert export.ledger.claim([file_id], holder.run_id, seconds=600, dead_runs=export.ledger.holders([file_id])) == [file_id]
    report = wipe(world, file_id)
    assert not report.proved
    assert "worked on by a run" in report.problems[0]
    world.instance.delete_run(holder.run_id)
    assert wipe(world, file_id).proved
