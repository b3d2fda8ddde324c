"""Records: what a sink holds of one chunk, and how a file's record set is built and digested.

What belongs here: the record's fields, the Arrow schema they travel in, ids, and ``record_set_hash``. How a store
spells these fields is that store's own module.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.documents.arrow import ATTACHMENT_TYPE as ATTACHMENT_TYPE
from pipeline.documents.arrow import CHUNK_FIELDS as CHUNK_FIELDS
from pipeline.documents.models import Attachment, MetadataValue
from pipeline.embedding.base import ModelIdentity

_ID_NAMESPACE = uuid.UUID("6f1c2e0a-5d0b-5b0e-9f57-0f3a1d6f7c11")

_FILE_FIELDS: tuple[pa.Field, ...] = (
    pa.field("tenant_id", pa.string(), nullable=False),
    pa.field("export_config_id", pa.string(), nullable=False),
    pa.field("parsed_directory_file_id", pa.string(), nullable=False),
    pa.field("file_name", pa.string(), nullable=False),
    pa.field("chunk_count", pa.int32(), nullable=False),
    pa.field("content_fingerprint_hash", pa.string(), nullable=False),
    pa.field("source_modified_at", pa.timestamp("ms", tz="UTC")),
    pa.field("embedding_model", pa.string(), nullable=False),
    pa.field("metadata", pa.string(), nullable=False),
)

HASHED_FIELDS: tuple[str, ...] = tuple(f.name for f in (*CHUNK_FIELDS, *_FILE_FIELDS))
"""What ``record_set_hash`` covers: every field but ids, vectors and the hash itself."""


def record_schema(dimension: int) -> pa.Schema:
    """Arrow schema of records with ``embedding: fixed_size_list<float32>[dimension]``; ``metadata`` is canonical JSON."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            *CHUNK_FIELDS,
            *_FILE_FIELDS,
            pa.field("record_set_hash", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), dimension), nullable=False),
        ]
    )


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """One record as plain Python values; the border type of ``export`` and ``search``. ``metadata`` is decoded."""

    id: str
    tenant_id: str
    export_config_id: str
    parsed_directory_file_id: str
    file_name: str
    chunk_index: int
    chunk_count: int
    content: str
    context: str
    chunk_start_char: int
    chunk_end_char: int
    chunk_token_count: int
    page_range_start: int | None
    page_range_end: int | None
    attachments: tuple[Attachment, ...]
    content_hash: str
    content_fingerprint_hash: str
    source_modified_at: datetime | None
    embedding_model: str
    record_set_hash: str
    metadata: Mapping[str, MetadataValue]

    @property
    def ref_doc_id(self) -> str:
        return ref_doc_id(self.export_config_id, self.parsed_directory_file_id)


@dataclass(frozen=True, slots=True)
class FileProvenance:
    """What every record of one file shares. ``source_modified_at`` has millisecond resolution, the coarsest of all stores."""

    tenant_id: str
    export_config_id: str
    parsed_directory_file_id: str
    file_name: str
    content_fingerprint_hash: str
    source_modified_at: datetime | None
    metadata: Mapping[str, MetadataValue]


@dataclass(frozen=True, slots=True)
class FileRecords:
    """The complete record set of one file: ``table`` has ``record_schema``, sorted by chunk_index; no rows = an empty file."""

    provenance: FileProvenance
    record_set_hash: str
    table: pa.Table

    @property
    def file_id(self) -> str:
        return self.provenance.parsed_directory_file_id


def ref_doc_id(export_config_id: str, file_id: str) -> str:
    """LlamaIndex's source document id; carries the config, so that ``delete_ref_doc`` never crosses configs."""
    return f"{export_config_id}:{file_id}"


def chunk_id(tenant_id: str, export_config_id: str, file_id: str, chunk_index: int, generation: str | None = None) -> str:
    """uuid5 of the chunk's address. Stores without atomic replace pass ``generation`` (the record_set_hash)."""
    name = json.dumps([tenant_id, export_config_id, file_id, *([] if generation is None else [generation]), chunk_index])
    return str(uuid.uuid5(_ID_NAMESPACE, name))


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no white space and no escapes beyond the required: equal values, equal bytes."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_iso)


