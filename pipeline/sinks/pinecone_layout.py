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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pinecone import Vector

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError, RecordRefused
from pipeline.sinks.base import MetadataType
from pipeline.sinks.copies import compare, readable
from pipeline.sinks.decimals import short_decimals
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.filters import Condition, FieldValue, fields_of_file, fitting_values
from pipeline.sinks.generations import FileWrites, Head, read_head
from pipeline.sinks.llama_node import NODE_KEYS, NODE_TYPE, PROVENANCE_KEYS, node_contents, node_copies, ref_doc_ids
from pipeline.sinks.reading import from_json, to_table
from pipeline.sinks.records import (
    CHUNK_FIELDS,
    FileRecords,
    canonical_json,
    in_order,
    matrix,
    record_schema,
    ref_doc_id,
    with_ids,
)
from pipeline.sinks.refusals import check_vectors

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

_CHUNK_FIELDS: Final = tuple(f.name for f in CHUNK_FIELDS if f.name not in _NEITHER_HELD_NOR_FLAT)
_FILE_FIELDS: Final = tuple(
    f.name for f in record_schema(1) if f.name not in (*_NEITHER_HELD_NOR_FLAT, *(chunk.name for chunk in CHUNK_FIELDS))
)
_COMPACT: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def check_names(declared: Mapping[str, MetadataType]) -> None:
    """Raises ConfigError for a declared field that no record can have beside the replace protocol's own."""
    if PENDING in declared:
        raise ConfigError(
            f"metadata field {PENDING!r} cannot be declared for the Pinecone sink, which keeps a marker of its own by that name; "
            "rename it at its source, or do not declare it"
        )


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


def document_of(record_id: str) -> str:
    """The ref_doc_id in a record's id."""
    return unquote(record_id.rpartition("#")[0])


@dataclass(frozen=True, slots=True)
class Write:
    """One record and what it takes in a request, in bytes. It is put together, from its file's part and its own, to be sent."""

    id: str
    vector: npt.NDArray[np.float64]
    shared: Metadata
    own: Metadata
    size: int

    @property
    def values(self) -> list[float]:
        found: list[float] = self.vector.tolist()
        return found

    @property
    def metadata(self) -> Metadata:
        return {**self.shared, **self.own}

    def marked(self, marker: str) -> Write:
        entry = {PENDING: marker}
        return replace(self, own={**self.own, **entry}, size=self.size + _json_size(entry))

    def to_vector(self) -> Vector:
        return Vector(id=self.id, values=self.values, metadata=self.metadata)


def encode_file(file: FileRecords, declared: Mapping[str, MetadataType]) -> FileWrites[Write]:
    """A file's records. Raises RecordRefused, naming the limit, for one Pinecone cannot hold."""
    check_vectors(file)
    key = RecordKey.of(file)
    flat = {name: value for name, value in fields_of_file(file, declared).items() if value not in (None, [])}
    _check_integers(file, flat)
    if len(key.prefix) > MAX_ID - 36:
        raise RecordRefused(
            file.file_id,
            f"its record ids would have more than the {MAX_ID} characters Pinecone holds; shorten the ids of config and file",
        )
    _check_not_zero(file)
    if not file.table.num_rows:
        return FileWrites(key, file.record_set_hash, [])
    chunk_ids = FileKey.ids(key, Generation.of(file))
    table = with_ids(file.table, chunk_ids)
    copies = {**_storable(file.provenance.metadata, declared), **flat}
    shared = {**copies, **_shared(table)}
    vectors, vector_sizes = short_decimals(table["embedding"])
    prefix, shared_size = key.prefix, _json_size(shared)
    writes = []
    for chunk_id, vector, vector_size, own in zip(chunk_ids, vectors, vector_sizes.tolist(), _own(table), strict=True):
        metadata_size = shared_size + _json_size(own) - len("}{") + len(",")
        _check_size(file, copies, own["chunk_index"], metadata_size)
        record_id = f"{prefix}{chunk_id}"
        size = metadata_size + vector_size + len(record_id) + len('{"id":"","values":[],"metadata":},')
        writes.append(Write(record_id, vector, shared, own, size))
    return FileWrites(key, file.record_set_hash, writes)


def _check_integers(file: FileRecords, values: Mapping[str, FieldValue]) -> None:
    for name, value in values.items():
        if isinstance(value, int) and value not in _EXACT_INTEGERS:
            raise RecordRefused(
                file.file_id,
                f"metadata field {name!r} is beyond the integers Pinecone holds exactly, up to 2**53; declare it as a string",
            )


def _check_not_zero(file: FileRecords) -> None:
    (zero,) = np.nonzero(~matrix(file.table["embedding"]).any(axis=1))
    if zero.size:
        raise RecordRefused(
            file.file_id, f"the vector of chunk {zero[0]} is all zeros, which Pinecone does not hold; embed it again"
        )


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


def _shared(table: pa.Table) -> Metadata:
    """The metadata all records of a file have in common; what is of a type Pinecone lacks is encoded."""
    first = table.slice(0, 1)
    (held,) = first.select(list(_FILE_FIELDS)).to_pylist()
    modified: datetime | None = held["source_modified_at"]
    return {
        **{name: value for name, value in held.items() if value is not None},
        **({} if modified is None else {"source_modified_at": modified.isoformat(timespec="milliseconds")}),
        "metadata_json": table["metadata"][0].as_py(),
        "_node_type": NODE_TYPE,
        **dict.fromkeys(("document_id", "doc_id", "ref_doc_id"), ref_doc_ids(first)[0].as_py()),
    }


