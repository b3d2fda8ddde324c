"""The Turbopuffer namespace: its schema, the codec to and from records, filters, and the body of a write.

What belongs here: pure functions between Arrow tables of ``record_schema`` and the attributes of documents. Beside a record's
own fields a document has what LlamaIndex needs (``text, doc_id, _node_content, _node_type``), one typed attribute for every
declared metadata field and the list of these fields; no declared field begins with an underscore. Only what is filtered on is
indexed for it: an attribute that is not costs half.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError, RecordRefused, SinkConflict
from pipeline.sinks.base import MetadataType
from pipeline.sinks.copies import compare, filled_fields, readable
from pipeline.sinks.file_keys import FileKey, by_config
from pipeline.sinks.filters import Condition, FieldValue, fields_of_file, fitting_values
from pipeline.sinks.llama_node import NODE_TYPE, node_contents, node_copies, ref_doc_ids
from pipeline.sinks.reading import from_json, to_table
from pipeline.sinks.records import FileRecords, canonical_json, chunk_ids, compact_json, in_order, matrix, record_schema
from pipeline.sinks.refusals import check_vectors

Filter = tuple[Any, ...]
"""A condition as the vendor's API spells it: ``(attribute, operator, value)``, ``("And" | "Or", [...])`` or ``("Not", f)``."""

Row = dict[str, Any]

MAX_VALUE_BYTES: Final = 8 * 2**20
MAX_FILTERABLE_BYTES: Final = 4 * 2**10
MAX_NAME_BYTES: Final = 128
MAX_DIMENSION: Final = 10_752
"""Largest attribute value, filterable value, attribute name and vector; documented by the vendor as limits."""

METRIC: Final = "cosine_distance"
FILTER_FIELDS: Final = "_filter_fields"
"""The declared metadata fields a document was written for; a field declared later is not among them."""

_MAX_BYTES_PER_CHARACTER: Final = 4
"""In UTF-8: spares most strings from being encoded to be measured."""


_RENAMED: Final = {"content": "text", "embedding": "vector", "metadata": "metadata_json"}
_FIELD_TYPES: Final[Mapping[MetadataType, str]] = {
    "string": "string",
    "integer": "int",
    "float": "float",
    "boolean": "bool",
    "string_list": "[]string",
}
_FILTERABLE: Final = frozenset(
    {
        "tenant_id",
        "export_config_id",
        "parsed_directory_file_id",
        "file_name",
        "chunk_index",
        "page_range_start",
        "page_range_end",
        "embedding_model",
        "record_set_hash",
        "doc_id",
    }
)
_TEXT_SEARCH: Final = {
    "tokenizer": "word_v3",
    "case_sensitive": False,
    "stemming": False,
    "remove_stopwords": False,
    "ascii_folding": True,
}
"""Right for text of any language: Unicode word boundaries, nothing that knows English alone."""

_NODE_ATTRIBUTES: Final = ("doc_id", "_node_content", "_node_type")
_GROWS_WITH_CHUNKS: Final = frozenset({"text", "_node_content", "attachments"})
_ANOTHER: Final = "choose another namespace_prefix, or delete the namespace if nothing needs it"


def attribute_name(record_field: str) -> str:
    return _RENAMED.get(record_field, record_field)


def record_attributes(*, vectors: bool) -> list[str]:
    """The attributes that make up a record, with or without its vector; every answer has ``id`` anyway."""
    return [attribute_name(name) for name in record_schema(1, vectors=vectors).names if name != "id"]


def namespace_schema(model: ModelIdentity, declared: Mapping[str, MetadataType]) -> dict[str, Any]:
    """The schema every write carries, so that no type is ever inferred."""
    return _fixed_schema(model) | declared_schema(declared)


def _fixed_schema(model: ModelIdentity) -> dict[str, Any]:
    schema: dict[str, Any] = {"id": "uuid", "vector": {"type": f"[{model.dimension}]f32", "ann": True}}
    for field in record_schema(model.dimension):
        name = attribute_name(field.name)
        if name not in schema:
            schema[name] = {"type": _attribute_type(field.type), "filterable": name in _FILTERABLE}
    schema["text"]["full_text_search"] = _TEXT_SEARCH
    for name in _NODE_ATTRIBUTES:
        schema[name] = {"type": "string", "filterable": name in _FILTERABLE}
    return schema


