"""What the conformance suite needs of a sink, the sinks it runs over, and the bench its cases work on.

A new sink: one module with a factory (a context manager over a directory that yields a SinkUnderTest) and one line in
HARNESSES.
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pytest

from pipeline.documents.arrow import chunks_to_table
from pipeline.documents.models import Attachment, Chunk
from pipeline.embedding.base import ModelIdentity
from pipeline.sinks.base import Exporter, MetadataType, ReplaceReport, SearchHit, SearchRequest, SinkContext, Snapshot
from pipeline.sinks.records import FileProvenance, FileRecords, build_file_records, chunk_ids, group_files, record_set_hash

HARNESSES: dict[str, str] = {
    "azure_ai_search": "pipeline_tests.conformance.azure_ai_search_harness:azure_ai_search",
    "lancedb": "pipeline_tests.conformance.lancedb_harness:lancedb",
    "llama_docstore": "pipeline_tests.conformance.llama_docstore_harness:llama_docstore",
    "llama_index": "pipeline_tests.conformance.llama_index_harness:llama_index",
    "mongodb": "pipeline_tests.conformance.mongodb_harness:mongodb",
    "pgvector": "pipeline_tests.conformance.pgvector_harness:pgvector",
    "pinecone": "pipeline_tests.conformance.pinecone_harness:pinecone",
    "storage_context": "pipeline_tests.conformance.storage_context_harness:storage_context",
    "qdrant": "pipeline_tests.conformance.qdrant_harness:qdrant",
    "turbopuffer": "pipeline_tests.conformance.turbopuffer_harness:turbopuffer",
}
"""Sink -> ``module:factory``."""

MODEL = ModelIdentity(name="conformance", fingerprint="conformance/1", dimension=16)
FIELDS: dict[str, MetadataType] = {
    "year": "integer",
    "rating": "float",
    "language": "string",
    "draft": "boolean",
    "tags": "string_list",
}


ALTERABLE = ("azure_ai_search", "mongodb", "pgvector", "pinecone", "qdrant", "turbopuffer")
"""Sinks whose harness makes an AlterableSink."""


class SinkUnderTest(Protocol):
    """One store and how to reach it."""

    vector_tolerance: float
    """Largest difference of a component between a vector written and read; 0 = bit-equal."""

    max_content_bytes: int | None
    """A chunk larger than this is refused, and smaller ones may be; ``None``: a megabyte fits."""

    @property
    def secrets(self) -> Sequence[str]:
        """What must never appear in an error."""
        ...

    def make_exporter(self, context: SinkContext) -> Exporter:
        """A new handle on the store, as another process would open it."""
        ...

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        """The same sink with an address where no such store answers."""
        ...

    async def settle(self, exporter: Exporter) -> None:
        """Wait until what was written is visible to every reader; at once for a consistent store."""
        ...


class AlterableSink(SinkUnderTest, Protocol):
    """A store that does not keep other programs from altering a record."""

    holds_types: bool
    """Whether a field can be removed but not be given a value of another type."""

    always_there: Sequence[str]
    """What cannot be altered, because the store holds no record without it or the sink has no such thing."""

    def alter(self, file_id: str, chunk_index: int, field: str, value: object) -> None:
        """Give a field of a record another value, or remove it (``None``), behind the sink's back; ``pending`` is its marker."""
        ...

    def alter_copy(self, file_id: str, chunk_index: int, name: str, value: object) -> None:
        """The same for a declared metadata field as filters find it, and for LlamaIndex's ``_node_content``."""
        ...


HarnessFactory = Callable[[Path], AbstractContextManager[SinkUnderTest]]


def load_harness(name: str) -> HarnessFactory:
    module, _, attribute = HARNESSES[name].partition(":")
    factory: HarnessFactory = getattr(importlib.import_module(module), attribute)
    return factory


def put(fields: MutableMapping[str, Any], name: str, value: object) -> None:
    """Set a field, or remove it."""
    if value is None:
        fields.pop(name, None)
    else:
        fields[name] = value


def unit_vectors(seed: str, count: int, dimension: int = MODEL.dimension) -> np.ndarray[Any, np.dtype[np.float32]]:
    generator = np.random.default_rng(int.from_bytes(sha256(seed.encode()).digest()[:8], "big"))
    vectors = generator.standard_normal((count, dimension)).astype(np.float32)
    normed: np.ndarray[Any, np.dtype[np.float32]] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normed


