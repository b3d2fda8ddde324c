"""Retirement takes what is ours and leaves what is not."""

from __future__ import annotations

import asyncio

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError
from pipeline.orchestration.liveness import command_run
from pipeline.stages.erase import Retired
from pipeline.stages.verify import verify
from pipeline_tests.trust.damage import duplicate_rows
from pipeline_tests.trust.test_erase import files_with, retired
from pipeline_tests.world import World


def test_an_old_models_collection_is_dropped_and_the_present_one_is_refused(world: World) -> None:
    old = world.export.embedder.identity.slug
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    world.ingest()
    with pytest.raises(ConfigError, match="is in use"):
        retired(world, model=world.export.embedder.identity.slug)
    assert retired(world, model=old) == [Retired("lancedb", old, 4, None)]
    assert not list((world.root / "home" / "lancedb").glob(f"*{old}*"))
    world.assert_settled()
    with pytest.raises(ConfigError, match="no such collection"):
        retired(world, model=old)


def test_nothing_is_retired_while_a_run_that_may_have_the_former_settings_would_write_it_again(world: World) -> None:
    slug, second = world.export.embedder.identity.slug, world.root / "second"
    world.change(sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(second)}})
    world.ingest()
    world.change(sinks={"lancedb": {}}, embedding={"provider": "constant", "constant_dimension": 64})
    with command_run("sync") as run_id:
        assert world.export.claim([world.file_id("doc-0.md")], run_id)
        for which in ({"sink": "second"}, {"model": slug}):
            with pytest.raises(ConfigError, match="a run is working on 1 of its files"):
                retired(world, **which)
        world.export.ledger.drop_leases(run_id)
    assert files_with(second, b"body of document")
    assert [one.files for one in retired(world, sink="second")] == [4]


def test_a_collection_that_others_use_loses_only_what_is_ours(world: World) -> None:
    old = world.export.embedder.identity.slug
    duplicate_rows(world, world.file_id("doc-0.md"), {"export_config_id": pa.scalar("exp-other")})
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    world.ingest()
    assert retired(world, model=old)[0].kept == "others have records in it"
    world.change(embedding={"provider": "constant", "constant_dimension": 384})
    assert world.held() == []


def test_a_sink_that_has_left_the_yaml_is_emptied_and_one_in_use_is_refused(world: World) -> None:
    second = world.root / "second"
    world.change(sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(second)}})
    world.ingest()
    with pytest.raises(ConfigError, match="is in use"):
        retired(world, sink="second")
    assert files_with(second, b"body of document")
    world.change(sinks={"lancedb": {}})
    assert [(one.sink, one.files, one.kept) for one in retired(world, sink="second")] == [("second", 4, None)]
    assert files_with(second, b"body of document") == []
    world.assert_settled()


def test_of_a_sink_that_was_renamed_the_former_name_is_forgotten_and_nothing_deleted(world: World) -> None:
    old = world.export.embedder.identity.slug
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    world.ingest()
    world.change(sinks={"main": {"type": "lancedb", "table_prefix": "indexport"}})  # the default, now written out
    world.ingest()
    found = {one.slug: one for one in retired(world, sink="lancedb")}
    assert (found[old].files, found[old].kept) == (4, None)
    [renamed] = [one for slug, one in found.items() if slug != old]
    assert renamed.files == 0
    assert "'main'" in str(renamed.kept)
    assert {held.sink for held in world.export.ledger.register.collections()} == {"main"}
    assert asyncio.run(verify(world.export, "main", deep=True)).ok
    world.assert_settled("main")
