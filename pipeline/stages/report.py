"""What a stage did, for people and for the run's metadata."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

_NAMED = 3


@dataclass(slots=True)
class StageReport:
    """Counts of one stage run. ``rows`` describes the files worked on, ``failures`` maps file id to reason."""

    stage: str
    files: int = 0
    worked: int = 0
    numbers: Counter[str] = field(default_factory=Counter)
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    held_elsewhere: list[str] = field(default_factory=list)
    """Files another live run holds; they are left to the next wave."""
    not_ready: dict[str, str] = field(default_factory=dict)
    """File id -> what must come first; no failure of the file's own."""
    names: dict[str, str] = field(default_factory=dict)
    """File id -> name, of those the ledger knows."""
    sizes: list[int] = field(default_factory=list)
    """Tokens of every chunk made, for the histogram."""
    seconds: float = 0.0
    _started: float = field(default_factory=time.perf_counter)

    def finish(self) -> StageReport:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self._started
        return self

    @property
    def left_out(self) -> dict[str, str]:
        """File id -> why nothing was done for it, though no other run holds it."""
        return self.failures | self.not_ready

    def told(self, reasons: Mapping[str, str]) -> str:
        """The first of these reasons in words, with the files' names and ids."""
        first = [f"{self.named(file_id)}: {reason}" for file_id, reason in islice(reasons.items(), _NAMED)]
        more = len(reasons) - len(first)
        told = "; ".join(first) + (f"; and {more} more" if more else "")
        return told if len(reasons) == 1 else f"none of these {len(reasons)} files can be worked on: {told}"

    def named(self, file_id: str) -> str:
        """A file for people to read of."""
        return f"{self.names[file_id]} ({file_id})" if file_id in self.names else file_id

    @property
    def skipped(self) -> int:
        """Files whose output was already what it should be."""
        return self.files - self.worked - len(self.failures) - len(self.held_elsewhere) - len(self.not_ready)
