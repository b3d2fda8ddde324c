"""The plan: what a sync would do now, by doing its first half.

Payloads are fetched and cut, which the sync then need not do again; nothing is embedded, no sink is touched, and what fails
costs its file no attempt.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pipeline.ledger.models import MODEL
from pipeline.stages.chunk import chunk
from pipeline.stages.detect import Detection, detect
from pipeline.stages.embed import embed
from pipeline.stages.export import Export
from pipeline.stages.fetch import fetch
from pipeline.stages.needs import Needs, needs_of
from pipeline.stages.work import borrowed


@dataclass(frozen=True, slots=True)
class Plan:
    """``chunks`` and ``tokens`` are what would be embedded after reuse, also what waits for a model that is down, which a sync
    tries; ``reused`` chunks cost nothing. Of files that another run holds (``held``) nothing is counted."""

    detection: Detection
    needs: Needs
    chunks: int
    reused: int
    tokens: int
    failures: dict[str, str]
    held: list[str]

    @property
    def whole(self) -> bool:
        """The directory was read whole, and everything in it counted."""
        return not (self.detection.unread or self.held or self.failures)


async def make_plan(export: Export, *, run_id: str) -> Plan:
    """Look at the whole index and count the work. Raises SourceUnavailable."""
    detection = await detect(export, complete=True)
    needs = await asyncio.to_thread(needs_of, export, detection.index.scope)
    wanted = [*needs.ingest, *needs.alone, *needs.unreachable.get(MODEL, ())]
    async with borrowed(export, run_id):
        fetched = await fetch(export, wanted, run_id=run_id, is_attempt=False)
        cut = await chunk(export, wanted, run_id=run_id, is_attempt=False)
        counted = await embed(export, wanted, run_id=run_id, dry_run=True)
    failures = {**fetched.failures, **cut.failures, **counted.failures}
    numbers, held = counted.numbers, fetched.held_elsewhere
    return Plan(detection, needs, numbers["computed"], numbers["reused"], numbers["tokens"], failures, held)
