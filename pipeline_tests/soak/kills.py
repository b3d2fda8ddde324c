"""How many processes ``make soak`` kills of each kind, the seed of when, and how long it works at random."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

SEED = int(os.environ.get("SOAK_SEED", "7"))
KILLS = int(os.environ.get("SOAK_KILLS", "0"))
CLOUD_KILLS = KILLS // 5
DAEMON_KILLS = KILLS // 5
"""Of processes below ``indexport dev``; all other kills are of ``indexport sync``."""

SECONDS = float(os.environ.get("SOAK_SECONDS", "0"))

only_in_the_soak = pytest.mark.skipif(not KILLS, reason="make soak sets SOAK_KILLS")
only_in_the_soak_of_seconds = pytest.mark.skipif(not SECONDS, reason="make soak sets SOAK_SECONDS")


@dataclass
class UsualTime:
    """How long a process takes that nobody disturbs, in seconds, as last seen: a machine's speed changes during a soak."""

    seconds: float

    def has_ended(self, process: subprocess.Popen[Any], share: float) -> bool:
        """Wait for a share of that time; whether the process had ended by then."""
        started = time.monotonic()
        try:
            process.wait(share * self.seconds)
        except subprocess.TimeoutExpired:
            return False
        self.seconds = time.monotonic() - started
        return True


def until_landed(kills: int, attempt: Callable[[int], bool]) -> None:
    """Call ``attempt`` with 1, 2 and so on until so many of its kills have landed, as it answers: a kill lands when its victim
    lived and had work to do. Fails when fewer than half of the attempts do."""
    landed = 0
    for number in range(1, 2 * kills + 1):
        landed += attempt(number)
        if landed == kills:
            return
    pytest.fail(f"only {landed} of {2 * kills} kills landed; {kills} were wanted")
