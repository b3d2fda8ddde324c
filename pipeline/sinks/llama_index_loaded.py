# mypy: disable-error-code="import-not-found", allow-subclassing-any
# LlamaIndex has an environment of its own, which the type checker does not see.
"""LlamaIndex's vector store in memory over the files of a storage_context.

What belongs here: what is asked of it means what it means to every other sink, and nothing is added to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryResult

from pipeline.sinks.base import MetadataType
from pipeline.sinks.exact_search import hold
from pipeline.sinks.filters import RECORD_FIELDS, Condition, fitting_fields, parse_filters
from pipeline.sinks.llama_index_bridge import EventLoopThread
from pipeline.sinks.llama_index_filters import filters_of, refuse_options
from pipeline.sinks.llama_index_reader import ONLY_WRITER


class LoadedVectorStore(SimpleVectorStore):
    """Of one config; ``belongs_to`` says which before it is asked anything."""

    _export_config_id: str = PrivateAttr()
    _fields: Mapping[str, MetadataType] = PrivateAttr()
    _thread: EventLoopThread = PrivateAttr()

    def belongs_to(self, export_config_id: str, declared: Mapping[str, MetadataType], thread: EventLoopThread) -> None:
        """``thread`` embeds what is asked."""
        self._export_config_id = export_config_id
        self._fields = declared
        self._thread = thread

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Raises ValueError for a filter or an option sinks do not have. LlamaIndex names all its node ids, or some."""
        refuse_options(query)
        conditions = parse_filters(filters_of(query, self._export_config_id, self._fields), self._fields)
        meant = replace(query, filters=None, doc_ids=None, node_ids=self._meeting(conditions, query.node_ids))
        return super().query(meant, **kwargs)

    def _meeting(self, conditions: Sequence[Condition], node_ids: list[str] | None) -> list[str] | None:
        """Of these nodes, ``None`` for all there are, those that meet the conditions."""
        if not conditions:
            return node_ids
        fields = {**self._fields, **RECORD_FIELDS}
        held = self.data.metadata_dict
        wanted = held if node_ids is None else [node_id for node_id in node_ids if node_id in held]
        return [node_id for node_id in wanted if hold(conditions, fitting_fields(held[node_id], fields))]

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:  # noqa: ARG002 - LlamaIndex's signature
        """Raises ValueError: what is in memory alone would be gone with it."""
        raise ValueError(ONLY_WRITER)

    def close(self) -> None:
        """End the thread."""
        self._thread.close()
