"""A whole export with a docstore beside its vector sink: synced, verified, repaired, and no place to take vectors from."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_tests.llama_index.bench import REASON

pytest.importorskip("llama_index.core", reason=REASON)

from llama_index.core import Document
from llama_index.core.storage.docstore.utils import doc_to_json

from pipeline.orchestration.liveness import command_run
from pipeline.sinks.llama_docstore import LlamaDocstoreExporter
from pipeline.sinks.records import ref_doc_id
from pipeline.stages.rebuild import rebuild_lake, renew_sink
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
    assert {finding.kind for finding in found.findings} == {"missing_file", "altered_text", "pending", "stale_index"}
    assert asyncio.run(repair(world.export, DOCSTORE, run_id="repair-test")).after.ok
    world.assert_settled(DOCSTORE)


def _lose_index_documents_and_hashes(world: World) -> None:
    """The index, one file's document and hash, another's document, the third's hash: what names no record of any file."""
    exporter, config = docstore(world)
    context = exporter.storage_context(config, None)
    context.index_store.delete_index_struct(config)
    both, document, hashed = (f"{config}:{world.file_id(f'doc-{n}.md')}" for n in range(3))
    for name in (both, document):
        context.docstore._kvstore.delete(name, collection=context.docstore._node_collection)
    for name in (both, hashed):
        context.docstore._kvstore.delete(name, collection=context.docstore._metadata_collection)


def assert_whole(world: World) -> None:
    exporter, config = docstore(world)
    kept = exporter.storage_context(config, None).docstore
    for name in kept.get_all_ref_doc_info():
        assert kept.get_document_hash(name) == kept.get_document(name).hash
    assert_same_ids(world)


def test_a_lost_index_and_lost_documents_and_hashes_are_found_and_repaired(world: World) -> None:
    _lose_index_documents_and_hashes(world)
    found = asyncio.run(verify(world.export, DOCSTORE, deep=True)).findings
    files = {world.file_id(f"doc-{n}.md") for n in range(3)}
    assert {(f.kind, f.file_id) for f in found} == {("stale_index", None), *(("altered_metadata", name) for name in files)}
    report = asyncio.run(repair(world.export, DOCSTORE, run_id="repair-test"))
    assert report.ok
    assert report.replaced == files
    assert_whole(world)


def test_a_list_alone_that_is_old_is_repaired_without_writing_a_file(world: World) -> None:
    exporter, config = docstore(world)
    store = exporter.storage_context(config, None).index_store
    index = store.get_index_struct(config)
    index.delete(min(index.nodes_dict))
    store.add_index_struct(index)
    report = asyncio.run(repair(world.export, DOCSTORE, run_id="repair-test"))
    assert [finding.kind for finding in report.before.findings] == ["stale_index"]
    assert report.ok
    assert report.replaced == set()
    assert_same_ids(world)


def test_a_list_is_not_judged_while_a_run_holds_files(world: World) -> None:
    exporter, config = docstore(world)
    exporter.storage_context(config, None).index_store.delete_index_struct(config)
    with command_run("sync") as run_id:
        assert world.export.claim([world.file_id("doc-1.md")], run_id)
        assert asyncio.run(verify(world.export, DOCSTORE, deep=True)).ok
        world.export.ledger.drop_leases(run_id)
    assert not asyncio.run(verify(world.export, DOCSTORE, deep=True)).ok


def test_a_document_that_is_altered_is_found_and_repaired(world: World) -> None:
    exporter, config = docstore(world)
    kept = exporter.storage_context(config, None).docstore
    name, other = (f"{config}:{world.file_id(f'doc-{n}.md')}" for n in range(2))
    kept._kvstore.put(name, doc_to_json(Document(id_=name, text="another text")), collection=kept._node_collection)
    kept.set_document_hash(other, "0" * 64)
    found = asyncio.run(verify(world.export, DOCSTORE, deep=True)).findings
    assert {finding.file_id for finding in found} == {world.file_id(f"doc-{n}.md") for n in range(2)}
    assert asyncio.run(repair(world.export, DOCSTORE, run_id="repair-test")).ok
    assert_whole(world)


def test_a_rebuilt_sink_has_its_index_documents_and_hashes_back(world: World) -> None:
    _lose_index_documents_and_hashes(world)
    asyncio.run(renew_sink(world.export, DOCSTORE))
    assert world.sync().ok
    assert_whole(world)


def test_a_lost_lake_takes_its_vectors_from_the_sink_that_has_them(world: World) -> None:
    shutil.rmtree(world.root / "home" / "lake")
    rebuilt = asyncio.run(rebuild_lake(world.export, run_id="rebuild-test", sinks=[DOCSTORE, "lancedb"]))
    assert rebuilt.embedded.numbers["computed"] == 0
    for sink in ("lancedb", DOCSTORE):
        assert asyncio.run(verify(world.export, sink, deep=True)).ok
