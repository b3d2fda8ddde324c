"""A client-side limit on requests.

What belongs here: pacing of our own requests, so that a vendor whose limits are not documented is not hit at full speed.
"""

from __future__ import annotations

import asyncio


class RateLimiter:
    """Spaces callers evenly at ``per_second``, in the order they arrive. For one event loop."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1.0 / per_second
        self._next_slot = 0.0

    async def wait(self) -> None:
        """Return when it is this caller's turn."""
        now = asyncio.get_running_loop().time()
        slot = max(now, self._next_slot)
        self._next_slot = slot + self._interval
        await asyncio.sleep(slot - now)
