"""What Pinecone holds: names, records and filters.

What belongs here: the codec between ``record_schema`` and Pinecone's records, with the limits the vendor documents. Nothing
here makes a request.

A record's metadata is LlamaIndex's layout, flat and without nulls, and the record's own fields. Its text is held once, inside
``_node_content``, where LlamaIndex looks for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pinecone import Vector

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import RecordRefused, SinkConflict
from pipeline.sinks.base import MetadataType, Snapshot
from pipeline.sinks.filters import Condition, FieldValue, fields_of_file
from pipeline.sinks.generations import FileKey, FileWrites, Generation, Head
from pipeline.sinks.llama_node import NODE_KEYS, PROVENANCE_KEYS, node_metadata
from pipeline.sinks.records import FileRecords, canonical_json, record_schema, ref_doc_id

Metadata = dict[str, Any]
Filter = dict[str, Any]

METRIC: Final = "cosine"
MAX_INDEX_NAME: Final = 45
MAX_ID: Final = 512
MAX_METADATA_BYTES: Final = 40_960
"""Of one record; documented by the vendor as 40 KB. Counted here as the JSON that is sent."""

PENDING: Final = "pending"
"""Set in a head that a replace has not finished with; the empty string is no marker, as a field cannot be removed."""

FORMAT: Final = "1"

_ROOM_FOR_MARKER: Final = 4_096
"""A marker names every unfinished version of a file, at about 70 bytes each."""

_NAMESPACE_READABLE: Final = 64
_ID_PLAIN: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "%#")
_EXACT_INTEGERS: Final = range(-(2**53), 2**53 + 1)
"""Numbers are held as 64-bit floats; documented by the vendor."""

_NEITHER_HELD_NOR_FLAT: Final = frozenset({"id", "content", "context", "metadata", "embedding"})
"""Record fields that stand elsewhere: in the record's id, its values, ``_node_content`` or ``metadata_json``."""

_COMPARISONS: Final = ("gt", "gte", "lt", "lte")


def index_name(prefix: str, model: ModelIdentity) -> str:
    """``{prefix}-{slug}``, with the slug's readable part cut to what the vendor allows; its digest stays whole."""
    readable, _, digest = model.slug.rpartition("-")
    room = MAX_INDEX_NAME - len(prefix) - len(digest) - 2
    return "-".join(part for part in (prefix, readable[:room].strip("-"), digest) if part)


def index_tags(model: ModelIdentity) -> dict[str, str]:
    """What marks an index as ours, and as this model's."""
    return {"indexport-format": FORMAT, "indexport-model": hashlib.sha256(model.fingerprint.encode()).hexdigest()}


def namespace_name(tenant_id: str, export_config_id: str) -> str:
    """The namespace of one config of one tenant: readable as far as it is safe, unique by the digest at its end."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{tenant_id}.{export_config_id}")[:_NAMESPACE_READABLE]
    return f"{readable}-{hashlib.sha256(canonical_json([tenant_id, export_config_id]).encode()).hexdigest()[:32]}"


class RecordKey(FileKey):
    """A file whose record ids are ``{ref_doc_id}#{chunk id}``, the form LlamaIndex lists a document's records by.

    The ref_doc_id is percent-encoded where it is not printable ASCII, as ids have to be, or has a ``#`` or ``%`` of its own.
    """

    __slots__ = ()

    @property
    def prefix(self) -> str:
        return f"{quote(ref_doc_id(self.export_config_id, self.file_id), safe=_ID_PLAIN)}#"

    def ids(self, generation: Generation) -> list[str]:
        prefix = self.prefix
        return [f"{prefix}{found}" for found in super().ids(generation)]


def key_of(file: FileRecords) -> RecordKey:
    return RecordKey(file.provenance.tenant_id, file.provenance.export_config_id, file.file_id)


def document_of(record_id: str) -> str:
    """The ref_doc_id in a record's id."""
    return unquote(record_id.rpartition("#")[0])


@dataclass(frozen=True, slots=True)
class Write:
    """One record, ready to be sent. ``size`` is what it takes in a request, in bytes."""

    id: str
    values: list[float]
    metadata: Metadata
    size: int

    def marked(self, marker: str) -> Write:
        entry = {PENDING: marker}
        return replace(self, metadata={**self.metadata, **entry}, size=self.size + len(canonical_json(entry)))

    def to_vector(self) -> Vector:
        return Vector(id=self.id, values=self.values, metadata=self.metadata)


