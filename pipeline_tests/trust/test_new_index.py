"""An index made anew over the same directory: what was exported of the former one goes the way of every removed file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import lancedb
import pytest

from pipeline.llama_cloud.models import IndexState
from pipeline.stages.detect import detect
from pipeline.stages.erase import erase, retire
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        for n in range(3):
            opened.write(f"doc-{n}.md", f"# Document {n}\n\nText {n}.\n")
        opened.ingest()
        yield opened


def make_index_anew(world: World) -> None:
    """As with another parse configuration, which an index cannot be given later."""

    async def present() -> IndexState:
        async with world.export.source() as source:
            return await source.get_index()

    index = asyncio.run(present())
    key = {"Authorization": f"Bearer {world.cloud.api_key}"}
    new = {"source_directory_id": index.source_directory_id, "name": "anew", "vector_target": "DISABLED"}
    httpx.delete(f"{world.cloud.base_url}/api/v1/indexes/{index.index_id}", headers=key).raise_for_status()
    httpx.post(f"{world.cloud.base_url}/api/v1/indexes", headers=key, json=new).raise_for_status()
    world.export.index_id = None


def configs(world: World) -> set[str]:
    """Whose records lie in the sink, in every model's collection."""
    sink = lancedb.connect(str(world.root / "home" / "lancedb"))
    tables = [sink.open_table(name).to_arrow() for name in sink.table_names()]
    return {config for table in tables for config in table["export_config_id"].to_pylist()}


def test_its_files_replace_the_former_ones_in_the_sink(world: World) -> None:
    former = configs(world)
    make_index_anew(world)
    report = world.sync()
    assert (len(report.ingested), len(report.needs.awaiting_approval)) == (3, 0)
    world.assert_settled()
    world.ingest()
    assert configs(world).isdisjoint(former)


def test_its_files_are_listed_however_old_they_are_and_however_many_the_former_ones_were(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.detect._CHEAP_FILES", 0)
    make_index_anew(world)
    world.refresh()
    world.export.ledger.update_state(listed_at=time.time() + 60)
    found = asyncio.run(detect(world.export))
    assert (found.look, found.new, found.missing) == ("complete", 3, 3)


def test_what_another_export_has_of_the_former_index_stays(world: World) -> None:
    other = World(world.root, world.cloud, world.instance, world.settings.model_copy(update={"name": "other"}))
    other.ingest()
    former = configs(world)
    make_index_anew(world)
    assert len(world.ingest().removable) == 3
    assert former < configs(world)
    other.export.index_id = None
    assert len(other.ingest().removable) == 3
    assert configs(world).isdisjoint(former)


def test_a_former_file_is_erased_under_the_former_index(world: World) -> None:
    former = configs(world)
    files = list(world.export.ledger.files())
    make_index_anew(world)
    world.change(removal={"grace_period_seconds": 3600})
    world.ingest()
    assert former < configs(world)
    report = asyncio.run(erase(world.export, files, run_id="erase"))
    assert report.proved
    assert len([proof for proof in report.proofs if proof.place.startswith("lancedb")]) == 2
    assert configs(world).isdisjoint(former)
    world.assert_settled()


def test_an_old_models_collection_is_emptied_of_both(world: World) -> None:
    old = world.export.embedder.identity.slug
    world.change(removal={"grace_period_seconds": 3600})
    make_index_anew(world)
    world.ingest()
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    world.ingest()
    [done] = asyncio.run(retire(world.export, model=old))
    assert (done.files, done.kept) == (6, None)
