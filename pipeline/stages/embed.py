"""Vectors: chunk rows into chunk rows with vectors; a text embedded before under the same model is never embedded again.

Files are taken in groups of bounded size, so memory follows the group, not the run; inside a group the embedder is free
to order texts across files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.documents.arrow import embedding_texts
from pipeline.embedding.base import EmbeddingCancelled, PartlyEmbedded, Vectors, unusable
from pipeline.embedding.reuse import embed_missing, embedding_digest
from pipeline.errors import ConfigError, EmbedderUnavailable
from pipeline.ledger.models import MODEL, FileRow
from pipeline.ledger.vectors import Claim
from pipeline.sinks.records import matrix
from pipeline.stages.export import LEASE_SECONDS, Export
from pipeline.stages.report import StageReport
from pipeline.stages.stamps import is_of_present_model, known_tables, note_lost
from pipeline.stages.weights import check_weights
from pipeline.stages.work import begin, groups_of

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0
"""Seconds between two looks at whether another run has embedded what this one waits for, doubling: a look reads the chunks of all
files that wait, on a machine where the other run's model may be at work."""


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

    A text that another run is embedding is waited for. With ``dry_run`` nothing is embedded or written: the numbers say what
    would be. Raises EmbedderUnavailable or ConfigError when the model cannot answer; it then backs off, and what it answered
    until then is kept.
    """
    report, rows = await begin(export, "embed", file_ids, run_id)
    keys = {file_id: export.vectors_key(row) for file_id, row in rows.items()}
    uncut = [file_id for file_id, key in keys.items() if not key]
    report.not_ready = dict.fromkeys(uncut, "it has no chunks of its present payload: materialize chunks first")
    stale = [rows[file_id] for file_id, key in keys.items() if key and key != rows[file_id].vectors_key]
    if dry_run:
        await asyncio.to_thread(_count, export, stale, report)
    else:
        try:
            await _embed_all(export, stale, run_id, held, report)
        except (EmbedderUnavailable, ConfigError) as error:
            await asyncio.to_thread(export.record_sink_state, MODEL, str(error))
            raise
        await asyncio.to_thread(export.record_sink_state, MODEL, None)
    await asyncio.to_thread(export.record_failures, report.failures, run_id)
    return report.finish()


async def _embed_all(export: Export, rows: list[FileRow], run_id: str, held: HeldVectors | None, report: StageReport) -> None:
    pending, wait = rows, _FIRST_WAIT
    try:
        while pending:
            waiting: list[FileRow] = []
            for group in groups_of(pending):
                waiting += await _embed_group(export, group, run_id, held, report)
                export.progress("embed", report.worked, len(rows))
            if len(waiting) < len(pending):
                wait = _FIRST_WAIT
            else:
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            pending = waiting
    finally:
        await asyncio.to_thread(export.ledger.vectors.release, run_id)


async def _embed_group(
    export: Export, group: list[FileRow], run_id: str, held: HeldVectors | None, report: StageReport
) -> list[FileRow]:
    """Embed what is new in these files; answers those left for later, because another run is embedding a text of theirs."""
    files = await asyncio.to_thread(_read, export, group, report)
    claim = await asyncio.to_thread(_claim, export, files, run_id)
    mine = [file for file in files if file.row.file_id not in claim.waiting]
    known = await asyncio.to_thread(_known_vectors, export, mine, claim.located)
    lacking = [file.row.file_id for file in mine if not known.keys() >= set(file.digests)]
    if held and lacking:
        known = {**await held(lacking), **known}
    if mine:
        await _embed_files(export, mine, known, run_id, report)
    return [file.row for file in files if file.row.file_id in claim.waiting]


def _read(export: Export, group: list[FileRow], report: StageReport) -> list[_FileChunks]:
    tables = known_tables(export, "chunks", group)
    lost = [row.file_id for row in group if row.file_id not in tables]
    report.failures |= dict.fromkeys(lost, "its chunks are gone from the lake; they will be made again")
    note_lost(export, "chunks", lost)
    found = [(row, tables[row.file_id]) for row in group if row.file_id in tables]
    return [_FileChunks(row, table, [embedding_digest(text) for text in embedding_texts(table)]) for row, table in found]


def _claim(export: Export, files: list[_FileChunks], run_id: str) -> Claim:
    return export.ledger.vectors.claim(
        export.embedder.identity.slug,
        {file.row.file_id: file.digests for file in files},
        run_id,
        seconds=LEASE_SECONDS,
        is_live=export.run_is_live,
    )


def _known_vectors(
    export: Export, files: list[_FileChunks], located: Mapping[bytes, str]
) -> dict[bytes, npt.NDArray[np.float32]]:
    """Vectors of this model that the lake already holds for any of these texts, where the ledger says they are. A ledger that is
    new, or was put back from a copy, does not know all of them: what it lacks is looked for in the file's own partition."""
    wanted = {digest for file in files for digest in file.digests}
    partitions = {located[digest] for digest in wanted & located.keys()}
    partitions |= {file.row.file_id for file in files if not located.keys() >= set(file.digests)}
    tables = export.lake.read_many("embeddings", partitions, ["embedding_digest", "embedding"])
    known: dict[bytes, npt.NDArray[np.float32]] = {}
    for table in tables.values():
        if not is_of_present_model(export, table):
            continue
        vectors = matrix(table["embedding"])
        for position, digest in enumerate(table["embedding_digest"].to_pylist()):
            if digest in wanted:
                known[digest] = vectors[position]
    return known


