# mypy: disable-error-code="import-not-found", allow-subclassing-any
# LlamaIndex has an environment of its own, which the type checker does not see.
"""LlamaIndex's own vector stores of the databases, opened on what our sinks have written there.

What belongs here: one function a sink, which makes the store and says how it is told the conditions of a query. LlamaIndex's
stores render filters of their own without quoting values and without a tenant, so each is given what the sink itself renders.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Final

from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryResult

from pipeline.api_keys import read_key
from pipeline.sinks.base import Exporter
from pipeline.sinks.filters import Condition
from pipeline.sinks.llama_index_reader import NativeStore

_PARAMETER: Final = re.compile(r"%\((\w+)\)s")
_EVERY_PARTITION: Final = 2**31 - 1

Native = Callable[[Any, str], NativeStore | None]


def native_store(exporter: Exporter, export_config_id: str) -> NativeStore | None:
    """LlamaIndex's own store for this sink; ``None`` where there is none, or where it cannot open what the sink has opened.

    Raises ModuleNotFoundError when LlamaIndex's package for the store is not installed.
    """
    opening = _NATIVE.get(type(exporter).__module__)
    return None if opening is None else opening(exporter, export_config_id)


def _by_argument(name: str, render: Callable[[Sequence[Condition]], Any]) -> Any:
    """For stores that take a condition in their own language as a keyword argument of the query."""
    return lambda query, conditions: (query, {name: render(conditions)})


def _lancedb(exporter: Any, export_config_id: str) -> NativeStore:
    import lancedb
    from llama_index.vector_stores.lancedb import LanceDBVectorStore

    from pipeline.sinks import lancedb_table as layout
    from pipeline.sinks.lancedb import refine_factor

    class ByCosine:
        """Of a table the vector search alone. LlamaIndex's store names no distance, and Lance's own choice is L2."""

        def __init__(self, table: Any) -> None:
            self._table = table

        def search(self, **asked: Any) -> Any:
            return self._table.search(**asked).distance_type("cosine")

    class Store(LanceDBVectorStore):
        def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
            """As the sink searches: as many candidates, and all partitions where the nearest hold too few that match.

            Raises ValueError for another ``query_type``: LlamaIndex's store would put its own text index in the sink's place.
            """
            if kwargs.get("query_type", "vector") != "vector":
                raise ValueError("query_type is not for the sink's table; ask with vector_store_query_mode hybrid or text_search")
            found = self._query(query, kwargs, nprobes=self.nprobes)
            if len(found.ids or ()) < query.similarity_top_k:
                return self._query(query, kwargs, nprobes=_EVERY_PARTITION)
            return found

        def _query(self, query: VectorStoreQuery, keywords: dict[str, Any], *, nprobes: int) -> VectorStoreQueryResult:
            """LlamaIndex's store raises a Warning for an empty result."""
            asked = self.model_copy(update={"refine_factor": refine_factor(query.similarity_top_k), "nprobes": nprobes})
            asked._table = ByCosine(self.table)
            try:
                return super(Store, asked).query(query, **keywords)
            except Warning:
                return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])

    connection = lancedb.connect(exporter.settings.uri, read_consistency_interval=timedelta(0))
    uri, name = exporter.settings.uri, exporter.table_name
    store = Store(connection=connection, uri=uri, table_name=name)
    scope = layout.scope(exporter.context.tenant_id, export_config_id)
    render = _by_argument("where", lambda found: " AND ".join([scope, *map(layout.render, found)]))
    return NativeStore(
        store, render, close=lambda: None, cosine=lambda score: 1 + math.log(score)
    )  # LlamaIndex's: exp(-distance)


