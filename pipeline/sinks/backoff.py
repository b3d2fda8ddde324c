"""How long to wait before a store that is busy, out of reach or written by others is asked again."""

from __future__ import annotations

import math
import random
from typing import Final

from pipeline.retry_after import seconds_asked

FIRST_WAIT: Final = 0.25
LONGEST_WAIT: Final = 30.0


def backoff(attempt: int, *, first: float | None = None, longest: float | None = None) -> float:
    """Seconds after this attempt, counted from 1: about ``first``, twice as long each time, up to ``longest``, with jitter."""
    ceiling = min(longest or LONGEST_WAIT, (first or FIRST_WAIT) * 2.0 ** min(attempt - 1, 30))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, no secret


def apart(number: int, *, first: float, longest: float = math.inf) -> float:
    """Seconds after which a writer that was in another's way tries again, with ``number`` counted from 0: anything from none to
    ``first``, twice as much each time, up to ``longest``. Of those that disturb each other one has to be late."""
    return random.uniform(0, min(first * 2.0**number, longest))  # noqa: S311 - jitter, no secret


def wait(retry_after: str | None, attempt: int) -> float:
    """Seconds after this attempt: what a ``Retry-After`` header asks for, up to the longest wait and with jitter on top."""
    asked = seconds_asked(retry_after)
    return backoff(attempt) if asked is None else min(asked, LONGEST_WAIT) * random.uniform(1.0, 1.25)  # noqa: S311 - jitter
