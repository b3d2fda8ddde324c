"""Ledger, lake, sink or instance lost, each alone: one command, and nothing made again that some part still has."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipeline.errors import IncompleteListing, LedgerUnavailable, SyncFailed
from pipeline.ledger import Ledger, schema
from pipeline.ledger.vectors import VectorIndex
from pipeline.orchestration.liveness import command_run
from pipeline.orchestration.partitions import key_order
from pipeline.orchestration.resources import _open
from pipeline.stages.rebuild import LakeRebuild, LedgerRebuild, rebuild_lake, rebuild_ledger
from pipeline.stages.verify import verify
from pipeline_tests.orchestration.test_by_hand import named
from pipeline_tests.orchestration.test_removals import take_down
from pipeline_tests.trust.damage import alter, drop_rows, duplicate_rows
from pipeline_tests.world import World


def lose_ledger(world: World) -> None:
    """Every row of every table, as when the database is made anew."""
    engine = sa.create_engine(world.export.home.ledger_url)
    with engine.begin() as connection:
        for table in schema.metadata.sorted_tables:
            connection.execute(sa.delete(table))
    engine.dispose()
    _open.cache_clear()


def restore_ledger(world: World) -> LedgerRebuild:
    return asyncio.run(rebuild_ledger(world.export))


def restore_lake(world: World, **options: Any) -> LakeRebuild:
    return asyncio.run(rebuild_lake(world.export, run_id="rebuild-test", **options))


def test_a_ledger_is_not_rebuilt_from_a_listing_that_is_not_whole_and_the_reason_is_told(world: World) -> None:
    world.faults(sync_error="the connector's token has expired")
    with pytest.raises(SyncFailed):
        world.refresh()
    with pytest.raises(IncompleteListing, match="token has expired; a ledger is rebuilt from a complete listing alone"):
        restore_ledger(world)


def test_a_lost_ledger_is_read_off_what_is_left_and_nothing_is_left_to_do(
    world: World, embedded: list[str], replaced: list[str]
) -> None:
    before = {f: (row.records_key, row.record_set_hash, row.chunk_count) for f, row in world.export.ledger.files().items()}
    lose_ledger(world)
    rebuilt = restore_ledger(world)
    assert (rebuilt.files, rebuilt.with_payload, rebuilt.with_vectors) == (5, 5, 5)
    assert (rebuilt.standing, rebuilt.orphans, rebuilt.unreachable) == ({"lancedb": 5}, {"lancedb": 0}, {})
    rows = world.export.ledger.files()
    assert {f: (row.records_key, row.record_set_hash, row.chunk_count) for f, row in rows.items()} == before
    assert {row.status for row in rows.values()} == {"done"}
    assert world.ingest().due == []
    assert (embedded, replaced) == ([], [])
    assert asyncio.run(verify(world.export, "lancedb", deep=True)).ok


def test_a_sink_that_does_not_answer_is_told_by_a_rebuilt_ledger(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_ledger(world)
    take_down(world, monkeypatch, "home")
    rebuilt = restore_ledger(world)
    assert (rebuilt.files, rebuilt.standing, rebuilt.unreachable) == (5, {}, {"lancedb": "it does not answer"})


def test_files_that_a_run_holds_are_named_and_made_again_by_the_next_rebuild(world: World) -> None:
    [held, *_] = world.export.ledger.files()
    shutil.rmtree(world.root / "home" / "lake")
    with command_run("repair") as run_id:
        assert world.export.claim([held], run_id) == [held]
        rebuilt = restore_lake(world)
        world.export.ledger.drop_leases(run_id)
    assert (rebuilt.files, rebuilt.failures) == (4, {held: "a run is working on it; rebuild again when that has ended"})
    again = restore_lake(world)
    assert (again.files, again.failures) == (1, {})
    assert len(world.export.lake.partitions("embeddings")) == 5


def test_a_lost_ledger_still_knows_its_vectors(world: World, embedded: list[str]) -> None:
    lose_ledger(world)
    restore_ledger(world)
    (world.documents / "long.md").rename(world.documents / "renamed.md")
    world.ingest()
    assert embedded == []
    world.assert_settled()


def test_a_lost_ledger_that_nobody_rebuilds_costs_no_embedding(world: World, embedded: list[str]) -> None:
    lose_ledger(world)
    world.ingest()
    assert embedded == []
    world.assert_settled()


def test_a_ledger_put_back_from_before_an_edit_costs_no_embedding(world: World, embedded: list[str]) -> None:
    with (
        closing(sqlite3.connect(world.export.home.root / "ledger.sqlite")) as ledger,
        closing(sqlite3.connect(":memory:")) as copy,
    ):
        ledger.backup(copy)
        world.write("doc-1.md", "# Document 1\n\nEdited since the backup.\n")
        world.write("new.md", "# New\n\nAdded since the backup.\n")
        world.ingest()
        assert len(embedded) == 2
        copy.backup(ledger)
    _open.cache_clear()
    world.ingest()
    assert len(embedded) == 2
    world.assert_settled()


@pytest.mark.parametrize("write", [(VectorIndex, "replace"), (Ledger, "update_files")])
def test_a_rebuild_that_dies_half_way_is_finished_by_the_next(
    world: World, write: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = world.export.ledger.vectors.count(list(world.export.ledger.files()))
    monkeypatch.setattr("pipeline.stages.rebuild._FILES_AT_ONCE", 2)
    lose_ledger(world)
    holder, name = write
    real, calls = getattr(holder, name), Counter[str]()

    def dies_at_the_second(*given: Any, **named: Any) -> None:
        calls[name] += 1
        if calls[name] == 2:
            raise LedgerUnavailable("the database was restarted")
        real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(holder, name, dies_at_the_second)
        with pytest.raises(LedgerUnavailable):
            restore_ledger(world)
    assert restore_ledger(world).with_vectors == 5
    assert world.export.ledger.vectors.count(list(world.export.ledger.files())) == texts


def test_what_a_lost_ledger_finds_damaged_or_changed_is_left_to_the_next_run(world: World) -> None:
    file_id = world.file_id("doc-0.md")
    drop_rows(world, f"parsed_directory_file_id = '{file_id}'")
    world.write("doc-1.md", "# Document 1\n\nEdited while the ledger was gone.\n")
    world.refresh()
    lose_ledger(world)
    assert restore_ledger(world).standing == {"lancedb": 4}  # an edited file stands there as the lake has it
    report = world.sync()
    assert report.ok
    assert set(report.ingested) == {file_id, world.file_id("doc-1.md")}
    world.assert_settled()


@pytest.mark.parametrize("lost", ["ledger", "records"])
def test_a_file_of_which_a_sink_has_two_is_replaced_by_the_next_run(world: World, replaced: list[str], lost: str) -> None:
    file_id = world.file_id("doc-0.md")
    duplicate_rows(world, file_id, {})
    if lost == "ledger":
        lose_ledger(world)
        assert restore_ledger(world).standing == {"lancedb": 4}
    else:
        world.export.ledger.register.reset_sink("lancedb")
    world.ingest()
    assert replaced == [file_id]
    assert asyncio.run(verify(world.export, "lancedb", deep=True)).ok


@pytest.mark.parametrize("known", [False, True])
def test_orphans_found_without_a_ledger_go_the_way_of_removed_files(world: World, known: bool) -> None:
    """Also those whose removal the ledger remembers: the sink was put back from before it."""
    file_id = world.file_id("doc-2.md")
    world.remove("doc-2.md")
    world.refresh()
    if known:
        world.export.ledger.update_files([{"file_id": file_id, "status": "removed"}])
    else:
        lose_ledger(world)
    assert restore_ledger(world).orphans == {"lancedb": 1}
    assert "doc-2.md" in world.names()
    assert world.sync().removed == [file_id]
    world.assert_settled()


@pytest.mark.usefixtures("impatient_sdk")
def test_an_incomplete_listing_rebuilds_nothing(world: World) -> None:
    lose_ledger(world)
    world.faults(page_size_cap=2, fail_listing_at_page=2)
    with pytest.raises(Exception, match="the listing broke off; a ledger is rebuilt from a complete listing alone"):
        restore_ledger(world)


def test_a_lost_lake_takes_its_vectors_back_from_the_sink(world: World, embedded: list[str], replaced: list[str]) -> None:
    shutil.rmtree(world.root / "home" / "lake")
    rebuilt = restore_lake(world)
    assert (rebuilt.files, rebuilt.fetched.worked, rebuilt.cut.worked, rebuilt.embedded.worked) == (5, 5, 5, 5)
    assert (rebuilt.embedded.numbers["computed"], embedded) == (0, [])
    assert rebuilt.embedded.numbers["reused"] == len(world.held())
    assert world.ingest().due == []
    assert replaced == []
    assert asyncio.run(verify(world.export, "lancedb", deep=True)).ok


def test_what_the_sink_does_not_hold_is_embedded(world: World, embedded: list[str]) -> None:
    shutil.rmtree(world.root / "home" / "lake")
    drop_rows(world, f"parsed_directory_file_id = '{world.file_id('doc-0.md')}'")
    rebuilt = restore_lake(world)
    assert rebuilt.embedded.numbers["computed"] == len(embedded) == 1


def test_a_lost_part_of_the_lake_is_all_that_is_made_again(world: World) -> None:
    world.export.lake.delete(world.file_id("doc-1.md"), ["embeddings"])
    rebuilt = restore_lake(world)
    assert (rebuilt.files, rebuilt.fetched.worked, rebuilt.cut.worked, rebuilt.embedded.worked) == (1, 0, 0, 1)


def test_a_lost_vector_that_another_file_still_has_is_not_embedded_again(world: World, embedded: list[str]) -> None:
    world.write("copy.md", (world.documents / "doc-0.md").read_text())
    world.ingest()
    first = min(world.file_id("doc-0.md"), world.file_id("copy.md"))  # where the vector index points to
    world.export.lake.delete(first, ["embeddings"])
    rebuilt = restore_lake(world, sinks=[])
    assert (rebuilt.files, rebuilt.embedded.worked, embedded) == (1, 1, [])


@pytest.mark.parametrize("altered", [{"embedding_model": "'another@1'"}, {"vector": "array_repeat(CAST('NaN' AS FLOAT), 384)"}])
def test_a_vector_that_is_not_of_the_model_is_not_taken_back(world: World, embedded: list[str], altered: dict[str, str]) -> None:
    alter(world, f"parsed_directory_file_id = '{world.file_id('doc-0.md')}'", altered)
    shutil.rmtree(world.root / "home" / "lake")
    rebuilt = restore_lake(world)
    assert rebuilt.embedded.numbers["computed"] == len(embedded) == 1


def test_a_lake_put_back_from_before_an_edit_is_made_what_the_ledger_speaks_of(world: World, embedded: list[str]) -> None:
    lake = world.root / "home" / "lake"
    shutil.copytree(lake, world.root / "backup")
    world.write("doc-1.md", "# Document 1\n\nEdited since the backup.\n")
    world.ingest()
    embedded.clear()
    shutil.rmtree(lake)
    (world.root / "backup").rename(lake)
    rebuilt = restore_lake(world)
    assert (rebuilt.files, rebuilt.fetched.worked, rebuilt.cut.worked, rebuilt.embedded.worked) == (1, 1, 1, 1)
    assert embedded == []
    assert asyncio.run(verify(world.export, "lancedb", deep=True)).ok
    assert world.ingest().due == []


def test_ledger_and_lake_lost_together_cost_payloads_and_no_embedding(world: World, embedded: list[str]) -> None:
    lose_ledger(world)
    shutil.rmtree(world.root / "home" / "lake")
    restore_ledger(world)
    restore_lake(world)
    assert embedded == []
    world.ingest()
    world.assert_settled()


def test_a_lost_sink_is_filled_from_the_lake(world: World, embedded: list[str]) -> None:
    shutil.rmtree(world.root / "home" / "lancedb")
    world.export.ledger.register.reset_sink("lancedb")
    world.ingest()
    world.assert_settled()
    assert embedded == []


def test_a_half_restored_sink_is_written_only_where_it_lacks_something(world: World, replaced: list[str]) -> None:
    file_id = world.file_id("doc-1.md")
    drop_rows(world, f"parsed_directory_file_id = '{file_id}'")
    duplicate_rows(world, world.file_id("doc-0.md"), {"parsed_directory_file_id": pa.scalar(world.file_id("empty.md"))})
    world.export.ledger.register.reset_sink("lancedb")
    world.ingest()
    assert set(replaced) == {file_id, world.file_id("empty.md")}
    world.assert_settled()


def test_a_lost_instance_gets_its_partitions_back_and_runs_nothing(world: World) -> None:
    assert world.sync().ok
    keys = set(key_order(world.instance, "default"))
    assert len(keys) == 5
    with dg.DagsterInstance.ephemeral() as fresh:
        world.instance = fresh
        assert world.sync().runs == 0
        assert set(key_order(fresh, "default")) == keys
        world.write("doc-0.md", "# Document 0\n\nEdited.\n")
        assert world.sync().ok
        world.assert_settled()


@pytest.mark.parametrize("restored_with", ["one look", "a look a partition"])
def test_the_materializations_of_a_lost_instance_come_back_however_many_looks_it_takes(
    world: World, monkeypatch: pytest.MonkeyPatch, restored_with: str
) -> None:
    if restored_with == "a look a partition":
        monkeypatch.setattr("pipeline.orchestration.standing._AT_ONCE", 1)
        monkeypatch.setattr("pipeline.orchestration.standing._SECONDS", 0.0)
    with dg.DagsterInstance.ephemeral() as fresh:
        world.instance = fresh
        assert world.sync().runs == 0
        world.assert_no_partition_is_behind()
        names = {file_id: row.display_name for file_id, row in world.export.ledger.files().items()}
        assert named(world, "lancedb") == names
