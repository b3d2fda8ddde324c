"""A sink as LangChain's VectorStore, as far as LangChain's own tests of vector stores go.

A document is a file of one chunk, and its id is the file's. Every call opens a handle of its own, as another process would,
so that what one call wrote is read back through another handle.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from pipeline.sinks.base import Exporter, SearchRequest, SinkContext
from pipeline.sinks.records import ChunkRecord, FileProvenance, FileRecords, build_file_records, to_records
from pipeline_tests.conformance.harness import SinkUnderTest, synthetic_chunks, vector_column


class SinkVectorStore(VectorStore):
    """The documents of one tenant's one config."""

    def __init__(self, sink: SinkUnderTest, context: SinkContext, export_config_id: str, embedding: Embeddings) -> None:
        self._sink = sink
        self._context = context
        self._config = export_config_id
        self._embedding = embedding

    async def provision(self) -> None:
        async with self._open() as exporter:
            await exporter.provision()

    async def aadd_documents(self, documents: list[Document], *, ids: list[str] | None = None, **kwargs: Any) -> list[str]:
        """Replace the documents of these ids; a document's own id is used where none is given, else a new one."""
        given: Sequence[str | None] = ids or [document.id for document in documents]
        names = [name or str(uuid.uuid4()) for name in given]
        vectors = await self._embedding.aembed_documents([document.page_content for document in documents])
        files = [self._file(*item) for item in zip(names, documents, vectors, strict=True)]
        async with self._open() as exporter:
            report = await exporter.replace_files(files)
            await self._sink.settle(exporter)
        assert report.refused == ()
        return names

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Remove these documents; all of them without ids, as LangChain has it."""
        async with self._open() as exporter:
            if ids is None:
                held = await exporter.list_snapshots(export_config_id=self._config)
                ids = [snapshot.parsed_directory_file_id for snapshot in held]
            await exporter.delete_files(parsed_directory_file_ids=ids, export_config_id=self._config)
            await self._sink.settle(exporter)
        return True

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        async with self._open() as exporter:
            tables = exporter.fetch_records(export_config_id=self._config, parsed_directory_file_ids=ids)
            return [_document(record) async for table in tables for record in to_records(table)]

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        vector = np.asarray(await self._embedding.aembed_query(query), np.float32)
        async with self._open() as exporter:
            hits = await exporter.search(SearchRequest(self._config, vector=vector, k=k))
        return [_document(hit.record) for hit in hits]

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        return asyncio.run(self.aadd_documents(documents, **kwargs))

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        return asyncio.run(self.adelete(ids))

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return asyncio.run(self.aget_by_ids(ids))

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return asyncio.run(self.asimilarity_search(query, k))

    @classmethod
    def from_texts(cls, texts: Iterable[str], embedding: Embeddings, metadatas: Any = None, **kwargs: Any) -> Self:
        """``kwargs`` are the constructor's."""
        store = cls(embedding=embedding, **kwargs)
        store.add_texts(list(texts), metadatas)
        return store

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Exporter]:
        exporter = self._sink.make_exporter(self._context)
        try:
            yield exporter
        finally:
            await exporter.close()

    def _file(self, name: str, document: Document, vector: Sequence[float]) -> FileRecords:
        chunks = synthetic_chunks([document.page_content])
        provenance = FileProvenance(
            tenant_id=self._context.tenant_id,
            export_config_id=self._config,
            parsed_directory_file_id=name,
            file_name=f"{name}.txt",
            content_fingerprint_hash=chunks["content_hash"][0].as_py(),
            source_modified_at=None,
            metadata=document.metadata,
        )
        return build_file_records(provenance, chunks, vector_column(np.asarray([vector], np.float32)), self._context.model)


def _document(record: ChunkRecord) -> Document:
    return Document(id=record.parsed_directory_file_id, page_content=record.content, metadata=dict(record.metadata))
