"""The code location Dagster loads: composition only. Exports are YAML files under ``defs/``, or where ``INDEXPORT_DEFS`` says."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from pipeline.components.index_export import export_definitions
from pipeline.home import OWN_DEFS, defs_folder
from pipeline.interpreter import look_for_garbage_less
from pipeline.orchestration.liveness import marking_executor
from pipeline.stages.loaded_file import LoadedFile
from pipeline.stages.settings import located_exports

look_for_garbage_less()


@dg.definitions
def defs() -> dg.Definitions:
    """Every export of this installation. What people launch on its assets is marked as its jobs are."""
    return dg.Definitions.merge(*_exports(), dg.Definitions(executor=marking_executor))


def _exports() -> list[dg.Definitions]:
    folder = defs_folder()
    exports = located_exports(folder)  # also where Dagster reads them: its own errors name no file, or repeat what stands in one
    if folder == OWN_DEFS:
        return [dg.load_from_defs_folder(path_within_project=Path(__file__).parent)]
    # That of another project, whose other components are its own code location's.
    return [export_definitions(each, LoadedFile(path, each.name)) for path, each in exports.values()]