def encode_file(file: FileRecords, declared: Mapping[str, MetadataType]) -> FileWrites[Write]:
    """A file's records. Raises RecordRefused, naming the limit, for one Pinecone cannot hold."""
    key = key_of(file)
    flat = {name: value for name, value in fields_of_file(file, declared).items() if value not in (None, [])}
    _check_integers(file, flat)
    if len(key.prefix) > MAX_ID - 36:
        raise RecordRefused(
            file.file_id,
            f"its record ids would have more than the {MAX_ID} characters Pinecone holds; shorten the ids of config and file",
        )
    _check_not_zero(file)
    generation = Generation(file.record_set_hash, file.table.num_rows)
    chunk_ids = FileKey.ids(key, generation)
    table = file.table.set_column(file.table.schema.get_field_index("id"), "id", pa.array(chunk_ids, pa.string()))
    flat = {**_storable(file.provenance.metadata, declared), **flat}
    vectors, vector_sizes = _numbers(table["embedding"])
    rows = zip(key.ids(generation), vectors, vector_sizes, _metadata(table, flat), strict=True)
    return FileWrites(key, file.record_set_hash, [_write(file, *row) for row in rows])


def _check_integers(file: FileRecords, values: Mapping[str, FieldValue]) -> None:
    for name, value in values.items():
        if isinstance(value, int) and value not in _EXACT_INTEGERS:
            raise RecordRefused(
                file.file_id,
                f"metadata field {name!r} is {value}, Pinecone holds integers up to 2**53 exactly; declare it as a string",
            )


def _check_not_zero(file: FileRecords) -> None:
    column = file.table["embedding"]
    values = column.combine_chunks().flatten().to_numpy().reshape(-1, column.type.list_size)
    (zero,) = np.nonzero(~values.any(axis=1))
    if zero.size:
        raise RecordRefused(
            file.file_id, f"the vector of chunk {zero[0]} is all zeros, which Pinecone does not hold; embed it again"
        )


def _numbers(column: pa.ChunkedArray) -> tuple[list[list[float]], list[int]]:
    """Vectors as the shortest decimals that are the same float32, half as long as those of its float64, and their sizes."""
    texts = column.combine_chunks().flatten().cast(pa.string())
    shape = (-1, column.type.list_size)
    values = texts.cast(pa.float64()).to_numpy().reshape(shape)
    lengths = pc.binary_length(texts).to_numpy().reshape(shape)
    comma_and_point = 3
    return values.tolist(), (lengths.sum(axis=1) + comma_and_point * lengths.shape[1]).tolist()


def _storable(metadata: Mapping[str, Any], declared: Mapping[str, MetadataType]) -> Metadata:
    """Of a file's own metadata, what can stand beside a record's fields; all of it is in ``metadata_json``."""
    reserved = {item.name for item in record_schema(1)} | {*NODE_KEYS, *PROVENANCE_KEYS, PENDING, "metadata_json", *declared}
    return {
        key: value
        for key, value in metadata.items()
        if key and not key.startswith("$") and key not in reserved and _is_storable(value)
    }


def _is_storable(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(element, str) for element in value)
    if isinstance(value, int):
        return value in _EXACT_INTEGERS
    return isinstance(value, str | float)


def _metadata(table: pa.Table, flat: Metadata) -> list[Metadata]:
    held = [name for name in table.column_names if name not in _NEITHER_HELD_NOR_FLAT]
    rows = table.select(held).to_pylist()
    nodes = node_metadata(table, include_text=True)
    return [
        {
            **flat,
            **{name: value for name, value in row.items() if value is not None},
            **{name: node[name] for name in NODE_KEYS},
            **_encoded(row, metadata_json),
        }
        for row, node, metadata_json in zip(rows, nodes, table["metadata"].to_pylist(), strict=True)
    ]


def _encoded(row: Mapping[str, Any], metadata_json: str) -> Metadata:
    """The fields that are of a type Pinecone lacks."""
    modified: datetime | None = row["source_modified_at"]
    dated = {} if modified is None else {"source_modified_at": modified.isoformat(timespec="milliseconds")}
    return {"metadata_json": metadata_json, "attachments": canonical_json(row["attachments"]), **dated}


