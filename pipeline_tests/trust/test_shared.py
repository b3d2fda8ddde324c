"""Two exports of one index that keep their records in one place: what one lets go of, the other still has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.orchestration.liveness import command_run
from pipeline.orchestration.resources import without_sinks
from pipeline.stages.erase import Retired, end, erase, retire
from pipeline.stages.verify import verify
from pipeline_tests.orchestration.test_removals import take_down
from pipeline_tests.trust.test_new_index import configs, make_index_anew
from pipeline_tests.world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path, metadata_fields={"team": "string", "year": "integer"}) as opened:
        for n in range(2):
            opened.write(f"doc-{n}.md", f"# Document {n}\n\nText {n}.\n")
        opened.change(sinks={"lancedb": {}, "extra": {"type": "lancedb", "uri": str(tmp_path / "extra")}})
        opened.ingest()
        yield opened


def beside(world: World, uri: Path | str, **tuning: Any) -> World:
    """Another export of the same index, with a sink of another name at ``uri``, synced."""
    shelf = {"type": "lancedb", "uri": str(uri), **tuning}
    settings = world.settings.model_copy(update={"name": "other", "sinks": {"shelf": shelf}})
    other = World(world.root, world.cloud, world.instance, settings)
    other.ingest()
    return other


@pytest.mark.parametrize(
    ("written", "tuning"), [("{}", {}), ("{}", {"keep_versions_minutes": 30}), ("{}/", {}), ("file://{}", {})]
)
def test_a_sink_that_another_export_still_has_is_forgotten_and_not_emptied(
    world: World, written: str, tuning: dict[str, Any]
) -> None:
    other = beside(world, written.format(world.root / "extra"), **tuning)
    world.change(sinks={"lancedb": {}})
    [done] = asyncio.run(retire(world.export, sink="extra"))
    assert (done.files, done.kept) == (0, "the export 'other' has the same records there, in its sink 'shelf'")
    assert {held.sink for held in world.export.ledger.register.collections()} == {"lancedb"}
    assert asyncio.run(verify(other.export, "shelf", deep=True)).ok
    other.assert_settled("shelf")


def test_an_old_model_that_another_export_still_uses_is_forgotten_and_not_emptied(world: World) -> None:
    other, old = beside(world, world.root / "extra"), world.export.embedder.identity.slug
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    world.ingest()
    assert {one.sink: one.files for one in asyncio.run(retire(world.export, model=old))} == {"lancedb": 2, "extra": 0}
    other.assert_settled("shelf")


def test_a_sink_that_another_export_has_elsewhere_is_emptied(world: World) -> None:
    other = beside(world, world.root / "elsewhere")
    world.change(sinks={"lancedb": {}})
    [done] = asyncio.run(retire(world.export, sink="extra"))
    assert (done.files, done.kept) == (2, None)
    other.assert_settled("shelf")


def test_a_sink_that_was_renamed_and_tuned_at_once_keeps_its_records_when_its_former_name_is_retired(world: World) -> None:
    world.change(sinks={"lancedb": {}, "shelf": {"type": "lancedb", "uri": f"{world.root}/extra/", "index_threshold_rows": 5000}})
    world.ingest()
    [done] = asyncio.run(retire(world.export, sink="extra"))
    assert (done.files, done.kept) == (0, "it is that of the sink 'shelf' now; the former name alone is forgotten")
    world.assert_settled("shelf")


def test_a_file_that_another_export_would_write_again_is_not_proved_erased_until_it_is_erased_there_too(world: World) -> None:
    other, file_id = beside(world, world.root / "extra", keep_versions_minutes=30), world.file_id("doc-0.md")
    report = asyncio.run(erase(world.export, [file_id], run_id="erase"))
    assert [proof.records for proof in report.proofs if proof.records] == []
    assert not report.proved
    assert f"indexport erase --export other {file_id}" in report.problems[0]
    assert asyncio.run(erase(other.export, [file_id], run_id="erase")).proved
    assert asyncio.run(erase(world.export, [file_id], run_id="erase")).proved
    assert other.sync().ok
    assert world.names("extra") == other.names("shelf") == {"doc-1.md"}


def test_an_erasure_is_proved_once_the_former_name_of_a_renamed_export_is_ended(world: World) -> None:
    renamed = World(world.root, world.cloud, world.instance, world.settings.model_copy(update={"name": "after"}))
    renamed.ingest()
    file_id = world.file_id("doc-0.md")
    [problem] = asyncio.run(erase(renamed.export, [file_id], run_id="erase")).problems
    assert "or end it if it is in no definitions any more: indexport retire --export default" in problem
    ended(world)
    assert asyncio.run(erase(renamed.export, [file_id], run_id="erase")).proved
    assert renamed.names() == {"doc-1.md"}


def ended(world: World) -> list[Retired]:
    return asyncio.run(end(without_sinks(world.settings.name, world.instance)))


def test_an_ended_export_leaves_nothing_where_only_it_was(world: World) -> None:
    other = beside(world, world.root / "extra")
    assert {(one.sink, one.files) for one in ended(world)} == {("lancedb", 2), ("extra", 0)}
    assert not list((world.root / "home" / "lancedb").glob("*.lance"))
    assert not (world.root / "home" / "lake" / "default").exists()
    assert not world.export.ledger.register.is_known()
    assert not world.export.ledger.files()
    other.assert_settled("shelf")
    with pytest.raises(ConfigError, match="knows no export 'default'"):
        ended(world)


def test_what_a_renamed_export_had_of_a_former_index_goes_with_its_former_name(world: World) -> None:
    renamed = World(world.root, world.cloud, world.instance, world.settings.model_copy(update={"name": "after"}))
    renamed.ingest()
    former = configs(world)
    make_index_anew(renamed)
    assert len(renamed.ingest().removable) == 2
    assert former < configs(world)
    assert {(one.sink, one.files) for one in ended(world)} == {("lancedb", 2), ("extra", 2)}
    assert configs(world).isdisjoint(former)
    renamed.assert_settled()


def test_the_erasures_of_an_ended_export_outlive_it(world: World) -> None:
    file_id = world.file_id("doc-0.md")
    assert asyncio.run(erase(world.export, [file_id], run_id="erase")).proved
    ended(world)
    world.ingest()
    assert world.names() == {"doc-1.md"}


def test_an_export_that_a_run_works_on_is_not_ended(world: World) -> None:
    with command_run("repair") as run_id:
        assert world.export.claim(list(world.export.ledger.files()), run_id)
        with pytest.raises(ConfigError, match="a run is working on 2 of its files"):
            ended(world)
        world.export.ledger.drop_leases(run_id)
    assert len(ended(world)) == 2


def test_a_place_that_does_not_answer_leaves_an_export_to_be_ended_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        take_down(world, patched, "home")
        with pytest.raises(SinkUnavailable):
            ended(world)
    assert world.export.ledger.register.is_known()
    assert "lancedb" in {one.sink for one in ended(world)}
