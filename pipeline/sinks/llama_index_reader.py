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
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from pipeline.sinks.base import Exporter, SearchHit, SearchMode, SearchRequest
from pipeline.sinks.filters import Condition, parse_filters
from pipeline.sinks.llama_index_bridge import EventLoopThread
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
_OPERATORS: Final[dict[FilterOperator, str]] = {
    FilterOperator.EQ: "eq",
    FilterOperator.NE: "ne",
    FilterOperator.IN: "in",
    FilterOperator.NIN: "nin",
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "lte",
    FilterOperator.CONTAINS: "eq",
    FilterOperator.ANY: "in",
}
"""``contains`` and ``any`` ask of a list what ``eq`` and ``in`` ask of one here."""


_NO_OPTIONS: Final = ("alpha", "hybrid_top_k", "sparse_top_k")


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
        _refuse_options(query)
        if self._native is not None and query.mode == VectorStoreQueryMode.DEFAULT:
            return self._query_native(self._native, query, kwargs)
        return self._thread.run(self._search(query, kwargs))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        _refuse_options(query)
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
        written: dict[str, dict[str, Any]] = {}
        for item in _flat(query.filters):
            operations = written.setdefault(item.key, {})
            operator = _OPERATORS.get(item.operator)
            if operator is None or operator in operations:
                problem = "given twice" if operator else f"not one of {', '.join(known.value for known in _OPERATORS)}"
                raise ValueError(f"filter on {item.key!r}: {item.operator.value!r} is {problem}")
            operations[operator] = self._value(item)
        if query.doc_ids:
            operations = written.setdefault("parsed_directory_file_id", {})
            if "in" in operations:
                raise ValueError("filter on 'parsed_directory_file_id': 'in' is given twice, as a filter and as doc_ids")
            operations["in"] = [self._file_id(ref_doc_id) for ref_doc_id in query.doc_ids]
        return dict(written)

    def _value(self, item: MetadataFilter) -> Any:
        """LlamaIndex's filters have no booleans, only 0 and 1."""
        if self._exporter.context.metadata_fields.get(item.key) != "boolean":
            return item.value
        truth = {0: False, 1: True}
        return [truth.get(one, one) for one in item.value] if isinstance(item.value, list) else truth.get(item.value, item.value)

    def _file_id(self, ref_doc_id: str) -> str:
        prefix = f"{self._export_config_id}:"
        if not ref_doc_id.startswith(prefix):
            raise ValueError(f"document {ref_doc_id!r} is not one of export {self._export_config_id!r}")
        return ref_doc_id.removeprefix(prefix)

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:  # noqa: ARG002 - LlamaIndex's signature
        """Raises ValueError: a node without the file it comes from would be no record."""
        raise ValueError("Indexport is the only writer of a sink; add the document to the LlamaCloud directory instead")

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:  # noqa: ARG002 - LlamaIndex's signature
        """Remove a file's records. The next export of a changed file, or a repair, brings it back: delete it at its source."""
        self._thread.run(self._delete(ref_doc_id))

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:  # noqa: ARG002 - LlamaIndex's signature
        await self._thread.arun(self._delete(ref_doc_id))

    async def _delete(self, ref_doc_id: str) -> None:
        file_id = self._file_id(ref_doc_id)
        await self._exporter.delete_file(parsed_directory_file_id=file_id, export_config_id=self._export_config_id)

    def close(self) -> None:
        """Release all connections and the thread behind this store."""
        if self._native is not None:
            self._native.close()
        self._thread.run(self._exporter.close())
        self._thread.close()


def _refuse_options(query: VectorStoreQuery) -> None:
    """Raises ValueError for an option of LlamaIndex's that would change nothing."""
    given = [name for name in _NO_OPTIONS if getattr(query, name) is not None]
    if given:
        raise ValueError(
            f"sinks have no {', '.join(given)}: both halves of a hybrid search count alike; set similarity_top_k alone"
        )


def _flat(filters: MetadataFilters | None) -> list[MetadataFilter]:
    """The filters of nested ANDs. Raises ValueError for any other combination of several."""
    if filters is None:
        return []
    if filters.condition not in (None, FilterCondition.AND) and (
        len(filters.filters) > 1 or filters.condition == FilterCondition.NOT
    ):
        raise ValueError(f"filters of a sink hold together; {filters.condition.value!r} is not supported")
    nested = [_flat(item) if isinstance(item, MetadataFilters) else [item] for item in filters.filters]
    return [item for items in nested for item in items]


def nodes_of(hits: Sequence[SearchHit], dimension: int) -> list[BaseNode]:
    """The records as the nodes LlamaIndex would read from a store of its own."""
    records = [hit.record for hit in hits]
    table = from_records(records, np.zeros((len(records), dimension), np.float32).tolist(), dimension)
    contents = node_contents(table).to_pylist() if records else []
    return [metadata_dict_to_node({"_node_content": content, "_node_type": NODE_TYPE}) for content in contents]
