"""Records: what a sink holds of one chunk, and how a file's record set is built and digested.

What belongs here: the record's fields, the Arrow schema they travel in, ids, and ``record_set_hash``. How a store
spells these fields is that store's own module.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.documents.arrow import CHUNK_FIELDS as CHUNK_FIELDS
from pipeline.documents.models import Attachment, MetadataValue
from pipeline.embedding.base import ModelIdentity
from pipeline.sinks.reading import ALTERED_INTEGER, from_json

RECORD_VERSION = "1"
"""Changes when the fields of a record, or what they mean, change: every file is then written again, none embedded."""

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

_FILE_KEY = ("tenant_id", "export_config_id", "parsed_directory_file_id")
_AS_GIVEN = (*_FILE_KEY, "file_name", "content_fingerprint_hash", "source_modified_at")
"""What of a file's provenance its records have as it is."""
_CHUNK_NAMES = [field.name for field in CHUNK_FIELDS]

_ABSENT = {
    field.name: ALTERED_INTEGER if pa.types.is_integer(field.type) else ""
    for field in (*CHUNK_FIELDS, *_FILE_FIELDS, pa.field("record_set_hash", pa.string(), nullable=False))
    if not field.nullable and not pa.types.is_nested(field.type)
}
"""What a ChunkRecord has of a field that another program has removed."""

HASHED_FIELDS: tuple[str, ...] = tuple(f.name for f in (*CHUNK_FIELDS, *_FILE_FIELDS))
"""What ``record_set_hash`` covers: every field but ids, vectors and the hash itself."""


EMPTY_RECORD_SET = hashlib.sha256().hexdigest()
"""``record_set_hash`` of a file without records."""


def record_schema(dimension: int, *, vectors: bool = True) -> pa.Schema:
    """Arrow schema of records; ``metadata`` is canonical JSON. Their last field is, unless ``vectors`` are left out,
    ``embedding: fixed_size_list<float32>[dimension]``."""
    own = [
        pa.field("id", pa.string(), nullable=False),
        *CHUNK_FIELDS,
        *_FILE_FIELDS,
        pa.field("record_set_hash", pa.string(), nullable=False),
    ]
    return pa.schema([*own, pa.field("embedding", pa.list_(pa.float32(), dimension), nullable=False)] if vectors else own)


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


def chunk_ids(
    tenant_id: str, export_config_id: str, file_id: str, chunk_indices: Iterable[int], generation: str | None = None
) -> list[str]:
    """The uuid5 of each chunk's address. Stores without atomic replace pass ``generation`` (the record_set_hash)."""
    address = json.dumps([tenant_id, export_config_id, file_id, *([] if generation is None else [generation])])[:-1]
    begun = hashlib.sha1(_ID_NAMESPACE.bytes + address.encode(), usedforsecurity=False)
    return [_uuid5(begun, f", {index}]") for index in chunk_indices]


def _uuid5(begun: hashlib._Hash, rest: str) -> str:
    """``uuid.uuid5`` of a name whose beginning, and the namespace before it, are in ``begun``."""
    digest = begun.copy()
    digest.update(rest.encode())
    found = digest.hexdigest()
    variant = "89ab"[int(found[16], 16) & 3]
    return f"{found[:8]}-{found[8:12]}-5{found[13:16]}-{variant}{found[17:20]}-{found[20:32]}"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no white space and no escapes beyond the required: equal values, equal bytes."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_iso)


def compact_json(value: Any) -> bytes:
    """JSON without white space and with no escapes beyond the required, keys as they come: what is sent."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


json_string: Callable[[str], str] = json.encoder.encode_basestring
"""One string as ``canonical_json`` writes it: the C encoder behind ``json.dumps``, without a call's set-up."""