def declared_schema(declared: Mapping[str, MetadataType]) -> dict[str, Any]:
    """The part of the schema that a namespace may lack: an earlier version has made it, or for fewer fields."""
    kinds: dict[str, MetadataType] = {FILTER_FIELDS: "string_list", **declared}
    return {key: {"type": _FIELD_TYPES[kind], "filterable": True} for key, kind in kinds.items()}


def _attribute_type(arrow: pa.DataType) -> str:
    if pa.types.is_integer(arrow):
        return "int"
    return "datetime" if pa.types.is_timestamp(arrow) else "string"


def check_names(model: ModelIdentity, declared: Mapping[str, MetadataType]) -> None:
    """Raises ConfigError for a declared field or a model that no namespace could hold."""
    for key in declared:
        if len(key.encode()) > MAX_NAME_BYTES:
            raise ConfigError(
                f"metadata field {key!r} is longer than the {MAX_NAME_BYTES} bytes of a Turbopuffer attribute name; rename it"
            )
    if model.dimension > MAX_DIMENSION:
        raise ConfigError(
            f"{model.name} makes vectors of {model.dimension} dimensions, Turbopuffer holds at most {MAX_DIMENSION}; "
            "choose another model, or fewer dimensions if the model can"
        )


def check_schema(
    found: Mapping[str, Any], name: str, model: ModelIdentity, declared: Mapping[str, MetadataType]
) -> dict[str, Any]:
    """The part of ``declared_schema`` the namespace lacks; ``found`` is the schema its metadata shows.

    Raises SinkConflict, which says what to do, when the namespace is not ours, or does not fit the model or a declared field.
    """
    for key, wanted in _fixed_schema(model).items():
        expected = wanted if isinstance(wanted, str) else wanted["type"]
        held = found.get(key, {}).get("type", "missing")
        if held != expected:
            raise SinkConflict(f"Turbopuffer namespace {name!r}: attribute {key!r} is {held}, not {expected}; {_ANOTHER}")
    unfilterable = sorted(key for key in _FILTERABLE if not found[key].get("filterable"))
    if unfilterable:
        raise SinkConflict(f"Turbopuffer namespace {name!r} cannot filter on {', '.join(unfilterable)}; {_ANOTHER}")
    if not found["text"].get("full_text_search"):
        raise SinkConflict(f"Turbopuffer namespace {name!r} has no full-text index on 'text'; {_ANOTHER}")
    ann = found["vector"].get("ann")
    metric = ann.get("distance_metric", METRIC) if isinstance(ann, dict) else ann and METRIC
    if metric != METRIC:
        raise SinkConflict(f"Turbopuffer namespace {name!r} ranks vectors by {metric or 'nothing'}, not {METRIC}; {_ANOTHER}")
    for key, wanted in declared_schema(declared).items():
        held = found.get(key)
        if held is not None and (held.get("type") != wanted["type"] or not held.get("filterable")):
            raise SinkConflict(
                f"Turbopuffer namespace {name!r} holds metadata field {key!r} as {held.get('type')}"
                f"{'' if held.get('filterable') else ' that cannot be filtered on'}, "
                f"the sink declares it as {declared.get(key, wanted['type'])}; declare it as before, "
                "or export to another namespace_prefix"
            )
    return {key: wanted for key, wanted in declared_schema(declared).items() if key not in found}


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """A file's documents: of every attribute the JSON of its values, comma-separated. No columns for an empty file."""

    file: FileRecords
    columns: Mapping[str, bytes]


def encode_file(file: FileRecords, declared: Mapping[str, MetadataType]) -> EncodedFile:
    """Raises RecordRefused, which names the limit, for a value Turbopuffer cannot hold."""
    check_vectors(file)
    table = file.table
    if not table.num_rows:
        return EncodedFile(file, {})
    columns: dict[str, Sequence[Any]] = {
        attribute_name(name): _values(table[name]) for name in table.column_names if name != "embedding"
    }
    columns["doc_id"] = ref_doc_ids(table).to_pylist()
    columns["_node_content"] = node_contents(table).to_pylist()
    columns["_node_type"] = [NODE_TYPE] * table.num_rows
    for key, value in {**fields_of_file(file, declared), FILTER_FIELDS: sorted(declared)}.items():
        columns[key] = [value] * table.num_rows
    for name, values in columns.items():
        _check_sizes(file.file_id, name, values, filterable=name in _FILTERABLE or name in declared)
    columns["vector"] = _base64_vectors(table["embedding"])
    return EncodedFile(file, {name: compact_json(values)[1:-1] for name, values in columns.items()})


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    if pa.types.is_timestamp(column.type):
        return [value and value.isoformat(timespec="milliseconds") for value in column.to_pylist()]
    if pa.types.is_list(column.type):
        return [canonical_json(value) for value in column.to_pylist()]
    values: Sequence[Any] = column.to_pylist()
    return values


