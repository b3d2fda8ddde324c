"""Tombstones of erased files, in the lake and in the ledger: with either alone no listing brings the file back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipeline.stages.export import Export


def entomb(export: Export, file_ids: Sequence[str]) -> None:
    """Note that these files are erased, in the lake first."""
    at = time.time()
    _write(export, dict.fromkeys(file_ids, at))
    export.ledger.register.entomb(file_ids, erased_at=at)


def lift_tombstones(export: Export, file_ids: Sequence[str]) -> None:
    """Let erased files return at the next complete listing.

    A look at the same time, which restores what one place alone has, does not bring them back: the ledger loses them before the
    lake, and again afterwards what such a look took from the lake.
    """
    export.ledger.register.lift(file_ids)
    for file_id in file_ids:
        export.lake.delete(file_id, ["tombstones"])
    export.ledger.register.lift(file_ids)


def restore_tombstones(export: Export) -> int:
    """Take into the ledger the tombstones that only the lake has: the ledger is new, or older than an erasure; and into the lake
    those that only the ledger has: the lake is, and may hold the erased again, which goes. Answers how many files are erased."""
    in_lake = export.lake.partitions("tombstones")  # before the ledger, in which a release lifts first
    known = export.ledger.register.tombstones()
    lost = [file_id for file_id in in_lake if file_id not in known]
    for file_id in lost:
        marks = export.lake.metadata("tombstones", file_id) or {}
        export.ledger.register.entomb([file_id], erased_at=float(marks["erased_at"]) if "erased_at" in marks else None)
    if lost:  # what was released meanwhile was no loss, here and below
        export.ledger.register.lift(set(lost).difference(export.lake.partitions("tombstones")))
    if missing := {file_id: known[file_id].erased_at for file_id in known.keys() - set(in_lake)}:
        export.lake.delete_many(missing)  # first: until its tombstone is there, the next look does this again
        _write(export, missing)
        kept = missing.keys() & export.ledger.register.tombstones()
        for file_id in missing.keys() - kept:
            export.lake.delete(file_id, ["tombstones"])
        export.ledger.log([(f, "erased", {"lake": "had lost its tombstone"}) for f in kept], run_id=None)
    return len(known) + len(lost)


def _write(export: Export, erased_at: Mapping[str, float]) -> None:
    """Tombstones into the lake, by file id with the time of the erasure in Unix seconds."""
    export.lake.write_many("tombstones", [(f, pa.table({}), {"erased_at": repr(at)}) for f, at in erased_at.items()])
