"""Records as documents of an Azure AI Search index, and back.

What belongs here: pure functions between Arrow tables of ``record_schema`` and the JSON of documents. A record is encoded once,
into the bytes it takes in a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import pyarrow as pa

from pipeline.errors import RecordRefused
from pipeline.sinks.azure_layout import FILTER_FIELDS, PENDING, SORT_KEY, attribute_name, field_name, record_attributes
from pipeline.sinks.base import SNAPSHOT_FIELDS, MetadataType
from pipeline.sinks.copies import compare, filled_fields, readable
from pipeline.sinks.decimals import json_vectors
from pipeline.sinks.file_keys import FileKey
from pipeline.sinks.filters import FieldValue, fields_of_file
from pipeline.sinks.generations import FileWrites, Head, read_head
from pipeline.sinks.llama_node import node_metadata, ref_doc_ids
from pipeline.sinks.reading import from_json, to_table
from pipeline.sinks.records import (
    CHUNK_FIELDS,
    FileRecords,
    canonical_json,
    chunk_ids,
    in_order,
    json_string,
    json_values,
    record_schema,
    ref_doc_id,
    with_ids,
)
from pipeline.sinks.refusals import check_vectors

Row = dict[str, Any]

MAX_REQUEST_BYTES: Final = 16_000_000
"""A batch of documents takes about 16 MB; documented by the vendor."""

MAX_TERM_BYTES: Final = 32_766
"""Longest string in a field that can be filtered on; documented by the vendor."""

MAX_CHUNKS: Final = 2**21
"""Chunks of a file ``sort_key`` has room for."""

HEAD_FIELDS: Final = (*SNAPSHOT_FIELDS, "tenant_id", PENDING)

_CHUNK_NAMES: Final = frozenset(field.name for field in CHUNK_FIELDS)
_FRAME_BYTES: Final = 64
"""Around a document in a request: its braces, its action and the comma."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document: ``members`` is the inside of its JSON object."""

    id: str
    members: bytes

    @property
    def size(self) -> int:
        """Bytes it takes in a request."""
        return len(self.members) + _FRAME_BYTES

    def marked(self, marker: str) -> Document:
        return Document(self.id, self.members + _members([(PENDING, json_string(marker))], after=True))


def encode_file(file: FileRecords, declared: Mapping[str, MetadataType]) -> FileWrites[Document]:
    """A file's documents, their ids of its generation. Raises RecordRefused, which names the limit, for what cannot be held."""
    check_vectors(file)
    key = FileKey.of(file)
    values = fields_of_file(file, declared)
    _check_terms(file, values)
    if file.table.num_rows > MAX_CHUNKS:
        raise RecordRefused(file.file_id, f"{file.table.num_rows:,} chunks, this sink numbers {MAX_CHUNKS:,}; use larger chunks")
    documents = _documents(file, key, values) if file.table.num_rows else []
    for index, document in enumerate(documents):
        if document.size > MAX_REQUEST_BYTES:
            raise RecordRefused(
                file.file_id,
                f"chunk {index} takes {document.size:,} bytes, a request to Azure AI Search holds {MAX_REQUEST_BYTES:,}; "
                "use smaller chunks",
            )
    return FileWrites(key, file.record_set_hash, documents)


def _check_terms(file: FileRecords, values: Mapping[str, FieldValue]) -> None:
    provenance = file.provenance
    terms: dict[str, FieldValue] = {
        "file_name": provenance.file_name,
        "doc_id": ref_doc_id(provenance.export_config_id, file.file_id),
        **values,
    }
    for name, value in terms.items():
        longest = max((len(term.encode()) for term in _strings(value)), default=0)
        if longest > MAX_TERM_BYTES:
            raise RecordRefused(
                file.file_id,
                f"{name!r} has {longest:,} bytes, a field of Azure AI Search that can be filtered on holds {MAX_TERM_BYTES:,}; "
                "shorten it at its source, or do not declare it",
            )


def _strings(value: FieldValue) -> Iterable[str]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


