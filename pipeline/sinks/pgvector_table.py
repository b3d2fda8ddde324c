"""The physical PostgreSQL table: its names, columns and indexes.

What belongs here: pure functions that make SQL; nothing talks to a server. The layout is what LlamaIndex's PGVectorStore
reads (documented by the vendor: ``data_<table_name>`` with ``id, text, metadata_, node_id, embedding``, and
``text_search_tsv`` for its hybrid search) plus a nullable column for every other record field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, LiteralString

import pyarrow as pa
from psycopg import sql

from pipeline.embedding.base import ModelIdentity
from pipeline.sinks.base import MetadataType
from pipeline.sinks.records import record_schema

FORMAT: Final = "1"
MAX_DIMENSION: Final = 16_000
"""Of a ``vector`` column (documented by the vendor, as are the next two)."""

_MAX_DIMENSION_FULL: Final = 2_000
"""Of a ``vector`` in an HNSW index."""

_MAX_DIMENSION_HALF: Final = 4_000
"""Of a ``halfvec`` in an HNSW index."""

_RENAMED: Final = {"id": "node_id", "content": "text"}
"""Record fields that LlamaIndex's layout has another name for."""

START_OF_NAME: Final = 256
"""Characters of a file's name that are indexed. File systems have no longer names; an index has no room for any length."""

