# mypy: disable-error-code="import-not-found", allow-subclassing-any
# LlamaIndex has an environment of its own, which the type checker does not see.
"""A LlamaIndex vector store over any sink, and over LlamaIndex's own store of the same records.

What belongs here: LlamaIndex's queries as requests of a sink, and a sink's records as nodes. Whatever LlamaIndex's own store
would do, what is read and deleted is one config of one tenant: its filters are rendered by the sink, which quotes every
value, and a document is deleted by the sink, which knows every store's way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from pipeline.sinks.base import Exporter, SearchHit, SearchMode, SearchRequest
from pipeline.sinks.filters import Condition, parse_filters
from pipeline.sinks.llama_index_bridge import EventLoopThread
from pipeline.sinks.llama_index_filters import file_id_of, filters_of, refuse_options
from pipeline.sinks.llama_node import NODE_TYPE, node_contents
from pipeline.sinks.records import from_records
from pipeline.sinks.word_forms import in_every_form

_MODES: Final[dict[VectorStoreQueryMode, SearchMode]] = {
    VectorStoreQueryMode.DEFAULT: "vector",
    VectorStoreQueryMode.TEXT_SEARCH: "text",
    VectorStoreQueryMode.SPARSE: "text",
    VectorStoreQueryMode.HYBRID: "hybrid",
    VectorStoreQueryMode.SEMANTIC_HYBRID: "hybrid",
}
ONLY_WRITER: Final = "Indexport is the only writer of a sink; add the document to the LlamaCloud directory instead"


@dataclass(frozen=True, slots=True)
class NativeStore:
    """LlamaIndex's own store of a sink's records.

    ``prepare`` adds to a query without filters the conditions, and that only this config of this tenant is meant: the
    query and the keyword arguments to ask the store with. ``close`` ends the store's connections. ``cosine`` makes a cosine of
    the store's score.
    """

    store: BasePydanticVectorStore
    prepare: Callable[[VectorStoreQuery, Sequence[Condition]], tuple[VectorStoreQuery, dict[str, Any]]]
    close: Callable[[], object]
    cosine: Callable[[float], float] = lambda score: score


class SinkVectorStore(BasePydanticVectorStore):
    """Reads one config of a sink. A plain vector query goes through ``native`` where there is one.

    Filters hold together (AND) and name declared metadata fields, as every search of a sink. Nodes cannot be added: the
    export is the only writer.
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    _exporter: Exporter = PrivateAttr()
    _export_config_id: str = PrivateAttr()
    _thread: EventLoopThread = PrivateAttr()
    _native: NativeStore | None = PrivateAttr()

    def __init__(
        self, exporter: Exporter, export_config_id: str, thread: EventLoopThread, native: NativeStore | None = None
    ) -> None:
        super().__init__()
        self._exporter = exporter
        self._export_config_id = export_config_id
        self._thread = thread
        self._native = native

    @classmethod
    def class_name(cls) -> str:
        return "SinkVectorStore"

    @property
    def client(self) -> Any:
        """LlamaIndex's own store, or the exporter where there is none."""
        return self._native.store if self._native else self._exporter

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Raises ValueError for a mode, a filter or an option sinks do not have."""
        refuse_options(query)
        if self._native is not None and query.mode == VectorStoreQueryMode.DEFAULT:
            return self._query_native(self._native, query, kwargs)
        return self._thread.run(self._search(query, kwargs))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        refuse_options(query)
        if self._native is not None and query.mode == VectorStoreQueryMode.DEFAULT:
            return await asyncio.to_thread(self._query_native, self._native, query, kwargs)
        return await self._thread.arun(self._search(query, kwargs))

    def _query_native(self, native: NativeStore, query: VectorStoreQuery, options: dict[str, Any]) -> VectorStoreQueryResult:
        conditions = parse_filters(self._filters(query), self._exporter.context.metadata_fields)
        bare = replace(query, filters=None, doc_ids=None)
        prepared, scoped = native.prepare(bare, conditions)
        found = native.store.query(prepared, **{**options, **scoped})
        cosines = [min(1.0, max(-1.0, native.cosine(score))) for score in found.similarities or ()]
        return VectorStoreQueryResult(nodes=found.nodes, similarities=cosines, ids=found.ids)

    async def _search(self, query: VectorStoreQuery, options: Mapping[str, Any]) -> VectorStoreQueryResult:
        if options:
            raise ValueError(f"a sink's own search has no {', '.join(options)}")
        if query.mode not in _MODES:
            raise ValueError(f"query mode {query.mode.value!r} is not one of {', '.join(mode.value for mode in _MODES)}")
        vector = None if query.query_embedding is None else np.asarray(query.query_embedding, np.float32)
        request = SearchRequest(
            self._export_config_id,
            mode=_MODES[query.mode],
            vector=vector,
            text=query.query_str and in_every_form(query.query_str),
            k=query.similarity_top_k,
            filters=self._filters(query),
        )
        hits = await self._exporter.search(request)
        return VectorStoreQueryResult(
            nodes=nodes_of(hits, self._exporter.context.model.dimension),
            similarities=[hit.score for hit in hits],
            ids=[hit.record.id for hit in hits],
        )

    def _filters(self, query: VectorStoreQuery) -> dict[str, Any]:
        if query.node_ids:
            raise ValueError("sinks search by metadata and document, not among given node ids")
        return filters_of(query, self._export_config_id, self._exporter.context.metadata_fields)

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:  # noqa: ARG002 - LlamaIndex's signature
        """Raises ValueError: a node without the file it comes from would be no record."""
        raise ValueError(ONLY_WRITER)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:  # noqa: ARG002 - LlamaIndex's signature
        """Remove a file's records. The next export of a changed file, or a repair, brings it back: delete it at its source."""
        self._thread.run(self._delete(ref_doc_id))

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:  # noqa: ARG002 - LlamaIndex's signature
        await self._thread.arun(self._delete(ref_doc_id))

    async def _delete(self, ref_doc_id: str) -> None:
        file_id = file_id_of(ref_doc_id, self._export_config_id)
        await self._exporter.delete_file(parsed_directory_file_id=file_id, export_config_id=self._export_config_id)

    def close(self) -> None:
        """Release all connections and the thread behind this store."""
        if self._native is not None:
            self._native.close()
        self._thread.run(self._exporter.close())
        self._thread.close()


def nodes_of(hits: Sequence[SearchHit], dimension: int) -> list[BaseNode]:
    """The records as the nodes LlamaIndex would read from a store of its own."""
    records = [hit.record for hit in hits]
    table = from_records(records, np.zeros((len(records), dimension), np.float32).tolist(), dimension)
    contents = node_contents(table).to_pylist() if records else []
    return [metadata_dict_to_node({"_node_content": content, "_node_type": NODE_TYPE}) for content in contents]