def vector_column(vectors: np.ndarray[Any, np.dtype[np.floating[Any]]]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def synthetic_chunks(texts: Sequence[str]) -> pa.Table:
    """Chunk rows of these texts, with every optional field present in some and absent in others."""
    chunks = []
    start = 0
    for index, text in enumerate(texts):
        chunks.append(
            Chunk(
                chunk_index=index,
                content=text,
                context="# Manual\n\n" if index % 2 else "",
                chunk_start_char=start,
                chunk_end_char=start + len(text),
                chunk_token_count=len(text.split()) + 2,
                page_range_start=None if index % 3 == 2 else index + 1,
                page_range_end=None if index % 3 == 2 else index + 2,
                attachments=tuple(Attachment(f"page_{index}_{n}.png", f"src-{index}", "screenshot") for n in range(index % 3)),
                content_hash=sha256(text.encode()).hexdigest(),
            )
        )
        start += len(text) + 2
    return chunks_to_table(chunks)


@dataclass
class Bench:
    """One exporter with a tenant and a config of its own, so that cases can share a store."""

    sink: SinkUnderTest
    model: ModelIdentity = MODEL
    fields: Mapping[str, MetadataType] = field(default_factory=lambda: FIELDS)
    tenant: str = field(default_factory=lambda: f"prj-{uuid.uuid4()}")
    config: str = field(default_factory=lambda: f"cfg-{uuid.uuid4()}")
    opened: list[Exporter] = field(default_factory=list)

    def open(self, *, model: ModelIdentity | None = None, tenant: str | None = None) -> Exporter:
        context = SinkContext(tenant_id=tenant or self.tenant, model=model or self.model, metadata_fields=self.fields)
        self.opened.append(self.sink.make_exporter(context))
        return self.opened[-1]

    @property
    def exporter(self) -> Exporter:
        """The first handle; every later ``open`` is another one on the same store."""
        return self.opened[0]

    def file(
        self,
        file_id: str,
        texts: int | Sequence[str] = 3,
        *,
        version: str = "v1",
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        config: str | None = None,
        tenant: str | None = None,
        model: ModelIdentity | None = None,
        modified: datetime = datetime(2026, 3, 4, 5, 6, 7, 89_000, tzinfo=UTC),
    ) -> FileRecords:
        """A file's records; the same arguments make the same bytes. ``modified`` counts for an odd number of texts alone."""
        model = model or self.model
        if isinstance(texts, int):
            texts = [f"{version} of section {index} in {file_id}: the river gauge is read" for index in range(texts)]
        provenance = FileProvenance(
            tenant_id=tenant or self.tenant,
            export_config_id=config or self.config,
            parsed_directory_file_id=file_id,
            file_name=f"{file_id}.pdf" if name is None else name,
            content_fingerprint_hash=sha256("\0".join(texts).encode()).hexdigest(),
            source_modified_at=modified if len(texts) % 2 else None,
            metadata={"pages": 3, "note": None} if metadata is None else metadata,
        )
        vectors = unit_vectors(f"{file_id}/{version}/{model.fingerprint}", len(texts), model.dimension)
        return build_file_records(provenance, synthetic_chunks(texts), vector_column(vectors), model)

    async def replace(self, *files: FileRecords) -> ReplaceReport:
        report = await self.exporter.replace_files(files)
        await self.sink.settle(self.exporter)
        return report

    async def delete(self, *file_ids: str, config: str | None = None) -> None:
        await self.exporter.delete_files(parsed_directory_file_ids=file_ids, export_config_id=config or self.config)
        await self.sink.settle(self.exporter)

    async def snapshots(self, exporter: Exporter | None = None, config: str | None = None) -> dict[str, Snapshot]:
        found = await (exporter or self.exporter).list_snapshots(export_config_id=config or self.config)
        by_file = {snapshot.parsed_directory_file_id: snapshot for snapshot in found}
        assert len(by_file) == len(found), "a file has two snapshots"
        return by_file

    async def held(self, exporter: Exporter | None = None, config: str | None = None) -> dict[str, pa.Table]:
        """Every file's rows; fails when a file's rows come in two tables."""
        files: dict[str, pa.Table] = {}
        async for table in (exporter or self.exporter).fetch_records(export_config_id=config or self.config):
            for rows in group_files(table):
                file_id = rows["parsed_directory_file_id"][0].as_py()
                assert file_id not in files, f"the rows of {file_id} came apart"
                files[file_id] = rows
        return files

    async def assert_holds(self, *files: FileRecords, exporter: Exporter | None = None, config: str | None = None) -> None:
        """The invariant: exactly these files, each with exactly its records and vectors."""
        expected = {file.file_id: file for file in files if file.table.num_rows}
        snapshots = await self.snapshots(exporter, config)
        held = await self.held(exporter, config)
        assert set(snapshots) == set(held) == set(expected)
        for file_id, file in expected.items():
            self._assert_snapshot(snapshots[file_id], file)
            assert record_set_hash(held[file_id]) == file.record_set_hash
            if self.exporter.holds_vectors:
                assert held[file_id].schema == file.table.schema
                self._assert_vectors(held[file_id], file.table)
            else:
                assert held[file_id].schema == file.table.drop_columns(["embedding"]).schema

    def _assert_snapshot(self, snapshot: Snapshot, file: FileRecords) -> None:
        provenance = file.provenance
        assert snapshot == Snapshot(
            parsed_directory_file_id=file.file_id,
            export_config_id=provenance.export_config_id,
            content_fingerprint_hash=provenance.content_fingerprint_hash,
            source_modified_at=provenance.source_modified_at,
            chunk_count=file.table.num_rows,
            embedding_model=file.table["embedding_model"][0].as_py(),
            record_set_hash=file.record_set_hash,
        )

    def _assert_vectors(self, held: pa.Table, written: pa.Table) -> None:
        difference = np.abs(matrix(held) - matrix(written))
        assert difference.max() <= self.sink.vector_tolerance

    async def search(self, request: SearchRequest) -> list[SearchHit]:
        """Skips the test on a sink that stands beside the one that is searched."""
        if not self.exporter.search_modes:
            pytest.skip("this sink is not searched")
        return await self.exporter.search(request)


@asynccontextmanager
async def provisioned_bench(sink: SinkUnderTest) -> AsyncIterator[Bench]:
    """A bench whose exporter is provisioned; every handle is closed at the end."""
    made = Bench(sink)
    try:
        await made.open().provision()
        yield made
    finally:
        for exporter in made.opened:
            await exporter.close()


def chunk_id(tenant_id: str, export_config_id: str, file_id: str, chunk_index: int, generation: str | None = None) -> str:
    """``chunk_ids`` of one chunk."""
    return chunk_ids(tenant_id, export_config_id, file_id, [chunk_index], generation)[0]


def matrix(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The vectors of a table, one a row."""
    return np.vstack([np.empty((0, table.schema.field("embedding").type.list_size), np.float32), *_chunks(table)])


def _chunks(table: pa.Table) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    for chunk in table["embedding"].chunks:
        yield chunk.flatten().to_numpy().reshape(len(chunk), -1)
