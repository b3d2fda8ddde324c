"""Settings of one export, as written in its ``defs.yaml``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.documents.models import ChunkingSettings
from pipeline.embedding.settings import EmbeddingSettings
from pipeline.errors import ConfigError
from pipeline.lake.lake import DATASETS
from pipeline.llama_cloud.settings import LlamaCloudSettings
from pipeline.sinks.base import MetadataType, check_metadata_fields
from pipeline.sinks.registry import LOCAL_SINKS, settings_type
from pipeline.stages.templates import resolved
from pipeline.stages.yaml_file import documents_of, said_of

_COMPONENT = "pipeline.components.IndexExport"
_MISSPELT = 0.9
"""How alike a component's type is to ours, of 1, when it is meant to be ours."""
_OF_A_COMPONENT = frozenset({"type", "attributes", "template_vars_module", "requirements", "post_processing"})
"""What Dagster knows beside each other in a component's YAML."""
FILE_NAMES = ("defs.yaml", "defs.yml")
"""As Dagster finds components."""
_SHOWN = 5
_OTHER_ASSETS = ("directory_files", *DATASETS)
"""Assets of every export, beside which every sink is one."""
_ASSET_NAME = re.compile(r"[A-Za-z0-9_]+")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class DetectionSettings(_Settings):
    """How changes are found and handed out as runs."""

    files_per_run: int = Field(default=500, ge=1, le=5000, description="Most files one run carries.")
    minimum_interval_seconds: int = Field(default=30, ge=1, description="Time between two looks at the index.")
    reconcile_interval_seconds: int = Field(default=21_600, ge=0, description="A complete listing at least this often.")
    max_wait_seconds: int = Field(
        default=900,
        ge=0,
        description="How long scattered changes wait for a quiet moment before small ranges go out as they are, and removals for "
        "files that are being ingested.",
    )
    sync_every_seconds: int | None = Field(
        default=None,
        ge=60,
        description="Ask LlamaCloud to sync this often; what it refuses is asked for again at the next look. Default: never.",
    )
    max_attempts: int = Field(
        default=5,
        ge=1,
        description="A file that failed this often is parked until it or a setting it may have failed for changes; not for a "
        "download that may work later.",
    )


class RemovalSettings(_Settings):
    """When a file that the index no longer lists may be deleted from the sinks."""

    grace_period_seconds: int | None = Field(
        default=None,
        ge=0,
        description="How long a file must have been missing. Default: 3,600; 0 for a folder behind the local cloud.",
    )
    max_delete_fraction: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="More than this part of the directory within the grace period, an hour at least, waits for approval.",
    )

    def most_deletes(self, known: int) -> int:
        """How many of so many files may go without approval: one at least, unless none may."""
        return max(1, int(self.max_delete_fraction * known)) if self.max_delete_fraction else 0


