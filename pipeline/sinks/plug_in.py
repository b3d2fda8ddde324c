"""Exporters written for LlamaCloud's reference protocol, by import path.

What belongs here: the adapter that makes a class with only the reference's four methods (``export``, ``delete_file``,
``delete_files``, ``list_snapshots``) a sink. What such a class does not offer is reported as missing, never imitated.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import ConfigDict

from pipeline.errors import ConfigError, SinkConflict
from pipeline.sinks.base import (
    UNKNOWN_RECORD_SET,
    Exporter,
    ReplaceReport,
    SearchHit,
    SearchRequest,
    SinkContext,
    SinkSettings,
    Snapshot,
)
from pipeline.sinks.records import FileRecords, to_records

_REFERENCE_METHODS = ("export", "delete_file", "delete_files", "list_snapshots")


class PlugInSettings(SinkSettings):
    """Keyword arguments of the plugged-in class, as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)


def plug_in_class(path: str) -> type[Any]:
    """The class at ``module:Class``; one of ours, or one with the reference's four methods.

    Raises ConfigError naming what cannot be imported or which method is missing.
    """
    module, _, name = path.partition(":")
    try:
        found: type[Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the sink type {path!r} cannot be imported: {error}") from error
    missing = [method for method in _REFERENCE_METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(f"the sink type {path!r} lacks {', '.join(missing)} of the exporter protocol")
    return found


class PlugInExporter(Exporter):
    """A reference exporter as a sink.

    The reference leaves open what happens to the tail of a file that shrinks, so a shrinking file is deleted first: for
    a moment it does not answer. Snapshots without a ``record_set_hash`` are compared by what the ledger recorded.
    """

    settings_type = PlugInSettings
    search_modes = frozenset()

    def __init__(self, plugged: type[Any], settings: PlugInSettings, context: SinkContext) -> None:
        super().__init__(settings, context)
        self._name = f"{plugged.__module__}:{plugged.__qualname__}"
        self._exporter = plugged(**(settings.model_extra or {}))
        accepted = inspect.signature(self._exporter.list_snapshots).parameters
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
        self._snapshot_options: Mapping[str, str] = (
            {"embedding_model": context.model.name} if takes_any or "embedding_model" in accepted else {}
        )

    async def provision(self) -> None:
        """The reference provisions on the first export."""

    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        self.check_files(files)
        held = {
            (config, snapshot.parsed_directory_file_id): snapshot.chunk_count
            for config in dict.fromkeys(file.provenance.export_config_id for file in files)
            for snapshot in await self.list_snapshots(export_config_id=config)
        }
        records = size = 0
        for file in files:
            config = file.provenance.export_config_id
            if held.get((config, file.file_id), 0) > file.table.num_rows:
                await self.delete_file(parsed_directory_file_id=file.file_id, export_config_id=config)
            if file.table.num_rows:
                await self._exporter.export(
                    to_records(file.table),
                    project_id=self.context.tenant_id,
                    embeddings=file.table["embedding"].to_pylist(),
                    embedding_model=self.context.model.name,
                )
            records += file.table.num_rows
            size += file.table.nbytes
        return ReplaceReport(records, size)

    async def delete_file(self, *, parsed_directory_file_id: str, export_config_id: str) -> None:
        await self._exporter.delete_file(parsed_directory_file_id=parsed_directory_file_id, export_config_id=export_config_id)

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        await self._exporter.delete_files(
            parsed_directory_file_ids=list(parsed_directory_file_ids), export_config_id=export_config_id
        )

    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        listed = await self._exporter.list_snapshots(export_config_id=export_config_id, **self._snapshot_options)
        wanted = None if parsed_directory_file_ids is None else set(parsed_directory_file_ids)
        snapshots = [self._snapshot(item, export_config_id) for item in listed]
        return [s for s in snapshots if wanted is None or s.parsed_directory_file_id in wanted]

    def fetch_records(
        self,
        *,
        export_config_id: str,  # noqa: ARG002 - the protocol's
        parsed_directory_file_ids: Sequence[str] | None = None,  # noqa: ARG002 - the protocol's
    ) -> AsyncIterator[pa.Table]:
        raise SinkConflict(f"{self._name} implements only the reference protocol; its records cannot be read back")

    async def search(self, request: SearchRequest) -> list[SearchHit]:  # noqa: ARG002 - the protocol's
        raise ValueError(f"{self._name} implements only the reference protocol; it offers no search")

    async def close(self) -> None:
        close = getattr(self._exporter, "close", None)
        if close is not None:
            outcome = close()
            if inspect.isawaitable(outcome):
                await outcome

    def _snapshot(self, item: Any, export_config_id: str) -> Snapshot:
        """From any object or mapping that has at least ``parsed_directory_file_id``."""

        def value(name: str, default: Any) -> Any:
            found = item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
            return default if found is None else found

        return Snapshot(
            parsed_directory_file_id=value("parsed_directory_file_id", ""),
            export_config_id=value("export_config_id", export_config_id),
            content_fingerprint_hash=value("content_fingerprint_hash", ""),
            source_modified_at=value("source_modified_at", None),
            chunk_count=value("chunk_count", 0),
            embedding_model=value("embedding_model", self.context.model.fingerprint),
            record_set_hash=value("record_set_hash", UNKNOWN_RECORD_SET),
        )
