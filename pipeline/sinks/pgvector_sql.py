"""The statements the PostgreSQL sink runs on its table.

What belongs here: SQL text. Names are composed as identifiers, values are always parameters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from hashlib import blake2b
from typing import Any, Final, LiteralString

from psycopg import sql

from pipeline.sinks import pgvector_words
from pipeline.sinks.base import SNAPSHOT_FIELDS
from pipeline.sinks.filters import Condition, FilterValue
from pipeline.sinks.pgvector_table import (
    START_OF_NAME,
    TableLayout,
    field_value,
    is_number,
    names,
    record_columns,
    start_of_name,
    written_columns,
)
from pipeline.sinks.pgvector_words import Term
from pipeline.sinks.reading import ALTERED_INSTANT

WITHOUT_TIME_LIMIT: Final = "SET LOCAL statement_timeout = 0"
"""For a transaction: what it writes or builds takes as long as there is much of it, and would be begun again and again."""

READ_ONE_VERSION: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
STAGING: Final = sql.Identifier("pg_temp", "indexport_staging")
_COMPARISONS: Final[dict[str, LiteralString]] = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_INTEGERS_ARE_FLOATS: Final = 2.0**53
"""All of them, up to here."""

_DIGITS_OF_A_FLOAT: Final = 310
"""The most before the point, and one behind it."""

_LARGE: Final[dict[str, LiteralString]] = {
    "gt": "(NOT {number} {at_most})",
    "gte": "{number} {at_least}",
    "lt": "(NOT {number} {at_least})",
    "lte": "{number} {at_most}",
}
_INSTANT: Final = sql.SQL(
    "CASE WHEN {0} BETWEEN '0001-01-01T00:00:00Z' AND '9999-12-31T23:59:59.999999Z' THEN {0} AT TIME ZONE 'UTC' "
    "WHEN {0} IS NOT NULL THEN {1} END"
).format(sql.Identifier("source_modified_at"), sql.Literal(ALTERED_INSTANT.replace(tzinfo=None)))
"""In UTC, without saying so. A session's zone can move it out of the years a datetime has, which infinity is beyond anyway."""

_SCOPE: Final = sql.SQL("tenant_id = %(tenant)s AND export_config_id = %(config)s")


@dataclass
class Where:
    """Conditions that hold together, with their parameters."""

    parts: list[sql.Composable]
    parameters: dict[str, Any] = field(default_factory=dict)

    def bind(self, value: object) -> sql.Placeholder:
        name = f"value_{len(self.parameters)}"
        self.parameters[name] = value
        return sql.Placeholder(name)

    @property
    def clause(self) -> sql.Composed:
        return sql.SQL(" AND ").join(self.parts)


def scope(tenant_id: str, export_config_id: str, file_ids: Sequence[str] | None = None) -> Where:
    """Rows of one config of one tenant, of all its files unless some are named."""
    where = Where([_SCOPE], {"tenant": tenant_id, "config": export_config_id})
    if file_ids is not None:
        where.parts.append(sql.SQL("parsed_directory_file_id = ANY({}::text[])").format(where.bind(list(file_ids))))
    return where


def without_file(tenant_id: str, export_config_id: str) -> Where:
    """Rows of a config whose file id another program has removed."""
    where = scope(tenant_id, export_config_id)
    where.parts.append(sql.SQL("parsed_directory_file_id IS NULL"))
    return where


def filtered(where: Where, conditions: Iterable[Condition]) -> Where:
    """``where`` and every condition; a value of another type than the declared one counts as none."""
    for condition in conditions:
        positive = _positive(where, condition)
        template: LiteralString = "(({}) IS NOT TRUE)" if condition.negated else "({})"
        where.parts.append(sql.SQL(template).format(positive))
    return where


def _positive(where: Where, condition: Condition) -> sql.Composed:
    if not condition.is_metadata:
        return _is_one_of(where, condition.field, [str(value) for value in condition.values])
    value = field_value(condition.field, condition.type)
    if is_number(condition.type):
        return _compared_number(where, condition, value)
    contained = [sql.SQL("{} @> {}::jsonb").format(value, where.bind(json.dumps(item))) for item in condition.values]
    return sql.SQL(" OR ").join(contained)


def _is_one_of(where: Where, field_of_record: str, values: list[str]) -> sql.Composed:
    """Short names of files are asked for by their start, which is all of them, and has an index."""
    is_indexed = field_of_record == "file_name" and all(len(value.encode()) < START_OF_NAME for value in values)
    held = start_of_name() if is_indexed else sql.Identifier(field_of_record)
    return sql.SQL("{} = ANY({}::text[])").format(held, where.bind(values))


