"""Embed once, write many: one export with every sink at once, over the engines and emulators of the conformance suite."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.embedding.constant import ConstantEmbedder
from pipeline.errors import SinkUnavailable
from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.registry import exporter_class
from pipeline_tests.conformance.harness import HARNESSES, SinkUnderTest, load_harness
from pipeline_tests.world import World, open_world


class Sinks:
    """Every store of the conformance suite, up for the time of a test."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.stores: dict[str, SinkUnderTest] = {}
        for name in sorted(HARNESSES):
            (root / name).mkdir(parents=True)
            try:
                self.stores[name] = stack.enter_context(load_harness(name)(root / name))
            except pytest.skip.Exception as reason:
                print(f"left out: {name}: {reason}")

    def settings(self) -> dict[str, dict[str, Any]]:
        """As an export's YAML would hold them."""
        context = SinkContext("project", ConstantEmbedder().identity)
        found = {}
        for name, store in self.stores.items():
            exporter = store.make_exporter(context)
            found[name] = exporter.settings.model_dump(mode="json", exclude_defaults=True)
            asyncio.run(exporter.close())
        return found

    def settle(self, world: World) -> None:
        """What was written is visible to every reader."""
        tenant, _ = asyncio.run(world.export.scope())

        async def one(name: str, store: SinkUnderTest) -> None:
            exporter = world.export.sink(name, tenant)
            try:
                await exporter.provision()
                await store.settle(exporter)
            finally:
                await exporter.close()

        for name, store in self.stores.items():
            asyncio.run(one(name, store))


@pytest.fixture
def sinks(tmp_path: Path) -> Iterator[Sinks]:
    with ExitStack() as stack:
        yield Sinks(tmp_path / "stores", stack)


def assert_every_sink_settled(world: World, sinks: Sinks) -> None:
    sinks.settle(world)
    for name in sinks.stores:
        world.assert_settled(name)


def test_every_sink_holds_the_same_through_edits_shrinks_and_removals(tmp_path: Path, sinks: Sinks) -> None:
    with open_world(tmp_path, sinks=sinks.settings()) as world:
        for n in range(4):
            world.write(
                f"doc-{n}.md", f"# Document {n}\n\n" + "\n\n".join(f"## Part {p}\n\n" + "Gauges. " * 150 for p in range(n + 1))
            )
        report = world.sync()
        assert report.ok, report
        assert report.runs == 1
        assert_every_sink_settled(world, sinks)
        world.write("doc-3.md", "# Document 3\n\nShort now.\n")
        world.write("doc-0.md", "")
        world.remove("doc-1.md")
        assert world.sync().ok
        assert_every_sink_settled(world, sinks)
        assert world.sync().runs == 0


def test_a_sink_that_joins_later_is_filled_without_an_embedding_and_one_that_is_down_holds_up_nobody(
    tmp_path: Path, sinks: Sinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = sinks.settings()
    with open_world(tmp_path, sinks={"lancedb": settings["lancedb"]}) as world:
        world.write("a.md", "# A\n\nFirst.\n")
        world.sync()
        embedded = world.instance.get_latest_materialization_event(dg.AssetKey(["default", "embeddings"]))
        world.change(sinks=settings)
        real = exporter_class("turbopuffer").provision

        async def down(self: Exporter) -> None:
            raise SinkUnavailable("turbopuffer does not answer")

        with monkeypatch.context() as patched:
            patched.setattr(exporter_class("turbopuffer"), "provision", down)
            assert not world.sync().ok
        assert exporter_class("turbopuffer").provision is real
        assert world.instance.get_latest_materialization_event(dg.AssetKey(["default", "embeddings"])) == embedded
        assert {row.attempts for row in world.export.ledger.files().values()} == {0}
        world.export.ledger.record_sink_state("turbopuffer", error=None, backoff=lambda _: 0.0)
        assert world.sync().ok
        assert world.instance.get_latest_materialization_event(dg.AssetKey(["default", "embeddings"])) == embedded
        assert_every_sink_settled(world, sinks)