def _qdrant(exporter: Any, export_config_id: str) -> NativeStore | None:
    """A local directory is one client's alone, and the sink has it."""
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient, models

    from pipeline.sinks import qdrant_layout as layout
    from pipeline.sinks.qdrant_store import API_KEY, URL

    settings = exporter.settings
    if settings.path is not None:
        return None
    client = QdrantClient(
        url=settings.url or os.environ.get(URL),
        api_key=read_key(API_KEY) or None,
        timeout=settings.timeout_seconds,
        check_compatibility=False,
    )
    scope = layout.scope(exporter.context.tenant_id, export_config_id)
    store = QdrantVectorStore(collection_name=exporter.collection, client=client, dense_vector_name=layout.VECTOR)
    render = _by_argument("qdrant_filters", lambda found: models.Filter(must=[*scope, *map(layout.render, found)]))
    return NativeStore(store, render, close=client.close)


def _pinecone(exporter: Any, export_config_id: str) -> NativeStore:
    from llama_index.vector_stores.pinecone import PineconeVectorStore
    from pinecone import Pinecone

    from pipeline.sinks import pinecone_layout as layout

    client = Pinecone(host=exporter.settings.controller_host)
    index = client.Index(host=str(client.describe_index(exporter.index_name).host))
    store = PineconeVectorStore(pinecone_index=index, namespace=exporter.namespace(export_config_id))
    tenant_id = exporter.context.tenant_id
    render = _by_argument("pinecone_query_filters", lambda found: layout.search_filter(tenant_id, export_config_id, found))
    return NativeStore(store, render, close=index.close)


def _postgres(exporter: Any, export_config_id: str) -> NativeStore | None:
    """LlamaIndex's store writes a schema's name in lower case, so it finds no other.

    The vector index is searched as the sink searches it: it goes on until filters have let enough through, its order, which is
    approximate, is put right, and when it gives up before, the search is exact.
    """
    import psycopg
    from llama_index.vector_stores.postgres import PGVectorStore
    from sqlalchemy import create_engine, event, select, text
    from sqlalchemy.ext.asyncio import create_async_engine

    from pipeline.sinks import pgvector_sql as statements

    class Store(PGVectorStore):
        def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
            found = super().query(query, **kwargs)
            return found if len(found.ids) == query.similarity_top_k else super().query(query, **kwargs, exactly=True)

    def customized(statement: Any, _: Any, *, where: str, k: int, exactly: bool = False, **__: Any) -> Any:
        """``+ 0`` keeps PostgreSQL from using the index, and from trusting its order."""
        found = statement.where(text(where))
        if exactly:
            found = found.order_by(None).order_by(found.selected_columns.distance.element + 0)
        nearest = found.limit(k).subquery()
        return select(nearest).order_by(nearest.c.distance + 0)

    def prepare(query: VectorStoreQuery, conditions: Sequence[Condition]) -> tuple[VectorStoreQuery, dict[str, Any]]:
        where = statements.filtered(statements.scope(exporter.context.tenant_id, export_config_id), conditions)
        clause = _without_parameters(where.clause, where.parameters).replace(":", "\\:")
        return query, {"where": clause, "k": query.similarity_top_k}

    settings, layout = exporter.settings, exporter.layout
    if settings.schema_name != settings.schema_name.lower():
        return None
    url, dsn = "postgresql+psycopg://", os.environ[settings.dsn_env]
    engine = create_engine(url, creator=lambda: psycopg.connect(dsn, prepare_threshold=None), pool_pre_ping=True)
    async_engine = create_async_engine(
        url, async_creator=lambda: psycopg.AsyncConnection.connect(dsn, prepare_threshold=None), pool_pre_ping=True
    )
    begin = statements.scan_index(settings.ef_search).as_string(None)
    for connecting in (engine, async_engine.sync_engine):
        event.listen(connecting, "begin", lambda connection: connection.exec_driver_sql(begin))
    store = Store(
        table_name=layout.name.removeprefix("data_"),
        schema_name=settings.schema_name,
        embed_dim=exporter.context.model.dimension,
        use_jsonb=True,
        perform_setup=False,
        engine=engine,
        async_engine=async_engine,
        customize_query_fn=customized,
    )
    return NativeStore(store, prepare, close=engine.dispose)


