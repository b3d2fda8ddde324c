"""Homes that earlier versions left behind: this one goes on with them as if they were its own."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline_tests.command_line import SYNC, assert_in_place, invoke
from pipeline_tests.upgrade.make import ERASED, HOMES, page
from pipeline_tests.world import World, open_world


@pytest.fixture(params=sorted(HOMES.iterdir()), ids=lambda archive: archive.name.split(".")[0])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """The folder as it was when the home was kept, and a cloud that knows nothing but the folder."""
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