def _base64_vectors(column: pa.ChunkedArray) -> list[str]:
    """Little-endian float32 in base64, the vendor's documented alternative to arrays of numbers: exact and half the size."""
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in matrix(column).astype("<f4", copy=False)]


def _check_sizes(file_id: str, name: str, values: Sequence[Any], *, filterable: bool) -> None:
    limit, kind = (MAX_FILTERABLE_BYTES, "a filterable value") if filterable else (MAX_VALUE_BYTES, "a value")
    elements = list(chain.from_iterable(value if isinstance(value, list) else (value,) for value in values))
    strings = [element for element in elements if isinstance(element, str)]
    if max(map(len, strings), default=0) * _MAX_BYTES_PER_CHARACTER <= limit:
        return
    largest = max(len(string.encode()) for string in strings)
    if largest > limit:
        remedy = "make chunks smaller" if name in _GROWS_WITH_CHUNKS else "shorten it"
        raise RecordRefused(
            file_id, f"{name!r} has {largest:,} bytes in a record; Turbopuffer holds {kind} of up to {limit:,}: {remedy}"
        )


def write_body(
    files: Sequence[EncodedFile], counts: Mapping[str, int], model: ModelIdentity, declared: Mapping[str, MetadataType]
) -> bytes:
    """One atomic write that replaces these files; ``counts`` says of the id of a chunk 0 how many chunks stand behind it.

    Deletes by id take what the old version has beyond the new one. The filter takes what no snapshot told of: records of a
    version written since, or of one whose chunk 0 is lost. The vendor documents that it is applied before the upserts.
    """
    head: dict[str, Any] = {"create_namespace": False, "delete_by_filter": _other_versions(files)}
    stale = _stale_ids(files, counts)
    if stale:
        head["deletes"] = stale
    written = [file.columns for file in files if file.columns]
    if not written:
        return compact_json(head)
    head |= {"schema": namespace_schema(model, declared), "distance_metric": METRIC}
    parts = [compact_json(head)[:-1], b',"upsert_columns":{']
    for number, name in enumerate(written[0]):
        parts += [b"," if number else b"", compact_json(name), b":["]
        for columns in written:
            parts += [columns[name], b","]
        parts[-1] = b"]"
    return b"".join([*parts, b"}}"])


def first_id(file: FileRecords) -> str:
    """The id of a file's chunk 0."""
    return _ids(file, range(1))[0]


def _ids(file: FileRecords, indices: Iterable[int]) -> list[str]:
    provenance = file.provenance
    return chunk_ids(provenance.tenant_id, provenance.export_config_id, file.file_id, indices)


def _stale_ids(files: Sequence[EncodedFile], counts: Mapping[str, int]) -> list[str]:
    stale = ((item.file, range(item.file.table.num_rows, counts.get(first_id(item.file), 0))) for item in files)
    return [name for file, indices in stale if indices for name in _ids(file, indices)]


def _other_versions(files: Sequence[EncodedFile]) -> Filter:
    configs = by_config(FileKey.of(item.file) for item in files)
    hashes = [item.file.record_set_hash for item in files]
    return (
        "And",
        [
            ("Or", [scope(tenant, config, file_ids) for (tenant, config), file_ids in configs.items()]),
            ("Not", ("record_set_hash", "In", hashes)),
        ],
    )


def create_body(model: ModelIdentity, declared: Mapping[str, MetadataType]) -> bytes:
    """A write that makes the namespace, without documents, where it does not exist."""
    return compact_json({"create_namespace": True, "schema": namespace_schema(model, declared), "distance_metric": METRIC})


def schema_body(missing: Mapping[str, Any]) -> bytes:
    """A write that adds these attributes and nothing else."""
    return compact_json({"schema": missing})


def delete_body(where: Filter) -> bytes:
    """A write that deletes what a filter finds, as far as one write may; its answer says whether anything remains."""
    return compact_json({"delete_by_filter": where, "delete_by_filter_allow_partial": True})


