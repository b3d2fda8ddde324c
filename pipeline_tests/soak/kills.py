"""How many processes ``make soak`` kills of each kind, and the seed of when."""

from __future__ import annotations

import os

import pytest

SEED = int(os.environ.get("SOAK_SEED", "7"))
KILLS = int(os.environ.get("SOAK_KILLS", "0"))
CLOUD_KILLS = KILLS // 5
DAEMON_KILLS = KILLS // 5
"""Of processes below ``indexport dev``; all other kills are of ``indexport sync``."""

only_in_the_soak = pytest.mark.skipif(not KILLS, reason="make soak sets SOAK_KILLS")
