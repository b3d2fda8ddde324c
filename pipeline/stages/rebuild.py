"""Rebuilding what was lost from what is left: the ledger, the lake, or what is taken for granted of a sink.

Nothing that any part still has is made again: a lost ledger is read off listing, lake and snapshots; a lost lake takes its
vectors back from a sink.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow.compute as pc

from pipeline.errors import SINK_ERRORS, IncompleteListing, SinkDamaged
from pipeline.lake.lake import DATASETS, Dataset
from pipeline.ledger.models import FileRow
from pipeline.sinks.base import Snapshot
from pipeline.stages.chunk import chunk
from pipeline.stages.detect import detect
from pipeline.stages.embed import embed
from pipeline.stages.export import Export
from pipeline.stages.fetch import fetch
from pipeline.stages.load import build_records, by_file, holds
from pipeline.stages.orphans import adopt_orphans
from pipeline.stages.report import StageReport
from pipeline.stages.sink_vectors import SinkVectors
from pipeline.stages.stamps import is_of_present_model, known_tables, note_lost, stamp_of
from pipeline.stages.tombstones import restore_tombstones
from pipeline.stages.work import borrowed, groups_of, opened_sink, unprovisioned

_THREADS = 8
_FILES_AT_ONCE = 500
"""Whose rows and vector index are restored, or taken back, in one transaction each: runs wait for them."""


@dataclass(slots=True)
class LedgerRebuild:
    """What a lost ledger was read off: files whose payloads and vectors the lake has, files each sink already holds."""

    files: int = 0
    with_payload: int = 0
    with_vectors: int = 0
    standing: dict[str, int] = field(default_factory=dict)
    orphans: dict[str, int] = field(default_factory=dict)
    """Files that a sink holds and the directory does not have; they go the way of every removed file."""
    tombstones: int = 0
    unreachable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LakeRebuild:
    """How many files had lost something, and what each stage did about it."""

    files: int
    fetched: StageReport
    cut: StageReport
    embedded: StageReport
    busy: tuple[str, ...] = ()
    """Files of which nobody knows whether they have lost anything: a live run holds them."""

    @property
    def failures(self) -> dict[str, str]:
        busy = dict.fromkeys(self.busy, "a run is working on it; rebuild again when that has ended")
        return {**busy, **self.fetched.failures, **self.cut.failures, **self.embedded.failures}


async def rebuild_ledger(export: Export) -> LedgerRebuild:
    """Fill the ledger from a complete listing, the lake and every sink's snapshots; embeds nothing and writes to no sink.

    Raises SourceUnavailable, also for a listing that is not complete: it would make files look removed.
    """
    rebuilt = LedgerRebuild()
    rebuilt.tombstones = await asyncio.to_thread(restore_tombstones, export)
    detection = await detect(export, complete=True)
    if detection.look != "complete":
        reason = detection.unread or f"the index is {detection.look}"
        raise IncompleteListing(f"{reason}; a ledger is rebuilt from a complete listing alone")
    scope = await export.scope()
    await asyncio.to_thread(_restore_rows, export, rebuilt)
    ready = [row for row in (await asyncio.to_thread(export.ledger.files)).values() if export.records_key(row, scope)]
    for group in groups_of(ready):
        await asyncio.to_thread(build_records, export, group, scope, StageReport("rebuild"))
    for sink in export.settings.sinks:
        await _adopt_sink(export, sink, scope, rebuilt)
    await asyncio.to_thread(export.settle, [row.file_id for row in ready], scope)
    return rebuilt


def _restore_rows(export: Export, rebuilt: LedgerRebuild) -> None:
    rows = export.ledger.files()
    unknown = [row.file_id for row in rows.values() if row.payload_digest is None]
    model = export.embedder.identity
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(unknown), _FILES_AT_ONCE):
            batch = unknown[start : start + _FILES_AT_ONCE]
            read = dict(zip(batch, pool.map(lambda file_id: _lake_row(export, file_id), batch), strict=True))
            digests = {file_id: of_file for file_id, (_, of_file) in read.items() if of_file is not None}
            export.ledger.vectors.replace(model.slug, digests)  # first: a file with a payload is not looked at again
            export.ledger.update_files([{"file_id": file_id, **values} for file_id, (values, _) in read.items()])
    rebuilt.files = len(rows)
    restored = export.ledger.files().values()
    rebuilt.with_payload = sum(row.payload_digest is not None for row in restored)
    rebuilt.with_vectors = sum(row.vectors_key is not None and row.vectors_key == export.vectors_key(row) for row in restored)


def _lake_row(export: Export, file_id: str) -> tuple[dict[str, Any], list[bytes] | None]:
    """A file's ledger columns as its partitions were stamped, and the digests of its vectors if the present model made them."""
    payload = export.lake.metadata("parsed_payloads", file_id) or {}
    chunks = export.lake.read("chunks", file_id, ["chunk_token_count"])
    vectors = export.lake.read("embeddings", file_id, ["embedding_digest"])
    values = {
        "fetched_token": payload.get("change_token"),
        "payload_digest": payload.get("payload_digest"),
        "text_digest": payload.get("text_digest"),
        "provenance": payload.get("provenance"),
        "chunks_key": stamp_of(chunks, "chunks_key"),
        "chunk_count": chunks.num_rows if chunks is not None else None,
        "token_count": int(pc.sum(chunks["chunk_token_count"]).as_py() or 0) if chunks is not None else None,
        "vectors_key": stamp_of(vectors, "vectors_key"),
    }
    if vectors is None or not is_of_present_model(export, vectors):
        return values, None
    return values, vectors["embedding_digest"].to_pylist()


