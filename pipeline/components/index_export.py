"""The IndexExport component: validated YAML in, the definitions of one export out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import dagster as dg
from pydantic import BaseModel, ModelWrapValidatorHandler, ValidationError, model_validator

from pipeline.errors import ConfigError
from pipeline.orchestration.assets import export_assets
from pipeline.orchestration.checks import export_checks
from pipeline.orchestration.jobs import approval_job, ingest_job, release_job, removal_job, repair_job, verification_job
from pipeline.orchestration.resources import EXPORTS
from pipeline.orchestration.sensors import directory_changes
from pipeline.stages.loaded_file import LoadedFile
from pipeline.stages.settings import FILE_NAMES, ExportSettings, described, exports_in
from pipeline.stages.templates import resolved


class _Attributes(ExportSettings):
    """Settings as YAML has them. Their errors repeat no value, for it may be a misplaced secret; Dagster makes pydantic's anew
    with them."""

    @model_validator(mode="wrap")
    @classmethod
    def _without_values(cls, given: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(resolved(given))
        except ValidationError as error:
            raise ConfigError(described(error)) from None


class IndexExport(dg.Component):
    """Exports one LlamaCloud index into the sinks it names; the YAML's attributes are ``ExportSettings``."""

    def __init__(self, settings: ExportSettings, file: LoadedFile | None = None) -> None:
        self.settings = settings
        self.file = file

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        return _Attributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> IndexExport:
        """From validated attributes; a YAML without any is refused by the model, which asks for a name. Raises ConfigError for
        what the commands refuse: a sink set up wrong, and a key that stands twice, of which Dagster takes the last."""
        files = [*filter(Path.is_file, (context.path / name for name in FILE_NAMES))]
        for file in files:
            exports_in(file)
        if not isinstance(attributes, ExportSettings):
            raise TypeError(f"{context.path} has no attributes; an IndexExport needs at least a name")
        return cls(attributes, LoadedFile(files[0], attributes.name) if files else None)  # Dagster too reads the first

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:  # noqa: ARG002 - Dagster's signature
        """Assets, jobs, checks and the sensor of this export."""
        return export_definitions(self.settings, self.file)


def export_definitions(settings: ExportSettings, file: LoadedFile | None = None) -> dg.Definitions:
    """The same definitions from settings made in code: what tests and benchmarks use; ``file`` is the one they were read from, if
    any. They name no executor, which would be that of everything in the code location; the export's jobs have their own."""
    ingest, removal, verification = ingest_job(settings), removal_job(settings), verification_job(settings)
    return dg.Definitions(
        assets=export_assets(settings),
        asset_checks=export_checks(settings),
        jobs=[ingest, removal, verification, repair_job(settings), approval_job(settings), release_job(settings)],
        sensors=[directory_changes(settings, file, ingest, removal, verification)],
        resources={"indexport": EXPORTS},
    )
