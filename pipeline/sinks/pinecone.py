"""The Pinecone sink: a hosted vector store (serverless indexes).

What belongs here: what each promise of a sink becomes in requests. How a record looks is ``pinecone_layout``'s, how requests
are made ``pinecone_store``'s, how files are replaced ``pinecone_replace``'s. The key comes from ``PINECONE_API_KEY`` alone.

One index a model, one namespace a tenant and config: what the vendor recommends for tenants that must not see each other.
Every filter names tenant and config all the same.

Pinecone holds 40 KB a record beside its vector. There lie the chunk's text, escaped twice, and the file's metadata three times:
where filters find it, as it is read back, and in LlamaIndex's node. So a file's first chunk has room for about 34,000 bytes of
plain text, a later one for 38,000, and one in which two of five characters are quotes for 17,000; beside a text of 1 KB there is
room for 11,000 bytes of metadata. A file that needs more is refused, with what takes how much.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pinecone import Vector
from pydantic import Field

from pipeline.errors import RecordRefused
from pipeline.sinks import pinecone_layout as layout
from pipeline.sinks.base import Exporter, ReplaceReport, SearchHit, SearchRequest, SinkContext, SinkSettings, Snapshot
from pipeline.sinks.filters import parse_filters
from pipeline.sinks.generations import FileWrites, replace_generations, to_snapshots, written
from pipeline.sinks.pinecone_layout import Metadata, RecordKey, Write
from pipeline.sinks.pinecone_replace import FILES_PER_REQUEST, IDS_IN_A_URL, PineconeWriter, page_size
from pipeline.sinks.pinecone_store import PineconeStore, WriteRefused
from pipeline.sinks.records import FileRecords, ref_doc_id, to_records
from pipeline.sinks.refusals import encode_all
from pipeline.sinks.slicing import each, file_slices, slices

MAX_K: Final = 10_000
"""Most results of a query; documented by the vendor."""

_BYTES_PER_BATCH: Final = 32 * 2**20
"""Every batch costs a round of reading heads, of waiting to see its own writes and of clearing markers."""

_BATCHES_AT_ONCE: Final = 2

_K_WITH_METADATA: Final = 80
"""So many of the largest records fit in the 4 MB of a query's answer."""

_FETCHES_AT_ONCE: Final = 8


class PineconeSettings(SinkSettings):
    """Where the indexes lie."""

    index_prefix: str = Field(
        default="indexport", pattern=r"^[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?$", description="How the names of its indexes begin."
    )
    cloud: str = Field(default="aws", description="Cloud of an index that has to be made: aws, gcp or azure.")
    region: str = Field(default="us-east-1", description="Region of an index that has to be made.")
    controller_host: str | None = Field(
        default=None, description="Address of the control plane. Default: PINECONE_CONTROLLER_HOST, or else the vendor's."
    )
    request_seconds: float = Field(default=60.0, gt=0, description="How long one attempt of a request may take.")
    ready_seconds: float = Field(default=300.0, gt=0, description="How long a new index may take to become ready.")
    freshness_seconds: float = Field(
        default=120.0, gt=0, description="How long the sink's own writes may take to become readable to it."
    )

    def place(self) -> tuple[object, ...]:
        return self.controller_host, self.index_prefix