def _iso(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    raise TypeError(f"{type(value).__name__} has no canonical form")


def record_set_hash(table: pa.Table) -> str:
    """Hex SHA-256 over HASHED_FIELDS of every row, in chunk_index order; of no rows for an empty file.

    Two tables with equal hashes hold equal records, whatever store they were read from.
    """
    ordered = table.select(HASHED_FIELDS)
    if table.num_rows > 1 and not _is_ascending(table["chunk_index"].to_numpy()):
        ordered = ordered.sort_by("chunk_index")
    digest = hashlib.sha256()
    for row in ordered.to_pylist():
        digest.update(canonical_json([row[name] for name in HASHED_FIELDS]).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()


def _is_ascending(values: npt.NDArray[np.int32]) -> bool:
    return bool(np.all(values[1:] > values[:-1]))


def build_file_records(
    provenance: FileProvenance, chunks: pa.Table, vectors: pa.FixedSizeListArray, model: ModelIdentity
) -> FileRecords:
    """Records of one file from its chunk rows (CHUNK_FIELDS) and their vectors, row i to row i.

    Raises ValueError when the two differ in length or the vectors are not float32 of the model's dimension.
    """
    count = chunks.num_rows
    if len(vectors) != count or vectors.type != pa.list_(pa.float32(), model.dimension):
        raise ValueError(
            f"{count} chunks of {provenance.parsed_directory_file_id} do not fit {len(vectors)} vectors of {vectors.type}"
        )
    schema = record_schema(model.dimension)
    shared: dict[str, Any] = {
        "tenant_id": provenance.tenant_id,
        "export_config_id": provenance.export_config_id,
        "parsed_directory_file_id": provenance.parsed_directory_file_id,
        "file_name": provenance.file_name,
        "chunk_count": count,
        "content_fingerprint_hash": provenance.content_fingerprint_hash,
        "source_modified_at": provenance.source_modified_at,
        "embedding_model": model.fingerprint,
        "metadata": canonical_json(dict(provenance.metadata)),
    }
    columns: dict[str, pa.Array | pa.ChunkedArray] = {field.name: chunks[field.name] for field in CHUNK_FIELDS}
    for name, value in shared.items():
        columns[name] = pa.repeat(pa.scalar(value, schema.field(name).type), count)
    digest = record_set_hash(pa.table(columns))
    columns["record_set_hash"] = pa.repeat(pa.scalar(digest), count)
    columns["embedding"] = vectors
    columns["id"] = pa.array(
        [
            chunk_id(provenance.tenant_id, provenance.export_config_id, provenance.parsed_directory_file_id, index)
            for index in chunks["chunk_index"].to_pylist()
        ],
        pa.string(),
    )
    return FileRecords(provenance, digest, pa.table([columns[f.name] for f in schema], schema=schema))


def to_records(table: pa.Table) -> list[ChunkRecord]:
    """Rows of ``record_schema`` (``embedding`` may be absent) as ChunkRecords."""
    return [
        ChunkRecord(
            **{
                **row,
                "attachments": tuple(Attachment(**a) for a in row["attachments"]),
                "metadata": json.loads(row["metadata"]),
            }
        )
        for row in table.drop_columns([c for c in ("embedding",) if c in table.column_names]).to_pylist()
    ]


def from_records(records: Sequence[ChunkRecord], embeddings: Iterable[Sequence[float]], dimension: int) -> pa.Table:
    """The reverse of ``to_records``: rows of ``record_schema`` in chunk_index order within each file."""
    rows = [
        {
            **{name: getattr(record, name) for name in ("id", *HASHED_FIELDS, "record_set_hash")},
            "attachments": [
                {"attachment_name": a.attachment_name, "source_id": a.source_id, "type": a.type} for a in record.attachments
            ],
            "metadata": canonical_json(dict(record.metadata)),
            "embedding": np.asarray(embedding, np.float32),
        }
        for record, embedding in zip(records, embeddings, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=record_schema(dimension))