async def _adopt_sink(export: Export, sink: str, scope: tuple[str, str], rebuilt: LedgerRebuild) -> None:
    try:
        async with opened_sink(export, sink, scope[0]) as exporter:
            listed = await exporter.list_snapshots(export_config_id=scope[1])
    except SINK_ERRORS as error:
        rebuilt.unreachable[sink] = str(error)
        return
    rebuilt.standing[sink], rebuilt.orphans[sink] = await asyncio.to_thread(_record_snapshots, export, sink, listed)


def _record_snapshots(export: Export, sink: str, listed: Sequence[Snapshot]) -> tuple[int, int]:
    """Note which current record sets stand in a sink; answers their number and that of orphans."""
    rows = export.ledger.files()
    snapshots = by_file(listed, {})
    standing = {
        row.file_id: row.record_set_hash
        for row in rows.values()
        if row.record_set_hash and holds(snapshots.get(row.file_id), row.record_set_hash, row.chunk_count or 0)
    }
    held = export.held_in(sink)
    export.ledger.register.record_collection(held)
    export.ledger.record_sink(held, standing)
    return len(standing), adopt_orphans(export, rows, listed)


async def rebuild_lake(export: Export, *, run_id: str, sinks: Iterable[str] | None = None) -> LakeRebuild:
    """Make what the lake has lost: payloads fetched, chunks cut, vectors read back from sinks, the rest embedded.

    A vector is taken from a sink where the same model made it of the same text. Raises SourceUnavailable, LakeError.
    """
    await asyncio.to_thread(restore_tombstones, export)
    rows = await asyncio.to_thread(export.ledger.files)
    async with borrowed(export, run_id):
        staying = [row.file_id for row in rows.values() if not row.is_leaving]
        lost, busy = await asyncio.to_thread(_find_lost, export, staying, run_id)
        made = await make_again(export, lost, run_id=run_id, sinks=export.settings.sinks if sinks is None else sinks)
        return replace(made, busy=busy)


async def make_again(export: Export, file_ids: list[str], *, run_id: str, sinks: Iterable[str]) -> LakeRebuild:
    """Payload, chunks and vectors of these files as far as they are not current, with vectors these sinks hold."""
    fetched = await fetch(export, file_ids, run_id=run_id)
    cut = await chunk(export, file_ids, run_id=run_id)
    embedded = await embed(export, file_ids, run_id=run_id, held=SinkVectors(export, list(sinks)))
    return LakeRebuild(len(file_ids), fetched, cut, embedded)


async def renew_sink(export: Export, sink: str) -> None:
    """Nothing is taken for granted of a sink: the next run compares every file with what it holds. Raises SinkDamaged where that
    is in vain; a sink that is down or set up wrong is told by that run."""
    await asyncio.to_thread(export.ledger.register.reset_sink, sink)
    tenant_id, config = await export.scope()
    async with unprovisioned(partial(export.sink, sink, tenant_id)) as exporter:
        try:
            await exporter.renew(export_config_id=config)
        except SINK_ERRORS as error:
            if isinstance(error, SinkDamaged):
                raise


def _find_lost(export: Export, file_ids: Sequence[str], run_id: str) -> tuple[list[str], tuple[str, ...]]:
    """``forget_lost`` of files that no live run holds, and those that one does: what it has written and not noted yet would look
    like another's."""
    lost: list[str] = []
    mine: set[str] = set()
    for start in range(0, len(file_ids), _FILES_AT_ONCE):
        held = export.claim(list(file_ids[start : start + _FILES_AT_ONCE]), run_id)
        mine.update(held)
        lost += forget_lost(export, list(export.ledger.files(held).values()))
        export.ledger.drop_leases(run_id)
    return lost, tuple(file_id for file_id in file_ids if file_id not in mine)


def forget_lost(export: Export, rows: Sequence[FileRow]) -> list[str]:
    """Take back what the ledger says of partitions that are gone, damaged, or others than those it speaks of; answers the files
    that have lost one. Reads each partition: a lake that was put back from a copy lists them all, and some are older."""
    gone: dict[Dataset, set[str]] = {}
    for dataset in DATASETS:
        gone[dataset] = {row.file_id for row in rows}.difference(known_tables(export, dataset, rows, columns=[]))
    for dataset, file_ids in gone.items():
        note_lost(export, dataset, file_ids)
    export.ledger.vectors.replace(export.embedder.identity.slug, {file_id: [] for file_id in gone["embeddings"]})
    return sorted(set().union(*gone.values()))
