"""What was erased stays away, whatever is lost or put back, until a person lets it return."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.lake.lake import DATASETS
from pipeline.orchestration.resources import _open
from pipeline.stages.rebuild import rebuild_lake, rebuild_ledger
from pipeline.stages.tombstones import lift_tombstones
from pipeline_tests.trust.test_erase import opened_with_a_patient, wipe
from pipeline_tests.trust.test_rebuild import lose_ledger
from pipeline_tests.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with opened_with_a_patient(tmp_path) as opened:
        yield opened


def test_a_tombstone_outlives_the_ledger(world: World) -> None:
    assert world.sync().ok
    file_id = world.file_id("patient.md")
    wipe(world, file_id)
    lose_ledger(world)
    assert asyncio.run(rebuild_ledger(world.export)).tombstones == 1
    assert world.sync().ok
    assert world.names() == {"other.md"}
    world.assert_no_partition_is_behind()


def test_a_tombstone_outlives_a_move_to_another_ledger(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    wipe(world, world.file_id("patient.md"))
    monkeypatch.setenv("INDEXPORT_LEDGER_URL", f"sqlite:///{world.root / 'shared.sqlite'}")
    _open.cache_clear()
    world.ingest()
    assert world.names() == {"other.md"}


def test_a_tombstone_outlives_a_ledger_put_back_from_before_the_erasure(world: World) -> None:
    file_id = world.file_id("patient.md")
    wipe(world, file_id)
    world.export.ledger.register.lift([file_id])
    world.export.ledger.update_files([{"file_id": file_id, "status": "done"}])
    world.ingest()
    assert world.names() == {"other.md"}


@pytest.mark.parametrize("by", ["a listing", "rebuild lake"])
def test_a_tombstone_outlives_a_lake_put_back_from_before_the_erasure_and_the_ledger_after_it(world: World, by: str) -> None:
    lake, file_id = world.root / "home" / "lake", world.file_id("patient.md")
    shutil.copytree(lake, world.root / "backup")
    assert wipe(world, file_id).proved
    shutil.rmtree(lake)
    (world.root / "backup").rename(lake)
    world.write("other.md", "# Other\n\nStill nothing personal.\n")
    if by == "rebuild lake":
        asyncio.run(rebuild_lake(world.export, run_id="rebuild-test"))
    else:
        world.ingest()
    assert [world.export.lake.metadata(dataset, file_id) for dataset in DATASETS] == [None] * len(DATASETS)
    assert '{"lake": "had lost its tombstone"}' in [event.details for event in world.export.ledger.history(file_id)]
    lose_ledger(world)
    world.ingest()
    assert world.names() == {"other.md"}


def test_a_name_that_is_released_frees_no_erased_file(world: World) -> None:
    file_id = world.file_id("patient.md")
    wipe(world, file_id)
    world.export.ledger.release([file_id])
    assert world.export.ledger.files()[file_id].status == "removed"


def test_a_lifted_tombstone_lets_the_file_return(world: World) -> None:
    file_id = world.file_id("patient.md")
    wipe(world, file_id)
    world.ingest()
    lift_tombstones(world.export, [file_id])
    world.ingest()
    assert world.names() == {"patient.md", "other.md"}
