"""The llama_index sink of an export, when the docstore or the vector store has lost its data and the other one lives on."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline_tests.llama_index.bench import REASON

pytest.importorskip("llama_index.core", reason=REASON)

from rich.console import Console

from pipeline.cli_output import print_erasure
from pipeline.sinks.llama_index import LlamaIndexExporter
from pipeline.sinks.records import matrix
from pipeline.stages.erase import erase
from pipeline.stages.rebuild import renew_sink
from pipeline.stages.repair import repair
from pipeline.stages.verify import verify
from pipeline_tests.conformance.harness import Bench, provisioned_bench
from pipeline_tests.conformance.llama_index_harness import LlamaIndexUnderTest
from pipeline_tests.llama_index import stacks
from pipeline_tests.sinks.test_recall import with_vectors
from pipeline_tests.world import World, open_world

SINK = "llama_index"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    given = {"vector_store": stacks.chroma(tmp_path), "docstore": stacks.in_process(tmp_path)}
    with open_world(tmp_path, sinks={SINK: given}) as opened:
        for n in range(3):
            opened.write(f"doc-{n}.md", f"# Document {n}\n\nThis is the body of document {n}.\n")
        opened.ingest()
        yield opened


@pytest.fixture(params=["chroma", "simple"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """Over a vector store that can be asked for nodes by their ids or by a filter, and over one that cannot."""
    vectors = stacks.chroma(tmp_path) if request.param == "chroma" else stacks.simple_vectors(tmp_path)
    async with provisioned_bench(LlamaIndexUnderTest(vectors, stacks.in_process(tmp_path))) as made:
        yield made


@contextmanager
def vector_store(world: World) -> Iterator[Any]:
    exporter = world.export.sink(SINK, asyncio.run(world.export.scope())[0])
    assert isinstance(exporter, LlamaIndexExporter)
    try:
        yield exporter._stores()._opened()
    finally:
        asyncio.run(exporter.close())


def in_vector_store(world: World) -> list[str]:
    """The names of the files whose nodes the vector store holds, as it says itself."""
    with vector_store(world) as vectors:
        return sorted(metadata["file_name"] for metadata in vectors._collection.get(include=["metadatas"])["metadatas"])


def lose_vector_store(world: World) -> None:
    with vector_store(world) as vectors:
        vectors.clear()


def lose_docstore(root: Path, namespaces: str = "") -> None:
    for name, store in stacks._DOCSTORES.items():
        if name.startswith(f"{root}/") and name.endswith(namespaces):
            for document in list(store.docs):
                store.delete_document(document)


def test_an_erased_file_leaves_the_vector_store_also_when_the_docstore_has_forgotten_it(world: World) -> None:
    victim = world.file_id("doc-1.md")
    lose_docstore(world.root)
    report = asyncio.run(erase(world.export, [victim], run_id="erase-test"))
    assert (report.proved, report.unproved) == (True, [])
    assert in_vector_store(world) == ["doc-0.md", "doc-2.md"]


def test_what_a_vector_store_that_cannot_be_asked_may_hold_is_said_and_not_claimed(tmp_path: Path) -> None:
    given = {"vector_store": stacks.simple_vectors(tmp_path), "docstore": stacks.in_process(tmp_path)}
    with open_world(tmp_path, sinks={SINK: given}) as world:
        world.write("doc-1.md", "# Document\n\nThis is its body.\n")
        world.ingest()
        report = asyncio.run(erase(world.export, [world.file_id("doc-1.md")], run_id="erase-test"))
    assert (report.done, report.proved) == (True, False)
    said = io.StringIO()
    print_erasure(Console(file=said, width=300), report)
    assert "not proved: llama_index" in said.getvalue()
    assert "erased and proved" not in said.getvalue()


async def test_nodes_that_a_delete_leaves_in_the_vector_store_are_counted(bench: Bench) -> None:
    file, other = bench.file("dfl-1", 3), bench.file("dfl-1", 2, config=f"{bench.config}-b")
    await bench.replace(file, other)
    told = await bench.exporter.count_unread(export_config_id=bench.config, parsed_directory_file_ids=["dfl-1", "dfl-2"])
    can_be_asked = "chroma" in str(bench.exporter.settings)
    assert told == (3 if can_be_asked else None)
    await bench.delete("dfl-1")
    told = await bench.exporter.count_unread(export_config_id=bench.config, parsed_directory_file_ids=["dfl-1", "dfl-2"])
    assert told == (0 if can_be_asked else None)


def test_a_lost_vector_store_is_found_by_a_deep_verification_and_filled_by_a_repair(world: World) -> None:
    assert asyncio.run(verify(world.export, SINK, deep=True)).ok
    lose_vector_store(world)
    found = asyncio.run(verify(world.export, SINK, deep=True))
    assert {(finding.kind, finding.file_id) for finding in found.findings} == {
        ("unsearchable", file_id) for file_id in world.export.ledger.files()
    }
    assert asyncio.run(repair(world.export, SINK, run_id="repair-test")).ok
    assert in_vector_store(world) == ["doc-0.md", "doc-1.md", "doc-2.md"]


def test_a_rebuild_writes_every_file_of_this_config_again_whatever_the_docstore_says(world: World) -> None:
    lose_vector_store(world)
    asyncio.run(renew_sink(world.export, SINK))
    assert not asyncio.run(verify(world.export, SINK)).ok
    world.ingest()
    assert in_vector_store(world) == ["doc-0.md", "doc-1.md", "doc-2.md"]
    assert asyncio.run(verify(world.export, SINK, deep=True)).ok


async def test_a_rebuild_leaves_other_configs_and_tenants_as_they_are(bench: Bench) -> None:
    mine, theirs = bench.file("dfl-1"), bench.file("dfl-1", config=f"{bench.config}-b")
    stranger = bench.open(tenant=f"{bench.tenant}-b")
    await bench.replace(mine, theirs)
    await stranger.replace_files([bench.file("dfl-2", tenant=f"{bench.tenant}-b")])
    await bench.exporter.renew(export_config_id=bench.config)
    assert (await bench.snapshots())["dfl-1"].record_set_hash.startswith("pending:")
    await bench.assert_holds(theirs, config=f"{bench.config}-b")
    assert not (await bench.snapshots(stranger))["dfl-2"].record_set_hash.startswith("pending:")
    await bench.replace(mine)
    await bench.assert_holds(mine)


async def test_files_that_a_search_does_not_find_are_told_from_those_it_finds(bench: Bench) -> None:
    files = [bench.file(f"dfl-{number}", 3) for number in range(5)]
    await bench.replace(*files, bench.file("dfl-1", 2, config=f"{bench.config}-b"))
    assert await unfound(bench) == set()
    exporter = bench.exporter
    assert isinstance(exporter, LlamaIndexExporter)
    exporter._stores()._vectors.delete(f"{bench.config}:dfl-1")
    exporter._stores()._vectors.delete(f"{bench.config}:dfl-4")
    assert await unfound(bench) == {"dfl-1", "dfl-4"}


async def test_files_that_begin_alike_are_found_however_many_they_are(bench: Bench) -> None:
    """More than a search is asked for at first, and than it is asked for at most."""
    files = [bench.file(f"dfl-{number:03}", 1) for number in range(300)]
    alike = [with_vectors(file, matrix(files[0].table["embedding"])) for file in files]
    await bench.replace(*alike)
    assert await unfound(bench) == set()


async def unfound(bench: Bench) -> set[str]:
    """As a deep verification asks for them."""
    held = bench.exporter.fetch_records(export_config_id=bench.config)
    return {file_id async for table in held for file_id in await bench.exporter.unfound_files(table)}


def test_records_that_the_docstore_has_lost_while_its_snapshots_stand_are_found_and_repaired(world: World) -> None:
    lose_docstore(world.root, "_records")
    assert asyncio.run(verify(world.export, SINK)).ok
    found = asyncio.run(verify(world.export, SINK, deep=True))
    assert {finding.file_id for finding in found.findings} == set(world.export.ledger.files())
    assert asyncio.run(repair(world.export, SINK, run_id="repair-test")).ok
    assert len(world.held(SINK)) == 3
