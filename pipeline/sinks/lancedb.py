"""The LanceDB sink: a directory (local or in an object store), many reading and writing processes, no server.

What belongs here: talking to LanceDB. How the table lies on disk is ``lancedb_table``'s, what keeps it quick and small
``lancedb_upkeep``'s. Credentials of an object store are read from the environment by LanceDB itself (``AWS_ACCESS_KEY_ID`` and
its kin, documented by the vendor). ``lancedb`` takes long to import, so it is imported where it is used, in a thread: when
the database is opened, or by a run while its model computes.

Text search finds words as they are, in any language, with or without spaces between them: nothing is stemmed, no word is too
common. A table that an earlier version indexed for English, or its vectors coarsely, gets that index anew at the end of its next
run, and answers by the old one until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.errors import SinkDamaged
from pipeline.sinks import lancedb_table as layout
from pipeline.sinks.base import (
    SNAPSHOT_FIELDS,
    Exporter,
    ReplaceReport,
    SearchHit,
    SearchRequest,
    SinkContext,
    SinkSettings,
    Snapshot,
)
from pipeline.sinks.copies import readable, show_altered
from pipeline.sinks.file_keys import FileKey, by_config
from pipeline.sinks.filters import fields_of_file, fitting_by_row, parse_filters
from pipeline.sinks.fusion import HYBRID_DEPTH, fuse_hits
from pipeline.sinks.lancedb_store import LanceStore
from pipeline.sinks.lancedb_upkeep import Upkeep, rewrite_rows
from pipeline.sinks.records import ChunkRecord, FileRecords, in_order, to_records
from pipeline.sinks.refusals import check_vectors, sift
from pipeline.sinks.slicing import named_slices, one_ahead, slices
from pipeline.urls import one_spelling

if TYPE_CHECKING:
    from lancedb.query import AsyncStandardQuery
    from lancedb.table import AsyncTable

_FILES_PER_COMMIT: Final = 500
"""Bounds the delete predicate, which names every file of the commit."""

_BYTES_PER_COMMIT: Final = 64 * 2**20
_BYTES_PER_FETCH: Final = 32 * 2**20
_TEXT_BYTES_GUESSED: Final = 4096
_CANDIDATES_PER_RESULT: Final = 10
_LEAST_CANDIDATES: Final = 400
"""Of 300,000 vectors in 400 clusters so many held the ten nearest, or 97 % of them where a cluster's were all but the same."""

_ALL_IF_NEEDED: Final = 0
"""No upper limit: Lance searches the nearest partitions first, and further ones only while it has too few results."""

_RESULTS_PER_HIT: Final = 4
"""Where a filter leaves few records in the nearest partitions, Lance is content with the first ``limit`` it finds of them,
though nearer ones lie in others: so it is asked for more than are answered."""