def _iso(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    raise TypeError(f"{type(value).__name__} has no canonical form")


def record_set_hash(table: pa.Table) -> str:
    """Hex SHA-256 over HASHED_FIELDS of every row, in chunk_index order; of no rows for an empty file.

    A row is hashed as the canonical JSON array of its fields and a line feed. Two tables with equal hashes hold equal
    records, whatever store they were read from.
    """
    ordered = table.select(HASHED_FIELDS)
    if table.num_rows > 1 and not _is_ascending(table["chunk_index"].to_numpy()):
        ordered = ordered.sort_by("chunk_index")
    return _digest(zip(*(json_values(column) for column in ordered.columns), strict=True))


def _digest(rows: Iterable[Iterable[str]]) -> str:
    """Hex SHA-256 of rows of canonical JSON values."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"[{','.join(row)}]\n".encode())
    return digest.hexdigest()


def json_values(column: pa.ChunkedArray) -> Sequence[str]:
    """Canonical JSON of every value; a column of one value, as most are, is encoded once."""
    values = column.to_pylist()
    if pa.types.is_integer(column.type):
        return ["null" if value is None else str(value) for value in values]
    if pa.types.is_nested(column.type):
        return ["[]" if value == [] else canonical_json(value) for value in values]
    if values and values.count(values[0]) == len(values):
        return [canonical_json(values[0])] * len(values)
    if pa.types.is_string(column.type) and not column.null_count:
        return [json_string(value) for value in values]
    return [canonical_json(value) for value in values]


def _is_ascending(values: npt.NDArray[np.int32]) -> bool:
    return bool(np.all(values[1:] > values[:-1]))


def build_file_records(
    provenance: FileProvenance, chunks: pa.Table, vectors: pa.FixedSizeListArray, model: ModelIdentity
) -> FileRecords:
    """Records of one file from its chunk rows (CHUNK_FIELDS, by chunk_index) and their vectors, row i to row i.

    Raises ValueError when the two differ in length or the vectors are not float32 of the model's dimension.
    """
    return build_record_sets([(provenance, chunks, vectors)], model)[0]


def build_record_sets(
    files: Sequence[tuple[FileProvenance, pa.Table, pa.FixedSizeListArray]], model: ModelIdentity
) -> list[FileRecords]:
    """``build_file_records`` of many files, as slices of one table: twenty columns cost more to make than to fill."""
    for provenance, chunks, vectors in files:
        if len(vectors) != chunks.num_rows or vectors.type != pa.list_(pa.float32(), model.dimension):
            name = provenance.parsed_directory_file_id
            raise ValueError(f"{chunks.num_rows} chunks of {name} do not fit {len(vectors)} vectors of {vectors.type}")
    if not files:
        return []
    schema = record_schema(model.dimension)
    counts = [chunks.num_rows for _, chunks, _ in files]
    spans = list(pairwise(accumulate(counts, initial=0)))
    of_chunks = pa.concat_tables([chunks.select(_CHUNK_NAMES) for _, chunks, _ in files])
    of_files = _file_values([provenance for provenance, _, _ in files], counts, model)
    rows = [",".join(row) for row in zip(*map(json_values, of_chunks.columns), strict=True)]
    tails = [",".join(tail) for tail in zip(*map(json_values, of_files.columns), strict=True)]
    digests = [_digest((row, tail) for row in rows[start:end]) for tail, (start, end) in zip(tails, spans, strict=True)]
    indices = of_chunks["chunk_index"].to_pylist()
    ids: list[str] = []
    for (provenance, _, _), (start, end) in zip(files, spans, strict=True):
        key = provenance.tenant_id, provenance.export_config_id, provenance.parsed_directory_file_id
        ids += chunk_ids(*key, indices[start:end])
    repeated = of_files.append_column("record_set_hash", pa.array(digests)).take(np.repeat(np.arange(len(files)), counts))
    columns = {name: part[name] for part in (of_chunks, repeated) for name in part.column_names}
    columns["id"] = pa.array(ids, pa.string())
    columns["embedding"] = pa.chunked_array([vectors for _, _, vectors in files], schema.field("embedding").type)
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    return [
        FileRecords(provenance, digest, table.slice(start, end - start))
        for (provenance, _, _), digest, (start, end) in zip(files, digests, spans, strict=True)
    ]


def _file_values(files: Sequence[FileProvenance], counts: Sequence[int], model: ModelIdentity) -> pa.Table:
    """A row of _FILE_FIELDS a file."""
    values = {name: [getattr(provenance, name) for provenance in files] for name in _AS_GIVEN}
    values["chunk_count"] = list(counts)
    values["embedding_model"] = [model.fingerprint] * len(files)
    values["metadata"] = [canonical_json(dict(provenance.metadata)) for provenance in files]
    return pa.table([pa.array(values[field.name], field.type) for field in _FILE_FIELDS], schema=pa.schema(_FILE_FIELDS))


def in_order(table: pa.Table) -> pa.Table:
    """The rows of each file together, by chunk_index."""
    return table.sort_by([("parsed_directory_file_id", "ascending"), ("chunk_index", "ascending")])


def with_ids(table: pa.Table, ids: Sequence[str]) -> pa.Table:
    """The same rows under other ids."""
    return table.set_column(table.schema.get_field_index("id"), "id", pa.array(ids, pa.string()))


def matrix(vectors: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A column of vectors, a row each; NaN where a number is null."""
    flat = vectors.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(-1, vectors.type.list_size)


def group_files(table: pa.Table) -> Iterator[pa.Table]:
    """The rows of each file (tenant, config, file id), by chunk_index, as slices of one sorted copy of ``table``."""
    ordered = table.sort_by([(name, "ascending") for name in (*_FILE_KEY, "chunk_index")])
    if not ordered.num_rows:
        return
    changed = np.zeros(ordered.num_rows - 1, bool)
    for name in _FILE_KEY:
        codes = ordered[name].combine_chunks().dictionary_encode(null_encoding="encode").indices.to_numpy()
        changed |= codes[1:] != codes[:-1]
    starts = [0, *(np.flatnonzero(changed) + 1).tolist(), ordered.num_rows]
    for start, end in pairwise(starts):
        yield ordered.slice(start, end - start)


def split_files(table: pa.Table) -> list[FileRecords]:
    """One FileRecords a file from rows of ``record_schema``; ids and ``record_set_hash`` are computed anew.

    Raises ValueError, naming the file, when its rows are not a complete record set: chunk_index 0 to chunk_count - 1,
    each once, and the same provenance in every row.
    """
    return [_checked_file(rows) for rows in group_files(table)]


def _checked_file(rows: pa.Table) -> FileRecords:
    first = {name: rows[name][0].as_py() for name in (f.name for f in _FILE_FIELDS)}
    file_id = first["parsed_directory_file_id"]
    if first["chunk_count"] != rows.num_rows or rows["chunk_index"].to_pylist() != list(range(rows.num_rows)):
        raise ValueError(f"{file_id}: {rows.num_rows} records are not the chunks 0 to {first['chunk_count'] - 1}, each once")
    for name in first:
        if pc.count_distinct(rows[name], mode="all").as_py() != 1:
            raise ValueError(f"{file_id}: its records differ in {name}, which one file has once")
    provenance = FileProvenance(
        **{name: first[name] for name in _AS_GIVEN},
        metadata=json.loads(first["metadata"]),
    )
    vectors = rows["embedding"].combine_chunks()
    model = ModelIdentity(first["embedding_model"], first["embedding_model"], vectors.type.list_size)
    return build_file_records(provenance, rows, vectors, model)


def to_records(table: pa.Table) -> list[ChunkRecord]:
    """Rows of ``record_schema`` (``embedding`` may be absent) as ChunkRecords: of an altered one, what can still be read."""
    rows = table.drop_columns([c for c in ("embedding",) if c in table.column_names]).to_pylist()
    return [ChunkRecord(**_legible(row)) for row in rows]


def _legible(row: dict[str, Any]) -> dict[str, Any]:
    metadata = from_json(row["metadata"])
    return {
        **{name: _ABSENT[name] if value is None and name in _ABSENT else value for name, value in row.items()},
        "attachments": tuple(Attachment(**found) for found in row["attachments"] or () if found),
        "metadata": metadata if isinstance(metadata, dict) else {},
    }


def from_records(records: Sequence[ChunkRecord], embeddings: Sequence[Sequence[float]], dimension: int) -> pa.Table:
    """The reverse of ``to_records``: rows of ``record_schema``, row i with embedding i.

    Raises ValueError when there are not as many embeddings or they are not of the dimension.
    """
    vectors = np.asarray(embeddings, np.float32).reshape(len(embeddings), -1) if records else np.empty((0, dimension), np.float32)
    if vectors.shape != (len(records), dimension):
        raise ValueError(f"{len(records)} records need {len(records)} embeddings of dimension {dimension}, got {vectors.shape}")
    rows = [
        {
            **{name: getattr(record, name) for name in ("id", *HASHED_FIELDS, "record_set_hash")},
            "attachments": [asdict(attachment) for attachment in record.attachments],
            "metadata": canonical_json(dict(record.metadata)),
        }
        for record in records
    ]
    table = pa.Table.from_pylist(rows, schema=record_schema(dimension, vectors=False))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dimension)
    return table.append_column(record_schema(dimension).field("embedding"), column)
