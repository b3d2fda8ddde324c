"""What a stage did, for people and for the run's metadata."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


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
    sizes: list[int] = field(default_factory=list)
    """Tokens of every chunk made, for the histogram."""
    seconds: float = 0.0
    _started: float = field(default_factory=time.perf_counter)

    def finish(self) -> StageReport:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self._started
        return self

    @property
    def skipped(self) -> int:
        """Files whose output was already what it should be."""
        return self.files - self.worked - len(self.failures) - len(self.held_elsewhere) - len(self.not_ready)
