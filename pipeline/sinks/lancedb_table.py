"""The physical LanceDB table: its schema, the codec to and from records, and the SQL that selects rows.

What belongs here: pure functions between Arrow tables of ``record_schema`` and the table as it lies on disk. The layout is
what LlamaIndex's LanceDBVectorStore reads (``id, doc_id, vector, text, metadata`` struct) plus a column for every other
record field. The text is stored twice, as that layout asks: in ``text``, which is searched, and in ``_node_content``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import pyarrow as pa

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import SinkConflict
from pipeline.sinks.base import MetadataType
from pipeline.sinks.filters import Condition, FieldValue, FilterValue
from pipeline.sinks.llama_node import NODE_KEYS, NODE_TYPE, PROVENANCE_KEYS, node_contents, ref_doc_ids
from pipeline.sinks.records import json_string, record_schema

FORMAT: Final = "1"
FORMAT_KEY: Final = b"indexport.format"
MODEL_KEY: Final = b"indexport.model"

_FILLED: Final = {b"indexport.filled": b"1"}
"""Marks a declared metadata field that every row has which can have it, in every data file."""

_RENAMED: Final = {"content": "text", "embedding": "vector", "metadata": "metadata_json"}
"""Record fields that LlamaIndex's layout has another name for, or uses the name of."""

_FIELD_TYPES: Final[Mapping[MetadataType, pa.DataType]] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "string_list": pa.list_(pa.string()),
}
_TYPE_NAMES: Final[Mapping[pa.DataType, MetadataType]] = {arrow: name for name, arrow in _FIELD_TYPES.items()}
COPIES: Final = ("doc_id", "metadata")
"""Columns beside those of a record, made from them."""

_PRIMARY_KEY: Final = {b"lance-schema:unenforced-primary-key": b"true"}
"""Makes Lance detect two writers that insert the same id at the same time: one of them then starts again on top of the
other. Without it both inserts would stay."""


def table_schema(model: ModelIdentity, declared: Mapping[str, MetadataType]) -> pa.Schema:
    """Schema of the table; its metadata says that it is ours and which model's vectors it holds."""
    own = []
    for record_field in record_schema(model.dimension):
        renamed = record_field.with_name(column_name(record_field.name))
        own.append(renamed.with_metadata(_PRIMARY_KEY) if renamed.name == "id" else renamed)
    return pa.schema(
        [*own, pa.field("doc_id", pa.string(), nullable=False), pa.field("metadata", _metadata_type(declared))],
        metadata={FORMAT_KEY: FORMAT.encode(), MODEL_KEY: model.fingerprint.encode()},
    )


def metadata_addition(declared: Mapping[str, MetadataType]) -> pa.Schema:
    """What to add to an existing table so that it has these metadata fields too."""
    return pa.schema([pa.field("metadata", pa.struct([pa.field(key, _FIELD_TYPES[kind]) for key, kind in declared.items()]))])


def column_name(record_field: str) -> str:
    return _RENAMED.get(record_field, record_field)


def _metadata_type(declared: Mapping[str, MetadataType]) -> pa.StructType:
    records = record_schema(1)
    return pa.struct(
        [
            *(pa.field(key, pa.string()) for key in NODE_KEYS),
            *(pa.field(key, records.field(key).type) for key in PROVENANCE_KEYS),
            *(pa.field(key, _FIELD_TYPES[kind], metadata=_FILLED) for key, kind in declared.items()),
        ]
    )


def declared_in(schema: pa.Schema) -> dict[str, MetadataType]:
    """The metadata fields a table can filter on, of whichever process declared them."""
    fixed = {*NODE_KEYS, *PROVENANCE_KEYS}
    return {item.name: _TYPE_NAMES[item.type] for item in schema.field("metadata").type if item.name not in fixed}


def unfilled_in(schema: pa.Schema, declared: Iterable[str]) -> list[str]:
    """Those of the declared metadata fields that may have come later than some rows, and were not filled to the end since."""
    marked = {item.name for item in schema.field("metadata").type if (item.metadata or {}).items() >= _FILLED.items()}
    return [key for key in declared if key not in marked]


def filled_mark(key: str) -> dict[str, object]:
    """What ``update_field_metadata`` is told once a field is filled."""
    return {"path": f"metadata.`{key}`", "metadata": {name.decode(): value.decode() for name, value in _FILLED.items()}}


def check_schema(
    found: pa.Schema, name: str, model: ModelIdentity, declared: Mapping[str, MetadataType]
) -> dict[str, MetadataType]:
    """The declared metadata fields the table lacks.

    Raises SinkConflict, which says what to do, when the table is not ours, holds another model's vectors or has a declared
    field as another type.
    """
    marks = found.metadata or {}
    remedy = "choose another table_prefix, or drop the table if nothing needs it"
    if marks.get(FORMAT_KEY) != FORMAT.encode():
        raise SinkConflict(f"LanceDB table {name!r} was not made by this version of Indexport; {remedy}")
    if marks.get(MODEL_KEY) != model.fingerprint.encode():
        raise SinkConflict(f"LanceDB table {name!r} holds vectors of another model than {model.name!r}; {remedy}")
    for wanted in table_schema(model, {}):
        index = found.get_field_index(wanted.name)
        if index < 0 or (wanted.name != "metadata" and found.field(index).type != wanted.type):
            held = "missing" if index < 0 else str(found.field(index).type)
            raise SinkConflict(f"LanceDB table {name!r}: column {wanted.name!r} is {held}, not {wanted.type}; {remedy}")
    present = declared_in(found)
    for key, kind in declared.items():
        if present.get(key, kind) != kind:
            raise SinkConflict(
                f"LanceDB table {name!r} holds metadata field {key!r} as {present[key]}, the sink declares it as {kind}; "
                "declare it as before, or export to another table_prefix"
            )
    return {key: kind for key, kind in declared.items() if key not in present}