class PineconeExporter(Exporter):
    """One serverless index a model, ``{index_prefix}-{model.slug}`` cut to 45 characters, shared by all tenants and configs.

    Vector search only. Integers in metadata declared for filtering are exact up to 2**53.
    """

    settings_type = PineconeSettings
    ids_by_version = True
    settings: PineconeSettings

    def __init__(self, settings: PineconeSettings, context: SinkContext) -> None:
        super().__init__(settings, context)
        self._store = PineconeStore(
            layout.index_name(settings.index_prefix, context.model),
            context.model,
            controller_host=settings.controller_host,
            request_seconds=settings.request_seconds,
            freshness_seconds=settings.freshness_seconds,
        )

    @property
    def index_name(self) -> str:
        return self._store.name

    def namespace(self, export_config_id: str) -> str:
        """Where a config's records lie; what other readers of the index, LlamaIndex for one, need to be told."""
        return layout.namespace_name(self.context.tenant_id, export_config_id)

    def _writer(self, export_config_id: str) -> PineconeWriter:
        return PineconeWriter(
            self._store,
            self.namespace(export_config_id),
            self.context.tenant_id,
            export_config_id,
            self.context.model.dimension,
        )

    async def provision(self) -> None:
        """Create the index, or validate the one there is; wait until it is ready. Deletion protection is left as it is."""
        layout.check_names(self.context.metadata_fields)
        await self._store.create(
            cloud=self.settings.cloud, region=self.settings.region, timeout_seconds=self.settings.ready_seconds
        )

    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        """Batches of up to 500 files or about 32 MB, one of them encoded or sent while another waits for an answer."""
        self.check_files(files)
        batches = file_slices(files, count=FILES_PER_REQUEST, size=_BYTES_PER_BATCH)
        encode = partial(layout.encode_file, declared=self.context.metadata_fields)
        reports: list[ReplaceReport] = []

        async def replace(batch: Sequence[FileRecords]) -> None:
            writes, refused = await asyncio.to_thread(encode_all, batch, encode)
            reports.append(ReplaceReport(0, 0, tuple(refused)))
            for config, of_config in groupby(sorted(writes, key=_config_of), key=_config_of):
                reports.append(await self._replace(self._writer(config), list(of_config)))

        await each(batches, replace, concurrency=_BATCHES_AT_ONCE)
        return sum(reports, ReplaceReport(0, 0))

    async def _replace(self, writer: PineconeWriter, files: Sequence[FileWrites[Write]]) -> ReplaceReport:
        """Replace these files; when Pinecone refuses, each half, until what is refused, and withdrawn, is known by its file."""
        try:
            await replace_generations(writer, files)
        except WriteRefused as error:
            if len(files) == 1:
                await writer.withdraw(files[0])
                return ReplaceReport(0, 0, (RecordRefused(files[0].key.file_id, str(error)),))
            half = len(files) // 2
            return await self._replace(writer, files[:half]) + await self._replace(writer, files[half:])
        return written(files)

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        """By computed ids, heads last; then by a filter, for records that no head names, and by one for no file's."""
        writer = self._writer(export_config_id)
        for file_ids in slices(parsed_directory_file_ids, count=FILES_PER_REQUEST):
            await writer.remove([RecordKey(self.context.tenant_id, export_config_id, file_id) for file_id in file_ids])
        await writer.remove_nameless()

    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        """A request for about every 4 MB of first chunks with their vectors: some 400 files a request at 384 dimensions."""
        return to_snapshots(await self._writer(export_config_id).heads(parsed_directory_file_ids))

    async def fetch_records(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> AsyncIterator[pa.Table]:
        """Tables of about 4 MB, more only for a file that alone is larger.

        Unless files are named, they are found by listing ids, so that records whose chunk 0 is lost show too.
        """
        namespace = self.namespace(export_config_id)
        limit = page_size(self.context.model.dimension)
        counts = await self._counts(export_config_id, parsed_directory_file_ids)
        for group in slices(counts, count=FILES_PER_REQUEST, size=limit, size_of=lambda counted: counted[1]):
            documents = [document for document, _ in group]
            where = layout.scope(self.context.tenant_id, export_config_id, ref_doc_id=documents)
            records = [record async for page in self._store.pages(namespace, where, limit=limit) for record in page]
            if records:
                yield await asyncio.to_thread(self._table, records)

    async def _counts(self, export_config_id: str, file_ids: Sequence[str] | None) -> list[tuple[str, int]]:
        """The ref_doc_id of every file, or of these, and how many records it has; a guess where it has no chunk 0."""
        if file_ids is not None:
            heads = await self._writer(export_config_id).heads(file_ids)
            counts = Counter(ref_doc_id(export_config_id, file_id) for file_id in file_ids)
            for head in heads:
                counts[ref_doc_id(export_config_id, head.key.file_id)] += head.snapshot.chunk_count
            return list(counts.items())
        namespace = self.namespace(export_config_id)
        await self._store.see_own_writes(namespace)
        pages = self._store.ids(namespace)
        return list(Counter([layout.document_of(record_id) async for ids in pages for record_id in ids]).items())

    def _table(self, records: Sequence[Vector]) -> pa.Table:
        found = [(record.id, record.metadata or {}, record.values) for record in records]
        return layout.decode_compared(found, self.context.model.dimension, self.context.metadata_fields)

    async def search(self, request: SearchRequest) -> list[SearchHit]:
        """The nearest records by cosine. Raises ValueError for more results than Pinecone answers with."""
        self.check_search(request)
        conditions = parse_filters(request.filters, self.context.metadata_fields)
        if request.k > MAX_K:
            raise ValueError(f"k must be at most {MAX_K:,}, the most Pinecone answers with, not {request.k:,}")
        vector = cast(npt.NDArray[np.float32], request.vector)
        if not vector.any():
            return []
        namespace = self.namespace(request.export_config_id)
        where = layout.search_filter(self.context.tenant_id, request.export_config_id, conditions)
        together = request.k <= _K_WITH_METADATA
        matches = await self._store.query(namespace, vector.tolist(), where, request.k, metadata=together)
        scores = {match.id: match.score for match in matches}
        held = {match.id: match.metadata or {} for match in matches} if together else await self._read(namespace, list(scores))
        return await asyncio.to_thread(self._hits, scores, held)

    async def _read(self, namespace: str, ids: Sequence[str]) -> dict[str, Metadata]:
        """The metadata of these records, of those that still exist."""
        held: dict[str, Metadata] = {}

        async def read(some: list[str]) -> None:
            found = await self._store.fetch(namespace, some)
            held.update({record_id: record.metadata or {} for record_id, record in found.items()})

        await each(slices(ids, count=IDS_IN_A_URL), read, concurrency=_FETCHES_AT_ONCE)
        return held

    def _hits(self, scores: Mapping[str, float], held: Mapping[str, Metadata]) -> list[SearchHit]:
        found = [(record_id, held[record_id], ()) for record_id in scores if record_id in held]
        records = to_records(layout.decode(found, self.context.model.dimension, vectors=False))
        cosines = [min(1.0, max(-1.0, scores[record_id])) for record_id, *_ in found]
        return [SearchHit(record, cosine) for record, cosine in zip(records, cosines, strict=True)]

    async def optimize(self) -> None:
        """Wait until searches find what this exporter has written."""
        await self._store.see_all_own_writes()

    async def close(self) -> None:
        await self._store.close()


def _config_of(file: FileWrites[Write]) -> str:
    return file.key.export_config_id