def _compared_number(where: Where, condition: Condition, number: sql.Composable) -> sql.Composed:
    large = [value for value in condition.values if isinstance(value, float) and abs(value) >= _INTEGERS_ARE_FLOATS]
    exact = [_exact(value) for value in condition.values if value not in large]
    parts = [_compared_large(where, condition.operator, value, number) for value in large]
    if exact and condition.operator in _COMPARISONS:
        operator = sql.SQL(_COMPARISONS[condition.operator])
        parts.append(sql.SQL("{} {} {}::numeric").format(number, operator, where.bind(exact[0])))
    elif exact:
        parts.append(sql.SQL("{} = ANY({}::numeric[])").format(number, where.bind(exact)))
    return sql.SQL(" OR ").join(parts)


def _compared_large(where: Where, operator: str, value: float, number: sql.Composable) -> sql.Composed:
    """The table may hold an integer that is no float: it counts as the nearest one, and as the even one of two."""
    with localcontext(prec=_DIGITS_OF_A_FLOAT):
        low, high = ((Decimal(value) + Decimal(math.nextafter(value, end))) / 2 for end in (-math.inf, math.inf))
    is_even = value / math.ulp(value) % 2 == 0
    at_least = sql.SQL(">= {}::numeric" if is_even else "> {}::numeric").format(where.bind(low))
    at_most = sql.SQL("<= {}::numeric" if is_even else "< {}::numeric").format(where.bind(high))
    template = _LARGE.get(operator, "({number} {at_least} AND {number} {at_most})")
    return sql.SQL(template).format(number=number, at_least=at_least, at_most=at_most)


def _exact(value: FilterValue) -> Decimal:
    """The number JSON writes, which is what the table holds: a cast from double precision would round to 15 digits."""
    return Decimal(repr(value))


def lock_keys(layout: TableLayout, addresses: Iterable[tuple[str, str, str]]) -> list[int]:
    """Keys of the advisory locks on files (tenant, config, file id), in the one order every writer takes them in."""
    named = (json.dumps([layout.schema, layout.name, *address]) for address in addresses)
    return sorted({int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True) for name in named})


LOCK_FILES: Final = "SELECT count(pg_advisory_xact_lock(key)) FROM unnest(%s::bigint[]) AS key"


def begin_replace(layout: TableLayout) -> sql.Composed:
    """How one transaction replaces files: with a staging table of its own."""
    columns = [
        sql.SQL("{} {}").format(sql.Identifier(column.name), sql.Identifier(column.staged))
        for column in written_columns(layout.model.dimension)
    ]
    template = "{}; CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP"
    return sql.SQL(template).format(sql.SQL(WITHOUT_TIME_LIMIT), STAGING, sql.SQL(", ").join(columns))


def copy_staging() -> sql.Composed:
    return sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(STAGING)


def delete_leftovers(layout: TableLayout) -> sql.Composed:
    """Delete what these files have beyond the staged records; ``configs`` and ``files`` are parallel lists."""
    return sql.SQL(
        "DELETE FROM {} AS held USING unnest(%(configs)s::text[], %(files)s::text[]) AS file (config, id) "
        "WHERE held.tenant_id = %(tenant)s AND held.export_config_id = file.config "
        "AND held.parsed_directory_file_id = file.id "
        "AND NOT EXISTS (SELECT FROM {} AS staged WHERE staged.node_id = held.node_id)"
    ).format(layout.identifier, STAGING)


def upsert_staged(layout: TableLayout) -> sql.Composed:
    columns = written_columns(layout.model.dimension)
    values = [sql.SQL("{}::{}").format(sql.Identifier(column.name), column.type) for column in columns]
    updates = [sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(c.name)) for c in columns if c.name != "node_id"]
    return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT (node_id) DO UPDATE SET {}").format(
        layout.identifier, names(columns), sql.SQL(", ").join(values), STAGING, sql.SQL(", ").join(updates)
    )


def delete(layout: TableLayout, where: Where) -> sql.Composed:
    return sql.SQL("DELETE FROM {} WHERE {}").format(layout.identifier, where.clause)


def _readable(columns: Iterable[str]) -> sql.Composed:
    """The columns' values as Python can hold them all."""
    return sql.SQL(", ").join(_INSTANT if name == "source_modified_at" else sql.Identifier(name) for name in columns)


def _readable_record(dimension: int, *, vectors: bool) -> sql.Composed:
    return _readable(column.name for column in record_columns(dimension, vectors=vectors))


def snapshots(layout: TableLayout, where: Where) -> sql.Composed:
    """Its ``SNAPSHOT_FIELDS``, in their order, of every first record."""
    columns = _readable(SNAPSHOT_FIELDS)
    template = "SELECT {} FROM {} WHERE chunk_index = 0 AND {}"
    return sql.SQL(template).format(columns, layout.identifier, where.clause)


