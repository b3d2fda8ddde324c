"""A sink or a model that is down waits alone, and longer each time; a person who syncs tries it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.embedding.constant import ConstantEmbedder
from pipeline.errors import EmbedderUnavailable, SinkUnavailable
from pipeline.ledger.models import MODEL
from pipeline.orchestration.liveness import command_run
from pipeline.orchestration.waves import Dispatch, dispatch
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline.stages.plan import make_plan
from pipeline_tests.orchestration.test_sync import told
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        for n in range(7):
            opened.write(f"doc-{n}.md", f"# Document {n}\n\nThis is the body of document {n}.\n")
        yield opened


def looked(world: World) -> Dispatch:
    """What the sensor decides at its next look."""
    return dispatch(world.instance, world.export, asyncio.run(world.export.scope()))


def test_a_sink_that_has_left_the_settings_is_not_told_of(world: World) -> None:
    world.sync()
    world.export.ledger.record_sink_state("qdrant", error="no answer", backoff=lambda _: 60.0)
    assert "qdrant" not in told(world, world.sync())


def test_a_sink_that_is_down_fails_alone_and_catches_up_from_the_lake(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.change(sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(world.root / "second")}})
    real = LanceDBExporter.provision

    async def provision(self: LanceDBExporter) -> None:
        if str(world.root / "second") in str(self.settings):
            raise SinkUnavailable("second does not answer")
        await real(self)

    with monkeypatch.context() as patched:
        patched.setattr(LanceDBExporter, "provision", provision)
        report = world.sync()
        assert not report.ok
        while_it_backs_off = looked(world)
        again = world.sync()
    world.assert_settled("lancedb")
    assert {row.attempts for row in world.export.ledger.files().values()} == {0}
    state = world.export.ledger.sink_states()["second"]
    assert state.down_until is not None
    assert while_it_backs_off.runs == ()
    assert {sink: set(files) for sink, files in while_it_backs_off.needs.unreachable.items()} == {
        "second": set(world.export.ledger.files())
    }
    assert (again.ok, again.runs, again.errors) == (False, 1, ["second does not answer"]), "a person tries it at once"
    assert told(world, again).count("second does not answer") == 1
    assert "second is down, files it lacks: 7: second does not answer" in told(world, again)
    embedded = world.instance.get_latest_materialization_event(dg.AssetKey(["default", "embeddings"]))
    caught_up = world.sync()
    assert caught_up.ok
    assert caught_up.runs == 1
    assert world.instance.get_latest_materialization_event(dg.AssetKey(["default", "embeddings"])) == embedded
    world.assert_settled("second")


def test_a_sink_that_is_configured_wrong_backs_off_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDRANT_URL", raising=False)
    world.change(sinks={"lancedb": {}, "qdrant": {}})
    report = world.sync()
    assert not report.ok
    assert told(world, report).count("QDRANT_URL") == 1
    assert "qdrant is set up wrong, files it lacks: 7: " in told(world, report)
    world.assert_settled("lancedb")
    assert looked(world).runs == ()
    assert "QDRANT_URL" in (world.export.ledger.sink_states()["qdrant"].last_error or "")
    world.change(sinks={"lancedb": {}})
    assert world.sync().ok


def test_a_model_that_is_down_backs_off_while_sinks_catch_up_and_a_person_tries_it_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sync()
    world.write("new.md", "# New\n\nA new file.\n")

    async def down(*_: object) -> Any:
        raise EmbedderUnavailable("quota used up")

    with monkeypatch.context() as patched:
        patched.setattr(ConstantEmbedder, "embed", down)
        report = world.sync()
        assert (report.ok, report.failed_runs) == (False, 1)
        world.change(sinks={"lancedb": {}, "second": {"type": "lancedb", "uri": str(world.root / "second")}})
        decided = looked(world)
        assert [(run.assets, len(run.keys)) for run in decided.runs] == [(("second",), 7)]
        assert decided.needs.unreachable == {MODEL: [world.file_id("new.md")]}
        with command_run("plan") as run_id:
            assert asyncio.run(make_plan(world.export, run_id=run_id)).chunks == 1, "a person's sync tries it"
        again = world.sync()
        assert (again.ok, again.runs) == (False, 2)
        assert "the embedding model is down, files it lacks: 1: quota used up" in told(world, again)
        assert len(world.names("second")) == 7
    assert {row.attempts for row in world.export.ledger.files().values()} == {0}
    assert world.sync().ok
    assert world.export.ledger.sink_states()[MODEL].last_error is None
    world.assert_settled("second")