def _count(export: Export, rows: list[FileRow], report: StageReport) -> None:
    """What embedding these files would take."""
    seen: set[bytes] = set()
    for group in groups_of(rows):
        files = _read(export, group, report)
        located = export.ledger.vectors.locate(export.embedder.identity.slug, {d for file in files for d in file.digests})
        seen |= _known_vectors(export, files, located).keys()
        for file in files:
            report.worked += 1
            for digest, tokens in zip(file.digests, file.table["chunk_token_count"].to_pylist(), strict=True):
                fresh = digest not in seen
                report.numbers["computed" if fresh else "reused"] += 1
                report.numbers["tokens"] += tokens if fresh else 0
                seen.add(digest)


async def _embed_files(
    export: Export, files: list[_FileChunks], known: dict[bytes, npt.NDArray[np.float32]], run_id: str, report: StageReport
) -> None:
    if not known.keys() >= {digest for file in files for digest in file.digests}:
        await check_weights(export)
    texts = [text for file in files for text in embedding_texts(file.table)]
    tokens = [count for file in files for count in file.table["chunk_token_count"].to_pylist()]
    try:
        vectors, stats = await embed_missing(export.embedder, texts, tokens, known)
    except (PartlyEmbedded, EmbeddingCancelled) as ended:
        await asyncio.to_thread(_write, export, files, ended.vectors, {}, known, run_id, StageReport("embed"))
        if isinstance(ended, EmbeddingCancelled):
            raise
        await asyncio.to_thread(
            export.record_sink_state, MODEL, None
        )  # it has answered some: it backs off as after a first failure
        raise ended.cause from ended.cause.__cause__
    report.numbers["computed"] += stats.computed
    report.numbers["reused"] += stats.reused
    report.numbers["duplicates"] += stats.duplicates
    report.numbers["tokens"] += stats.tokens_computed
    report.numbers["model_milliseconds"] += round(stats.seconds * 1000)
    await asyncio.to_thread(_write, export, files, vectors, stats.refused, known, run_id, report)


def _write(
    export: Export,
    files: list[_FileChunks],
    vectors: Vectors,
    refused: Mapping[int, str],
    known: Mapping[bytes, npt.NDArray[np.float32]],
    run_id: str,
    report: StageReport,
) -> None:
    """Write what the model has answered. A file with a vector that no store can search fails: of its chunks those that were
    not ``known`` before are kept with the others, in a partition without a stamp, of which only the vector index speaks."""
    identity = export.embedder.identity
    objects, updates, digests = [], [], {}
    start = 0
    for file in files:
        file_id, table, of_file = file.row.file_id, file.table, file.digests
        first, start = start, start + len(of_file)
        mine = vectors[first:start]
        stamp = {"vectors_key": export.vectors_key(file.row) or ""}
        if bad := unusable(mine):
            report.failures[file_id] = _failure(bad[0], refused.get(first + bad[0]))
            usable = np.setdiff1d(np.arange(len(of_file)), bad)
            of_file = [of_file[position] for position in usable]
            if known.keys() >= set(of_file):
                continue
            table, mine, stamp = table.take(usable), mine[usable], {}
        else:
            report.worked += 1
            report.rows.append({"file": file.row.display_name, "file_id": file_id, "chunks": len(mine)})
        table = table.append_column("embedding_digest", pa.array(of_file, pa.binary(16)))
        table = table.append_column("embedding", _fixed_size_list(mine, identity.dimension))
        objects.append((file_id, table, {**stamp, "model": identity.fingerprint}))
        updates.append({"file_id": file_id, "vectors_key": stamp.get("vectors_key")})
        digests[file_id] = of_file
    report.numbers["bytes"] += sum(export.lake.write_many("embeddings", objects))
    export.ledger.vectors.replace(identity.slug, digests, run_id)
    export.ledger.update_files(updates)


def _failure(chunk: int, refusal: str | None) -> str:
    if refusal is not None:
        return f"the model refused chunk {chunk}: {refusal}"
    return f"the model answered chunk {chunk} with a vector that is not finite or all zero"


def _fixed_size_list(vectors: Vectors, dimension: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1)), dimension)
