"""Repair, rebuild and erase over a store with transactions and over one without: damage and loss through their exporters."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import LakeError
from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.records import FileRecords, split_files
from pipeline.stages.erase import Retired, erase, retire
from pipeline.stages.rebuild import rebuild_lake, rebuild_ledger
from pipeline.stages.repair import repair
from pipeline.stages.verify import verify
from pipeline_tests.conformance.harness import MODEL, load_harness
from pipeline_tests.postgres import postgres
from pipeline_tests.trust.conftest import write_documents
from pipeline_tests.trust.damage import held_tables, with_exporter
from pipeline_tests.trust.test_erase import SECRET
from pipeline_tests.trust.test_rebuild import lose_ledger
from pipeline_tests.world import World, open_world

SINKS = ("pgvector", "qdrant")


@pytest.fixture(scope="module")
def _server() -> Iterator[None]:
    """One PostgreSQL for all of them."""
    with postgres():
        yield


@pytest.fixture(params=SINKS)
def sink(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "pgvector":
        request.getfixturevalue("_server")
    return name


@pytest.fixture
def world(sink: str, tmp_path: Path) -> Iterator[World]:
    (tmp_path / "store").mkdir()
    with load_harness(sink)(tmp_path / "store") as store:
        exporter = store.make_exporter(SinkContext("any", MODEL))
        settings = exporter.settings.model_dump(mode="json", exclude_defaults=True)
        asyncio.run(exporter.close())
        with open_world(tmp_path, sinks={sink: settings}) as opened:
            write_documents(opened)
            opened.write("patient.md", f"# Patient\n\n{SECRET}\n")
            opened.ingest()
            yield opened


def files_held(world: World, sink: str) -> dict[str, FileRecords]:
    """By name, as they lie in the store."""
    held = pa.concat_tables(held_tables(world, sink)).sort_by(
        [("parsed_directory_file_id", "ascending"), ("chunk_index", "ascending")]
    )
    return {file.provenance.file_name: file for file in split_files(held)}


def put(world: World, sink: str, *files: FileRecords) -> None:
    async def write(exporter: Exporter) -> None:
        assert not (await exporter.replace_files(files)).refused

    with_exporter(world, write, sink)


def lose(world: World, sink: str, *names: str) -> None:
    async def delete(exporter: Exporter) -> None:
        config = (await world.export.scope())[1]
        gone = [world.file_id(name) for name in names]
        await exporter.delete_files(parsed_directory_file_ids=gone, export_config_id=config)

    with_exporter(world, delete, sink)


def assert_proved(world: World, sink: str) -> None:
    assert asyncio.run(verify(world.export, sink, deep=True)).findings == []
    world.assert_settled(sink)


def test_repair_mends_what_differs_and_embeds_nothing(world: World, sink: str, embedded: list[str]) -> None:
    held = files_held(world, sink)
    lose(world, sink, "doc-0.md")
    world.write("doc-1.md", "# Document 1\n\nAnother version.\n")
    world.ingest()
    put(world, sink, held["doc-1.md"])
    embedded.clear()
    report = asyncio.run(repair(world.export, sink, run_id="repair-test"))
    assert report.ok
    assert set(report.replaced) == {world.file_id("doc-0.md"), world.file_id("doc-1.md")}
    assert embedded == []
    assert_proved(world, sink)
    assert world.ingest().due == []


def test_an_orphan_is_found_and_goes(world: World, sink: str) -> None:
    lost = world.file_id("doc-2.md")
    stray = files_held(world, sink)["doc-2.md"]
    world.remove("doc-2.md")
    world.ingest()
    put(world, sink, stray)
    report = asyncio.run(repair(world.export, sink, run_id="repair-test"))
    assert (report.ok, report.deleted) == (True, [lost])
    assert_proved(world, sink)


def test_a_lost_ledger_and_a_lost_lake_are_made_again_from_the_store(world: World, sink: str, embedded: list[str]) -> None:
    lose_ledger(world)
    assert asyncio.run(rebuild_ledger(world.export)).standing == {sink: 5}
    assert world.ingest().due == []
    shutil.rmtree(world.root / "home" / "lake")
    assert asyncio.run(rebuild_lake(world.export, run_id="rebuild-test")).embedded.numbers["computed"] == 0
    assert embedded == []
    assert world.ingest().due == []
    assert_proved(world, sink)


def test_a_verification_that_breaks_off_leaves_no_reading_of_the_store_open(
    world: World, sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise LakeError("the lake is away")

    monkeypatch.setattr("pipeline.stages.verify.known_tables", gone)
    told: list[dict[str, object]] = []

    async def verified() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        await verify(world.export, sink, deep=True)

    with pytest.raises(LakeError, match="the lake is away"):
        asyncio.run(verified())
    assert told == []


def test_a_lost_store_is_filled_from_the_lake(world: World, sink: str, embedded: list[str]) -> None:
    lose(world, sink, *files_held(world, sink))
    assert world.held(sink) == []
    world.export.ledger.register.reset_sink(sink)
    world.ingest()
    assert embedded == []
    assert_proved(world, sink)


def test_an_erased_file_leaves_nothing_in_any_models_collection_and_stays_away(world: World, sink: str) -> None:
    file_id, old = world.file_id("patient.md"), world.export.embedder.identity.slug
    world.change(embedding={"provider": "constant", "constant_dimension": 64})
    assert world.sync().ok
    report = asyncio.run(erase(world.export, [file_id], run_id="erase-test"))
    assert report.proved
    assert [proof.records for proof in report.proofs if proof.place.startswith(sink)] == [0, 0]
    assert world.sync().ok
    assert "patient.md" not in world.names(sink)
    kept = {"pgvector": None, "qdrant": "this sink cannot say whether others have records in it"}[sink]
    assert asyncio.run(retire(world.export, model=old)) == [Retired(sink, old, 4, kept)]
    assert len(world.names(sink)) == 4
