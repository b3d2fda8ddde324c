"""Homes that earlier versions left behind: this one goes on with them as if they were its own."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline_tests.command_line import SYNC, assert_in_place, invoke
from pipeline_tests.local_cloud.harness import running
from pipeline_tests.upgrade.make import ERASED, HOMES, page
from pipeline_tests.world import World, open_world

_FIRST_CLOUD = HOMES / "2026-11-28.tar.xz"


@pytest.fixture(params=sorted(HOMES.iterdir()), ids=lambda archive: archive.name.split(".")[0])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """The folder as it was when the home was kept, and its cloud or, where that was not kept, one that knows nothing but the
    ids that all gave."""
    with tarfile.open(_FIRST_CLOUD) as archive:
        archive.extractall(tmp_path, [each for each in archive if each.name.startswith("cloud")], filter="data")
    with closing(sqlite3.connect(tmp_path / "cloud" / "state.sqlite3", isolation_level=None)) as state:
        state.executescript("DELETE FROM directory_file; DELETE FROM attachment; DELETE FROM file;")
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    with open_world(tmp_path) as world:
        yield world


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in invoke("records", "--json").splitlines()]


def test_an_upgrade_embeds_nothing_changes_no_record_and_forgets_nothing(world: World) -> None:
    before = records()
    assert {(record["file_name"], record["metadata"].get("team")) for record in before} == {
        ("edited.md", None),
        ("kept.md", "gauges"),
    }
    assert (world.documents / ERASED).exists()

    invoke("index", "sync", "--wait")
    planned = json.loads(invoke("plan", "--json"))
    assert (planned["new"], planned["removed"], planned["failing"], planned["chunks_to_embed"]) == (0, 0, {}, 0)
    cut_again = (3, len(before))
    assert (planned["stale"], planned["chunks_reused"]) in (cut_again, (0, 0))
    assert json.loads(invoke(*SYNC))["removed"] == []
    assert records() == before
    invoke("verify", "--deep")
    assert invoke("history", "edited.md").count("loaded into lancedb") >= 2


def test_an_edit_after_an_upgrade_embeds_what_is_new_in_it(world: World) -> None:
    world.write("edited.md", page("edited.md", 6))
    invoke("index", "sync", "--wait")
    assert json.loads(invoke("plan", "--json"))["chunks_to_embed"] == 1
    invoke(*SYNC)
    invoke("release", next(iter(world.export.ledger.register.tombstones())))
    invoke(*SYNC)
    assert_in_place(world)
    assert {record["file_name"] for record in records()} == {"edited.md", "kept.md", ERASED}


def test_the_state_that_was_kept_for_any_folder_goes_on_for_the_one_that_it_served(tmp_path: Path) -> None:
    with tarfile.open(_FIRST_CLOUD) as archive:
        archive.extractall(tmp_path, filter="data")
    served, other = tmp_path / "documents", tmp_path / "other"
    other.mkdir()
    (other / "kept.md").write_text("Another text of the same name.")
    (served / "edited.md").write_text("Edited before the first start.")

    def ids(folder: Path) -> set[str]:
        with running(folder, tmp_path / "cloud") as cloud:
            return {cloud.index().id, *(file.id for file in cloud.output().values())}

    others, kept = ids(other), ids(served)
    assert "idx-ca4395ab-6b3c-5616-8ff9-2d359661b6e1" in kept
    assert others.isdisjoint(kept)
    for name in ("kept.md", "edited.md"):
        (other / name).write_bytes((served / name).read_bytes())
        (served / name).write_text("Edited again.")
    assert (ids(served), ids(other).isdisjoint(kept)) == (kept, True)
    shutil.copytree(served, tmp_path / "copy")
    assert ids(tmp_path / "copy").isdisjoint(kept)
