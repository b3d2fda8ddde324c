"""The Qdrant collection: its vector and payload indexes, the codec to and from records, and filters.

What belongs here: pure functions between Arrow tables of ``record_schema`` and points. A point has one vector named as
LlamaIndex's QdrantVectorStore names it, and a payload of the record's own fields, LlamaIndex's (``_node_content`` with the
text in it, ``doc_id`` and their like) and one key for every declared metadata field that the file has. Keys with an
underscore in front are the layout's: no declared field begins with one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from qdrant_client import models

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import RecordRefused, SinkConflict
from pipeline.sinks.base import MetadataType
from pipeline.sinks.copies import compare, filled_fields, readable
from pipeline.sinks.decimals import short_decimals
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.filters import Condition, fields_of_file
from pipeline.sinks.generations import FileWrites, Head, read_head
from pipeline.sinks.llama_node import NODE_KEYS, NODE_TYPE, node_contents, node_copies, ref_doc_ids
from pipeline.sinks.reading import to_table
from pipeline.sinks.records import CHUNK_FIELDS, FileRecords, in_order, record_schema, with_ids
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

RECORD_KEYS: Final = tuple(name for name in record_schema(1, vectors=False).names if name != "id")
_CHUNK_KEYS: Final = tuple(f.name for f in CHUNK_FIELDS)
_FILE_KEYS: Final = tuple(name for name in RECORD_KEYS if name not in _CHUNK_KEYS)

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
_BYTES_PER_PAYLOAD: Final = 2048


@dataclass(frozen=True, slots=True)
class FilePoints:
    """The points of one file, column by column, and once what all of them share: a fraction of what they are as points."""

    ids: Sequence[str]
    vectors: npt.NDArray[np.float64]
    names: Sequence[str]
    columns: Sequence[Sequence[Any]]
    shared: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PointWrite:
    """One point of a file and about how many bytes it takes in a request."""

    file: FilePoints
    row: int
    size: int
    marker: str | None = None

    @property
    def id(self) -> str:
        return self.file.ids[self.row]

    @property
    def point(self) -> models.PointStruct:
        """Made anew at each call, and not validated: every value comes out of a typed column."""
        payload = {**self.file.shared}
        for name, column in zip(self.file.names, self.file.columns, strict=True):
            payload[name] = column[self.row]
        if self.marker is not None:
            payload[PENDING] = self.marker
        vector: dict[str, Any] = {VECTOR: self.file.vectors[self.row].tolist()}
        return models.PointStruct.model_construct(id=self.id, vector=vector, payload=payload)

    def marked(self, marker: str) -> PointWrite:
        return replace(self, marker=marker)


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
    key = FileKey.of(file)
    if not file.table.num_rows:
        return FileWrites(key, file.record_set_hash, [])
    ids = key.ids(Generation.of(file))
    table = with_ids(file.table, ids)
    nodes = node_contents(table)
    vectors, vector_sizes = short_decimals(table["embedding"])
    sizes = _sizes(table, nodes, vector_sizes)
    if max(sizes) > MAX_RECORD_BYTES:
        raise RecordRefused(
            file.file_id,
            f"a record of about {max(sizes):,} bytes; Qdrant takes one of up to {MAX_RECORD_BYTES:,}. Make chunks smaller",
        )
    columns = [*(table[name].to_pylist() for name in _CHUNK_KEYS), nodes.to_pylist()]
    shared = {**_shared(table), **values, FILTER_FIELDS: sorted(declared)}
    points = FilePoints(ids, vectors, (*_CHUNK_KEYS, "_node_content"), columns, shared)
    return FileWrites(key, file.record_set_hash, [PointWrite(points, row, size) for row, size in enumerate(sizes)])


def _shared(table: pa.Table) -> dict[str, Any]:
    """What the payloads of all records of a file have in common."""
    first = table.slice(0, 1)
    (fields_of_first,) = first.select(_FILE_KEYS).to_pylist()
    modified: datetime | None = fields_of_first["source_modified_at"]
    document = ref_doc_ids(first)[0].as_py()
    return {
        **fields_of_first,
        "source_modified_at": modified and modified.isoformat(timespec="milliseconds"),
        "_node_type": NODE_TYPE,
        **dict.fromkeys(("document_id", "doc_id", "ref_doc_id"), document),
    }


def _sizes(table: pa.Table, nodes: pa.Array, vector_sizes: npt.NDArray[np.int64]) -> list[int]:
    """About the bytes of each row in a request: of ``nodes``, which repeat its texts, and of the texts beside them.

    Nodes are JSON already, so in a request they are escaped twice.
    """
    total = vector_sizes + _BYTES_PER_PAYLOAD
    for escaped in ('"', "\\"):
        total += pc.count_substring(nodes, escaped).to_numpy(zero_copy_only=False)
    total += 2 * pc.binary_length(nodes).to_numpy(zero_copy_only=False)
    metadata: str = table["metadata"][0].as_py()
    sizes: list[int] = (total + len(json.dumps(metadata))).tolist()
    return sizes


def decode(points: Sequence[models.Record | models.ScoredPoint], dimension: int, *, vectors: bool) -> pa.Table:
    """Points as rows of ``record_schema``, without ``embedding`` unless they were read with their vectors."""

    def values_of(name: str) -> list[Any]:
        if name == "id":
            return [str(point.id) for point in points]
        if name == "embedding":
            return [point.vector.get(VECTOR) if isinstance(point.vector, dict) else None for point in points]
        return [(point.payload or {}).get(name) for point in points]

    return to_table(record_schema(dimension, vectors=vectors), values_of)


def compared_keys(declared: Mapping[str, MetadataType]) -> list[str]:
    """What of a payload ``decode_compared`` reads, as Qdrant's selector takes it: JSON paths."""
    return [*RECORD_KEYS, *NODE_KEYS, FILTER_FIELDS, *map(json_path, declared)]


