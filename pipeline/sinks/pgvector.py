"""The PostgreSQL sink: pgvector for vectors, PostgreSQL's own full text search, one transaction a batch of files.

Text search knows the words of the server's parser. That of the default ``text_search_config`` takes a run of a script without
spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) for one word, what slashes join, a path, an address of mail or of the web
too. Words of such scripts are found by a configuration whose parser cuts them, which an extension brings: zhparser for Chinese,
pg_cjk_parser for Chinese, Japanese and Korean. (pg_bigm and PGroonga are indexes of their own, which this sink does not ask.)

Text search counts a word the more, the fewer of the records searched have it. Words that more than 1,000 and more than a
twentieth of these have are left out beside rarer ones; records with none but such words are found by asking for these alone.

A limit on the time of statements (``statement_timeout``) ends searches and reads, not what writes records or builds indexes.

What belongs here: the exporter. How the table lies in the database is ``pgvector_table``'s, SQL is ``pgvector_sql``'s,
connections are ``pgvector_store``'s. The connection string, which holds the password, is read from the environment.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from datetime import UTC, datetime
from functools import partial
from operator import itemgetter
from typing import Final, cast

import numpy as np
import pyarrow as pa
from psycopg import errors, sql
from pydantic import Field

from pipeline.errors import RecordRefused, SinkConflict
from pipeline.sinks import pgvector_rows as codec
from pipeline.sinks import pgvector_schema as schema
from pipeline.sinks import pgvector_sql as statements
from pipeline.sinks import pgvector_words as words
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
from pipeline.sinks.filters import fields_of_file, parse_filters
from pipeline.sinks.fusion import HYBRID_DEPTH, fused
from pipeline.sinks.generations import read_head, to_snapshots
from pipeline.sinks.pgvector_store import Connection, PostgresStore, ValueRefused
from pipeline.sinks.pgvector_table import TableLayout, written_columns
from pipeline.sinks.reading import ALTERED_INSTANT
from pipeline.sinks.records import FileRecords, record_schema, to_records
from pipeline.sinks.refusals import check_vectors, sift
from pipeline.sinks.slicing import file_slices, one_ahead, slices

_FILES_PER_TRANSACTION: Final = 200
"""Every file costs an advisory lock, of which a server with default settings has some thousands for all its sessions."""

_BYTES_PER_TRANSACTION: Final = 32 * 2**20
_BYTES_PER_FETCH: Final = 32 * 2**20
_BYTES_PER_ROUND_TRIP: Final = 4 * 2**20
_TEXT_BYTES_GUESSED: Final = 4096
_RERANKED: Final = 4
"""Candidates per result that an index of half precision must find, to be ranked by the exact vectors."""

_LARGEST_EF_SEARCH: Final = 1000
"""Documented by the vendor."""

_MAX_TEXT_CHARACTERS: Final = 50_000
"""Of a search text. The server's time grows with the square of its words: about a second here, a minute at ten times that."""


class PgVectorSettings(SinkSettings):
    """Which database, where in it, and how it is searched."""

    dsn_env: str = Field(
        default="INDEXPORT_PGVECTOR_DSN",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds the connection string, with its password.",
    )
    schema_name: str = Field(default="public", pattern=r"^[^%]{1,63}$", description="Schema of the table; created if missing.")
    table_prefix: str = Field(
        default="indexport",
        pattern=r"^[a-z0-9][a-z0-9_]{0,15}$",
        description="The table is data_{table_prefix}_{model}; LlamaIndex's PGVectorStore calls it {table_prefix}_{model}.",
    )
    text_search_config: str = Field(
        default="simple",
        pattern=r"^\w{1,63}$",
        description="PostgreSQL text search configuration, such as english or german; simple splits words and no more. Scripts "
        "without spaces, such as Chinese or Thai, need one whose parser cuts them: an extension's, such as zhparser.",
    )
    ef_search: int = Field(
        default=400, ge=1, le=_LARGEST_EF_SEARCH, description="Candidates an index search keeps: more is slower and misses less."
    )

    def place(self) -> tuple[object, ...]:
        return os.environ.get(self.dsn_env, self.dsn_env), self.schema_name, self.table_prefix