class ExportSettings(_Settings):
    """One export: an index, how to cut and embed it, and the sinks that hold the records."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]{0,40}$",
        description="Of the export: in asset keys, in the lake and in the ledger; not to be changed.",
    )
    index: LlamaCloudSettings = LlamaCloudSettings()
    chunking: ChunkingSettings = ChunkingSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    sinks: dict[str, dict[str, Any]] = Field(
        default={"lancedb": {}}, description="Sink name -> its settings. ``type`` names a registered sink or ``module:Class``."
    )
    metadata_fields: dict[str, MetadataType] = Field(
        default={},
        description="File metadata keys that searches filter on, each with its type: "
        f"{', '.join(f'`{kind}`' for kind in get_args(MetadataType))}. The rest travels as JSON.",
    )
    detection: DetectionSettings = DetectionSettings()
    removal: RemovalSettings = Field(default_factory=RemovalSettings)

    @field_validator("sinks")
    @classmethod
    def _sinks_are_assets(cls, sinks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not sinks:
            raise ValueError("name at least one sink")
        for name, settings in sinks.items():
            if name in _OTHER_ASSETS or not _ASSET_NAME.fullmatch(name):
                others = ", ".join(_OTHER_ASSETS)
                raise ValueError(f"{name!r} cannot name a sink: use letters, digits and _, and none of {others}")
            if not isinstance(settings.get("type", name), str):
                raise ValueError(f"{name!r}: its `type` must be a string")
        return sinks


def described(error: ValidationError, *of: str) -> str:
    """What is wrong with which setting, without the values given: one could be a secret in the wrong place."""
    return "; ".join(f"{'.'.join(map(str, (*of, *problem['loc'])))}: {problem['msg']}" for problem in error.errors())


def check_sinks(export: ExportSettings) -> None:
    """Raise ConfigError for a sink of unknown type, for settings that its type does not take and for metadata fields that no sink
    could keep: a sink would find them when everything is embedded.

    A class of one's own is not imported for it, nor are settings checked without their store's SDK: who opens the sink is told.
    """
    check_metadata_fields(export.metadata_fields)
    for name, given in export.sinks.items():
        kind = given.get("type", name)
        if ":" in kind:
            continue
        try:
            expected = settings_type(kind)
            if expected is not None:
                values = {key: value for key, value in given.items() if key != "type"}
                if kind in LOCAL_SINKS:
                    values.setdefault("uri", "home")  # it has no address before the home is known
                expected(**values)
        except ValidationError as error:
            raise ConfigError(described(error, "sinks", name)) from None
        except ConfigError as error:
            raise ConfigError(f"sinks.{name}: {error}") from None


def defs_files(folder: Path) -> list[Path]:
    """The files under a ``defs`` folder that may hold exports."""
    return sorted({path for name in FILE_NAMES for path in folder.glob(f"**/{name}")})


def why_none(folder: Path) -> str:
    """Why a ``defs`` folder has no export: which files it has."""
    files = defs_files(folder)
    if not files:
        return "no defs.yaml lies under it"
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return f"no component in {', '.join(map(str, files[:_SHOWN]))}{more} is of type {_COMPONENT}"


def load_exports(folder: Path) -> dict[str, ExportSettings]:
    """Every export written under a ``defs`` folder, by name, without loading Dagster.

    Raises ConfigError naming the file and the setting.
    """
    return {name: settings for name, (_, settings) in located_exports(folder).items()}


def located_exports(folder: Path) -> dict[str, tuple[Path, ExportSettings]]:
    """``load_exports``, each with the file it is written in."""
    exports: dict[str, tuple[Path, ExportSettings]] = {}
    for path in defs_files(folder):
        for settings in exports_in(path):
            if settings.name in exports:
                raise ConfigError(
                    f"{path}: another export is called {settings.name!r}, in {exports[settings.name][0]}; rename one"
                )
            exports[settings.name] = path, settings
    return exports


def exports_in(path: Path) -> list[ExportSettings]:
    """Those of a file's components that are ours. Raises ConfigError naming the file and the setting."""
    try:
        return list(_read(path))
    except (ValueError, ConfigError, RecursionError, yaml.YAMLError) as error:
        # Without its cause: Dagster shows that too, and YAML's words repeat lines of the file.
        raise ConfigError(f"{path}: {_without_text(error)}") from None


def _read(path: Path) -> Iterator[ExportSettings]:
    """Raises ValueError also for a file without any component, which Dagster refuses too."""
    is_empty = True
    for document, repeated in documents_of(path):
        is_empty &= document is None
        if document is None or not _is_export(document):
            continue
        if repeated:
            raise ValueError(repeated)
        settings = ExportSettings.model_validate(resolved(document["attributes"]))
        check_sinks(settings)
        yield settings
    if is_empty:
        raise ValueError(f"it holds no component; write one of type {_COMPONENT}, or remove the file")


def _is_export(document: Any) -> bool:
    """Raises ValueError for what is no component, and for one that is meant to be ours and is none."""
    if not isinstance(document, dict):
        raise ValueError("a component is a mapping with a type and attributes")
    if "type" not in document:
        raise ValueError(f"`type` is missing; an export's is {_COMPONENT}")
    kind = document["type"]
    if not isinstance(kind, str):
        raise ValueError(f"`type` must be the path of a component's class, such as {_COMPONENT}")
    if kind != _COMPONENT:
        if kind.split(".")[-1] == "IndexExport" or get_close_matches(kind, [_COMPONENT], cutoff=_MISSPELT):
            raise ValueError(f"type: misspelt; an export's is {_COMPONENT}")
        return False
    if not isinstance(document.get("attributes"), dict):
        raise ValueError("attributes: a mapping of settings with at least a name")
    if strays := [str(key) for key in document if key not in _OF_A_COMPONENT]:
        raise ValueError(f"{', '.join(strays)}: no part of a component; if it is a setting, indent it under `attributes`")
    return True


def _without_text(error: Exception) -> str:
    """What is wrong with a file, without the text of the file, which may hold a secret in the wrong place."""
    if isinstance(error, ValidationError):
        return described(error)
    return said_of(error) if isinstance(error, yaml.YAMLError | UnicodeDecodeError | RecursionError) else str(error)
