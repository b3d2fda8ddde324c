"""Vectors: chunk rows into chunk rows with vectors; a text embedded before under the same model is never embedded again.

Files are taken in groups of bounded size, so memory follows the group, not the run; inside a group the embedder is free
to order texts across files.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.embedding.base import Vectors
from pipeline.embedding.reuse import embed_missing, embedding_digest
from pipeline.ledger.models import FileRow
from pipeline.stages.export import Export
from pipeline.stages.report import StageReport
from pipeline.stages.work import begin, groups_of


@dataclass(frozen=True, slots=True)
class _FileChunks:
    row: FileRow
    table: pa.Table
    digests: list[bytes]


class HeldVectors(Protocol):
    """Vectors of the present model kept elsewhere than in the lake, by embedding digest, for the texts of these files."""

    async def __call__(self, file_ids: list[str]) -> dict[bytes, npt.NDArray[np.float32]]: ...


async def embed(
    export: Export, file_ids: list[str], *, run_id: str, dry_run: bool = False, held: HeldVectors | None = None
) -> StageReport:
    """Give vectors to the chunks of these files where chunks or model changed; what ``held`` has is not embedded either.

    With ``dry_run`` nothing is embedded or written: the numbers say what would be.
    Raises EmbedderUnavailable when the model cannot answer; groups finished until then are kept.
    """
    report, rows = await begin(export, "embed", file_ids, run_id)
    stale = [row for row in rows.values() if (key := export.vectors_key(row)) and key != row.vectors_key]
    seen: set[bytes] = set()
    for group in groups_of(stale):
        files = await asyncio.to_thread(_read, export, group, report)
        known = await asyncio.to_thread(_known_vectors, export, files)
        lacking = [file.row.file_id for file in files if not known.keys() >= set(file.digests)]
        if held and lacking:
            known = {**await held(lacking), **known}
        if dry_run:
            _count(files, set(known) | seen, report)
            seen.update(digest for file in files for digest in file.digests)
            continue
        await _embed_group(export, files, known, report)
        export.progress("embed", report.worked, len(stale))
    await asyncio.to_thread(export.record_failures, report.failures, run_id)
    return report.finish()


def _read(export: Export, group: list[FileRow], report: StageReport) -> list[_FileChunks]:
    tables = export.lake.read_many("chunks", [row.file_id for row in group])
    files, lost = [], []
    for row in group:
        table = tables.get(row.file_id)
        if table is None:
            lost.append({"file_id": row.file_id, "chunks_key": None})
            report.failures[row.file_id] = "its chunks are gone from the lake; they will be made again"
            continue
        texts = embedding_texts(table)
        files.append(_FileChunks(row, table, [embedding_digest(text) for text in texts]))
    export.ledger.update_files(lost)
    return files


def embedding_texts(table: pa.Table) -> list[str]:
    """What is embedded of every row of chunks."""
    return [
        context + content for context, content in zip(table["context"].to_pylist(), table["content"].to_pylist(), strict=True)
    ]


def _known_vectors(export: Export, files: list[_FileChunks]) -> dict[bytes, npt.NDArray[np.float32]]:
    """Vectors of this model that the lake already holds for any of these texts."""
    wanted = {digest for file in files for digest in file.digests}
    located = export.ledger.known_vectors(export.embedder.identity.slug, wanted)
    tables = export.lake.read_many("embeddings", set(located.values()), ["embedding_digest", "embedding"])
    known: dict[bytes, npt.NDArray[np.float32]] = {}
    for table in tables.values():
        if table.schema.field("embedding").type.list_size != export.embedder.identity.dimension:
            continue
        if (table.schema.metadata or {}).get(b"model") != export.embedder.identity.fingerprint.encode():
            continue
        vectors = vector_matrix(table["embedding"].combine_chunks(), export.embedder.identity.dimension)
        for position, digest in enumerate(table["embedding_digest"].to_pylist()):
            if digest in wanted:
                known[digest] = vectors[position]
    return known


def _count(files: list[_FileChunks], known: set[bytes], report: StageReport) -> None:
    for file in files:
        report.worked += 1
        for digest, tokens in zip(file.digests, file.table["chunk_token_count"].to_pylist(), strict=True):
            fresh = digest not in known
            report.numbers["computed" if fresh else "reused"] += 1
            report.numbers["tokens"] += tokens if fresh else 0
            known.add(digest)


async def _embed_group(
    export: Export, files: list[_FileChunks], known: dict[bytes, npt.NDArray[np.float32]], report: StageReport
) -> None:
    texts = [text for file in files for text in embedding_texts(file.table)]
    tokens = [count for file in files for count in file.table["chunk_token_count"].to_pylist()]
    vectors, stats = await embed_missing(export.embedder, texts, tokens, known)
    report.numbers["computed"] += stats.computed
    report.numbers["reused"] += stats.reused
    report.numbers["duplicates"] += stats.duplicates
    report.numbers["tokens"] += stats.tokens_computed
    report.numbers["model_milliseconds"] += round(stats.seconds * 1000)
    await asyncio.to_thread(_write, export, files, vectors, report)


def _write(export: Export, files: list[_FileChunks], vectors: Vectors, report: StageReport) -> None:
    identity = export.embedder.identity
    objects, updates, digests = [], [], {}
    start = 0
    for file in files:
        mine = vectors[start : start + len(file.digests)]
        start += len(file.digests)
        if bad := _unusable(mine):
            report.failures[file.row.file_id] = f"the model answered chunk {bad[0]} with a vector that is not finite or all zero"
            continue
        key = export.vectors_key(file.row) or ""
        table = file.table.append_column("embedding_digest", pa.array(file.digests, pa.binary(16)))
        table = table.append_column("embedding", _fixed_size_list(mine, identity.dimension))
        objects.append((file.row.file_id, table, {"vectors_key": key, "model": identity.fingerprint}))
        report.rows.append({"file": file.row.display_name, "file_id": file.row.file_id, "chunks": len(mine)})
        updates.append({"file_id": file.row.file_id, "vectors_key": key})
        digests[file.row.file_id] = file.digests
    report.numbers["bytes"] += sum(export.lake.write_many("embeddings", objects))
    report.worked += len(objects)
    export.ledger.replace_vectors(identity.slug, digests)
    export.ledger.update_files(updates)


def _unusable(vectors: Vectors) -> list[int]:
    """Positions of vectors no store can search: NaN, infinite or all zero."""
    norms = np.linalg.norm(vectors, axis=1) if len(vectors) else np.empty(0)
    return [int(position) for position in np.flatnonzero(~np.isfinite(norms) | (norms == 0))]


def _fixed_size_list(vectors: Vectors, dimension: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1)), dimension)


def vector_matrix(array: pa.FixedSizeListArray, dimension: int) -> Vectors:
    """A column of vectors as one array of shape (n, dimension)."""
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, dimension)