def refine_factor(k: int) -> int:
    """Candidates per result that are scored again with the exact vectors, once an approximate index exists."""
    return max(_CANDIDATES_PER_RESULT, -(-_LEAST_CANDIDATES // k))


class LanceDBSettings(SinkSettings):
    """Where the table lies and when it is indexed."""

    uri: str = Field(description="Directory of the database: a local path, s3://, gs:// or az:// URL.", min_length=1)
    table_prefix: str = Field(
        default="indexport", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="How the names of its tables begin."
    )
    index_threshold_rows: int = Field(
        default=100_000, ge=256, description="From this size on vectors get an approximate index; below, search is exact."
    )
    keep_versions_minutes: int = Field(
        default=60, ge=1, description="Versions younger than this survive, for their readers; a run drops those twice as old."
    )

    def place(self) -> tuple[object, ...]:
        return one_spelling(self.uri), self.table_prefix


class LanceDBExporter(Exporter):
    """One table a model, ``{table_prefix}_{model.slug}``, shared by all tenants, configs and processes."""

    settings_type = LanceDBSettings
    search_modes = frozenset({"vector", "text", "hybrid"})
    atomic_replace = True
    settings: LanceDBSettings

    def __init__(self, settings: LanceDBSettings, context: SinkContext) -> None:
        super().__init__(settings, context)
        self._store = LanceStore(settings.uri, f"{settings.table_prefix}_{context.model.slug}")
        self._dimension = context.model.dimension
        keep = timedelta(minutes=settings.keep_versions_minutes)
        self._upkeep = Upkeep(self._store, self._dimension, settings.index_threshold_rows, keep)
        self._checks = (partial(fields_of_file, declared=context.metadata_fields), check_vectors)

    @property
    def table_name(self) -> str:
        return self._store.table_name

    async def provision(self) -> None:
        """Create the table and its indexes, add metadata fields declared since, and fill these from what the rows hold."""
        declared = self.context.metadata_fields
        table = await self._store.create(layout.table_schema(self.context.model, declared))
        await self._store.commit("add metadata fields", partial(self._add_missing_fields, table))
        await self._fill_added_fields(table)
        await self._upkeep.create_indexes(table)

    async def _add_missing_fields(self, table: AsyncTable) -> None:
        missing = layout.check_schema(await table.schema(), self.table_name, self.context.model, self.context.metadata_fields)
        if missing:
            await table.add_columns(layout.metadata_addition(missing))

    async def _fill_added_fields(self, table: AsyncTable) -> None:
        """Fill fields declared since rows were written with what these hold, whoever's they are, and mark them as filled.

        Every row is written anew before that, as Lance 13 cannot filter on the field alone where a data file lacks it. The
        mark comes last, so a crash on the way is made good by the next call.
        """
        schema = await self._store.call("read the schema", table.schema)
        added = layout.unfilled_in(schema, self.context.metadata_fields)
        if not added:
            return
        await self._store.commit("rewrite the table", partial(rewrite_rows, table))
        async with self._store.pinned() as pinned:
            async for rows in self._whole_files(pinned, " OR ".join(map(layout.unfilled, added))):
                await self._store.commit("fill metadata fields", partial(self._rewrite, table, rows))
        marks = [layout.filled_mark(key) for key in added]
        await self._store.commit("mark metadata fields", partial(table.update_field_metadata, *marks))

    async def _rewrite(self, table: AsyncTable, rows: pa.Table) -> None:
        """Encode rows anew where nobody has replaced them since they were read."""
        records = layout.decode(rows, self._dimension)
        encoded = await asyncio.to_thread(self._encode, records, await table.schema())
        unchanged = "target.record_set_hash = source.record_set_hash"
        await table.merge_insert("id").when_matched_update_all(where=unchanged).execute(encoded)

    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        """One commit, a merge, for up to 500 files and 64 MB: upserts by id, and deletes what these files had beyond it."""
        self.check_files(files)
        table = await self._store.table()
        accepted, refused = await asyncio.to_thread(sift, files, self._checks)
        schema = await self._store.call("read the schema", table.schema)
        batches = list(slices(accepted, count=_FILES_PER_COMMIT, size=_BYTES_PER_COMMIT, size_of=self._bytes_of))
        records, size = 0, 0
        async for batch, rows in one_ahead(batches, partial(self._encode_files, schema=schema)):
            await self._store.commit("replace files", partial(self._merge, table, batch, rows))
            records += rows.num_rows
            size += rows.nbytes
        return ReplaceReport(records, size, tuple(refused))

    def _bytes_of(self, file: FileRecords) -> int:
        """Vectors and text, nearly all of a file; asking every column costs more than encoding some."""
        size: int = file.table.num_rows * self._dimension * 4 + file.table["content"].nbytes
        return size

    def _encode_files(self, files: Sequence[FileRecords], schema: pa.Schema) -> pa.Table:
        return self._encode(pa.concat_tables([file.table for file in files]), schema)

    def _encode(self, records: pa.Table, schema: pa.Schema) -> pa.Table:
        """Fill every metadata field the table has, also those only another export of it declared, as far as values fit."""
        values = fitting_by_row(records["metadata"].to_pylist(), layout.declared_in(schema))
        return layout.encode(records, values, schema)

    async def _merge(self, table: AsyncTable, files: Sequence[FileRecords], rows: pa.Table) -> None:
        leftovers = self._rows_of(files)
        if not rows.num_rows:
            await table.delete(leftovers)
            return
        schema = await table.schema()
        if schema != rows.schema:  # another process has added a metadata field since
            rows = await asyncio.to_thread(self._encode_files, files, schema)
        await (
            table.merge_insert("id")
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .when_not_matched_by_source_delete(leftovers)
            .execute(rows)
        )

    def _rows_of(self, files: Sequence[FileRecords]) -> str:
        configs = by_config(map(FileKey.of, files))
        return " OR ".join(f"({self._scope(config, file_ids)})" for (_, config), file_ids in configs.items())

    def _scope(self, export_config_id: str, file_ids: Sequence[str] | None = None) -> str:
        whole = layout.scope(self.context.tenant_id, export_config_id)
        return whole if file_ids is None else f"{whole} AND {layout.one_of('parsed_directory_file_id', file_ids)}"

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        table = await self._store.table()
        for file_ids in slices(parsed_directory_file_ids, count=_FILES_PER_COMMIT):
            await self._store.commit("delete files", partial(table.delete, self._scope(export_config_id, file_ids)))

    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        """One scan for all files, or one for every 500 named ones."""
        table = await self._store.table()
        snapshots = []
        for file_ids in named_slices(parsed_directory_file_ids, count=_FILES_PER_COMMIT):
            where = f"{self._scope(export_config_id, file_ids)} AND chunk_index = 0"
            rows = await self._store.read(table.query().where(where).select(list(SNAPSHOT_FIELDS)))
            snapshots += await asyncio.to_thread(_snapshots, rows)
        return snapshots

    async def fetch_records(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> AsyncIterator[pa.Table]:
        """Tables of about 32 MB (more only for a file that alone is larger), all of one version of the table."""
        async with self._store.pinned() as table:
            schema = await self._store.call("read the schema", table.schema)
            for wanted in named_slices(parsed_directory_file_ids, count=_FILES_PER_COMMIT):
                where = self._scope(export_config_id, wanted)
                async with aclosing(self._whole_files(table, where, *layout.COPIES)) as found:
                    async for rows in found:
                        yield await asyncio.to_thread(self._compared, rows, schema)

    def _compared(self, rows: pa.Table, schema: pa.Schema) -> pa.Table:
        """The records of rows, which show where their copies are altered."""
        records = layout.decode(rows, self._dimension)
        wanted = self._encode(readable(records), schema)
        return show_altered(records, layout.altered_copies(rows, wanted))

    async def _whole_files(self, table: AsyncTable, where: str, *copies: str) -> AsyncGenerator[pa.Table, None]:
        """The rows selected, all of a file together, with the columns of a record and these."""
        columns = [*layout.record_columns(self._dimension, vectors=True), *copies]
        row_bytes = self._dimension * 4 + _TEXT_BYTES_GUESSED
        counts = await self._row_counts(table, where)
        for group in slices(counts, count=_FILES_PER_COMMIT, size=_BYTES_PER_FETCH, size_of=lambda file: file[1] * row_bytes):
            named = layout.one_of("parsed_directory_file_id", [file_id for file_id, _ in group])
            rows = await self._store.read(table.query().where(f"({where}) AND {named}").select(columns))
            yield await asyncio.to_thread(in_order, rows)

    async def _row_counts(self, table: AsyncTable, where: str) -> list[tuple[str, int]]:
        """File ids with their numbers of rows, in the order the table holds them."""
        rows = await self._store.read(table.query().where(where).select(["parsed_directory_file_id"]))
        counted = pc.value_counts(rows["parsed_directory_file_id"].combine_chunks())
        return list(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))

    async def search(self, request: SearchRequest) -> list[SearchHit]:
        """Vector search by cosine, text search by BM25, hybrid by relative score fusion of the two."""
        self.check_search(request)
        conditions = parse_filters(request.filters, self.context.metadata_fields)
        where = " AND ".join([self._scope(request.export_config_id), *map(layout.render, conditions)])
        table = await self._store.table()
        if request.mode == "vector":
            return await self._by_vector(table, request, where, request.k)
        if request.mode == "text":
            return await self._by_text(table, request, where, request.k)
        depth = max(request.k, HYBRID_DEPTH)
        found = await asyncio.gather(self._by_vector(table, request, where, depth), self._by_text(table, request, where, depth))
        return fuse_hits(*found, request.k)

    async def _by_vector(self, table: AsyncTable, request: SearchRequest, where: str, k: int) -> list[SearchHit]:
        query = table.query().where(where).nearest_to(request.vector).column("vector").distance_type("cosine")
        query = query.refine_factor(-(-refine_factor(k) // _RESULTS_PER_HIT)).maximum_nprobes(_ALL_IF_NEEDED)
        rows = (await self._nearest(query, "_distance", k * _RESULTS_PER_HIT)).slice(0, k)
        similarity = np.clip(1.0 - rows["_distance"].to_numpy(), -1.0, 1.0).tolist()
        return self._hits(rows, similarity)

    async def _by_text(self, table: AsyncTable, request: SearchRequest, where: str, k: int) -> list[SearchHit]:
        from lancedb.query import MatchQuery

        # Of a plain string Lance would take what is in quotes for a phrase.
        words = MatchQuery(cast(str, request.text), "text")  # type: ignore[call-arg]  # its defaults are pydantic's
        query = table.query().where(where).nearest_to_text(words)
        rows = await self._nearest(query, "_score", k)
        return self._hits(rows, rows["_score"].to_pylist())

    async def _nearest(self, query: AsyncStandardQuery, score: str, k: int) -> pa.Table:
        columns = layout.record_columns(self._dimension, vectors=False)
        return await self._store.read(query.select([*columns, score]).limit(k))

    def _hits(self, rows: pa.Table, scores: Sequence[float]) -> list[SearchHit]:
        records: list[ChunkRecord] = to_records(layout.decode(rows, self._dimension))
        return [SearchHit(record, score) for record, score in zip(records, scores, strict=True)]

    async def optimize(self) -> None:
        """Build or renew the indexes where it pays, and compact, index and prune once enough has been written for that."""
        await self._upkeep.optimize(await self._store.table())

    async def purge_history(self) -> None:
        await self._upkeep.purge(await self._store.table())

    async def renew(self, *, export_config_id: str) -> None:  # noqa: ARG002 - the table is every config's
        """Write rows and indexes anew. Raises SinkDamaged where the table cannot be read for it: what others keep in it goes with
        its folder, which is therefore for a person to remove."""
        try:
            await self.provision()
            await self.purge_history()
        except SinkDamaged as error:
            raise SinkDamaged(f"{error}; where that does not help, {self._store.removal}") from None

    async def list_scopes(self) -> frozenset[tuple[str, str]]:
        """One scan of two columns, a batch of rows in memory at a time."""
        table = await self._store.table()
        return await self._store.call("list the scopes", partial(_scopes, table))

    async def drop_collection(self) -> None:
        await self._store.drop()

    async def close(self) -> None:
        self._store.close()


async def _scopes(table: AsyncTable) -> frozenset[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    async for batch in await table.query().select(["tenant_id", "export_config_id"]).to_batches():
        distinct = pa.Table.from_batches([batch]).group_by(["tenant_id", "export_config_id"]).aggregate([])
        found.update(zip(*(distinct[name].to_pylist() for name in ("tenant_id", "export_config_id")), strict=True))
    return frozenset(found)


def _snapshots(rows: pa.Table) -> list[Snapshot]:
    return [Snapshot(*row) for row in zip(*(rows[name].to_pylist() for name in SNAPSHOT_FIELDS), strict=True)]
