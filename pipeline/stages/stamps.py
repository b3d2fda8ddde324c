"""The lake beside the ledger: whether a partition is the one that the ledger speaks of.

A run writes a partition, then notes what it wrote. One that dies in between leaves a partition of which the ledger knows nothing,
and once its file is as it was before, the ledger's keys say that all is done. So every reader compares the partition's stamp.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from pipeline.lake.lake import Dataset
from pipeline.ledger.models import FileRow
from pipeline.stages.export import Export

STAMPS: Mapping[Dataset, str] = {"parsed_payloads": "payload_digest", "chunks": "chunks_key", "embeddings": "vectors_key"}
"""What says in a partition's metadata, and in the ledger's column of the same name, what it was made from."""

_WITHOUT: Mapping[Dataset, Mapping[str, None]] = {
    "parsed_payloads": dict.fromkeys(("fetched_token", "payload_digest", "text_digest")),
    "chunks": {"chunks_key": None},
    "embeddings": {"vectors_key": None},
}
"""The ledger's columns of a file whose partition is gone from the lake."""


def note_lost(export: Export, dataset: Dataset, file_ids: Iterable[str]) -> None:
    """Take back what the ledger says of these files' partitions, which are gone from the lake: they are made again."""
    export.ledger.update_files([{"file_id": file_id, **_WITHOUT[dataset]} for file_id in file_ids])


def stamp_of(table: pa.Table | None, name: str) -> str | None:
    """What a partition's metadata says under this name; ``None`` where there is no partition, or it says nothing."""
    found = (table.schema.metadata or {}).get(name.encode()) if table is not None else None
    return found.decode() if found is not None else None


def is_of_present_model(export: Export, vectors: pa.Table) -> bool:
    """Whether the export's present model made the vectors of this partition of ``embeddings``."""
    return stamp_of(vectors, "model") == export.embedder.identity.fingerprint


def known_tables(
    export: Export, dataset: Dataset, rows: Iterable[FileRow], columns: Sequence[str] | None = None
) -> dict[str, pa.Table]:
    """The partitions of these files that the ledger speaks of; any other one counts as lost."""
    marks = {row.file_id: getattr(row, STAMPS[dataset]) or "" for row in rows}
    tables = export.lake.read_many(dataset, marks, columns)
    return {file_id: table for file_id, table in tables.items() if stamp_of(table, STAMPS[dataset]) == marks[file_id]}