def _own(table: pa.Table) -> Iterator[Metadata]:
    """The metadata each record has for itself."""
    columns = [*(table[name].to_pylist() for name in _CHUNK_FIELDS), node_contents(table).to_pylist()]
    names = (*_CHUNK_FIELDS, "_node_content")
    for row in zip(*columns, strict=True):
        own = {name: value for name, value in zip(names, row, strict=True) if value is not None}
        own["attachments"] = canonical_json(own["attachments"]) if own["attachments"] else "[]"
        yield own


def _json_size(value: Metadata | str) -> int:
    return len(_COMPACT.encode(value).encode())


def _check_size(file: FileRecords, copies: Metadata, chunk_index: int, size: int) -> None:
    """Refuses a record whose metadata has this size; ``copies`` are those of the file's own metadata that filters read."""
    kept = 0 if chunk_index else _ROOM_FOR_MARKER
    room = MAX_METADATA_BYTES - kept
    if size <= room:
        return
    of_file = _json_size(copies) + 2 * _json_size(canonical_json(file.provenance.metadata))
    told = f" ({MAX_METADATA_BYTES:,}, of which a file's first chunk keeps {kept:,} free)" if kept else ""
    remedy = "make that smaller" if of_file > size - of_file else "make chunks smaller"
    raise RecordRefused(
        file.file_id,
        f"chunk {chunk_index} makes {size:,} bytes of metadata, Pinecone holds {room:,} a record{told}: {size - of_file:,} are "
        f"the chunk's text and what comes with it, {of_file:,} the file's metadata, which is held three times; {remedy}",
    )


def decode(records: Sequence[tuple[str, Metadata, Sequence[float]]], dimension: int, *, vectors: bool = True) -> pa.Table:
    """Records as (id, metadata, values) to rows of ``record_schema``, without ``embedding`` unless ``vectors``."""
    rows = [_row(*record) for record in records]
    return to_table(record_schema(dimension, vectors=vectors), lambda name: [row.get(name) for row in rows])


def decode_compared(
    records: Sequence[tuple[str, Metadata, Sequence[float]]], dimension: int, declared: Mapping[str, MetadataType]
) -> pa.Table:
    """``decode`` with vectors, each file's records in their order, which show which of their copies are altered."""
    table = decode(records, dimension)
    sound = readable(table)
    texts = sound["metadata"].to_pylist()
    own = {text: _own_fields(text, declared) for text in set(texts)}
    held = [metadata for _, metadata, _ in records]
    return in_order(compare(table, held, [own[text] for text in texts], node_copies(sound)))


def _own_fields(metadata_json: str, declared: Mapping[str, MetadataType]) -> Metadata:
    """Of a file's own metadata what a record has beside its fields, also where it was written before a field was declared."""
    fitting = {key: value for key, value in fitting_values(metadata_json, declared).items() if value is not None}
    return {**dict.fromkeys(declared), **_storable(json.loads(metadata_json), {}), **fitting}


def _row(record_id: str, metadata: Metadata, values: Sequence[float]) -> dict[str, Any]:
    node = _mapping(from_json(metadata.get("_node_content")))
    return {
        **metadata,
        "id": record_id.rpartition("#")[2],
        "content": node.get("text"),
        "context": _mapping(node.get("metadata")).get("context"),
        "metadata": metadata.get("metadata_json"),
        "attachments": from_json(metadata.get("attachments")),
        "embedding": values,
    }


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def to_head(metadata: Metadata) -> Head | None:
    return read_head(metadata, metadata.get(PENDING), RecordKey)


def scope(tenant_id: str, export_config_id: str, **also: object) -> Filter:
    """Records of one config of one tenant that have these values too; a list stands for any of its elements."""
    wanted = {"tenant_id": tenant_id, "export_config_id": export_config_id, **also}
    return {"$and": [{name: {"$in" if isinstance(value, list) else "$eq": value}} for name, value in wanted.items()]}


def without_file(tenant_id: str, export_config_id: str) -> Filter:
    """Records of a config whose file id another program has removed."""
    return {"$and": [*scope(tenant_id, export_config_id)["$and"], {"parsed_directory_file_id": {"$exists": False}}]}


def other_versions(tenant_id: str, export_config_id: str, files: Sequence[FileWrites[Write]]) -> Filter:
    """Records of these files that are of another record set, or do not say of which: whether ``$nin`` finds these is not
    documented."""
    where = scope(tenant_id, export_config_id, parsed_directory_file_id=[file.key.file_id for file in files])
    version: Filter = {"$nin": [file.record_set_hash for file in files]}
    return {"$and": [*where["$and"], {"$or": [{"record_set_hash": {"$exists": False}}, {"record_set_hash": version}]}]}


def search_filter(tenant_id: str, export_config_id: str, conditions: Sequence[Condition]) -> Filter:
    where = scope(tenant_id, export_config_id)
    return {"$and": [*where["$and"], *map(_rendered, conditions)]}


def _rendered(condition: Condition) -> Filter:
    """A negation names records without the field itself: whether ``$nin`` finds them is not documented."""
    name = condition.field
    if condition.is_order:
        return {name: {f"${condition.operator}": condition.values[0]}}
    if condition.negated:
        return {"$or": [{name: {"$exists": False}}, _among(condition, "$nin", "$ne", "$and")]}
    return _among(condition, "$in", "$eq", "$or")


def _among(condition: Condition, many: str, one: str, join: str) -> Filter:
    """Lists of values are documented for strings and numbers only, so booleans are compared one by one."""
    if condition.type == "boolean":
        return {join: [{condition.field: {one: value}} for value in condition.values]}
    return {condition.field: {many: list(condition.values)}}
