"""What the llama_index and llama_docstore sinks ask of a store, counted: it grows with the work and not with its square."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pipeline_tests.llama_index.bench import REASON

pytest.importorskip("llama_index.core", reason=REASON)

from llama_index.core.storage.docstore.keyval_docstore import KVDocumentStore
from llama_index.core.storage.kvstore import SimpleKVStore

from pipeline_tests.conformance.harness import Bench, provisioned_bench
from pipeline_tests.conformance.llama_docstore_harness import LlamaDocstoreUnderTest
from pipeline_tests.conformance.llama_index_harness import LlamaIndexUnderTest
from pipeline_tests.llama_index import stacks


class CountingKVStore(SimpleKVStore):  # type: ignore[misc]
    """Counts requests and the bytes they carry; takes many entries in one, as those of databases do."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()
        self.bytes = 0

    def put(self, key: str, val: dict[str, Any], collection: str = "data") -> None:
        self._count("put", val)
        super().put(key, val, collection)

    def put_all(self, kv_pairs: list[tuple[str, dict[str, Any]]], collection: str = "data", batch_size: int = 1) -> None:
        for start in range(0, len(kv_pairs), batch_size):
            self._count("put", kv_pairs[start : start + batch_size])
        for key, val in kv_pairs:
            super().put(key, val, collection)

    def get(self, key: str, collection: str = "data") -> dict[str, Any] | None:
        found: dict[str, Any] | None = super().get(key, collection)
        self._count("get", found)
        return found

    def get_all(self, collection: str = "data") -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = super().get_all(collection)
        self._count("get_all", found)
        return found

    def delete(self, key: str, collection: str = "data") -> bool:
        self._count("delete", None)
        return bool(super().delete(key, collection))

    def _count(self, request: str, value: Any) -> None:
        self.requests[request] += 1
        self.bytes += len(json.dumps(value))


_KVSTORE = CountingKVStore()


def counting_docstore(namespace: str) -> KVDocumentStore:
    return KVDocumentStore(_KVSTORE, namespace=namespace)


def counting_kvstore() -> CountingKVStore:
    return _KVSTORE


@pytest.fixture
async def docstore_bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr("pipeline_tests.llama_index.test_costs._KVSTORE", CountingKVStore())
    kvstore = {"class": "pipeline_tests.llama_index.test_costs:counting_kvstore"}
    async with provisioned_bench(LlamaDocstoreUnderTest(kvstore)) as made:
        yield made


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr("pipeline_tests.llama_index.test_costs._KVSTORE", CountingKVStore())
    docstore = {"class": "pipeline_tests.llama_index.test_costs:counting_docstore"}
    async with provisioned_bench(LlamaIndexUnderTest(stacks.chroma(tmp_path), docstore)) as made:
        yield made


async def test_a_file_costs_what_its_chunks_cost_however_many_they_are(bench: Bench) -> None:
    carried: dict[int, int] = {}
    for chunks in (100, 400):
        await bench.replace(bench.file(f"dfl-{chunks}", chunks))
        _KVSTORE.requests.clear()
        before = _KVSTORE.bytes
        await bench.replace(bench.file(f"dfl-{chunks}", chunks, version="v2"))
        carried[chunks] = _KVSTORE.bytes - before
        assert _KVSTORE.requests["delete"] < 2 * chunks + 10
        assert _KVSTORE.requests["put"] + _KVSTORE.requests["get"] < 40
    assert carried[400] < 5 * carried[100]


async def test_a_file_that_is_named_is_read_without_the_others(bench: Bench) -> None:
    await bench.replace(*(bench.file(f"dfl-{number}", 1) for number in range(30)))
    _KVSTORE.requests.clear()
    named = await bench.exporter.list_snapshots(export_config_id=bench.config, parsed_directory_file_ids=["dfl-7", "dfl-none"])
    assert [snapshot.parsed_directory_file_id for snapshot in named] == ["dfl-7"]
    reading = bench.exporter.fetch_records(export_config_id=bench.config, parsed_directory_file_ids=["dfl-7"])
    assert [table.num_rows async for table in reading] == [1]
    assert _KVSTORE.requests["get_all"] == 0


async def test_a_run_that_writes_nothing_beside_a_vector_sink_reads_its_own_documents_and_two_lists(
    docstore_bench: Bench,
) -> None:
    bench = docstore_bench
    await bench.replace(*(bench.file(f"dfl-{number}", 4) for number in range(30)))
    await bench.exporter.optimize()
    run = bench.open()
    _KVSTORE.requests.clear()
    await run.list_snapshots(export_config_id=bench.config, parsed_directory_file_ids=["dfl-7"])
    await run.optimize()
    assert _KVSTORE.requests["put"] == 0
    assert _KVSTORE.requests["get_all"] == 2  # what runs that died have left, and ref_doc_info
    assert _KVSTORE.requests["get"] == 5  # the marker, the file's ref_doc_info, document and hash, and the index


async def test_all_files_beside_a_vector_sink_are_listed_without_their_documents(docstore_bench: Bench) -> None:
    await docstore_bench.replace(*(docstore_bench.file(f"dfl-{number}", 4) for number in range(30)))
    _KVSTORE.requests.clear()
    assert len(await docstore_bench.snapshots()) == 30
    assert _KVSTORE.requests == {"get_all": 1}


async def test_two_requests_a_file_prove_the_documents_beside_a_vector_sink(docstore_bench: Bench) -> None:
    await docstore_bench.replace(*(docstore_bench.file(f"dfl-{number}", 4) for number in range(30)))
    _KVSTORE.requests.clear()
    await docstore_bench.held()
    assert _KVSTORE.requests == {"get_all": 1, "get": 30 * (4 + 2)}
