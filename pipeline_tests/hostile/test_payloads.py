"""The hostile corpus through the whole export, into LanceDB and PostgreSQL: stored right, or refused for that file alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.ledger.models import FileRow
from pipeline.orchestration.launcher import SyncReport
from pipeline.sinks.records import ChunkRecord
from pipeline_tests.hostile.cloud import HostileCloud, ServedFile, hostile_cloud
from pipeline_tests.hostile.corpus import CAP, Case, hostile_names, odd_payloads, paged, refused_payloads
from pipeline_tests.postgres import fresh_database, postgres
from pipeline_tests.world import World, world_over

DSN = "HOSTILE_PGVECTOR_DSN"
SINKS = ("lancedb", "pgvector")
STORED = [*odd_payloads(), *hostile_names()]
REFUSED = refused_payloads()
HONEST = ServedFile("dfl-honest", paged("An honest body."), "honest.pdf", {"team": "gauges"})


@dataclass
class Outcome:
    """What one sync of the whole corpus left behind. ``around`` is the folder the home lies in."""

    around: Path
    world: World
    cloud: HostileCloud
    report: SyncReport
    rows: dict[str, FileRow]
    held: dict[str, dict[str, list[ChunkRecord]]]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    around = tmp_path_factory.mktemp("hostile")
    root = around / "a" / "b" / "c" / "d" / "e"  # so deep that "../../../../" stays inside the folder that is looked at
    root.mkdir(parents=True)
    files = [HONEST, *(case.file for case in (*REFUSED, *STORED))]
    with postgres() as uri, hostile_cloud(*files) as cloud, pytest.MonkeyPatch.context() as patch:
        patch.setenv(DSN, fresh_database(uri))
        patch.chdir(root)
        sinks = {"lancedb": {}, "pgvector": {"dsn_env": DSN}}
        with world_over(root, cloud, index={"max_payload_bytes": CAP}, sinks=sinks) as world:
            report = world.sync()
            held = {sink: _by_file(world.held(sink)) for sink in SINKS}
            yield Outcome(around, world, cloud, report, world.export.ledger.files(), held)


def _by_file(records: list[ChunkRecord]) -> dict[str, list[ChunkRecord]]:
    files: dict[str, list[ChunkRecord]] = {}
    for record in records:
        files.setdefault(record.parsed_directory_file_id, []).append(record)
    return files


def test_the_run_goes_through_and_the_honest_file_is_stored(outcome: Outcome) -> None:
    assert (outcome.report.runs, outcome.report.failed_runs) == (1, 0)
    for sink in SINKS:
        (record,) = outcome.held[sink]["dfl-honest"]
        assert (record.content, record.metadata) == ("An honest body.", {"team": "gauges"})
    assert outcome.cloud.wrong_paths == []


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_cannot_be_stored_is_an_error_of_its_file_alone(outcome: Outcome, case: Case) -> None:
    row = outcome.rows[case.file.id]
    assert (row.status, row.attempts) == ("failed", 1)
    assert re.search(case.refused or "", row.last_error or "")
    assert case.file.display_name in (row.last_error or "")
    assert len(row.last_error or "") < 3000
    assert all(case.file.id not in outcome.held[sink] for sink in SINKS)


@pytest.mark.parametrize("case", STORED, ids=lambda case: case.name)
@pytest.mark.parametrize("sink", SINKS)
def test_what_only_looks_wrong_is_stored_right(outcome: Outcome, sink: str, case: Case) -> None:
    row = outcome.rows[case.file.id]
    assert (row.status, row.last_error) == ("done", None)
    records = outcome.held[sink].get(case.file.id, [])
    assert len(records) == row.chunk_count
    assert bool(records) == bool(case.texts)
    for text in case.texts:
        assert any(text in record.content for record in records)
    for record in records:
        assert record.file_name == row.display_name
    if case.pages is not None:
        cited = {page for r in records for page in range(r.page_range_start or 0, (r.page_range_end or 0) + 1)}
        assert case.pages <= cited


def test_both_stores_hold_the_same_and_it_is_what_the_cloud_says(outcome: Outcome) -> None:
    expected = {case.file.id for case in STORED if case.texts} | {HONEST.id}
    for sink in SINKS:
        assert outcome.held[sink].keys() == expected
        assert {file_id: records[0].record_set_hash for file_id, records in outcome.held[sink].items()} == {
            file_id: outcome.rows[file_id].record_set_hash for file_id in expected
        }


def test_metadata_arrives_as_it_was_but_for_what_no_store_can_hold(outcome: Outcome) -> None:
    metadata = {case.name: outcome.held["pgvector"][case.file.id][0].metadata for case in STORED if "metadata" in case.name}
    assert metadata["metadata-0"]["nan"] is metadata["metadata-0"]["inf"] is None
    assert metadata["metadata-0"]["huge"] == 10**300
    assert metadata["metadata-1"] == next(case.file.metadata for case in STORED if case.name == "metadata-1")
    assert metadata["metadata-5"] == next(case.file.metadata for case in STORED if case.name == "metadata-5")
    assert metadata["metadata-6"]["nul\ufffdkey"] == "nul\ufffdvalue"
    for name in ("metadata-2", "metadata-3", "metadata-4"):  # names of our own fields change nothing of ours
        (case,) = (case for case in STORED if case.name == name)
        (record,) = outcome.held["lancedb"][case.file.id]
        assert record.parsed_directory_file_id == case.file.id
        assert (record.chunk_index, record.file_name, record.metadata) == (0, case.file.display_name, case.file.metadata)


def test_nothing_is_written_outside_the_home(outcome: Outcome) -> None:
    home = outcome.world.root / "home"
    outside = [path for path in outcome.around.rglob("*") if path.is_file() and not path.is_relative_to(home)]
    assert outside == []
    ledger = {"ledger.sqlite", "ledger.sqlite-shm", "ledger.sqlite-wal"}
    assert {path.name for path in home.iterdir()} <= {"dagster", "lake", "lancedb", *ledger}
    datasets = home / "lake" / "default"
    assert all(path.parent.parent == datasets for path in datasets.rglob("*.parquet"))
    assert not any(os.path.lexists(path) for path in ("/etc/cron.d/evil", home.parent / "evil.parquet"))


def test_a_removed_hostile_file_is_removed_alone(outcome: Outcome) -> None:
    gone = {case.file.id for case in STORED if case.name.startswith("id-")}
    outcome.cloud.files = [file for file in outcome.cloud.files if file.id not in gone]
    outcome.world.sync()
    for sink in SINKS:
        assert outcome.held[sink].keys() - _by_file(outcome.world.held(sink)).keys() == gone
    assert gone.isdisjoint(outcome.world.export.lake.partitions("embeddings"))
