"""The Azure AI Search sink: a hosted vector and full-text index.

What belongs here: what each promise of a sink becomes. How the index looks is ``azure_layout``'s, how a record is encoded
``azure_documents``', how filters are spelt ``azure_query``'s, how requests are made ``azure_store``'s and how files are replaced
``azure_replace``'s. The key comes from ``AZURE_SEARCH_API_KEY`` alone (an admin key: a query key cannot write), the address
from the settings or ``AZURE_SEARCH_ENDPOINT``.

Text search cuts words as the setting ``analyzer`` does; the default knows no words of scripts without spaces.

Searches lag behind writes. Every method that writes returns when searches show what it wrote, so a snapshot never answers
from before this exporter's own writes; other readers, on other replicas, follow within seconds.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import SinkConflict, SinkUnavailable
from pipeline.sinks import azure_documents as documents
from pipeline.sinks.azure_documents import Row
from pipeline.sinks.azure_layout import FILTER_FIELDS, SEMANTIC, IndexDesign, field_name, record_attributes
from pipeline.sinks.azure_query import escape_text, literal, one_of, render, scope, words_of
from pipeline.sinks.azure_replace import FILES_PER_REQUEST, AzureWriter, poll_wait
from pipeline.sinks.azure_store import ENDPOINT, MAX_PAGE, Action, AzureStore
from pipeline.sinks.base import Exporter, ReplaceReport, SearchHit, SearchRequest, SinkContext, SinkSettings, Snapshot
from pipeline.sinks.file_keys import FileKey
from pipeline.sinks.filters import FieldValue, fitting_values, parse_filters
from pipeline.sinks.fusion import HYBRID_DEPTH
from pipeline.sinks.generations import to_snapshots, written
from pipeline.sinks.http_store import Missing
from pipeline.sinks.records import FileRecords, canonical_json, to_records
from pipeline.sinks.refusals import encode_all
from pipeline.sinks.slicing import file_slices, named_slices, one_ahead, slices
from pipeline.urls import one_spelling

_RECORD_BYTES_AT_ONCE: Final = 32 * 2**20
"""Records of this size are encoded at once, make about three times as many bytes, and are waited for together."""

_BYTES_PER_PAGE: Final = 8 * 2**20
_TEXT_BYTES_GUESSED: Final = 8192
_JSON_BYTES_PER_DIMENSION: Final = 13
_SETTING_ATTEMPTS: Final = 5
_MAX_SCOPES: Final = 100
"""A filter of hundreds of clauses may be refused; documented by the vendor."""


class AzureAISearchSettings(SinkSettings):
    """Where the indexes are and how they analyze and rank text."""

    endpoint: str | None = Field(
        default=None,
        description="Address of the search service, https://NAME.search.windows.net. Default: AZURE_SEARCH_ENDPOINT.",
    )
    index_prefix: str = Field(
        default="indexport", pattern=r"^[a-z0-9](-?[a-z0-9]){1,63}$", description="How the names of its indexes begin."
    )
    analyzer: str = Field(
        default="standard.lucene",
        min_length=1,
        description="Analyzer of the text, as in de.microsoft. Scripts without spaces, such as Chinese or Thai, need their "
        "language's, as zh-Hans.microsoft or th.microsoft, to be cut into words. Fixed once the index exists.",
    )
    semantic_ranking: bool = Field(
        default=False, description="Rank text and hybrid results again by the semantic ranker, which the vendor bills by query."
    )
    visibility_timeout_seconds: float = Field(
        default=120.0, gt=0, description="How long to wait until what was written is searchable; usually it is within seconds."
    )

    def place(self) -> tuple[object, ...]:
        return one_spelling(self.endpoint or os.environ.get(ENDPOINT, ENDPOINT)), self.index_prefix


@dataclass(frozen=True, slots=True)
class _Fill:
    """The changes that fill metadata fields of one file: of its chunk 0, whose id this has, and of the others."""

    id: str
    head: Action
    body: list[Action]


class AzureAISearchExporter(Exporter):
    """One index a model, ``{index_prefix}-{model.slug}``, shared by all tenants, configs and processes."""

    settings_type = AzureAISearchSettings
    search_modes = frozenset({"vector", "text", "hybrid"})
    ids_by_version = True
    settings: AzureAISearchSettings

    def __init__(self, settings: AzureAISearchSettings, context: SinkContext) -> None:
        super().__init__(settings, context)
        name = f"{settings.index_prefix}-{context.model.slug.strip('-')}"
        self._declared = context.metadata_fields
        self._design = IndexDesign(name, context.model, self._declared, settings.analyzer, settings.semantic_ranking)
        self._store = AzureStore(name, settings.endpoint)
        self._writer = AzureWriter(self._store, context.tenant_id, settings.visibility_timeout_seconds)

    @property
    def index_name(self) -> str:
        return self._store.index

    async def provision(self) -> None:
        """Create the index, add metadata fields declared since, and fill these from what the documents hold."""
        self._design.check_model()
        for _ in range(_SETTING_ATTEMPTS):
            if await self._set_index():
                return await self._fill_added_fields()
        raise SinkUnavailable(f"Azure AI Search index {self.index_name!r} keeps being changed by others; run again")

    async def _set_index(self) -> bool:
        """False when another process has changed the index at the same time."""
        try:
            found = await self._store.get_index()
        except Missing:
            return await self._store.put_index(self._design.definition(), replacing=None)
        wanted = self._design.extended(found)
        return wanted is None or await self._store.put_index(wanted, replacing=found["@odata.etag"])

    async def _fill_added_fields(self) -> None:
        """Fill declared fields in documents written before they were declared, from the metadata these hold.

        What is missing is read off the documents, so a crash on the way is made good by the next call. Returns when searches
        show what was filled; what others write meanwhile is the next call's.
        """
        if not self._declared:
            return
        filled: dict[str, Action] = {}
        async for rows in self._unfilled():
            filled |= await self._make([fill for row in rows if (fill := self._fill(row))])
        deadline = time.monotonic() + self.settings.visibility_timeout_seconds
        attempt = 0
        while filled and (
            late := [fill async for rows in self._unfilled() for fill in map(self._fill, rows) if fill and fill.id in filled]
        ):
            filled |= await self._make([fill for fill in late if fill.head != filled[fill.id]])  # others have overwritten these
            attempt += 1
            if time.monotonic() > deadline:
                raise SinkUnavailable(f"Azure AI Search index {self.index_name!r} does not show metadata filled in; run again")
            await asyncio.sleep(poll_wait(attempt))

    def _unfilled(self) -> AsyncIterator[list[Row]]:
        """Chunk 0 of every file that was not written for all declared fields."""
        lacking = " or ".join(f"not {FILTER_FIELDS}/any(key: {one_of('key', [key])})" for key in self._declared)
        where = f"tenant_id eq {literal(self.context.tenant_id)} and chunk_index eq 0 and ({lacking})"
        select = ["id", *documents.HEAD_FIELDS, "metadata_json", FILTER_FIELDS, *map(field_name, self._declared)]
        return self._store.pages("find metadata to fill in", where, select)

    def _fill(self, row: Row) -> _Fill | None:
        """Nothing but the list of fields, in chunk 0 alone, where the documents have what the metadata has; ``None`` for a
        file that another program has altered, which the next run replaces."""
        head = documents.to_head(row)
        if head is None or not head.generation.has_ids:
            return None
        missing: dict[str, FieldValue] = {
            field_name(key): value
            for key, value in fitting_values(row.get("metadata_json"), self._declared).items()
            if value not in (None, []) and row.get(field_name(key)) in (None, [])
        }
        covered = sorted({*(row.get(FILTER_FIELDS) or ()), *self._declared})
        body = [_merge(found, missing) for found in head.key.ids(head.generation)[1:] if missing]
        return _Fill(row["id"], _merge(row["id"], {**missing, FILTER_FIELDS: covered}), body)

    async def _make(self, fills: Sequence[_Fill]) -> dict[str, Action]:
        """Change chunk 0, which says that nothing is missing, when all others are changed; its changes by its id."""
        for changes in ([change for fill in fills for change in fill.body], [fill.head for fill in fills]):
            for batch in slices(changes, count=MAX_PAGE):
                failures = await self._store.change("fill metadata fields", batch)
                refused = [failure for failure in failures.values() if failure.status != 404]  # 404: replaced meanwhile
                if refused:
                    raise SinkConflict(f"Azure AI Search cannot fill metadata fields: {refused[0].status}, {refused[0].message}")
        return {fill.id: fill.head for fill in fills}

    async def check_provisioned(self) -> None:
        await self._store.get_index()

    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        """New versions beside the old ones, 500 files or 32 MB at once; the old ones go when searches show the new ones."""
        self.check_files(files)
        batches = file_slices(files, count=FILES_PER_REQUEST, size=_RECORD_BYTES_AT_ONCE)
        total = ReplaceReport(0, 0)
        encode = partial(documents.encode_file, declared=self._declared)
        async for _, (encoded, unfit) in one_ahead(batches, partial(encode_all, encode=encode)):
            unwanted = await self._writer.replace(encoded)
            left_out = {error.file_id for error in unwanted}
            total += written([file for file in encoded if file.key.file_id not in left_out], [*unfit, *unwanted])
        return total

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        """By computed ids, then by the ids searches still find (there is no delete by filter), until they find none."""
        try:
            await self._writer.remove(
                [
                    FileKey(self.context.tenant_id, export_config_id, file_id)
                    for file_id in dict.fromkeys(parsed_directory_file_ids)
                ]
            )
            await self._writer.remove_nameless(export_config_id)
        except Missing:
            return

    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        """One search for every 1,000 files, or for every 500 named ones."""
        heads = []
        for file_ids in named_slices(parsed_directory_file_ids, count=FILES_PER_REQUEST):
            where = f"{self._scope(export_config_id, file_ids)} and chunk_index eq 0"
            async for rows in self._store.pages("list snapshots", where, documents.HEAD_FIELDS):
                heads += [head for row in rows if (head := documents.to_head(row))]
        return to_snapshots(heads)

    async def fetch_records(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> AsyncIterator[pa.Table]:
        """Tables of about 8 MB (more only for a file that alone is larger)."""
        dimension = self.context.model.dimension
        select = documents.compared_attributes(self._declared)
        limit = max(2, min(MAX_PAGE, _BYTES_PER_PAGE // (dimension * _JSON_BYTES_PER_DIMENSION + _TEXT_BYTES_GUESSED)))
        for file_ids in named_slices(parsed_directory_file_ids, count=FILES_PER_REQUEST):
            held: list[Row] = []
            async for rows in self._store.pages("read records", self._scope(export_config_id, file_ids), select, limit=limit):
                held += rows
                unfinished = documents.file_number(rows[-1])
                whole = [row for row in held if documents.file_number(row) != unfinished]
                if whole:
                    held = held[len(whole) :]
                    yield await asyncio.to_thread(documents.decode_compared, whole, dimension, self._declared)
            if held:
                yield await asyncio.to_thread(documents.decode_compared, held, dimension, self._declared)

    def _scope(self, export_config_id: str, file_ids: Sequence[str] | None = None) -> str:
        return scope(self.context.tenant_id, export_config_id, file_ids)

    async def search(self, request: SearchRequest) -> list[SearchHit]:
        """Vector search by cosine, text search by BM25, hybrid by the service's own reciprocal rank fusion.

        Raises ValueError for more results or a longer text than the service takes.
        """
        self.check_search(request)
        conditions = parse_filters(request.filters, self._declared)
        if request.k > MAX_PAGE:
            raise ValueError(f"k must be at most {MAX_PAGE:,}, the most Azure AI Search answers with, not {request.k:,}")
        text = request.text if request.mode != "vector" and request.text and words_of(request.text) else None
        if request.mode == "text" and text is None:
            return []
        query: dict[str, Any] = {
            "filter": " and ".join([self._scope(request.export_config_id), *map(render, conditions)]),
            "select": ",".join(record_attributes(vectors=False)),
            "top": request.k,
        }
        if text is not None:
            query |= self._text_query(text)
        if request.vector is not None and request.mode != "text":
            depth = max(request.k, HYBRID_DEPTH) if request.mode == "hybrid" else request.k
            nearest = {"kind": "vector", "vector": request.vector.tolist(), "fields": "embedding", "k": depth}
            query |= {"vectorQueries": [nearest], "vectorFilterMode": "preFilter"}
        rows = await self._store.search("search", query)
        return self._hits(rows, text)

    def _text_query(self, text: str) -> dict[str, Any]:
        query = {"search": escape_text(text), "searchFields": "content", "searchMode": "any", "queryType": "simple"}
        if self.settings.semantic_ranking:
            query |= {"queryType": "semantic", "semanticConfiguration": SEMANTIC, "semanticQuery": text}
        return query

    def _hits(self, rows: Sequence[Row], text: str | None) -> list[SearchHit]:
        """A vector search's score is ``1 / (1 + (1 - cosine))``; the semantic ranker's is null where it has not ranked.

        Both are documented by the vendor.
        """
        records = to_records(documents.decode(rows, self.context.model.dimension, vectors=False))
        if text is None:
            scores = np.clip([2.0 - 1.0 / row["@search.score"] for row in rows], -1.0, 1.0).tolist()
        elif self.settings.semantic_ranking:
            scores = [row.get("@search.rerankerScore") or 0.0 for row in rows]
        else:
            scores = [row["@search.score"] for row in rows]
        return [SearchHit(record, score) for record, score in zip(records, scores, strict=True)]

    async def list_scopes(self) -> frozenset[tuple[str, str]] | None:
        """A search for every few scopes, each for documents of scopes not found yet; ``None`` for more than 100 scopes."""
        found: set[tuple[str, str]] = set()
        while len(found) <= _MAX_SCOPES:
            others = " and ".join(
                [
                    "chunk_index ge 0",
                    "tenant_id ne null",
                    "export_config_id ne null",
                    *(f"not ({scope(*known)})" for known in sorted(found)),
                ]
            )
            try:
                rows = await self._store.rows("list scopes", others, ["tenant_id", "export_config_id"])
            except Missing:
                rows = []
            if not rows:
                return frozenset(found)
            found.update((row["tenant_id"], row["export_config_id"]) for row in rows)
        return None

    async def drop_collection(self) -> None:
        await self._store.drop_index()

    async def close(self) -> None:
        await self._store.close()


def _merge(document_id: str, values: Mapping[str, FieldValue]) -> Action:
    """A change that sets these fields of a document."""
    return Action(document_id, f'{{"@search.action":"merge","id":"{document_id}",{canonical_json(dict(values))[1:-1]}}}'.encode())
