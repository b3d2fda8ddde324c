"""The Turbopuffer sink: a hosted vector and full-text store on object storage.

What belongs here: what each promise of a sink becomes in requests. How a namespace looks is ``turbopuffer_layout``'s, how
requests are made ``turbopuffer_store``'s. The key comes from ``TURBOPUFFER_API_KEY`` alone; the address from the settings or
from ``TURBOPUFFER_REGION`` or ``TURBOPUFFER_BASE_URL``.

Text search cuts words as Turbopuffer's tokenizer ``word_v3`` does.

A replace is one write request, which the vendor documents as atomic: upserts, deletes by id of what the old version has
beyond the new one (its chunk count is read first), and a delete by filter of every other record of these files. The vendor
documents that the filter is applied before the rest. So of several writers of one file the last one leaves exactly its own
version, whatever the others wrote between its read and its write.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import RecordRefused, SinkConflict
from pipeline.sinks import turbopuffer_layout as layout
from pipeline.sinks.base import (
    SNAPSHOT_FIELDS,
    Exporter,
    ReplaceReport,
    SearchHit,
    SearchMode,
    SearchRequest,
    SinkContext,
    SinkSettings,
    Snapshot,
)
from pipeline.sinks.file_keys import MOST_NAMED
from pipeline.sinks.filters import parse_filters
from pipeline.sinks.fusion import HYBRID_DEPTH, fuse_hits
from pipeline.sinks.generations import read_head, to_snapshots
from pipeline.sinks.http_store import Missing, RequestRefused
from pipeline.sinks.records import FileRecords, to_records
from pipeline.sinks.refusals import encode_all
from pipeline.sinks.slicing import file_slices, named_slices, one_ahead, slices
from pipeline.sinks.turbopuffer_layout import EncodedFile, Filter, Row
from pipeline.sinks.turbopuffer_store import MAX_LIMIT, TurbopufferStore

MAX_REQUEST_BYTES: Final = 512_000_000
"""Largest write request; documented by the vendor."""

MAX_QUERY_TEXT_BYTES: Final = 1024
"""Longest text of a full-text query; documented by the vendor as 1,024, without a unit."""

_FILES_PER_REQUEST: Final = 500
"""Bounds the filters, which name every file of a request."""

_RECORD_BYTES_PER_REQUEST: Final = 16 * 2**20
"""Records of this size make a write of about twice as many bytes: the node repeats the text, base64 adds a third."""

_FILLED_PER_REQUEST: Final = 20_000
_BYTES_PER_PAGE: Final = 32 * 2**20
_TEXT_BYTES_GUESSED: Final = 4096


class TurbopufferSettings(SinkSettings):
    """Where the namespaces lie."""

    region: str | None = Field(default=None, description="Region, as in gcp-us-central1. Default: TURBOPUFFER_REGION.")
    base_url: str | None = Field(
        default=None,
        description="Address instead of a region, or with `{region}` in it. Default: TURBOPUFFER_BASE_URL, if no region is set.",
    )
    namespace_prefix: str = Field(
        default="indexport", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="How the names of its namespaces begin."
    )

    def address(self) -> tuple[str | None, str | None]:
        """The ``base_url`` and the region that count, of the settings and, where they leave room, of the environment."""
        base_url = self.base_url or os.environ.get("TURBOPUFFER_BASE_URL")
        region = self.region or os.environ.get("TURBOPUFFER_REGION")
        if base_url and "{region}" in base_url:
            return base_url, region
        if base_url and (self.base_url or not self.region):
            return base_url, None
        return None, region

    def place(self) -> tuple[object, ...]:
        return *self.address(), self.namespace_prefix


class TurbopufferExporter(Exporter):
    """One namespace a model, ``{namespace_prefix}-{model.slug}``, shared by all tenants, configs and processes."""

    settings_type = TurbopufferSettings
    search_modes = frozenset({"vector", "text", "hybrid"})
    atomic_replace = True
    settings: TurbopufferSettings

    def __init__(self, settings: TurbopufferSettings, context: SinkContext) -> None:
        super().__init__(settings, context)
        name = f"{settings.namespace_prefix}-{context.model.slug}"
        self._store = TurbopufferStore(name, *settings.address())
        self._declared = context.metadata_fields

    @property
    def namespace(self) -> str:
        return self._store.namespace

    async def provision(self) -> None:
        """Create the namespace, add metadata fields declared since, and fill these from what the documents hold."""
        layout.check_names(self.context.model, self._declared)
        try:
            found = await self._store.schema()
        except Missing:
            await self._store.write("create the namespace", layout.create_body(self.context.model, self._declared))
            return
        missing = layout.check_schema(found, self.namespace, self.context.model, self._declared)
        await self._check_model()
        if missing:
            await self._store.write("add metadata fields", layout.schema_body(missing))
        await self._fill_added_fields()

    async def check_provisioned(self) -> None:
        await self._store.schema()

    async def _check_model(self) -> None:
        """A document without a model is one that another program has altered: the namespace's schema is ours."""
        others = [("embedding_model", "NotEq", found) for found in (self.context.model.fingerprint, None)]
        query = {"rank_by": ("id", "asc"), "filters": ("And", others), "limit": 1}
        if (await self._store.query("read the model", query))["rows"]:
            raise SinkConflict(
                f"Turbopuffer namespace {self.namespace!r} holds vectors of another model than {self.context.model.name!r}; "
                "choose another namespace_prefix, or delete the namespace if nothing needs it"
            )

    async def _fill_added_fields(self) -> None:
        """Fill declared fields in documents written before they were declared, from the metadata these hold.

        What is missing is read off the documents, so a crash on the way is made good by the next call.
        """
        if not self._declared:
            return
        lacking = ("Or", [("Not", (layout.FILTER_FIELDS, "ContainsAny", [key])) for key in self._declared])
        where = ("And", [("tenant_id", "Eq", self.context.tenant_id), ("chunk_index", "Eq", 0), lacking])
        wanted = [*layout.FILLED_BY, "metadata_json", layout.FILTER_FIELDS, *self._declared]
        async for rows in self._store.pages("find metadata to fill in", where, wanted):
            fills = await asyncio.to_thread(self._fills, rows)
            for some in slices(fills, count=len(fills), size=_FILLED_PER_REQUEST, size_of=lambda item: item.count):
                body = layout.fill_body(some, self.context.tenant_id, self._declared)
                await self._store.write("fill metadata fields", body)

    def _fills(self, heads: Sequence[Row]) -> list[layout.Fill]:
        return [fill for head in heads if (fill := layout.fill(head, self._declared))]

    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        """One atomic write for up to 500 files and about 32 MB; a larger file has a write of its own, of up to 512 MB."""
        self.check_files(files)
        batches = file_slices(files, count=_FILES_PER_REQUEST, size=_RECORD_BYTES_PER_REQUEST)
        total = ReplaceReport(0, 0)
        encode = partial(layout.encode_file, declared=self._declared)
        async for _, (encoded, refused) in one_ahead(batches, partial(encode_all, encode=encode)):
            total += ReplaceReport(0, 0, tuple(refused))
            if encoded:
                total += await self._write(encoded)
        return total

    async def _write(self, files: Sequence[EncodedFile]) -> ReplaceReport:
        """Write a batch; of one that is too large or refused, each half, until what is refused is known by its file."""
        counts = await self._old_counts(files)
        body = await asyncio.to_thread(layout.write_body, files, counts, self.context.model, self._declared)
        try:
            if len(body) > MAX_REQUEST_BYTES:
                raise RequestRefused(
                    f"{len(body):,} bytes in one request, Turbopuffer accepts {MAX_REQUEST_BYTES:,}; "
                    "a file is never written in two requests, so split it at its source"
                )
            await self._store.write("replace files", body)
        except RequestRefused as error:
            if len(files) == 1:
                return ReplaceReport(0, 0, (RecordRefused(files[0].file.file_id, str(error)),))
            half = len(files) // 2
            return await self._write(files[:half]) + await self._write(files[half:])
        return ReplaceReport(sum(item.file.table.num_rows for item in files), len(body))

    async def _old_counts(self, files: Sequence[EncodedFile]) -> dict[str, int]:
        """How many chunks stand behind each file's chunk 0 now, by the chunk's id, which no other tenant or config shares.

        None behind one that another program has altered, or too many to name: the filter of the write takes these.
        """
        ids = [layout.first_id(item.file) for item in files]
        pages = self._store.pages("read what is replaced", ("id", "In", ids), ["chunk_count"])
        counts = {row["id"]: row.get("chunk_count") async for rows in pages for row in rows}
        return {found: count for found, count in counts.items() if isinstance(count, int) and count <= MOST_NAMED}

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        """A delete by filter for every 500 files and for no file's, again while documents remain (it takes 5 million)."""
        named = slices(parsed_directory_file_ids, count=_FILES_PER_REQUEST)
        found = [self._scope(export_config_id, file_ids) for file_ids in named]
        for where in (*found, layout.without_file(self.context.tenant_id, export_config_id)):
            body = layout.delete_body(where)
            try:
                while (await self._store.write("delete files", body)).get("rows_remaining"):
                    pass
            except Missing:
                return

    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        """One query for every 10,000 files, or for every 500 named ones."""
        attributes = ["tenant_id", *SNAPSHOT_FIELDS]
        snapshots = []
        for file_ids in named_slices(parsed_directory_file_ids, count=_FILES_PER_REQUEST):
            where = ("And", [self._scope(export_config_id, file_ids), ("chunk_index", "Eq", 0)])
            async for rows in self._store.pages("list snapshots", where, attributes):
                snapshots += [found for row in rows if (head := read_head(row, None)) for found in to_snapshots([head])]
        return snapshots

    async def fetch_records(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> AsyncIterator[pa.Table]:
        """Tables of about 32 MB (more only for a file that alone is larger); a file of up to a page is read at one moment.

        Files are found by counting documents, not by their chunk 0, so that what has lost it shows too.
        """
        dimension = self.context.model.dimension
        attributes = layout.compared_attributes(self._declared)
        page = max(1, min(MAX_LIMIT, _BYTES_PER_PAGE // (dimension * 4 + _TEXT_BYTES_GUESSED)))
        for wanted in named_slices(parsed_directory_file_ids, count=_FILES_PER_REQUEST):
            where = self._scope(export_config_id, wanted)
            async for counts in self._store.counts("count records", where, "parsed_directory_file_id"):
                for group in slices(counts, count=_FILES_PER_REQUEST, size=page, size_of=lambda counted: counted[1]):
                    files = self._scope(export_config_id, [file_id for file_id, _ in group])
                    pages = self._store.pages("read records", files, attributes, limit=page)
                    rows = [row async for some in pages for row in some]
                    if rows:
                        yield await asyncio.to_thread(layout.decode_compared, rows, dimension, self._declared)
        if parsed_directory_file_ids is None:
            nameless = layout.without_file(self.context.tenant_id, export_config_id)
            async for rows in self._store.pages("read records", nameless, attributes, limit=page):
                yield await asyncio.to_thread(layout.decode_compared, rows, dimension, self._declared)

    def _scope(self, export_config_id: str, file_ids: Sequence[str] | None = None) -> Filter:
        return layout.scope(self.context.tenant_id, export_config_id, file_ids)

    async def search(self, request: SearchRequest) -> list[SearchHit]:
        """Vector search by cosine, text search by BM25, hybrid by relative score fusion of the two, read at one moment.

        Raises ValueError for more results or a longer text than Turbopuffer takes.
        """
        self.check_search(request)
        conditions = parse_filters(request.filters, self._declared)
        if request.k > MAX_LIMIT:
            raise ValueError(f"k must be at most {MAX_LIMIT:,}, the most Turbopuffer answers with, not {request.k:,}")
        if request.mode != "vector" and len(cast(str, request.text).encode()) > MAX_QUERY_TEXT_BYTES:
            raise ValueError(f"the text must have at most {MAX_QUERY_TEXT_BYTES:,} bytes, the most Turbopuffer searches for")
        where = ("And", [self._scope(request.export_config_id), *map(layout.render, conditions)])
        queries = self._queries(request, where)
        try:
            results = await self._store.answers("search", list(queries.values()))
        except Missing:
            return []
        found = [await asyncio.to_thread(self._hits, result["rows"], mode) for mode, result in zip(queries, results, strict=True)]
        if request.mode != "hybrid":
            return found[0]
        by_vector, by_text = found
        return fuse_hits(by_vector, by_text, request.k)

    def _queries(self, request: SearchRequest, where: Filter) -> dict[SearchMode, dict[str, Any]]:
        """What to ask for in this mode, each with the mode that it is alone."""
        ranks: dict[SearchMode, tuple[Any, ...]] = {}
        if request.vector is not None and request.mode != "text":
            ranks["vector"] = ("vector", "ANN", request.vector.tolist())
        if request.mode != "vector":
            ranks["text"] = ("text", "BM25", request.text)
        limit = min(MAX_LIMIT, max(request.k, HYBRID_DEPTH)) if request.mode == "hybrid" else request.k
        shared = {"filters": where, "limit": limit, "include_attributes": layout.record_attributes(vectors=False)}
        return {mode: {"rank_by": rank, **shared} for mode, rank in ranks.items()}

    def _hits(self, rows: Sequence[Row], mode: SearchMode) -> list[SearchHit]:
        records = to_records(layout.decode(rows, self.context.model.dimension, vectors=False))
        scores = np.asarray([row["$dist"] for row in rows], np.float64)
        if mode == "vector":
            scores = np.clip(1.0 - scores, -1.0, 1.0)
        return [SearchHit(record, score) for record, score in zip(records, scores.tolist(), strict=True)]

    async def list_scopes(self) -> frozenset[tuple[str, str]]:
        """Documents counted by tenant, then by config: a query a tenant."""
        found: set[tuple[str, str]] = set()
        async for tenants in self._store.counts("list the tenants", ("chunk_index", "Gte", 0), "tenant_id"):
            for tenant_id, _ in tenants:
                where = ("tenant_id", "Eq", tenant_id)
                async for configs in self._store.counts("list the configs", where, "export_config_id"):
                    found.update((tenant_id, config) for config, _ in configs)
        return frozenset(found)

    async def drop_collection(self) -> None:
        await self._store.drop()

    async def close(self) -> None:
        await self._store.close()
