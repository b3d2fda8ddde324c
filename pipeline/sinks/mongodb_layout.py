"""The documents of the MongoDB sink: the codec to and from records, and the conditions a search puts on them.

What belongs here: pure functions between Arrow tables of ``record_schema`` and BSON. The layout is what LlamaIndex's
MongoDBAtlasVectorSearch reads (``_id, text, embedding, metadata``, documented by the vendor) plus a top-level field for
every other record field.

The file's metadata travels as JSON in ``metadata_json``. What of it BSON can hold under a name no query could mistake for an
operator or a path lies beside LlamaIndex's own keys in ``metadata``, where filters find it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import bson
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from bson.binary import VECTOR_SUBTYPE, Binary
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from pipeline.errors import RecordRefused
from pipeline.sinks.base import SNAPSHOT_FIELDS, MetadataType
from pipeline.sinks.copies import compare, readable
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.filters import Condition, fitting_by_row
from pipeline.sinks.generations import FileWrites, Head, read_head
from pipeline.sinks.llama_node import node_metadata
from pipeline.sinks.reading import to_table
from pipeline.sinks.records import FileRecords, matrix, record_schema, with_ids

Document = dict[str, Any]

MAX_DOCUMENT_BYTES: Final = 16 * 2**20
"""Of one document; documented by the vendor."""

GENERATION: Final = "generation"
"""Set in records that may stand beside another version's: see ``mongodb_replace``."""

PENDING: Final = "pending"
CODEC: Final[CodecOptions[Document]] = CodecOptions(tz_aware=True)

_ROOM_FOR_MARKS: Final = 16 * 2**10
"""``generation`` and ``pending`` are added to a document that has been found small enough."""

_RENAMED: Final = {"id": "_id", "content": "text", "metadata": "metadata_json"}
"""Record fields that LlamaIndex's layout has another name for, or uses the name of."""

_FLOAT32: Final = b"\x27\x00"
"""Header of a packed float32 vector: the element type and no padding (documented in the BSON specification)."""

_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Write:
    """One record as the bytes that are sent."""

    id: str
    document: RawBSONDocument

    @property
    def size(self) -> int:
        return len(self.document.raw)

    def marked(self, marker: str) -> Write:
        return self.with_field(PENDING, marker)

    def with_field(self, name: str, value: str) -> Write:
        """The same document with a field added at its end, without decoding it."""
        body = bytes(self.document.raw[4:-1]) + bson.encode({name: value})[4:-1]
        return replace(self, document=RawBSONDocument((len(body) + 5).to_bytes(4, "little") + body + b"\0"))


def field_name(record_field: str) -> str:
    return _RENAMED.get(record_field, record_field)


def encode_file(file: FileRecords, declared: Mapping[str, MetadataType]) -> FileWrites[Write]:
    """A file's documents; their ids carry the record set's digest, so that two versions never share one.

    Raises RecordRefused for a record larger than MongoDB holds.
    """
    key = FileKey.of(file)
    table = with_ids(file.table, key.ids(Generation.of(file)))
    columns = {field_name(name): table[name].to_pylist() for name in table.column_names if name != "embedding"}
    columns["embedding"] = [packed(vector) for vector in matrix(table["embedding"])]
    columns["metadata"] = _node_fields(table, declared)
    rows = zip(*columns.values(), strict=True)
    return FileWrites(key, file.record_set_hash, [_write(file, dict(zip(columns, row, strict=True))) for row in rows])


def _write(file: FileRecords, document: Document) -> Write:
    raw = bson.encode(document)
    if len(raw) > MAX_DOCUMENT_BYTES - _ROOM_FOR_MARKS:
        raise RecordRefused(
            file.file_id,
            f"chunk {document['chunk_index']} makes a document of {len(raw):,} bytes, MongoDB holds {MAX_DOCUMENT_BYTES:,}; "
            "make chunks or the file's metadata smaller",
        )
    return Write(document["_id"], RawBSONDocument(raw))


def packed(vector: npt.NDArray[np.float32]) -> Binary:
    """A vector as BSON's packed float32, a third of the size of an array of doubles."""
    return Binary(_FLOAT32 + vector.astype("<f4", copy=False).tobytes(), VECTOR_SUBTYPE)


def _node_fields(table: pa.Table, declared: Mapping[str, MetadataType]) -> list[Document]:
    """LlamaIndex's metadata of every row, with declared fields in the type they are filtered by."""
    found = []
    for node, fitting in zip(node_metadata(table), fitting_by_row(table["metadata"].to_pylist(), declared), strict=True):
        own = {key: value for key, value in node.items() if _is_storable(key, value)}
        found.append(own | {key: value for key, value in fitting.items() if value is not None})
    return found


