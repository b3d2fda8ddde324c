"""The index LlamaIndex loads beside the llama_docstore sink: it lists what the docstore holds, however runs end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pipeline_tests.llama_index.bench import REASON

pytest.importorskip("llama_index.core", reason=REASON)

from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.storage.index_store.keyval_index_store import KVIndexStore

from pipeline.errors import SinkUnavailable
from pipeline.sinks.llama_docstore import LlamaDocstoreExporter
from pipeline.sinks.llama_docstore_store import DocstoreNamespace
from pipeline_tests.conformance.harness import Bench, provisioned_bench
from pipeline_tests.conformance.llama_docstore_harness import LlamaDocstoreUnderTest
from pipeline_tests.llama_index.stacks import kvstore_in_process


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with provisioned_bench(LlamaDocstoreUnderTest(kvstore_in_process(tmp_path))) as made:
        yield made


def index_store(bench: Bench, config: str | None = None) -> KVIndexStore:
    assert isinstance(bench.exporter, LlamaDocstoreExporter)
    found = bench.exporter.storage_context(config or bench.config, None).index_store
    assert isinstance(found, KVIndexStore)
    return found


def listed(bench: Bench, config: str | None = None) -> list[str]:
    (index,) = index_store(bench, config).index_structs()
    return sorted(index.nodes_dict)


async def nodes(bench: Bench, config: str | None = None) -> list[str]:
    return sorted(name for table in (await bench.held(config=config)).values() for name in table["id"].to_pylist())


async def test_what_a_run_that_died_has_written_is_listed_by_the_next_one_even_if_that_writes_nothing(bench: Bench) -> None:
    other = f"{bench.config}-b"
    await bench.replace(bench.file("dfl-1"), bench.file("dfl-1", config=other))
    await bench.exporter.optimize()
    await bench.replace(bench.file("dfl-2", 5), bench.file("dfl-3", 2, config=other))
    assert listed(bench) != await nodes(bench)
    await bench.open().optimize()
    assert listed(bench) == await nodes(bench)
    assert listed(bench, other) == await nodes(bench, other)


async def test_a_removal_is_seen_in_the_index_when_it_returns(bench: Bench) -> None:
    await bench.replace(bench.file("dfl-1"), bench.file("dfl-2"))
    await bench.exporter.optimize()
    await bench.delete("dfl-1", "dfl-none")
    assert listed(bench) == await nodes(bench)
    await bench.delete("dfl-2")
    assert listed(bench) == []


async def test_a_removal_of_what_llama_index_has_deleted_is_seen_in_the_index_when_it_returns(bench: Bench) -> None:
    await bench.replace(bench.file("dfl-1"), bench.file("dfl-2"))
    await bench.exporter.optimize()
    assert isinstance(bench.exporter, LlamaDocstoreExporter)
    bench.exporter.storage_context(bench.config, None).docstore.delete_ref_doc(f"{bench.config}:dfl-1")
    assert listed(bench) != await nodes(bench)
    await bench.delete("dfl-1")
    assert listed(bench) == await nodes(bench)
    await bench.delete("dfl-1", config="cfg-never-written")
    assert index_store(bench, "cfg-never-written").index_structs() == []


async def test_a_removal_that_died_is_seen_in_the_index_after_the_next_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.replace(bench.file("dfl-1"), bench.file("dfl-2"))
    await bench.exporter.optimize()

    def crash(self: DocstoreNamespace, index_id: str, max_bytes: int) -> None:
        raise ConnectionError("crash")

    with monkeypatch.context() as patch:
        patch.setattr(DocstoreNamespace, "write_index", crash)
        with pytest.raises(SinkUnavailable, match="crash"):
            await bench.delete("dfl-1")
    await bench.open().optimize()
    assert listed(bench) == await nodes(bench)


async def test_what_was_written_while_another_run_listed_it_stays_to_be_listed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.replace(bench.file("dfl-1"))
    write_index = DocstoreNamespace.write_index
    other = bench.open()

    def slow(self: DocstoreNamespace, index_id: str, max_bytes: int) -> None:
        write_index(self, index_id, max_bytes)
        monkeypatch.undo()
        asyncio.run(other.replace_files([bench.file("dfl-2")]))

    monkeypatch.setattr(DocstoreNamespace, "write_index", slow)
    await bench.exporter.optimize()
    await bench.open().optimize()
    assert listed(bench) == await nodes(bench)


async def test_an_index_too_large_for_an_entry_is_not_even_built(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    to_json = IndexDict.to_json

    def watched(self: IndexDict) -> str:
        built.append(len(self.nodes_dict))
        return str(to_json(self))

    monkeypatch.setattr(IndexDict, "to_json", watched)
    small = bench.exporter.settings.model_copy(update={"max_entry_bytes": 5000})
    monkeypatch.setattr(bench.exporter, "settings", small)
    await bench.replace(*(bench.file(f"dfl-{number}", 10) for number in range(10)))
    await bench.exporter.optimize()
    assert set(built) == {0}


def _with_an_old_list(bench: Bench) -> None:
    index_store(bench).add_index_struct(IndexDict(index_id=bench.config, nodes_dict={"gone": "gone"}))


def _lost(bench: Bench) -> None:
    index_store(bench).delete_index_struct(bench.config)


def _unreadable(bench: Bench) -> None:
    store = index_store(bench)
    store._kvstore.put(bench.config, {"__data__": "no index"}, collection=store._collection)


DAMAGED = {"old list": _with_an_old_list, "lost": _lost, "unreadable": _unreadable}


@pytest.mark.parametrize("damage", sorted(DAMAGED))
async def test_an_index_that_is_not_the_docstores_is_told_and_made_so_by_a_run_that_writes_nothing(
    bench: Bench, damage: str
) -> None:
    await bench.replace(bench.file("dfl-1"), bench.file("dfl-2"))
    await bench.exporter.optimize()
    assert await bench.exporter.check_beside(export_config_id=bench.config) == []
    DAMAGED[damage](bench)
    (told,) = await bench.open().check_beside(export_config_id=bench.config)
    assert ("lacks 6 of 6 nodes and lists 1" if damage == "old list" else "missing or unreadable") in told
    run = bench.open()
    await run.list_snapshots(export_config_id=bench.config, parsed_directory_file_ids=["dfl-1", "dfl-2"])
    await run.optimize()
    assert listed(bench) == await nodes(bench)
    assert await run.check_beside(export_config_id=bench.config) == []


async def test_an_index_that_lists_what_the_docstore_holds_is_not_written_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.replace(bench.file("dfl-1"), bench.file("dfl-2"))
    await bench.exporter.optimize()
    written: list[str] = []
    monkeypatch.setattr(KVIndexStore, "add_index_struct", lambda _, index: written.append(index.index_id))
    await bench.snapshots()
    await bench.exporter.optimize()
    assert written == []


async def test_a_config_without_files_lacks_no_index(bench: Bench) -> None:
    assert await bench.exporter.check_beside(export_config_id=bench.config) == []


async def test_an_index_that_is_to_list_nothing_any_more_lists_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.replace(bench.file("dfl-1"))
    await bench.exporter.optimize()
    changed = bench.exporter.settings.model_copy(update={"list_nodes": False})
    monkeypatch.setattr(bench.exporter, "settings", changed)
    (told,) = await bench.exporter.check_beside(export_config_id=bench.config)
    assert "lists 3 that it should not" in told
    await bench.exporter.optimize()
    assert listed(bench) == []
