"""The code location Dagster loads: composition only. Exports are YAML files under ``defs/``."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from pipeline.interpreter import look_for_garbage_less
from pipeline.orchestration.liveness import marking_executor

look_for_garbage_less()


@dg.definitions
def defs() -> dg.Definitions:
    """Every export of this installation. What people launch on its assets is marked as its jobs are."""
    exports = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(exports, dg.Definitions(executor=marking_executor))