def _is_storable(key: str, value: object) -> bool:
    """Whether a metadata entry can be a field: ``$`` and ``.`` mean something in queries, NUL and long integers are no BSON."""
    if not key or key.startswith("$") or "." in key or "\0" in key:
        return False
    if isinstance(value, int):
        return value in _INT64
    elements = value if isinstance(value, list) else [value]
    return all(element is None or isinstance(element, str | float) for element in elements)


def projection(*, vectors: bool) -> dict[str, Any]:
    """The fields that make up a record, with or without its vector."""
    return {field_name(name): 1 for name in record_schema(1, vectors=vectors).names}


def decode(documents: Sequence[Mapping[str, Any]], dimension: int, *, vectors: bool = True) -> pa.Table:
    """Documents of ``projection`` as rows of ``record_schema``, without ``embedding`` where the vector was left out."""
    schema = record_schema(dimension, vectors=vectors)
    return to_table(schema, lambda name: [document.get(field_name(name)) for document in documents], _unpacked)


def compared_projection() -> dict[str, Any]:
    """The fields ``decode_compared`` reads."""
    return {**projection(vectors=True), "metadata": 1}


def decode_compared(documents: Sequence[Mapping[str, Any]], dimension: int, declared: Mapping[str, MetadataType]) -> pa.Table:
    """``decode`` of documents of ``compared_projection``; the records show which of their copies are altered."""
    records = decode(documents, dimension)
    held = [found if isinstance(found := document.get("metadata"), dict) else {} for document in documents]
    absent: Document = dict.fromkeys(declared)
    return compare(records, held, [absent] * len(held), _node_fields(readable(records), declared))


def _unpacked(vector: Any) -> npt.NDArray[np.float32]:
    """Raises TypeError or ValueError for what ``packed`` has not made."""
    return np.frombuffer(vector.removeprefix(_FLOAT32) if isinstance(vector, bytes) else vector, "<f4")


HEAD_FIELDS: Final = {"_id": 0, "tenant_id": 1, PENDING: 1, **dict.fromkeys(SNAPSHOT_FIELDS, 1)}
"""Projection of what ``to_head`` reads."""


def to_head(document: Mapping[str, Any]) -> Head | None:
    return read_head(document, document.get(PENDING))


def scope(tenant_id: str, export_config_id: str, file_ids: Sequence[str] | None = None) -> Document:
    """Selects the records of one config of one tenant, or of some of its files."""
    whole: Document = {"tenant_id": tenant_id, "export_config_id": export_config_id}
    return whole if file_ids is None else {**whole, "parsed_directory_file_id": {"$in": list(file_ids)}}


def filter_path(name: str) -> str:
    """Where a field that can be filtered on lies; LlamaIndex's own filters look there too."""
    return f"metadata.{name}"


def vector_filter(tenant_id: str, export_config_id: str, conditions: Iterable[Condition]) -> Document:
    """A ``$vectorSearch`` filter. Its negations hold for documents without the field (documented by the vendor)."""
    return {"$and": [scope(tenant_id, export_config_id), *map(_mql, conditions)]}


def _mql(condition: Condition) -> Document:
    operand = list(condition.values) if condition.operator in ("in", "nin") else condition.values[0]
    return {filter_path(condition.field): {f"${condition.operator}": operand}}


def text_query(text: str, tenant_id: str, export_config_id: str, conditions: Sequence[Condition]) -> Document:
    """A ``compound`` operator of ``$search``: ranked by the text, filtered by the rest."""
    scoped = [_equals("tenant_id", tenant_id), _equals("export_config_id", export_config_id)]
    query: Document = {
        "must": [{"text": {"query": text, "path": "text"}}],
        "filter": scoped + [_search_operator(item) for item in conditions if not item.negated],
    }
    excluded = [_search_operator(item) for item in conditions if item.negated]
    return {**query, "mustNot": excluded} if excluded else query


def _search_operator(condition: Condition) -> Document:
    path = filter_path(condition.field)
    if condition.is_order:
        return {"range": {"path": path, condition.operator: condition.values[0]}}
    if condition.operator in ("in", "nin"):
        return {"in": {"path": path, "value": list(condition.values)}}
    return _equals(path, condition.values[0])


def _equals(path: str, value: object) -> Document:
    return {"equals": {"path": path, "value": value}}