class PgVectorExporter(Exporter):
    """One table a model, shared by all tenants, configs and processes."""

    settings_type = PgVectorSettings
    search_modes = frozenset({"vector", "text", "hybrid"})
    atomic_replace = True
    settings: PgVectorSettings

    def __init__(self, settings: PgVectorSettings, context: SinkContext) -> None:
        super().__init__(settings, context)
        self.layout = TableLayout(
            settings.schema_name, settings.table_prefix, context.model, settings.text_search_config, context.metadata_fields
        )
        self._store = PostgresStore(settings.dsn_env)
        self._checks = (partial(fields_of_file, declared=context.metadata_fields), check_vectors, codec.check_texts)

    async def provision(self) -> None:
        """Create the extension, schema, table and indexes as far as they are missing, and validate what exists."""
        await self._store.change_schema("provision the table", lambda connection: schema.provision(connection, self.layout))

    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        """One transaction for up to 200 files and 32 MB; a file PostgreSQL refuses is left out and the others done again."""
        self.check_files(files)
        accepted, refused = await asyncio.to_thread(sift, files, self._checks)
        batches = file_slices(accepted, count=_FILES_PER_TRANSACTION, size=_BYTES_PER_TRANSACTION)
        written: list[FileRecords] = []
        async for batch, rows in one_ahead(batches, _encode):
            try:
                await self._replace(batch, rows)
                written += batch
            except ValueRefused:
                done, not_done = await self._replace_one_by_one(batch)
                written += done
                refused += not_done
        return ReplaceReport(
            sum(file.table.num_rows for file in written), sum(file.table.nbytes for file in written), tuple(refused)
        )

    async def _replace_one_by_one(self, files: Sequence[FileRecords]) -> tuple[list[FileRecords], list[RecordRefused]]:
        """The server does not say whose value it refused; alone, every file answers for itself."""
        done, refused = [], []
        for file in files:
            try:
                await self._replace([file], await asyncio.to_thread(_encode, [file]))
                done.append(file)
            except ValueRefused as error:
                refused.append(RecordRefused(file.file_id, str(error)))
        return done, refused

    async def _replace(self, files: Sequence[FileRecords], rows: Sequence[codec.Row]) -> None:
        addresses = [(file.provenance.export_config_id, file.file_id) for file in files]

        async def work(connection: Connection) -> None:
            await self._stage(connection, rows)
            await self._lock(connection, addresses)
            configs, file_ids = (list(part) for part in zip(*addresses, strict=True))
            named = {"tenant": self.context.tenant_id, "configs": configs, "files": file_ids}
            await connection.execute(statements.delete_leftovers(self.layout), named)
            await connection.execute(statements.upsert_staged(self.layout))

        await self._store.run("replace files", work)

    async def _stage(self, connection: Connection, rows: Sequence[codec.Row]) -> None:
        await connection.execute(statements.begin_replace(self.layout))
        async with connection.cursor() as cursor, cursor.copy(statements.copy_staging()) as copy:
            copy.set_types([column.staged for column in written_columns(self.context.model.dimension)])
            for row in rows:
                await copy.write_row(row)

    async def _lock(self, connection: Connection, addresses: Sequence[tuple[str, str]]) -> None:
        """Writers of one file go one after the other; all take their locks in the same order, so none waits in a circle."""
        keys = statements.lock_keys(self.layout, ((self.context.tenant_id, *address) for address in addresses))
        await connection.execute(statements.LOCK_FILES, [keys])

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        """Records that do not say which file they are of, as another program may have left them, go with any delete."""
        for file_ids in slices(parsed_directory_file_ids, count=_FILES_PER_TRANSACTION):
            await self._store.run("delete files", partial(self._delete, export_config_id, file_ids))
        nameless = statements.without_file(self.context.tenant_id, export_config_id)
        query = statements.delete(self.layout, nameless)
        await self._store.run("delete files", lambda connection: connection.execute(query, nameless.parameters))

    async def _delete(self, export_config_id: str, file_ids: Sequence[str], connection: Connection) -> None:
        await self._lock(connection, [(export_config_id, file_id) for file_id in file_ids])
        where = self._scope(export_config_id, file_ids)
        await connection.execute(statements.delete(self.layout, where), where.parameters)

    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        """One query, answered from an index of chunks 0 alone."""
        where = self._scope(export_config_id, parsed_directory_file_ids)

        query = statements.snapshots(self.layout, where)
        rows = await self._store.run("list snapshots", lambda connection: _rows(connection, query, where))
        return [snapshot for row in rows for snapshot in _snapshots(row, self.context.tenant_id)]

    async def fetch_records(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> AsyncIterator[pa.Table]:
        """Tables of about 32 MB (more only for a file that alone is larger), all of one version of the table."""
        where = self._scope(export_config_id, parsed_directory_file_ids)
        dimension = self.context.model.dimension
        row_bytes = dimension * 4 + _TEXT_BYTES_GUESSED
        file_column = record_schema(dimension).get_field_index("parsed_directory_file_id")
        async with self._store.snapshot("fetch records") as connection, connection.cursor("records", binary=True) as cursor:
            cursor.itersize = max(1, _BYTES_PER_ROUND_TRIP // row_bytes)
            await cursor.execute(statements.records(self.layout, where), where.parameters)
            async for rows in _whole_files(cursor, file_column, _BYTES_PER_FETCH // row_bytes):
                yield await asyncio.to_thread(codec.decode_compared, rows, dimension)

    async def search(self, request: SearchRequest) -> list[SearchHit]:
        """Vector search by cosine, text search by words, hybrid by relative score fusion of the two.

        Raises ValueError for a longer text than PostgreSQL takes.
        """
        self.check_search(request)
        if request.mode != "vector" and len(cast(str, request.text)) > _MAX_TEXT_CHARACTERS:
            raise ValueError(f"the search text must have at most {_MAX_TEXT_CHARACTERS:,} characters; shorten it")
        conditions = parse_filters(request.filters, self.context.metadata_fields)

        def scope() -> statements.Where:
            return statements.filtered(self._scope(request.export_config_id), conditions)

        async def work(connection: Connection) -> list[tuple[codec.Row, float]]:
            await connection.execute(statements.begin_search(self._ef_search(request.k)))
            if request.mode == "vector":
                return await self._by_vector(connection, scope(), request, request.k)
            if request.mode == "text":
                return await self._by_text(connection, scope(), request, request.k)
            depth = max(request.k, HYBRID_DEPTH)
            by_text = await self._by_text(connection, scope(), request, depth)
            by_vector = await self._by_vector(connection, scope(), request, depth)
            return fused(by_vector, by_text, request.k, itemgetter(0))  # a row's first column is its id

        found = await self._store.run("search", work)
        records = to_records(codec.decode([row for row, _ in found], self.context.model.dimension))
        return [SearchHit(record, score) for record, (_, score) in zip(records, found, strict=True)]

    def _ef_search(self, k: int) -> int:
        return min(max(self.settings.ef_search, self._candidates(k)), _LARGEST_EF_SEARCH)

    def _candidates(self, k: int) -> int:
        return k * _RERANKED if self.layout.is_half_precision else k

    async def _by_vector(
        self, connection: Connection, where: statements.Where, request: SearchRequest, k: int
    ) -> list[tuple[codec.Row, float]]:
        """A filter may let so few rows through that the index gives up before it has seen them all: then search exactly."""
        query = statements.nearest(self.layout, where, request.vector, candidates=self._candidates(k), k=k)
        rows = await _rows(connection, query, where)
        if len(rows) < k and self.layout.vector_index:
            await connection.execute(statements.SEARCH_EXACTLY)
            rows = await _rows(connection, query, where)
        return [(row[:-1], float(np.clip(row[-1], -1.0, 1.0))) for row in rows]

    async def _by_text(
        self, connection: Connection, where: statements.Where, request: SearchRequest, k: int
    ) -> list[tuple[codec.Row, float]]:
        """The server parses words recursively, and its max_stack_depth may end that."""
        query = statements.count_words(self.layout, where, cast(str, request.text))
        try:
            counted = await _rows(connection, query, where)
            terms = words.terms([words.Word(row[0], row[1]) for row in counted], counted[0][2] if counted else 0)
            if not terms:
                return []
            found = await _rows(connection, statements.matching(self.layout, where, terms, k), where)
            return [(row[:-1], row[-1]) for row in found]
        except errors.StatementTooComplex:
            raise ValueError("the search text has more words than this PostgreSQL server takes; shorten it") from None

    def _scope(self, export_config_id: str, file_ids: Sequence[str] | None = None) -> statements.Where:
        return statements.scope(self.context.tenant_id, export_config_id, file_ids)

    async def optimize(self) -> None:
        """Bring the planner's statistics up to date: it chooses between the vector index and a filter's by them.

        Left out while the table is vacuumed: PostgreSQL ends an autovacuum that is waited for, so with a run every few minutes
        dead rows would never be removed.
        """
        statement = sql.SQL("ANALYZE (SKIP_LOCKED) {}").format(self.layout.identifier)
        await self._store.run_outside_transaction("analyze the table", statement)

    async def purge_history(self) -> None:
        """Take deleted rows out of the indexes and give their room in the table's pages to later writes.

        Their bytes lie there until these come. ``VACUUM (FULL)`` would leave none, but keeps readers out while it writes the
        table anew, so that is left to its owner. Without ``INDEX_CLEANUP ON`` a few deleted rows of a large table would stay in
        its indexes, vectors and all. Raises SinkConflict when the server leaves anything undone.
        """
        statement = sql.SQL("VACUUM (INDEX_CLEANUP ON) {}").format(self.layout.identifier)
        warnings = await self._store.run_outside_transaction("vacuum the table", statement)
        if warnings:
            raise SinkConflict(
                f"PostgreSQL did not remove what was deleted from table {self.layout.shown_name!r}: {'; '.join(warnings)}; "
                "erase as the table's owner, or grant the role MAINTAIN on it (PostgreSQL 17 or later)"
            )

    async def list_scopes(self) -> frozenset[tuple[str, str]]:
        """One query over the whole table."""
        query = statements.scopes(self.layout)

        async def work(connection: Connection) -> list[codec.Row]:
            return await (await connection.execute(query)).fetchall()

        return frozenset((row[0], row[1]) for row in await self._store.run("list the scopes", work))

    async def drop_collection(self) -> None:
        await self._store.run_outside_transaction(
            "drop the table", sql.SQL("DROP TABLE IF EXISTS {}").format(self.layout.identifier)
        )

    async def close(self) -> None:
        await self._store.close()


def _encode(files: Sequence[FileRecords]) -> list[codec.Row]:
    return codec.encode(pa.concat_tables([file.table for file in files]))


async def _rows(connection: Connection, query: sql.Composed, where: statements.Where) -> list[codec.Row]:
    return await (await connection.execute(query, where.parameters)).fetchall()


async def _whole_files(cursor: AsyncIterable[codec.Row], file_column: int, at_least: int) -> AsyncIterator[list[codec.Row]]:
    """Runs of rows, cut where a file ends once they are ``at_least`` so many."""
    held: list[codec.Row] = []
    async for row in cursor:
        if held and len(held) >= at_least and row[file_column] != held[-1][file_column]:
            yield held
            held = []
        held.append(row)
    if held:
        yield held


def _snapshots(row: codec.Row, tenant_id: str) -> list[Snapshot]:
    """The snapshot a first record gives; none where it does not say which file it is of."""
    values = dict(zip(SNAPSHOT_FIELDS, row, strict=True), tenant_id=tenant_id)
    values["source_modified_at"] = _in_utc(values["source_modified_at"])
    head = read_head(values, marker=None)
    return to_snapshots([head] if head else [])


def _in_utc(modified: datetime | None) -> datetime | None:
    found = modified and modified.replace(tzinfo=UTC)
    return ALTERED_INSTANT if found == ALTERED_INSTANT else found
