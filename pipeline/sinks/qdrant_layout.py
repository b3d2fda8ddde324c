"""The Qdrant collection: its vector and payload indexes, the codec to and from records, and filters.

What belongs here: pure functions between Arrow tables of ``record_schema`` and points. A point has one vector named as
LlamaIndex's QdrantVectorStore names it, and a payload of the record's own fields, LlamaIndex's (``_node_content`` with the
text in it, ``doc_id`` and their like) and one key for every declared metadata field that the file has. Keys with an
underscore in front are the layout's: no declared field begins with one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from qdrant_client import models

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import RecordRefused, SinkConflict
from pipeline.sinks.base import MetadataType, Snapshot
from pipeline.sinks.filters import Condition, fields_of_file
from pipeline.sinks.generations import FileKey, FileWrites, Head
from pipeline.sinks.llama_node import NODE_TYPE, node_contents, ref_doc_ids
from pipeline.sinks.records import FileRecords, chunk_ids, record_schema
from pipeline.sinks.refusals import check_vectors

VECTOR: Final = "text-dense"
"""The name LlamaIndex gives the dense vector of the collections it makes itself."""

PENDING: Final = "_pending"
FILTER_FIELDS: Final = "_filter_fields"
"""The declared metadata fields a point was written for; a field declared later is not among them."""

FORMAT: Final = "1"
FORMAT_KEY: Final = "indexport_format"
MODEL_KEY: Final = "indexport_model"

MAX_RECORD_BYTES: Final = 15 * 2**20
"""A record and its file's head share a request; the server takes 32 MiB in one by default, documented by the vendor."""

RECORD_KEYS: Final = tuple(f.name for f in record_schema(1) if f.name not in ("id", "embedding"))
SNAPSHOT_KEYS: Final = tuple(f.name for f in fields(Snapshot))

_FIXED_INDEXES: Final[Mapping[str, MetadataType]] = {
    "tenant_id": "string",
    "export_config_id": "string",
    "parsed_directory_file_id": "string",
    "file_name": "string",
    "chunk_index": "integer",
    "record_set_hash": "string",
    "doc_id": "string",
    FILTER_FIELDS: "string_list",
}
_INDEX_TYPES: Final[Mapping[MetadataType, models.PayloadSchemaType]] = {
    "string": models.PayloadSchemaType.KEYWORD,
    "string_list": models.PayloadSchemaType.KEYWORD,
    "integer": models.PayloadSchemaType.INTEGER,
    "float": models.PayloadSchemaType.FLOAT,
    "boolean": models.PayloadSchemaType.BOOL,
}
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_BYTES_PER_COMPONENT: Final = 22
_BYTES_PER_PAYLOAD: Final = 2048
_WEIGHED: Final = ("content", "context", "metadata", "file_name")


@dataclass(frozen=True, slots=True)
class PointWrite:
    """One point and about how many bytes it takes in a request."""

    point: models.PointStruct
    size: int

    def marked(self, marker: str) -> PointWrite:
        payload = {**(self.point.payload or {}), PENDING: marker}
        return replace(self, point=self.point.model_copy(update={"payload": payload}))


def json_path(key: str) -> str:
    """A payload key as filters and indexes address it: quoted where it is more than letters, digits, ``_`` and ``-``."""
    return key if _PLAIN_KEY.fullmatch(key) else f'"{key}"'


def collection_settings(model: ModelIdentity) -> dict[str, Any]:
    """How the collection is made."""
    return {
        "vectors_config": {VECTOR: models.VectorParams(size=model.dimension, distance=models.Distance.COSINE)},
        "on_disk_payload": True,
        "metadata": {FORMAT_KEY: FORMAT, MODEL_KEY: model.fingerprint},
    }


