"""The Qdrant sink: a vector database, self-hosted or in its vendor's cloud.

What belongs here: what each promise of a sink becomes in requests. How a collection looks is ``qdrant_layout``'s, how requests
are made ``qdrant_store``'s, how files are replaced ``qdrant_replace``'s. The server's address comes from the
settings or from ``QDRANT_URL``, the key from ``QDRANT_API_KEY`` alone.

Search is by vector. Qdrant's full-text index filters and does not rank, and its BM25 vectors need a model from a hub, so modes
text and hybrid are not offered. Qdrant normalises vectors as it stores them, so what is read back has length 1.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator
from qdrant_client import models

from pipeline.errors import SinkConflict
from pipeline.sinks import qdrant_layout as layout
from pipeline.sinks.base import Exporter, ReplaceReport, SearchHit, SearchRequest, SinkContext, SinkSettings, Snapshot
from pipeline.sinks.filters import fitting_values, parse_filters
from pipeline.sinks.generations import EMPTYING, to_snapshots, written
from pipeline.sinks.http_store import RequestRefused
from pipeline.sinks.qdrant_replace import QdrantWriter, read_heads, replace_within_limits
from pipeline.sinks.qdrant_store import URL, QdrantStore, connection
from pipeline.sinks.records import FileRecords, to_records
from pipeline.sinks.refusals import encode_all
from pipeline.sinks.slicing import file_slices, named_slices, one_ahead, slices
from pipeline.urls import one_spelling

_FILES_PER_REPLACE: Final = 500
_BYTES_PER_REPLACE: Final = 16 * 2**20
_BYTES_PER_FETCH: Final = 32 * 2**20
_BYTES_PER_PAGE: Final = 4 * 2**20
_TEXT_BYTES_GUESSED: Final = 4096
_OPERATIONS_PER_REQUEST: Final = 100


class QdrantSettings(SinkSettings):
    """Where the collections are."""

    url: str | None = Field(default=None, description="Address of the server, http(s)://host:port. Default: QDRANT_URL.")
    path: str | None = Field(
        default=None, description="Local directory instead of a server: for tests and small collections, one process at a time."
    )
    collection_prefix: str = Field(
        default="indexport", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="How the names of its collections begin."
    )
    timeout_seconds: int = Field(default=60, ge=1, description="How long to wait for the answer to one request.")

    @model_validator(mode="after")
    def _one_place(self) -> QdrantSettings:
        if self.url and self.path:
            raise ValueError("give url (a server) or path (a local directory), not both")
        return self

    def place(self) -> tuple[object, ...]:
        return one_spelling(self.path or self.url or os.environ.get(URL, URL)), self.collection_prefix


class QdrantExporter(Exporter):
    """One collection a model, ``{collection_prefix}_{model.slug}``, shared by all tenants, configs and processes."""

    settings_type = QdrantSettings
    ids_by_version = True
    settings: QdrantSettings

    def __init__(self, settings: QdrantSettings, context: SinkContext) -> None:
        super().__init__(settings, context)
        place = connection(url=settings.url, path=settings.path, timeout_seconds=settings.timeout_seconds)
        self._store = QdrantStore(place, f"{settings.collection_prefix}_{context.model.slug}")
        self._declared = context.metadata_fields
        self._dimension = context.model.dimension

    @property
    def collection(self) -> str:
        return self._store.collection

    async def provision(self) -> None:
        """Create the collection and its payload indexes, and fill metadata fields declared since from what the points hold."""
        await self._create_collection()
        info = await self._store.info()
        layout.check_collection(info, self.collection, self.context.model)
        if not layout.names_model(info):
            await self._check_points()
        if not self._store.is_local:
            await self._create_indexes(info)
        await self._fill_added_fields()

    async def _create_collection(self) -> None:
        """Of processes that create it at once one does and the others find it."""
        name, settings = self.collection, layout.collection_settings(self.context.model)
        if await self._exists():
            return
        try:
            await self._store.call("create the collection", lambda client: client.create_collection(name, **settings))
        except RequestRefused:
            if not await self._exists():
                raise

    async def _exists(self) -> bool:
        return await self._store.call("look for the collection", lambda client: client.collection_exists(self.collection))

    async def _create_indexes(self, info: models.CollectionInfo) -> None:
        for path, kind in layout.missing_indexes(info, self.collection, self._declared).items():
            await self._store.call(f"index {path}", partial(self._create_index, path=path, kind=kind))

    async def _create_index(self, client: Any, *, path: str, kind: Any) -> None:
        await client.create_payload_index(self.collection, path, field_schema=kind, wait=True)

    async def _check_points(self) -> None:
        """What a point says of its model stands in for the metadata of a collection made by a server that keeps none."""
        records, _ = await self._store.call(
            "read the model", lambda client: client.scroll(self.collection, limit=1, with_payload=["embedding_model"])
        )
        if any((record.payload or {}).get("embedding_model") != self.context.model.fingerprint for record in records):
            raise SinkConflict(
                f"Qdrant collection {self.collection!r} holds points that are not vectors of {self.context.model.name!r}; "
                "choose another collection_prefix, or delete the collection if nothing needs it"
            )

    async def _fill_added_fields(self) -> None:
        """Fill declared fields in points written before they were declared, from the metadata these hold.

        What is missing is read off the points, so a crash on the way is made good by the next call.
        """
        if not self._declared:
            return
        lacking: list[models.Condition] = [
            models.Filter(must_not=[layout.equals(layout.FILTER_FIELDS, key)]) for key in self._declared
        ]
        own: list[models.Condition] = [
            layout.equals("tenant_id", self.context.tenant_id),
            layout.equals("chunk_index", 0),
            models.Filter(should=lacking),
        ]
        needed = ["export_config_id", "parsed_directory_file_id", "record_set_hash", "metadata", layout.FILTER_FIELDS]
        async for records in self._store.pages("find metadata to fill in", models.Filter(must=own), needed):
            operations = [fill for record in records if (fill := self._fill(record.payload or {}))]
            for some in slices(operations, count=_OPERATIONS_PER_REQUEST):
                await self._store.call("fill metadata fields", partial(self._update, operations=some))

    def _fill(self, payload: Mapping[str, Any]) -> models.SetPayloadOperation | None:
        """Sets the declared fields of one version of a file; ``None`` for one that another program has altered."""
        keys = ("export_config_id", "parsed_directory_file_id", "record_set_hash")
        config, file_id, version = (payload.get(key) for key in keys)
        if not (isinstance(config, str) and isinstance(file_id, str) and isinstance(version, str)):
            return None
        fitting = fitting_values(payload.get("metadata"), self._declared)
        values = {key: value for key, value in fitting.items() if value is not None}
        known = payload.get(layout.FILTER_FIELDS)
        before = {key for key in known if isinstance(key, str)} if isinstance(known, list) else set()
        covered = sorted({*before, *self._declared})
        where = layout.scope(self.context.tenant_id, config, [file_id])
        points = models.Filter(must=[*where, layout.equals("record_set_hash", version)])
        changed = models.SetPayload(payload={**values, layout.FILTER_FIELDS: covered}, filter=points)
        return models.SetPayloadOperation(set_payload=changed)

    async def _update(self, client: Any, *, operations: Sequence[models.SetPayloadOperation]) -> None:
        await client.batch_update_points(self.collection, operations, wait=True)

    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        """A handful of requests for up to 500 files and 16 MB, and one more for every 256 points or 4 MB."""
        self.check_files(files)
        batches = file_slices(files, count=_FILES_PER_REPLACE, size=_BYTES_PER_REPLACE)
        writer = QdrantWriter(self._store, await self._store.limits())
        total = ReplaceReport(0, 0)
        encode = partial(layout.encode_file, declared=self._declared)
        async for _, (encoded, unfit) in one_ahead(batches, partial(encode_all, encode=encode)):
            await replace_within_limits(writer, encoded)
            total += written(encoded, unfit)
        return total

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        """Three requests for every 500 files: what a crash leaves between them has a marked chunk 0. And one for no file's."""
        for file_ids in slices(parsed_directory_file_ids, count=(await self._store.limits()).names):
            where = layout.scope(self.context.tenant_id, export_config_id, file_ids)
            await self._mark_emptying([*where, layout.equals("chunk_index", 0)])
            bodies = models.Filter(must=[*where], must_not=[layout.equals("chunk_index", 0)])
            await self._store.delete_where("delete files", bodies)
            await self._store.delete_where("delete files", models.Filter(must=[*where]))
        await self._store.delete_where("delete files", layout.without_file(self.context.tenant_id, export_config_id))

    async def _mark_emptying(self, where: Sequence[models.Condition]) -> None:
        heads, marker = models.Filter(must=list(where)), {layout.PENDING: EMPTYING}
        await self._store.call("mark files", lambda client: client.set_payload(self.collection, marker, heads, wait=True))

    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        """One request for every 1,000 files, or for every 500 named ones."""
        heads = []
        for wanted in named_slices(parsed_directory_file_ids, count=(await self._store.limits()).names):
            where = layout.scope(self.context.tenant_id, export_config_id, wanted)
            heads += [head async for found in read_heads(self._store, self.context.tenant_id, where) for head in found]
        return to_snapshots(heads)

    async def fetch_records(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> AsyncIterator[pa.Table]:
        """Tables of about 32 MB (more only for a file that alone is larger).

        Files are found by counting points, not by their chunk 0, so that what has lost it shows too.
        """
        names = (await self._store.limits()).names
        row_bytes = self._dimension * 4 + _TEXT_BYTES_GUESSED
        page = max(1, _BYTES_PER_PAGE // row_bytes)
        for wanted in named_slices(parsed_directory_file_ids, count=names):
            counts = await self._row_counts(layout.scope(self.context.tenant_id, export_config_id, wanted))
            for group in slices(counts, count=names, size=_BYTES_PER_FETCH, size_of=lambda file: file[1] * row_bytes):
                where = layout.scope(self.context.tenant_id, export_config_id, [file_id for file_id, _ in group])
                rows = [row async for rows in self._rows(models.Filter(must=where), page) for row in rows]
                if rows:
                    yield await asyncio.to_thread(layout.decode_compared, rows, self._dimension, self._declared)
        if parsed_directory_file_ids is None:
            async for rows in self._rows(layout.without_file(self.context.tenant_id, export_config_id), page):
                yield await asyncio.to_thread(layout.decode_compared, rows, self._dimension, self._declared)

    async def _row_counts(self, where: Sequence[models.Condition]) -> list[tuple[str, int]]:
        """File ids with their numbers of points."""
        counts: dict[str, int] = {}
        async for records in self._store.pages("count records", models.Filter(must=list(where)), ["parsed_directory_file_id"]):
            for record in records:
                file_id = (record.payload or {}).get("parsed_directory_file_id")
                if isinstance(file_id, str):
                    counts[file_id] = counts.get(file_id, 0) + 1
        return list(counts.items())

    def _rows(self, where: models.Filter, page: int) -> AsyncIterator[list[models.Record]]:
        return self._store.pages("read records", where, layout.compared_keys(self._declared), vectors=True, limit=page)

    async def search(self, request: SearchRequest) -> list[SearchHit]:
        """Vector search by cosine."""
        self.check_search(request)
        conditions = [layout.render(found) for found in parse_filters(request.filters, self._declared)]
        where = models.Filter(must=[*layout.scope(self.context.tenant_id, request.export_config_id), *conditions])
        vector = np.asarray(request.vector, np.float32).tolist()
        answer = await self._store.call(
            "search",
            lambda client: client.query_points(
                self.collection,
                query=vector,
                using=layout.VECTOR,
                query_filter=where,
                limit=request.k,
                with_payload=list(layout.RECORD_KEYS),
            ),
        )
        return await asyncio.to_thread(self._hits, answer.points)

    def _hits(self, points: Sequence[models.ScoredPoint]) -> list[SearchHit]:
        records = to_records(layout.decode(points, self._dimension, vectors=False))
        scores = np.clip([point.score for point in points], -1.0, 1.0).tolist()
        return [SearchHit(record, score) for record, score in zip(records, scores, strict=True)]

    async def close(self) -> None:
        await self._store.close()