def _without_parameters(clause: Any, parameters: Mapping[str, Any]) -> str:
    """SQL with its parameters as literals: LlamaIndex's store takes no parameters beside its own."""
    from psycopg import sql

    literals = {name: sql.Literal(value).as_string(None) for name, value in parameters.items()}
    return _PARAMETER.sub(lambda found: literals[found[1]], clause.as_string(None))


def _mongodb(exporter: Any, export_config_id: str) -> NativeStore:
    from llama_index.vector_stores.mongodb import MongoDBAtlasVectorSearch
    from pymongo import AsyncMongoClient, MongoClient

    from pipeline.sinks.mongodb_index import VECTOR_INDEX
    from pipeline.sinks.mongodb_layout import vector_filter

    @dataclass
    class Query(VectorStoreQuery):
        where: Mapping[str, Any] | None = None

    class Store(MongoDBAtlasVectorSearch):
        def _create_query_pipeline(self, query: Query) -> list[dict[str, Any]]:
            pipeline: list[dict[str, Any]] = super()._create_query_pipeline(query)
            pipeline[0]["$vectorSearch"]["filter"] = query.where
            return pipeline

    def prepare(query: VectorStoreQuery, conditions: Sequence[Condition]) -> tuple[VectorStoreQuery, dict[str, Any]]:
        given = {item.name: getattr(query, item.name) for item in fields(query)}
        return Query(**given, where=vector_filter(exporter.context.tenant_id, export_config_id, conditions)), {}

    settings = exporter.settings
    uri = os.environ[settings.uri_env]
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    store = Store(
        mongodb_client=client,
        async_mongodb_client=AsyncMongoClient(uri),
        db_name=settings.database,
        collection_name=exporter.collection_name,
        vector_index_name=VECTOR_INDEX,
    )
    return NativeStore(store, prepare, close=client.close, cosine=lambda score: 2 * score - 1)  # Atlas's: (1 + cosine) / 2


def _azure(exporter: Any, export_config_id: str) -> NativeStore:
    from azure.core.credentials import AzureKeyCredential
    from azure.search.documents.indexes import SearchIndexClient
    from llama_index.vector_stores.azureaisearch import AzureAISearchVectorStore, IndexManagement

    from pipeline.sinks.azure_query import render, scope
    from pipeline.sinks.azure_store import API_KEY, ENDPOINT

    endpoint = exporter.settings.endpoint or os.environ[ENDPOINT]
    client = SearchIndexClient(endpoint, AzureKeyCredential(read_key(API_KEY)))
    store = AzureAISearchVectorStore(
        search_or_index_client=client,
        index_name=exporter.index_name,
        id_field_key="id",
        chunk_field_key="content",
        embedding_field_key="embedding",
        metadata_string_field_key="metadata",
        doc_id_field_key="doc_id",
        embedding_dimensionality=exporter.context.model.dimension,
        index_management=IndexManagement.NO_VALIDATION,
    )
    whole = scope(exporter.context.tenant_id, export_config_id)
    prepare = _by_argument("odata_filters", lambda found: " and ".join([whole, *map(render, found)]))
    return NativeStore(store, prepare, close=client.close, cosine=lambda score: 2 - 1 / score)  # Azure's: 1 / (2 - cosine)


_NATIVE: Final[Mapping[str, Native]] = {
    "pipeline.sinks.azure_ai_search": _azure,
    "pipeline.sinks.lancedb": _lancedb,
    "pipeline.sinks.mongodb": _mongodb,
    "pipeline.sinks.pgvector": _postgres,
    "pipeline.sinks.pinecone": _pinecone,
    "pipeline.sinks.qdrant": _qdrant,
}
"""By the module of the sink; importing its class would need its SDK."""