def check_collection(info: models.CollectionInfo, name: str, model: ModelIdentity) -> None:
    """Raises SinkConflict, which says what to do, when the collection cannot hold this model's vectors or is not ours.

    Servers before 1.16 keep no metadata of a collection (``names_model``): what the points say is for the caller to check.
    """
    remedy = "choose another collection_prefix, or delete the collection if nothing needs it"
    vectors = info.config.params.vectors
    vector = vectors.get(VECTOR) if isinstance(vectors, dict) else None
    if vector is None:
        raise SinkConflict(f"Qdrant collection {name!r} has no vector named {VECTOR!r}; {remedy}")
    if vector.size != model.dimension or vector.distance != models.Distance.COSINE:
        raise SinkConflict(
            f"Qdrant collection {name!r} holds {vector.distance.value} vectors of {vector.size} dimensions, "
            f"not Cosine of {model.dimension}; {remedy}"
        )
    marks = info.config.metadata or {}
    if marks.get(FORMAT_KEY, FORMAT) != FORMAT:
        raise SinkConflict(f"Qdrant collection {name!r} was not made by this version of Indexport; {remedy}")
    if marks.get(MODEL_KEY, model.fingerprint) != model.fingerprint:
        raise SinkConflict(f"Qdrant collection {name!r} holds vectors of another model than {model.name!r}; {remedy}")


def names_model(info: models.CollectionInfo) -> bool:
    """Whether the collection itself says which model its vectors are of."""
    return MODEL_KEY in (info.config.metadata or {})


def missing_indexes(
    info: models.CollectionInfo, name: str, declared: Mapping[str, MetadataType]
) -> dict[str, models.PayloadSchemaType | models.KeywordIndexParams]:
    """The payload indexes the collection lacks, by the path of their key.

    Raises SinkConflict where a key is indexed as another type than the one it is declared with.
    """
    held = {path.strip('"'): index.data_type for path, index in info.payload_schema.items()}
    missing: dict[str, models.PayloadSchemaType | models.KeywordIndexParams] = {}
    for key, kind in {**_FIXED_INDEXES, **declared}.items():
        wanted = _INDEX_TYPES[kind]
        if key not in held:
            missing[json_path(key)] = wanted
        elif held[key] != wanted:
            raise SinkConflict(
                f"Qdrant collection {name!r} indexes {key!r} as {held[key].value}, the sink declares it as {kind}; "
                "declare it as before, delete that index, or export to another collection_prefix"
            )
    if "tenant_id" in missing:
        missing["tenant_id"] = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
    return missing


def encode_file(file: FileRecords, declared: Mapping[str, MetadataType]) -> FileWrites[PointWrite]:
    """The points of a file. Raises RecordRefused, which names the limit, for one Qdrant cannot hold."""
    check_vectors(file)
    values = {key: value for key, value in fields_of_file(file, declared).items() if value is not None}
    where = file.provenance
    key = FileKey(where.tenant_id, where.export_config_id, file.file_id)
    if not file.table.num_rows:
        return FileWrites(key, file.record_set_hash, [])
    ids = chunk_ids(key.tenant_id, key.export_config_id, key.file_id, range(file.table.num_rows), file.record_set_hash)
    table = file.table.set_column(0, "id", pa.array(ids, pa.string()))
    nodes = node_contents(table, include_text=True)
    sizes = _sizes(table, nodes)
    if max(sizes) > MAX_RECORD_BYTES:
        raise RecordRefused(
            file.file_id,
            f"a record of about {max(sizes):,} bytes; Qdrant takes one of up to {MAX_RECORD_BYTES:,}. Make chunks smaller",
        )
    payloads = _payloads(table, nodes, {**values, FILTER_FIELDS: sorted(declared)})
    vectors = _matrix(table["embedding"]).tolist()
    points = [
        models.PointStruct(id=found, vector={VECTOR: vector}, payload=payload)
        for found, vector, payload in zip(ids, vectors, payloads, strict=True)
    ]
    return FileWrites(key, file.record_set_hash, list(map(PointWrite, points, sizes)))


def _payloads(table: pa.Table, nodes: pa.StringArray, extra: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = {name: _values(table[name]) for name in RECORD_KEYS}
    columns["_node_content"] = nodes.to_pylist()
    document = ref_doc_ids(table)[0].as_py()
    shared = {**extra, "_node_type": NODE_TYPE, **dict.fromkeys(("document_id", "doc_id", "ref_doc_id"), document)}
    return [{**dict(zip(columns, row, strict=True)), **shared} for row in zip(*columns.values(), strict=True)]


def _sizes(table: pa.Table, nodes: pa.Array) -> list[int]:
    """About the bytes of each row in a request, whose strings are JSON; ``nodes``, being JSON, are escaped twice."""
    fixed = _BYTES_PER_PAYLOAD + table.schema.field("embedding").type.list_size * _BYTES_PER_COMPONENT
    total = np.full(table.num_rows, fixed, np.int64)
    for column in (nodes, *(table[name] for name in _WEIGHED)):
        total += pc.binary_length(column).to_numpy(zero_copy_only=False)
        for escaped in ('"', "\\", "\n"):
            total += pc.count_substring(column, escaped).to_numpy(zero_copy_only=False)
    sizes: list[int] = total.tolist()
    return sizes


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    if pa.types.is_timestamp(column.type):
        return [value and value.isoformat(timespec="milliseconds") for value in column.to_pylist()]
    values: Sequence[Any] = column.to_pylist()
    return values


def _matrix(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float32]]:
    flat: np.ndarray[Any, np.dtype[np.float32]] = column.combine_chunks().flatten().to_numpy()
    return flat.reshape(len(column), -1)


