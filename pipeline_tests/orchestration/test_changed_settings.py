"""An export whose settings change: what is made anew, what is kept, and what is never embedded again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from pipeline.documents.tokens import EstimatedTokens
from pipeline.embedding import constant
from pipeline.orchestration.liveness import command_run
from pipeline.stages.plan import make_plan
from pipeline_tests.orchestration.test_sync import write_seven_files
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        write_seven_files(opened)
        yield opened


def test_a_new_sink_is_filled_from_the_lake_without_embedding(world: World) -> None:
    world.sync()
    world.change(sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(world.root / "second")}})
    report = world.sync()
    assert report.ok
    assert report.runs == 1
    world.assert_settled("second")
    assert sorted(len(run.asset_selection or ()) for run in world.runs()) == [0, 1]


@pytest.mark.parametrize("elsewhere", [{"uri": "elsewhere"}, {"table_prefix": "v2"}])
def test_a_sink_that_is_moved_is_filled_from_the_lake_without_embedding(world: World, elsewhere: dict[str, str]) -> None:
    world.sync()
    embedded = world.instance.get_latest_materialization_event(dg.AssetKey(["default", "embeddings"]))
    if "uri" in elsewhere:
        elsewhere = {"uri": str(world.root / "elsewhere")}
    world.change(sinks={"lancedb": elsewhere})
    with command_run("plan") as run_id:
        plan = asyncio.run(make_plan(world.export, run_id=run_id))
    assert (len(plan.needs.lagging["lancedb"]), plan.chunks) == (7, 0)
    report = world.sync()
    assert (report.ok, report.runs) == (True, 1)
    assert world.instance.get_latest_materialization_event(dg.AssetKey(["default", "embeddings"])) == embedded
    world.assert_settled()
    assert world.sync().runs == 0
    world.change(sinks={"lancedb": {}})
    world.write("doc-0.md", "# Document 0\n\nEdited meanwhile.\n")
    assert world.sync().ok
    world.assert_settled()


def test_a_chunker_change_cuts_everything_anew_and_embeds_only_new_texts(world: World) -> None:
    world.sync()
    world.change(chunking={"max_tokens": 64})
    report = world.sync()
    assert len(report.ingested) == 7
    assert world.numbers("embeddings")["reused"] >= 6
    world.assert_settled()


def test_a_model_change_builds_beside_the_old_model(world: World) -> None:
    world.sync()
    old = world.held()
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    assert world.sync().ok
    world.assert_settled()
    world.change(embedding={"provider": "constant", "constant_dimension": 384})
    assert world.held() == old


def test_a_model_with_another_tokenizer_has_chunks_of_its_own_sizes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sync()
    with monkeypatch.context() as patch:
        patch.setattr(constant, "find_wheel_model", lambda: None)
        world.change(embedding={"provider": "constant", "constant_dimension": 64})
        assert world.sync().ok
        assert {record.chunk_token_count for record in world.held()} == {
            count for record in world.held() for count in EstimatedTokens().count([record.context + record.content])
        }
        world.assert_settled()