@dataclass(frozen=True, slots=True)
class Fill:
    """What to set in the first ``count`` records of a version, given by its chunk 0."""

    head: Row
    count: int
    values: Mapping[str, FieldValue]


FILLED_BY: Final = ("export_config_id", "parsed_directory_file_id", "chunk_count", "record_set_hash")
"""What of a chunk 0 says which records are filled."""


def fill(head: Row, declared: Mapping[str, MetadataType]) -> Fill | None:
    """Declared fields as the metadata has them; where the records have them already, chunk 0 alone is told that they have.

    ``None`` for a file that another program has altered, which the next run replaces.
    """
    if any(head.get(name) is None for name in FILLED_BY):
        return None
    values = fitting_values(head.get("metadata_json"), declared)
    complete = all(head.get(key) == value for key, value in values.items())
    covered = sorted({*(head.get(FILTER_FIELDS) or ()), *declared})
    return Fill(head, 1 if complete else head["chunk_count"], {**values, FILTER_FIELDS: covered})


def fill_body(fills: Sequence[Fill], tenant_id: str, declared: Mapping[str, MetadataType]) -> bytes:
    """A write that makes these changes in every record that has not changed since."""
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "record_set_hash", *declared_schema(declared))}
    for item in fills:
        head = item.head
        columns["id"] += chunk_ids(tenant_id, head["export_config_id"], head["parsed_directory_file_id"], range(item.count))
        for name, value in {"record_set_hash": head["record_set_hash"], **item.values}.items():
            columns[name] += repeat(value, item.count)
    unchanged = ("record_set_hash", "Eq", {"$ref_new": "record_set_hash"})
    return compact_json({"patch_columns": columns, "patch_condition": unchanged, "schema": declared_schema(declared)})


def decode(rows: Sequence[Row], dimension: int, *, vectors: bool) -> pa.Table:
    """Documents as rows of ``record_schema``, without ``embedding`` unless they were asked for with their vectors."""

    def values_of(name: str) -> list[Any]:
        values = [row.get(attribute_name(name)) for row in rows]
        return [from_json(value) for value in values] if name == "attachments" else values

    schema = record_schema(dimension, vectors=vectors)
    return to_table(schema, values_of, lambda value: np.frombuffer(base64.b64decode(value), "<f4"))


def compared_attributes(declared: Mapping[str, MetadataType]) -> list[str]:
    """The attributes ``decode_compared`` reads."""
    return [*record_attributes(vectors=True), *_NODE_ATTRIBUTES, FILTER_FIELDS, *declared]


def decode_compared(rows: Sequence[Row], dimension: int, declared: Mapping[str, MetadataType]) -> pa.Table:
    """``decode`` with vectors of documents with ``compared_attributes``, in order; the records show which of their copies are
    altered."""
    records = decode(rows, dimension, vectors=True)
    sound = readable(records)
    fields = filled_fields(sound, rows, declared, FILTER_FIELDS)
    nodes = [{name: node[name] for name in _NODE_ATTRIBUTES} for node in node_copies(sound)]
    return in_order(compare(records, rows, fields, nodes))


def scope(tenant_id: str, export_config_id: str, file_ids: Sequence[str] | None = None) -> Filter:
    """Documents of one config of one tenant, of all its files or of these."""
    conditions: list[Filter] = [("tenant_id", "Eq", tenant_id), ("export_config_id", "Eq", export_config_id)]
    if file_ids is not None:
        conditions.append(("parsed_directory_file_id", "In", list(file_ids)))
    return ("And", conditions)


def without_file(tenant_id: str, export_config_id: str) -> Filter:
    """Documents of a config whose file id another program has removed."""
    return ("And", [scope(tenant_id, export_config_id), ("parsed_directory_file_id", "Eq", None)])


def render(condition: Condition) -> Filter:
    """A condition as a filter. Negations hold for null too, as ``Not`` does; ``Lt`` and ``Lte`` would, so they say otherwise."""
    name, operator = condition.field, condition.operator
    if operator in _COMPARISONS:
        compared = (name, _COMPARISONS[operator], condition.values[0])
        return ("And", [compared, (name, "NotEq", None)])
    positive: Filter = (name, "ContainsAny" if condition.type == "string_list" else "In", list(condition.values))
    return ("Not", positive) if condition.negated else positive


_COMPARISONS: Final = {"gt": "Gt", "gte": "Gte", "lt": "Lt", "lte": "Lte"}