def decode(points: Sequence[models.Record | models.ScoredPoint], dimension: int, *, vectors: bool) -> pa.Table:
    """Points as rows of ``record_schema``, without ``embedding`` unless they were read with their vectors.

    A vector somebody has removed reads as NaN.
    """
    schema = record_schema(dimension)
    held = [item for item in schema if vectors or item.name != "embedding"]
    payloads = [point.payload or {} for point in points]
    columns: dict[str, pa.Array] = {"id": pa.array([str(point.id) for point in points], pa.string())}
    for name in RECORD_KEYS:
        columns[name] = _column([payload.get(name) for payload in payloads], schema.field(name).type)
    if vectors:
        absent = [np.nan] * dimension
        found = [point.vector.get(VECTOR, absent) if isinstance(point.vector, dict) else absent for point in points]
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(np.array(found, np.float32).reshape(-1)), dimension)
    return pa.table([columns[item.name] for item in held], schema=pa.schema(held))


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        values = [value and datetime.fromisoformat(value) for value in values]
    return pa.array(values, kind)


def head(payload: Mapping[str, Any], tenant_id: str) -> Head:
    """Chunk 0 of a version, from SNAPSHOT_KEYS and PENDING of its payload."""
    modified = payload["source_modified_at"]
    snapshot = Snapshot(
        **{name: payload[name] for name in SNAPSHOT_KEYS if name != "source_modified_at"},
        source_modified_at=modified and datetime.fromisoformat(modified),
    )
    key = FileKey(tenant_id, snapshot.export_config_id, snapshot.parsed_directory_file_id)
    return Head(key, snapshot, payload.get(PENDING))


def scope(tenant_id: str, export_config_id: str, file_ids: Sequence[str] | None = None) -> list[models.Condition]:
    """Points of one config of one tenant, of all its files or of these."""
    found: list[models.Condition] = [equals("tenant_id", tenant_id), equals("export_config_id", export_config_id)]
    return found if file_ids is None else [*found, one_of("parsed_directory_file_id", file_ids)]


def equals(key: str, value: str | int) -> models.FieldCondition:
    return models.FieldCondition(key=json_path(key), match=models.MatchValue(value=value))


def one_of(key: str, values: Sequence[str]) -> models.FieldCondition:
    return models.FieldCondition(key=json_path(key), match=models.MatchAny(any=list(values)))


def having_ids(ids: Sequence[str]) -> models.Filter:
    """These points as far as they exist. A list of ids, where a payload is changed, fails for one that does not."""
    return models.Filter(must=[models.HasIdCondition(has_id=list(ids))])


def render(condition: Condition) -> models.Condition:
    """A condition as Qdrant's. Negations hold for absent keys too; numbers are compared as 64-bit floats."""
    if condition.operator in ("gt", "gte", "lt", "lte"):
        bounds = models.Range(**{condition.operator: float(condition.values[0])})
        return models.FieldCondition(key=json_path(condition.field), range=bounds)
    matches = _matches(condition)
    return models.Filter(must_not=matches) if condition.negated else models.Filter(should=matches)


def _matches(condition: Condition) -> list[models.Condition]:
    """Equality, of one of the values; floats by range, as Qdrant's match takes strings, integers and booleans only."""
    key, values = json_path(condition.field), condition.values
    if condition.type == "float":
        return [models.FieldCondition(key=key, range=models.Range(gte=float(v), lte=float(v))) for v in values]
    if condition.type == "boolean":
        return [models.FieldCondition(key=key, match=models.MatchValue(value=bool(value))) for value in values]
    return [models.FieldCondition(key=key, match=models.MatchAny.model_validate({"any": values}))]