def _documents(file: FileRecords, key: FileKey, values: Mapping[str, FieldValue]) -> list[Document]:
    indices = file.table["chunk_index"].to_pylist()
    ids = chunk_ids(key.tenant_id, key.export_config_id, key.file_id, indices, file.record_set_hash)
    table = with_ids(file.table, ids)
    number = _file_number(key)
    columns: dict[str, Sequence[str]] = {
        attribute_name(name): _json_values(table[name]) for name in table.column_names if name in _CHUNK_NAMES or name == "id"
    }
    columns[SORT_KEY] = [str(number | index) for index in indices]
    columns["metadata"] = list(map(json_string, _node_jsons(table)))
    columns["embedding"] = [f"[{numbers}]" for numbers in json_vectors(table["embedding"]).to_pylist()]
    shared = _members(_shared(table, key, values), after=True)
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    return [Document(found, _members(zip(names, row, strict=True)) + shared) for found, row in zip(ids, rows, strict=True)]


def _node_jsons(table: pa.Table) -> list[str]:
    """LlamaIndex's metadata of every row, as the JSON that its own store keeps it in."""
    return [canonical_json(node) for node in node_metadata(table)]


def _shared(table: pa.Table, key: FileKey, values: Mapping[str, FieldValue]) -> list[tuple[str, str]]:
    """What all records of a file have in common."""
    same = [name for name in table.column_names if name not in _CHUNK_NAMES and name not in ("id", "embedding")]
    return [
        *((attribute_name(name), _json_values(table[name].slice(0, 1))[0]) for name in same),
        ("doc_id", json_string(ref_doc_id(key.export_config_id, key.file_id))),
        (FILTER_FIELDS, canonical_json(sorted(values))),
        *((field_name(name), canonical_json(value)) for name, value in values.items() if value is not None),
    ]


def _members(pairs: Iterable[tuple[str, str]], *, after: bool = False) -> bytes:
    joined = ",".join([f'"{name}":{value}' for name, value in pairs])
    return f",{joined}".encode() if after else joined.encode()


def _json_values(column: pa.ChunkedArray) -> Sequence[str]:
    """``json_values``, lists as the text of their JSON."""
    values = json_values(column)
    return list(map(json_string, values)) if pa.types.is_list(column.type) else values


def _file_number(key: FileKey) -> int:
    """42 bits of the file's address, above the 21 of the chunk's index."""
    address = canonical_json([key.tenant_id, key.export_config_id, key.file_id])
    return int.from_bytes(sha256(address.encode()).digest()[:8], "big") >> 22 << 21


def file_number(row: Row) -> int:
    """The same for all documents of a file, and hardly ever for those of two."""
    return int(row[SORT_KEY] or 0) // MAX_CHUNKS


def to_head(row: Row) -> Head | None:
    return read_head(row, row.get(PENDING))


def decode(rows: Sequence[Row], dimension: int, *, vectors: bool) -> pa.Table:
    """Documents as rows of ``record_schema``, without ``embedding`` unless they were asked for with their vectors."""

    def values_of(name: str) -> list[Any]:
        values = [row.get(attribute_name(name)) for row in rows]
        return [from_json(value) for value in values] if name == "attachments" else values

    return to_table(record_schema(dimension, vectors=vectors), values_of)


def compared_attributes(declared: Mapping[str, MetadataType]) -> list[str]:
    """The fields ``decode_compared`` reads."""
    return [*record_attributes(vectors=True), "metadata", "doc_id", FILTER_FIELDS, *map(field_name, declared)]


def decode_compared(rows: Sequence[Row], dimension: int, declared: Mapping[str, MetadataType]) -> pa.Table:
    """``decode`` with vectors of documents with ``compared_attributes``, in order; the records show which of their copies are
    altered."""
    records = decode(rows, dimension, vectors=True)
    sound = readable(records)
    fields = filled_fields(sound, rows, declared, FILTER_FIELDS, field_name)
    nodes = zip(_node_jsons(sound), ref_doc_ids(sound).to_pylist(), strict=True)
    return in_order(compare(records, rows, fields, [{"metadata": node, "doc_id": document} for node, document in nodes]))