_TEXT: Final = sql.SQL("text")
_JSON_TYPES: Final[Mapping[MetadataType, str]] = {
    "string": "string",
    "integer": "number",
    "float": "number",
    "boolean": "boolean",
    "string_list": "array",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column a record fills. ``staged`` is its type in the staging table, as COPY names it."""

    name: str
    type: sql.Composable
    staged: str

    @property
    def definition(self) -> sql.Composed:
        """All but the text may be null, so that LlamaIndex can add nodes of its own. Strings compare by their bytes."""
        collation = sql.SQL(' COLLATE "C"') if self.type is _TEXT else sql.SQL("")
        constraint = sql.SQL(" NOT NULL") if self.name == "text" else sql.SQL("")
        return sql.SQL("{} {}{}{}").format(sql.Identifier(self.name), self.type, collation, constraint)


def column_name(record_field: str) -> str:
    return _RENAMED.get(record_field, record_field)


def record_columns(dimension: int, *, vectors: bool = True) -> list[Column]:
    """The columns of a record's fields, in the order of ``record_schema``; ``embedding`` comes last or not at all."""
    return [Column(column_name(item.name), *_types(item.type)) for item in record_schema(dimension, vectors=vectors)]


def written_columns(dimension: int) -> list[Column]:
    """``record_columns`` and LlamaIndex's ``metadata_``."""
    return [*record_columns(dimension), Column("metadata_", sql.SQL("jsonb"), "text")]


def _types(arrow: pa.DataType) -> tuple[sql.Composable, str]:
    if pa.types.is_fixed_size_list(arrow):
        return sql.SQL("vector({})").format(sql.Literal(arrow.list_size)), "vector"
    if pa.types.is_list(arrow):
        return sql.SQL("jsonb"), "text"
    if pa.types.is_timestamp(arrow):
        return sql.SQL("timestamp with time zone"), "timestamptz"
    if pa.types.is_int64(arrow):
        return sql.SQL("bigint"), "int8"
    return (sql.SQL("integer"), "int4") if pa.types.is_int32(arrow) else (_TEXT, "text")


def names(columns: list[Column]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)


def field_value(key: str, kind: MetadataType) -> sql.Composed:
    """A declared metadata field of a row, null where the row has a value of another type there: numeric, or else jsonb.

    The expression is the index's too, so that the planner has statistics of it.
    """
    template: LiteralString = "(CASE WHEN jsonb_typeof(metadata_ -> {0}) = {1} THEN metadata_ -> {0} END)"
    if is_number(kind):
        template = "(CASE WHEN jsonb_typeof(metadata_ -> {0}) = {1} THEN (metadata_ ->> {0})::numeric END)"
    return sql.SQL(template).format(sql.Literal(key), sql.Literal(_JSON_TYPES[kind]))


def start_of_name() -> sql.Composed:
    """The whole name of a file whose name is shorter than ``START_OF_NAME``."""
    return sql.SQL("left(file_name, {})").format(sql.Literal(START_OF_NAME))


def is_number(kind: MetadataType) -> bool:
    return _JSON_TYPES[kind] == "number"


@dataclass(frozen=True, slots=True)
class Index:
    """An index; ``definition`` is what follows ``USING``."""

    name: str
    definition: sql.Composable
    unique: bool = False


@dataclass(frozen=True)
class TableLayout:
    """The table of one model in one schema, shared by all tenants and configs."""

    schema: str
    prefix: str
    model: ModelIdentity
    text_search_config: str
    declared: Mapping[str, MetadataType]

    @property
    def name(self) -> str:
        """At most 63 bytes, PostgreSQL's limit. LlamaIndex calls the table by what follows ``data_``."""
        return f"data_{self.prefix}_{self.model.slug}"

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def shown_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def mark(self) -> str:
        """The table's comment: it is ours, and this model's."""
        return json.dumps({"indexport": FORMAT, "model": self.model.fingerprint})

    @property
    def is_half_precision(self) -> bool:
        """Whether the vector index holds half floats: the candidates it finds are then ranked again by the exact vectors."""
        return _MAX_DIMENSION_FULL < self.model.dimension <= _MAX_DIMENSION_HALF

    @property
    def vector_expression(self) -> sql.Composable:
        """What the vector index is made of; a search uses the index only if it orders by exactly this."""
        if not self.is_half_precision:
            return sql.SQL("embedding")
        return sql.SQL("((embedding)::halfvec({}))").format(sql.Literal(self.model.dimension))

    @property
    def vector_type(self) -> sql.Composable:
        """The type of ``vector_expression``."""
        return sql.SQL("halfvec" if self.is_half_precision else "vector")

    @property
    def vector_index(self) -> Index | None:
        """HNSW by cosine; none above 4,000 dimensions, where every search is exact."""
        if self.model.dimension > _MAX_DIMENSION_HALF:
            return None
        operators = sql.SQL("halfvec_cosine_ops" if self.is_half_precision else "vector_cosine_ops")
        return Index(self._index_name("embedding"), sql.SQL("hnsw ({} {})").format(self.vector_expression, operators))

    def create_table(self) -> sql.Composed:
        columns = [column.definition for column in written_columns(self.model.dimension)]
        template = "CREATE TABLE {} (id bigserial PRIMARY KEY, {}, text_search_tsv tsvector GENERATED ALWAYS AS ({}) STORED)"
        return sql.SQL(template).format(self.identifier, sql.SQL(", ").join(columns), self.text_search_expression)

    @property
    def text_search_expression(self) -> sql.Composed:
        """As the catalogue spells it."""
        return sql.SQL("to_tsvector({}::regconfig, text)").format(sql.Literal(self.text_search_config))

    def indexes(self) -> Iterator[Index]:
        """Every index the table must have."""
        yield Index(self._index_name("node_id"), sql.SQL("btree (node_id)"), unique=True)
        scope = "btree (tenant_id, export_config_id, parsed_directory_file_id, chunk_index)"
        yield Index(self._index_name("file"), sql.SQL(scope))
        yield Index(
            self._index_name("snapshot"),
            sql.SQL(
                "btree (tenant_id, export_config_id, parsed_directory_file_id) INCLUDE (content_fingerprint_hash, "
                "source_modified_at, chunk_count, embedding_model, record_set_hash) WHERE chunk_index = 0"
            ),
        )
        name = sql.SQL("btree (tenant_id, export_config_id, {})").format(start_of_name())
        yield Index(self._index_name("file_name"), name)
        yield Index(self._index_name("text"), sql.SQL("gin (text_search_tsv)"))
        if self.vector_index:
            yield self.vector_index
        for key, kind in self.declared.items():
            yield self._field_index(key, kind)

    def _field_index(self, key: str, kind: MetadataType) -> Index:
        """Numbers are compared, so they get a B-tree. Strings get GIN, which holds digests: no length is too much for it."""
        name = self._index_name(f"field_{sha256(f'{_JSON_TYPES[kind]} {key}'.encode()).hexdigest()[:12]}")
        template: LiteralString = "btree ({})" if is_number(kind) else "gin ({} jsonb_path_ops)"
        return Index(name, sql.SQL(template).format(field_value(key, kind)))

    def create_index(self, index: Index) -> sql.Composed:
        unique = sql.SQL("UNIQUE ") if index.unique else sql.SQL("")
        return sql.SQL("CREATE {}INDEX {} ON {} USING {}").format(
            unique, sql.Identifier(index.name), self.identifier, index.definition
        )

    def _index_name(self, purpose: str) -> str:
        return f"{self.prefix}_{sha256(self.name.encode()).hexdigest()[:12]}_{purpose}"