def encode(records: pa.Table, fields: Sequence[Mapping[str, FieldValue]], schema: pa.Schema) -> pa.Table:
    """Rows of ``record_schema`` as rows of the table; ``fields`` are the declared metadata values of each row."""
    records = records.combine_chunks()  # Lance takes ten times as long for the same rows in one batch a file
    columns: dict[str, pa.Array | pa.ChunkedArray] = {column_name(name): records[name] for name in records.column_names}
    columns["doc_id"] = ref_doc_ids(records)
    node: dict[str, pa.Array | pa.ChunkedArray] = {
        "_node_content": node_contents(records),
        "_node_type": pa.repeat(NODE_TYPE, records.num_rows),
        **dict.fromkeys(("document_id", "doc_id", "ref_doc_id"), columns["doc_id"]),
        **{key: records[key] for key in PROVENANCE_KEYS},
    }
    struct = schema.field("metadata").type
    for item in struct:
        if item.name not in node:
            node[item.name] = pa.array([row[item.name] for row in fields], item.type)
    parts = [_contiguous(node[item.name]) for item in struct]
    columns["metadata"] = pa.StructArray.from_arrays(parts, fields=list(struct))
    return pa.table([columns[item.name] for item in schema], schema=schema)


def _contiguous(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def record_columns(dimension: int, *, vectors: bool) -> list[str]:
    """The table's columns that make up a record, with or without its vector."""
    return [column_name(name) for name in record_schema(dimension, vectors=vectors).names]


def decode(rows: pa.Table, dimension: int) -> pa.Table:
    """Rows of ``record_columns`` as rows of ``record_schema``, without ``embedding`` where the vector was left out."""
    schema = record_schema(dimension, vectors=column_name("embedding") in rows.column_names)
    return pa.table([rows[column_name(name)] for name in schema.names], schema=schema)


def altered_copies(rows: pa.Table, wanted: pa.Table) -> dict[int, list[str]]:
    """By row, which of COPIES and their fields hold something else than wanted. Fields not filled to the end are left out."""
    unfilled = {f"metadata.{key}" for key in unfilled_in(wanted.schema, declared_in(wanted.schema))}
    held, belongs = (table.select(COPIES).flatten() for table in (rows, wanted))
    altered: dict[int, list[str]] = {}
    for name in held.column_names:
        if name in unfilled or held[name].equals(belongs[name]):
            continue
        for row, (one, other) in enumerate(zip(held[name].to_pylist(), belongs[name].to_pylist(), strict=True)):
            if one != other:
                altered.setdefault(row, []).append(name)
    return altered


def literal(value: FilterValue) -> str:
    """A value as SQL. A string's only special character is the single quote; double quotes would make it a column."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return f"cast('{value!r}' as {'bigint' if isinstance(value, int) else 'double'})"


def one_of(column: str, values: Iterable[FilterValue]) -> str:
    return f"{column} IN ({', '.join(literal(value) for value in values)})"


def scope(tenant_id: str, export_config_id: str) -> str:
    """Rows of one config of one tenant."""
    return f"tenant_id = {literal(tenant_id)} AND export_config_id = {literal(export_config_id)}"


def unfilled(key: str) -> str:
    """Rows whose declared field is null though their metadata may have the key; the text match is a rough one."""
    name = json_string(key).replace("'", "''")
    return f"(metadata.`{key}` IS NULL AND {_IN_EVERY_DATA_FILE} AND metadata_json LIKE '%{name}:%')"


def render(condition: Condition) -> str:
    """A condition as SQL. Negations hold for null too."""
    if not condition.is_metadata:
        return _render(condition, condition.field)
    return f"({_render(condition, f'metadata.`{condition.field}`')} AND {_IN_EVERY_DATA_FILE})"


def _render(condition: Condition, column: str) -> str:
    if condition.operator in _COMPARISONS:
        return f"{column} {_COMPARISONS[condition.operator]} {literal(condition.values[0])}"
    if condition.type == "string_list":
        positive = " OR ".join(f"array_has({column}, {literal(value)})" for value in condition.values)
    else:
        positive = one_of(column, condition.values)
    return f"(({positive}) IS NOT TRUE)" if condition.negated else f"({positive})"


_IN_EVERY_DATA_FILE: Final = "metadata._node_type IS NOT NULL"
"""Always true. Lance 13 fails to read a struct's fields from a data file that has none of them, as one older than the
declaration of a field has if that field alone is asked for."""

_COMPARISONS: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
