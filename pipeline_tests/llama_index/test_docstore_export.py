"""A whole export with a docstore beside its vector sink: synced, verified, repaired, and no place to take vectors from."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_tests.llama_index.bench import REASON

pytest.importorskip("llama_index.core", reason=REASON)

from pipeline.sinks.llama_docstore import LlamaDocstoreExporter
from pipeline.sinks.records import ref_doc_id
from pipeline.stages.rebuild import rebuild_lake
from pipeline.stages.repair import repair
from pipeline.stages.verify import verify
from pipeline_tests.llama_index.stacks import kvstore_in_process
from pipeline_tests.world import World, open_world

DOCSTORE = "llama_docstore"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    docstore = {"vector_sink": "lancedb", "kvstore": kvstore_in_process(tmp_path)}
    with open_world(tmp_path, sinks={"lancedb": {}, DOCSTORE: docstore}) as opened:
        for n in range(3):
            opened.write(
                f"doc-{n}.md", f"# Document {n}\n\n" + "\n\n".join(f"## Part {p}\n\n" + "Gauges. " * 90 for p in range(4))
            )
        opened.ingest()
        yield opened


def docstore(world: World) -> tuple[LlamaDocstoreExporter, str]:
    tenant, config = asyncio.run(world.export.scope())
    found = world.export.sink(DOCSTORE, tenant)
    assert isinstance(found, LlamaDocstoreExporter)
    return found, config


def assert_same_ids(world: World) -> None:
    exporter, config = docstore(world)
    held = {record.id: ref_doc_id(config, record.parsed_directory_file_id) for record in world.held("lancedb")}
    context = exporter.storage_context(config, None)
    infos = context.docstore.get_all_ref_doc_info() or {}
    assert {name: document for document, info in infos.items() for name in info.node_ids} == held
    (index,) = context.index_store.index_structs()
    assert set(held) == set(index.nodes_dict)


def test_both_sinks_follow_edits_and_removals(world: World) -> None:
    assert_same_ids(world)
    world.write("doc-1.md", "# Document 1\n\nShort now.\n")
    world.remove("doc-2.md")
    assert world.sync().ok
    for sink in ("lancedb", DOCSTORE):
        world.assert_settled(sink)
        assert asyncio.run(verify(world.export, sink, deep=True)).ok
    assert_same_ids(world)
    assert world.sync().runs == 0


def test_what_llama_index_deletes_or_alters_is_found_and_repaired(world: World) -> None:
    exporter, config = docstore(world)
    kept = exporter.storage_context(config, None).docstore
    gone, altered, torn = (f"{config}:{world.file_id(f'doc-{n}.md')}" for n in range(3))
    kept.delete_ref_doc(gone)
    entries = exporter._opened().get_all(collection=f"{exporter.namespace(config)}/docstore/data")
    name = kept.get_ref_doc_info(altered).node_ids[0]
    entries[name]["__data__"]["text"] = "not what was exported"
    exporter._opened().put(name, entries[name], collection=f"{exporter.namespace(config)}/docstore/data")
    kept.delete_document(kept.get_ref_doc_info(torn).node_ids[0])
    found = asyncio.run(verify(world.export, DOCSTORE, deep=True))
    assert {finding.kind for finding in found.findings} == {"missing_file", "altered_text", "pending"}
    assert asyncio.run(repair(world.export, DOCSTORE, run_id="repair-test")).after.ok
    world.assert_settled(DOCSTORE)


def test_a_lost_lake_takes_its_vectors_from_the_sink_that_has_them(world: World) -> None:
    shutil.rmtree(world.root / "home" / "lake")
    rebuilt = asyncio.run(rebuild_lake(world.export, run_id="rebuild-test", sinks=[DOCSTORE, "lancedb"]))
    assert rebuilt.embedded.numbers["computed"] == 0
    for sink in ("lancedb", DOCSTORE):
        assert asyncio.run(verify(world.export, sink, deep=True)).ok