def _write(file: FileRecords, record_id: str, values: list[float], vector_size: int, metadata: Metadata) -> Write:
    size = len(json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode())
    room = 0 if metadata["chunk_index"] else _ROOM_FOR_MARKER
    if size > MAX_METADATA_BYTES - room:
        raise RecordRefused(
            file.file_id,
            f"chunk {metadata['chunk_index']} makes {size:,} bytes of metadata, text included; Pinecone holds "
            f"{MAX_METADATA_BYTES:,} a record; make chunks or the file's metadata smaller",
        )
    return Write(record_id, values, metadata, size + vector_size + len(record_id) + len('{"id":"","values":[],"metadata":},'))


def decode(records: Sequence[tuple[str, Metadata, Sequence[float]]], dimension: int, *, vectors: bool = True) -> pa.Table:
    """Records as (id, metadata, values) to rows of ``record_schema``, without ``embedding`` unless ``vectors``.

    Raises SinkConflict for a record that this sink has not written.
    """
    schema = pa.schema([item for item in record_schema(dimension) if vectors or item.name != "embedding"])
    rows = [_row(record_id, metadata) for record_id, metadata, _ in records]
    columns = [
        _embedding(records, dimension) if item.name == "embedding" else pa.array([row.get(item.name) for row in rows], item.type)
        for item in schema
    ]
    return pa.table(columns, schema=schema)


def _row(record_id: str, metadata: Metadata) -> dict[str, Any]:
    try:
        node = json.loads(metadata["_node_content"])
        modified = metadata.get("source_modified_at")
        return {
            **metadata,
            "id": record_id.rpartition("#")[2],
            "content": node["text"],
            "context": node["metadata"]["context"],
            "metadata": metadata["metadata_json"],
            "attachments": json.loads(metadata["attachments"]),
            "source_modified_at": modified and datetime.fromisoformat(modified),
        }
    except (KeyError, ValueError) as error:
        raise _foreign(record_id) from error


def _foreign(record_id: str) -> SinkConflict:
    return SinkConflict(f"Pinecone record {record_id!r} was not written by this sink; delete it, or write it elsewhere")


def _embedding(records: Sequence[tuple[str, Metadata, Sequence[float]]], dimension: int) -> pa.FixedSizeListArray:
    values = np.asarray([values for *_, values in records], np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), dimension)


def to_head(record_id: str, metadata: Metadata) -> Head:
    """Raises SinkConflict for a record that this sink has not written."""
    modified = metadata.get("source_modified_at")
    try:
        snapshot = Snapshot(
            parsed_directory_file_id=metadata["parsed_directory_file_id"],
            export_config_id=metadata["export_config_id"],
            content_fingerprint_hash=metadata["content_fingerprint_hash"],
            source_modified_at=modified and datetime.fromisoformat(modified),
            chunk_count=int(metadata["chunk_count"]),
            embedding_model=metadata["embedding_model"],
            record_set_hash=metadata["record_set_hash"],
        )
        key = RecordKey(metadata["tenant_id"], snapshot.export_config_id, snapshot.parsed_directory_file_id)
    except (KeyError, ValueError) as error:
        raise _foreign(record_id) from error
    return Head(key, snapshot, metadata.get(PENDING) or None)


def scope(tenant_id: str, export_config_id: str, **also: object) -> Filter:
    """Records of one config of one tenant that have these values too; a list stands for any of its elements."""
    wanted = {"tenant_id": tenant_id, "export_config_id": export_config_id, **also}
    return {"$and": [{name: {"$in" if isinstance(value, list) else "$eq": value}} for name, value in wanted.items()]}


def search_filter(tenant_id: str, export_config_id: str, conditions: Sequence[Condition]) -> Filter:
    where = scope(tenant_id, export_config_id)
    return {"$and": [*where["$and"], *map(_rendered, conditions)]}


def _rendered(condition: Condition) -> Filter:
    """A negation names records without the field itself: whether ``$nin`` finds them is not documented."""
    name = condition.field
    if condition.operator in _COMPARISONS:
        return {name: {f"${condition.operator}": condition.values[0]}}
    if condition.negated:
        return {"$or": [{name: {"$exists": False}}, _among(condition, "$nin", "$ne", "$and")]}
    return _among(condition, "$in", "$eq", "$or")


def _among(condition: Condition, many: str, one: str, join: str) -> Filter:
    """Lists of values are documented for strings and numbers only, so booleans are compared one by one."""
    if condition.type == "boolean":
        return {join: [{condition.field: {one: value}} for value in condition.values]}
    return {condition.field: {many: list(condition.values)}}
