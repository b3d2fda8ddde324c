"""The code location Dagster loads: composition only. Exports are YAML files under ``defs/``."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from pipeline.interpreter import look_for_garbage_less

look_for_garbage_less()


@dg.definitions
def defs() -> dg.Definitions:
    """Every export of this installation."""
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
