"""Stored moments, as Unix seconds: compared with a clock that may have been set since, and shown."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def is_due(last: float | None, every: float) -> bool:
    """Whether something is so many seconds ago, or never was. A moment to come was written by a clock that was ahead."""
    return last is None or not 0 <= time.time() - last < every


def is_awaited(moment: float | None, longest: float) -> bool:
    """Whether a moment is to come. One further away than anything is waited for was written by a clock that was ahead."""
    return moment is not None and 0 < moment - time.time() <= longest


def when(seconds: float | None) -> str:
    """A stored moment as UTC for people."""
    return "never" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
