"""Two exports of one index that keep their records in one place: what one lets go of, the other still has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.stages.erase import retire
from pipeline.stages.verify import verify
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        for n in range(2):
            opened.write(f"doc-{n}.md", f"# Document {n}\n\nText {n}.\n")
        opened.change(sinks={"lancedb": {}, "extra": {"type": "lancedb", "uri": str(tmp_path / "extra")}})
        assert opened.sync().ok
        yield opened


def beside(world: World, uri: Path) -> World:
    """Another export of the same index, with a sink of another name at ``uri``, synced."""
    settings = world.settings.model_copy(update={"name": "other", "sinks": {"shelf": {"type": "lancedb", "uri": str(uri)}}})
    other = World(world.root, world.cloud, world.instance, settings)
    assert other.sync().ok
    return other


def test_a_sink_that_another_export_still_has_is_forgotten_and_not_emptied(world: World) -> None:
    other = beside(world, world.root / "extra")
    world.change(sinks={"lancedb": {}})
    [done] = asyncio.run(retire(world.export, sink="extra"))
    assert (done.files, done.kept) == (0, "the export 'other' has the same records there, in its sink 'shelf'")
    assert {held.sink for held in world.export.ledger.register.collections()} == {"lancedb"}
    assert asyncio.run(verify(other.export, "shelf", deep=True)).ok
    other.assert_settled("shelf")


def test_an_old_model_that_another_export_still_uses_is_forgotten_and_not_emptied(world: World) -> None:
    other, old = beside(world, world.root / "extra"), world.export.embedder.identity.slug
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    assert world.sync().ok
    assert {one.sink: one.files for one in asyncio.run(retire(world.export, model=old))} == {"lancedb": 2, "extra": 0}
    other.assert_settled("shelf")


def test_a_sink_that_another_export_has_elsewhere_is_emptied(world: World) -> None:
    other = beside(world, world.root / "elsewhere")
    world.change(sinks={"lancedb": {}})
    [done] = asyncio.run(retire(world.export, sink="extra"))
    assert (done.files, done.kept) == (2, None)
    other.assert_settled("shelf")
