"""Creating the table and its indexes, and judging what exists.

What belongs here: what provisioning asks the catalogue and does about the answer. A step that is not needed is not tried, so a
role without the right to create anything can use what an administrator has provisioned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Final, LiteralString

from psycopg import errors, sql

from pipeline.errors import ConfigError, SinkConflict
from pipeline.sinks.pgvector_store import Connection
from pipeline.sinks.pgvector_table import FORMAT, MAX_DIMENSION, Index, TableLayout, written_columns

_OLDEST_PGVECTOR: Final = (0, 8)
"""Iterative index scans, without which a filtered search may miss records, came with this version."""

_REMEDY: Final = "choose another table_prefix or schema_name, or drop the table if nothing needs it"


async def provision(connection: Connection, layout: TableLayout) -> None:
    """Create what is missing and validate what exists. Of those that miss the same thing one makes it and the others wait.

    Raises SinkConflict for a table that is not ours or does not fit, for a pgvector that is missing or too old and for rights
    that are missing; ConfigError for a text search configuration that does not exist.
    """
    if layout.model.dimension > MAX_DIMENSION:
        raise SinkConflict(
            f"pgvector holds at most {MAX_DIMENSION:,} dimensions, model {layout.model.name!r} has {layout.model.dimension:,}; "
            "choose another model or another sink"
        )
    await _ensure_extension(connection)
    await _check_text_search_config(connection, layout)
    await _ensure_schema(connection, layout)
    await _ensure_table(connection, layout)
    await _ensure_indexes(connection, layout)


async def _ensure_extension(connection: Connection) -> None:
    version = await _value(connection, "SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    if version is None:
        await _lock(connection, "extension")
        with _permitted("create the extension vector", "let a superuser run: CREATE EXTENSION vector"):
            await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        version = await _value(connection, "SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    if tuple(int(part) for part in str(version).split(".")[:2]) < _OLDEST_PGVECTOR:
        raise SinkConflict(
            f"the database has pgvector {version}, Indexport needs 0.8 or newer; "
            "install it on the server and run: ALTER EXTENSION vector UPDATE"
        )
    if await _value(connection, "SELECT to_regtype('vector')") is None:
        raise SinkConflict(
            "the schema of the extension vector is not in the role's search_path; "
            "add it with ALTER ROLE ... SET search_path, or in the connection string's options"
        )


async def _check_text_search_config(connection: Connection, layout: TableLayout) -> None:
    name = layout.text_search_config
    if await _value(connection, "SELECT 1 FROM pg_ts_config WHERE cfgname = %s AND pg_ts_config_is_visible(oid)", name) is None:
        raise ConfigError(f"text_search_config {name!r} does not exist in this database; psql lists what does with \\dF")


async def _ensure_schema(connection: Connection, layout: TableLayout) -> None:
    if await _value(connection, "SELECT 1 FROM pg_namespace WHERE nspname = %s", layout.schema) is None:
        await _lock(connection, "schema", layout.schema)
        with _permitted(
            f"create the schema {layout.schema!r}", "create it, or grant the role CREATE on the database, or set schema_name"
        ):
            await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(layout.schema)))


async def _ensure_table(connection: Connection, layout: TableLayout) -> None:
    oid = await _table_oid(connection, layout)
    if oid is None:
        await _lock(connection, "table", layout.schema, layout.name)
        oid = await _table_oid(connection, layout)
    if oid is not None:
        await _check_table(connection, layout, oid)
        return
    with _permitted(f"create the table {layout.shown_name!r}", f"grant the role CREATE on schema {layout.schema!r}"):
        await connection.execute(layout.create_table())
        comment = sql.SQL("COMMENT ON TABLE {} IS {}").format(layout.identifier, sql.Literal(layout.mark))
        await connection.execute(comment)


async def _table_oid(connection: Connection, layout: TableLayout) -> int | None:
    query: LiteralString = (
        "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s"
    )
    found: int | None = await _value(connection, query, layout.schema, layout.name)
    return found


async def _check_table(connection: Connection, layout: TableLayout, oid: int) -> None:
    mark = await _value(connection, "SELECT obj_description(%s, 'pg_class')", oid)
    if mark != layout.mark:
        ours = str(mark).startswith(f'{{"indexport": "{FORMAT}"')
        reason = f"holds vectors of another model than {layout.model.name!r}" if ours else "was not made by this Indexport"
        raise SinkConflict(f"PostgreSQL table {layout.shown_name!r} {reason}; {_REMEDY}")
    cursor = await connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s AND attnum > 0", [oid]
    )
    held: dict[str, str] = dict(await cursor.fetchall())
    for column in written_columns(layout.model.dimension):
        wanted = column.type.as_string(None)
        if held.get(column.name) != wanted:
            found = held.get(column.name, "missing")
            raise SinkConflict(
                f"PostgreSQL table {layout.shown_name!r}: column {column.name!r} is {found}, not {wanted}; {_REMEDY}"
            )
    await _check_text_search_column(connection, layout, oid)


async def _check_text_search_column(connection: Connection, layout: TableLayout, oid: int) -> None:
    expression = await _value(
        connection,
        "SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid "
        "AND a.attnum = d.adnum WHERE d.adrelid = %s AND a.attname = 'text_search_tsv'",
        oid,
    )
    if expression != layout.text_search_expression.as_string(None):
        raise SinkConflict(
            f"PostgreSQL table {layout.shown_name!r} indexes its text by {expression}, not with text_search_config "
            f"{layout.text_search_config!r}; set text_search_config as before, or {_REMEDY}"
        )


async def _ensure_indexes(connection: Connection, layout: TableLayout) -> None:
    """Missing and invalid indexes are built; writers of this table wait meanwhile, readers do not."""
    if not await _missing_indexes(connection, layout):
        return
    await _lock(connection, "table", layout.schema, layout.name)
    for index in await _missing_indexes(connection, layout):
        with _permitted(f"build the index {index.name!r}", f"let the owner of table {layout.shown_name!r} provision the sink"):
            name = sql.Identifier(layout.schema, index.name)
            await connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(name))
            await connection.execute(layout.create_index(index))


async def _missing_indexes(connection: Connection, layout: TableLayout) -> list[Index]:
    cursor = await connection.execute(
        "SELECT c.relname, i.indisvalid AND i.indisready, pg_get_indexdef(i.indexrelid) FROM pg_index i "
        "JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = %s",
        [await _table_oid(connection, layout)],
    )
    held: dict[str, tuple[bool, str]] = {name: (valid, definition) for name, valid, definition in await cursor.fetchall()}
    missing = []
    for index in layout.indexes():
        valid, definition = held.get(index.name, (False, ""))
        if valid:
            _check_vector_index(layout, index, definition)
        else:
            missing.append(index)
    return missing


def _check_vector_index(layout: TableLayout, index: Index, definition: str) -> None:
    """Another operator class would never be used for a search by cosine; other build parameters are the owner's choice."""
    if index != layout.vector_index:
        return
    wanted = index.definition.as_string(None)
    if f"USING {wanted}" not in definition:
        raise SinkConflict(
            f"PostgreSQL index {index.name!r} of table {layout.shown_name!r} is not {wanted}, which searches need; "
            "drop it and provision the sink again"
        )


async def _lock(connection: Connection, *name: str) -> None:
    """Until the transaction ends; what was found missing before may exist afterwards."""
    key = int.from_bytes(sha256("\0".join(["indexport.provision", *name]).encode()).digest()[:8], "big", signed=True)
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", [key])


@contextmanager
def _permitted(step: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (errors.InsufficientPrivilege, errors.FeatureNotSupported, errors.UndefinedFile) as error:
        raise SinkConflict(f"PostgreSQL cannot {step}: {error.diag.message_primary}; {remedy}") from None


async def _value(connection: Connection, query: LiteralString, *parameters: object) -> Any:
    """The first column of the first row, ``None`` without one."""
    row = await (await connection.execute(query, parameters)).fetchone()
    return row[0] if row else None
