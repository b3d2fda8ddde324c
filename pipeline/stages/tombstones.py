"""Tombstones of erased files, in the lake and in the ledger: with either alone no listing brings the file back."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa

from pipeline.stages.export import Export


def entomb(export: Export, file_ids: Sequence[str]) -> None:
    """Note that these files are erased, in the lake first."""
    at = time.time()
    for file_id in file_ids:
        export.lake.write("tombstones", file_id, pa.table({}), {"erased_at": repr(at)})
    export.ledger.register.entomb(file_ids, erased_at=at)


def restore_tombstones(export: Export) -> int:
    """Take into the ledger the tombstones that only the lake has: the ledger is new, or older than an erasure. Answers how many
    files are erased."""
    known = export.ledger.register.tombstones()
    lost = [file_id for file_id in export.lake.partitions("tombstones") if file_id not in known]
    for file_id in lost:
        marks = export.lake.metadata("tombstones", file_id) or {}
        export.ledger.register.entomb([file_id], erased_at=float(marks["erased_at"]) if "erased_at" in marks else None)
    return len(known) + len(lost)