def decode_compared(points: Sequence[models.Record], dimension: int, declared: Mapping[str, MetadataType]) -> pa.Table:
    """``decode`` with vectors of points with ``compared_keys``, in order; the records show which of their copies are altered."""
    records, held = decode(points, dimension, vectors=True), [point.payload or {} for point in points]
    sound = readable(records)
    return in_order(compare(records, held, filled_fields(sound, held, declared, FILTER_FIELDS), node_copies(sound)))


def head(payload: Mapping[str, Any], tenant_id: str) -> Head | None:
    """Chunk 0 of a version, from SNAPSHOT_FIELDS and PENDING of its payload."""
    return read_head({**payload, "tenant_id": tenant_id}, payload.get(PENDING))


def scope(tenant_id: str, export_config_id: str, file_ids: Sequence[str] | None = None) -> list[models.Condition]:
    """Points of one config of one tenant, of all its files or of these."""
    found: list[models.Condition] = [equals("tenant_id", tenant_id), equals("export_config_id", export_config_id)]
    return found if file_ids is None else [*found, one_of("parsed_directory_file_id", file_ids)]


def without_file(tenant_id: str, export_config_id: str) -> models.Filter:
    """Points of a config whose file id another program has removed."""
    absent = models.IsEmptyCondition(is_empty=models.PayloadField(key="parsed_directory_file_id"))
    return models.Filter(must=[*scope(tenant_id, export_config_id), absent])


def equals(key: str, value: str | int) -> models.FieldCondition:
    return models.FieldCondition(key=json_path(key), match=models.MatchValue(value=value))


def one_of(key: str, values: Sequence[str]) -> models.FieldCondition:
    return models.FieldCondition(key=json_path(key), match=models.MatchAny(any=list(values)))


def having_ids(ids: Sequence[str]) -> models.Filter:
    """These points as far as they exist. A list of ids, where a payload is changed, fails for one that does not."""
    return models.Filter(must=[models.HasIdCondition(has_id=list(ids))])


def render(condition: Condition) -> models.Condition:
    """A condition as Qdrant's. Negations hold for absent keys too; numbers are compared as 64-bit floats."""
    if condition.is_order:
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
