"""A class with only the reference protocol's four methods works as a sink of a whole export."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, SinkConflict
from pipeline.sinks.base import SearchRequest
from pipeline.sinks.plug_in import plug_in_class
from pipeline_tests.sinks.reference_exporter import JsonExporter
from pipeline_tests.world import World, open_world

TYPE = "pipeline_tests.sinks.reference_exporter:JsonExporter"
LONG = "\n\n".join(f"## Part {n}\n\n" + f"Sentence {n} about rivers and their gauges. " * 20 for n in range(5))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path, sinks={"mine": {"type": TYPE, "path": str(tmp_path / "rows.json")}}) as opened:
        opened.write("a.md", "# A\n\nFirst text.\n")
        opened.write("long.md", LONG)
        yield opened


def contents(world: World) -> dict[str, list[str]]:
    """File name -> contents, as the plugged-in store holds them."""
    names = {file_id: row.display_name for file_id, row in world.export.ledger.files().items()}
    found: dict[str, list[str]] = {}
    for row in JsonExporter(str(world.root / "rows.json")).rows().values():
        found.setdefault(names.get(row["file"], row["file"]), []).append(row["content"])
    return found


def test_it_is_filled_skipped_when_current_and_follows_edits_shrinks_and_removals(world: World) -> None:
    assert world.sync().ok
    assert contents(world)["a.md"] == ["# A\n\nFirst text."]
    assert len(contents(world)["long.md"]) > 1
    assert world.sync().runs == 0
    world.write("long.md", "Short now.\n")
    assert world.sync().ok
    assert contents(world)["long.md"] == ["Short now."]
    world.remove("a.md")
    assert world.sync().ok
    assert set(contents(world)) == {"long.md"}
    world.write("long.md", "")
    assert world.sync().ok
    assert contents(world) == {}


def test_what_it_lacks_is_said_and_not_imitated(world: World) -> None:
    world.sync()
    exporter = world.export.sink("mine", "project")
    assert exporter.search_modes == frozenset()
    with pytest.raises(SinkConflict, match="cannot be read back"):
        exporter.fetch_records(export_config_id="config")
    with pytest.raises(ValueError, match="no search"):
        asyncio.run(exporter.search(SearchRequest("config")))


def test_a_class_without_the_protocol_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="lacks export, delete_file, delete_files, list_snapshots"):
        plug_in_class("pathlib:Path")
    with pytest.raises(ConfigError, match="cannot be imported"):
        plug_in_class("no.such.module:Thing")