def records(layout: TableLayout, where: Where) -> sql.Composed:
    """Whole records, each with its ``metadata_``, file by file, in chunk order."""
    template = "SELECT {}, metadata_::text FROM {} WHERE {} ORDER BY parsed_directory_file_id, chunk_index"
    columns = _readable_record(layout.model.dimension, vectors=True)
    return sql.SQL(template).format(columns, layout.identifier, where.clause)


def scopes(layout: TableLayout) -> sql.Composed:
    """Every (tenant, config) there is; rows that LlamaIndex itself added have neither and are not ours to judge."""
    template = "SELECT DISTINCT tenant_id, export_config_id FROM {} WHERE tenant_id IS NOT NULL AND export_config_id IS NOT NULL"
    return sql.SQL(template).format(layout.identifier)


def begin_search(ef_search: int) -> sql.Composed:
    """How one transaction searches: all queries see one version."""
    return sql.SQL("{}; {}").format(sql.SQL(READ_ONE_VERSION), scan_index(ef_search))


def scan_index(ef_search: int) -> sql.Composed:
    """Until the transaction ends, searches go on in the vector index until filters have let enough through."""
    template = "SET LOCAL hnsw.iterative_scan = relaxed_order; SET LOCAL hnsw.ef_search = {}"
    return sql.SQL(template).format(sql.Literal(ef_search))


SEARCH_EXACTLY: Final = "SET LOCAL enable_indexscan = off"
"""HNSW has no other kind of scan; B-tree and GIN indexes still serve the filters through bitmaps."""


def nearest(layout: TableLayout, where: Where, vector: object, *, candidates: int, k: int) -> sql.Composed:
    """The ``k`` best records and their cosine similarity, best first.

    ``candidates`` come in the index's own order, which is approximate and may be of half precision; they are ranked by the
    exact distance. ``+ 0`` keeps PostgreSQL from trusting the index's order (documented by the vendor of pgvector). Half floats
    have no room for a query much longer or shorter than 1, and its length is nothing to the cosine. Where another program has
    removed a record's vector, there is no distance.
    """
    columns = names(record_columns(layout.model.dimension, vectors=False))
    query = where.bind(vector)
    return sql.SQL(
        "WITH nearest AS MATERIALIZED (SELECT {columns}, embedding <=> {query}::vector AS distance FROM {table} "
        "WHERE {where} ORDER BY {indexed} <=> l2_normalize({query}::vector)::{type} LIMIT {candidates}) "
        "SELECT {readable}, 1 - distance FROM nearest WHERE distance IS NOT NULL ORDER BY distance + 0 LIMIT {k}"
    ).format(
        columns=columns,
        readable=_readable_record(layout.model.dimension, vectors=False),
        table=layout.identifier,
        where=where.clause,
        indexed=layout.vector_expression,
        query=query,
        type=layout.vector_type,
        candidates=where.bind(candidates),
        k=where.bind(k),
    )


def count_words(layout: TableLayout, where: Where, text: str) -> sql.Composed:
    """Of every word of the text: it as a tsquery; the records that have it, one more than ``most_held`` at most; all records."""
    return sql.SQL(
        "WITH scope AS MATERIALIZED (SELECT count(*) AS records FROM {table} WHERE {where}) "
        "SELECT query::text, (SELECT count(*) FROM (SELECT FROM {table} WHERE {where} AND text_search_tsv @@ query "
        "LIMIT greatest(records / {share}, {few}) + 1) AS held), records FROM scope, "
        "(SELECT array_to_tsvector(ARRAY[lexeme])::text::tsquery AS query "
        "FROM unnest(tsvector_to_array(to_tsvector({config}::regconfig, {text}))) AS lexeme) AS word"
    ).format(
        table=layout.identifier,
        where=where.clause,
        share=sql.Literal(pgvector_words.SHARE),
        few=sql.Literal(pgvector_words.FEW),
        config=sql.Literal(layout.text_search_config),
        text=where.bind(text),
    )


def matching(layout: TableLayout, where: Where, terms: Sequence[Term], k: int) -> sql.Composed:
    """The ``k`` records that match the terms best, with their rank. Any one word of them is enough to match."""
    ranks = [
        sql.SQL("{}::real * ts_rank(text_search_tsv, {}::tsquery, 1)").format(where.bind(term.weight), where.bind(term.query))
        for term in terms
    ]
    return sql.SQL(
        "SELECT {columns}, {rank} AS rank FROM {table} WHERE {where} AND text_search_tsv @@ {words}::tsquery "
        "ORDER BY rank DESC, node_id LIMIT {k}"
    ).format(
        columns=_readable_record(layout.model.dimension, vectors=False),
        rank=sql.SQL(" + ").join(ranks),
        words=where.bind(" | ".join(term.query for term in terms)),
        table=layout.identifier,
        where=where.clause,
        k=where.bind(k),
    )
